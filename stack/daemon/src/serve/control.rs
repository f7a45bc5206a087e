//! What the requests do: the containers that the daemon serves, and their changes. Every method works whole or changes
//! nothing. They block for as long as the kernel needs, so they run beside the threads that serve requests and frames.

mod again;
mod capture;
mod errors;
mod flows;
mod join;
mod limits;
mod ports;
mod record;
mod reload;

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::json;
use skbudget_controller::Limits;

use super::config::ServeConfig;
use super::events::Events;
use super::privileged::Privileged;
use super::target::NetnsKey;
use crate::api::{ApiError, AttachRequest, ContainerInfo, ContainerList};
use crate::capture::Captures;
use crate::cli::PublishArg;
use crate::daemon::Daemon;
use crate::settings::{ContainerOptions, ContainerSettings};
use crate::stats::Stats;
use crate::types::{DaemonError, Publish};
use errors::{failed, no_such_container, refused};
use join::secret;

/// Most containers of one daemon.
pub(super) const CONTAINERS_MAX: usize = 16_384;

/// Interval between two checks of what is undelivered, at the end.
const DRAIN_STEP: Duration = Duration::from_millis(10);

/// The daemon and its containers.
#[derive(Debug)]
pub(super) struct Control {
    daemon: Daemon,
    /// In force. Replaced whole when the file is read again.
    config: Mutex<Arc<ServeConfig>>,
    /// What needs privileges.
    pub(super) privileged: Privileged,
    containers: Mutex<BTreeMap<String, Entry>>,
    /// Number in the subnet of the container that was attached last without an address.
    last_number: AtomicU32,
    /// What happens, for clients that follow it.
    pub(super) events: Events,
    /// Those that clients follow.
    pub(super) captures: Captures,
    /// Processes that served the containers before this one, and ended without an order.
    pub(super) restarts: u64,
}

/// An attached container.
#[derive(Debug)]
struct Entry {
    pid: Option<u32>,
    path: Option<PathBuf>,
    /// Its network namespace, which is attached once.
    netns: NetnsKey,
    /// Hardware address of its device.
    mac: [u8; 6],
    ifname: String,
    group: Option<String>,
    settings: ContainerSettings,
    /// As given, changed by requests since.
    options: ContainerOptions,
    origin: Origin,
}

/// How a container was attached: what a changed config is compared with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Origin {
    /// By the config, not by a client.
    pub(super) configured: bool,
    /// As given.
    pub(super) request: AttachRequest,
    /// The same with the template that applied, as of the config in force.
    pub(super) filled: AttachRequest,
}

impl Control {
    pub(super) fn new(
        daemon: Daemon,
        config: ServeConfig,
        privileged: Privileged,
        restarts: u64,
    ) -> Self {
        Self {
            daemon,
            config: Mutex::new(Arc::new(config)),
            privileged,
            containers: Mutex::default(),
            last_number: AtomicU32::new(0),
            events: Events::default(),
            captures: Captures::default(),
            restarts,
        }
    }

    /// Refuses a group that does not exist.
    fn check_group(&self, group: Option<&str>) -> Result<(), ApiError> {
        let config = self.config();
        match group.filter(|group| !config.has_group(group)) {
            Some(group) => {
                let message = config.no_group(group);
                Err(ApiError::invalid("no_such_group", message).key("group"))
            }
            None => Ok(()),
        }
    }

    /// Binds ports of the host, all or none. A port in use is named.
    fn bind_all(&self, ports: &[PublishArg]) -> Result<Vec<Publish>, ApiError> {
        let bind = |port: &PublishArg| {
            self.privileged.bind(port).map_err(|e| {
                let message = format!("publish {}: {e}", port.host);
                let in_use = e.kind() == io::ErrorKind::AddrInUse;
                let code = if in_use { "port_in_use" } else { "cannot_bind" };
                ApiError::conflict(code, message).key("publish")
            })
        };
        ports.iter().map(bind).collect()
    }

    /// Removes a container. Returns when its device is gone.
    pub(super) fn detach(&self, name: &str) -> Result<(), ApiError> {
        {
            let containers = self.containers();
            let _ = containers.get(name).ok_or_else(|| no_such_container(name))?;
            // First: the device is gone when the last of its descriptors is closed, by the worker.
            self.privileged.forget(name);
        }
        self.daemon.remove(name).map_err(|e| failed(&e))?;
        // The name may belong to another container by now.
        self.ended(name);
        tracing::info!(container = %name, "detached");
        self.events.add("detached", json!({ "container": name }));
        Ok(())
    }

    /// A container has ended: its entry is removed, unless another container has taken the name since.
    pub(super) fn ended(&self, name: &str) {
        let mut containers = self.containers();
        if !self.daemon.has(name).unwrap_or(false) && containers.remove(name).is_some() {
            self.privileged.forget(name);
        }
    }

    /// Removes the entries of all containers that have ended: events may have been lost.
    pub(super) fn forget_ended(&self) {
        let names: Vec<String> = self.containers().keys().cloned().collect();
        names.iter().for_each(|name| self.ended(name));
    }

    /// Every container as it was attached and changed since.
    pub(super) fn list(&self) -> ContainerList {
        let containers = self.containers();
        ContainerList { containers: containers.iter().map(|(name, e)| e.info(name)).collect() }
    }

    /// One container of [`Self::list`].
    pub(super) fn one(&self, name: &str) -> Result<ContainerInfo, ApiError> {
        let containers = self.containers();
        containers.get(name).map(|entry| entry.info(name)).ok_or_else(|| no_such_container(name))
    }

    /// The state of everything, or of one container.
    pub(super) fn stats(&self, name: Option<&str>) -> Result<Stats, ApiError> {
        let mut stats = self.daemon.stats(false).map_err(|e| failed(&e))?;
        if let Some(name) = name {
            stats.containers.retain(|container| container.name == name);
            if stats.containers.is_empty() {
                return Err(no_such_container(name));
            }
        }
        Ok(stats)
    }

    /// Waits until what the containers sent is delivered, at most for the time of the config. `interrupted` ends the
    /// wait. Returns the bytes that are not delivered then.
    pub(super) fn drain(&self, mut interrupted: impl FnMut() -> bool) -> u64 {
        let until = Instant::now() + self.config().drain;
        let names: Vec<String> = self.containers().keys().cloned().collect();
        loop {
            // A container that has ended meanwhile has nothing left to deliver.
            let bytes = |name: &String| self.daemon.undelivered(name).map_or(0, |u| u.bytes);
            let undelivered: u64 = names.iter().map(bytes).sum();
            if undelivered == 0 || Instant::now() >= until || interrupted() {
                return undelivered;
            }
            std::thread::sleep(DRAIN_STEP);
        }
    }

    /// Whether every worker answers. Returns when all have.
    pub(super) fn responds(&self) -> bool {
        self.daemon.check().is_ok()
    }

    /// Ends every container and the workers.
    pub(super) fn shutdown(&self) -> Result<(), DaemonError> {
        self.daemon.stop()
    }

    /// The config in force.
    fn config(&self) -> Arc<ServeConfig> {
        Arc::clone(&self.config.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn containers(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn ip(&self) -> Ipv4Addr {
        self.settings.container.guest_ip
    }

    fn info(&self, name: &str) -> ContainerInfo {
        let Self { pid, path, ifname, group, settings, .. } = self;
        let limits = settings.budget.limits;
        ContainerInfo {
            name: name.to_owned(),
            pid: *pid,
            netns: path.clone(),
            ifname: ifname.clone(),
            ip: self.ip(),
            ipv6: settings.container.ipv6.map(|net| net.guest),
            group: group.clone(),
            hard_bytes: (limits != Limits::NONE).then(|| limits.hard_bytes()),
            publish: settings.publish.clone(),
        }
    }
}

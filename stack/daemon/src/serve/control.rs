//! What the requests do: the containers that the daemon serves, and their changes. Every method works whole or changes
//! nothing. They block for as long as the kernel needs, so they run beside the threads that serve requests and frames.

mod capture;
mod errors;
mod flows;
mod limits;
mod ports;
mod record;
mod reload;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::json;
use skbudget_controller::Limits;

use super::config::ServeConfig;
use super::events::Events;
use super::privileged::Privileged;
use super::target::{self, IFNAME_DEFAULT, Netns, NetnsId, Place};
use crate::api::{ApiError, AttachRequest, ContainerInfo, ContainerList};
use crate::attach::GuestNet;
use crate::capture::Captures;
use crate::cli::{PublishArg, parse_name};
use crate::daemon::Daemon;
use crate::run;
use crate::settings::{ContainerOptions, ContainerSettings};
use crate::stats::Stats;
use crate::types::{DaemonError, Publish};
use errors::{bad_value, failed, no_such_container, not_attached, refused};

/// Most containers of one daemon.
const CONTAINERS_MAX: usize = 16_384;

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
    netns: NetnsId,
    ifname: String,
    group: Option<String>,
    settings: ContainerSettings,
    /// As given, changed by requests since.
    options: ContainerOptions,
    origin: Origin,
}

/// How a container was attached: what a changed config is compared with.
#[derive(Debug, Clone, Serialize, Deserialize)]
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

    /// Attaches a container for a client.
    pub(super) fn attach(&self, request: AttachRequest) -> Result<ContainerInfo, ApiError> {
        self.join(request, false)
    }

    /// Attaches a container of the config.
    pub(super) fn attach_configured(&self, request: AttachRequest) {
        let name = request.name.clone().unwrap_or_default();
        // The container may not run yet, and a client can attach it later.
        if let Err(e) = self.join(request, true) {
            tracing::warn!(container = %name, "not attached: {e}");
        }
    }

    /// Makes the device of a container, then serves it.
    fn join(&self, request: AttachRequest, configured: bool) -> Result<ContainerInfo, ApiError> {
        let config = self.config();
        let filled = config.filled(request.clone());
        let origin = Origin { configured, request, filled: filled.clone() };
        let AttachRequest { name, pid, netns: path, ifname, address, group, options } = filled;
        let missing =
            |key: &str| ApiError::invalid("missing_key", format!("{key}: missing")).key(key);
        // All that depends on the request alone comes first: it needs no lock.
        let name = name.ok_or_else(|| missing("name"))?;
        parse_name(&name).map_err(|e| bad_value("name", format!("name: {e}")))?;
        let ifname = ifname.unwrap_or_else(|| IFNAME_DEFAULT.to_owned());
        target::check_ifname(&ifname)?;
        self.check_group(group.as_deref())?;
        let scope = config.scope(group.as_deref());
        let mut settings =
            ContainerSettings::new(&options, scope, secret()?).map_err(|e| refused(&e))?;
        if let Some(address) = address {
            config.subnet.number(address).map_err(|e| bad_value("address", e))?;
        }
        let place = match (pid, &path) {
            (Some(_), Some(_)) => {
                let message = "pid and netns: only one of them is allowed";
                return Err(bad_value("netns", message.to_owned()));
            }
            (None, None) => return Err(missing("netns")),
            (Some(pid), None) => Place::Process(pid),
            (None, Some(path)) => Place::at(path)?,
        };
        let netns = self.privileged.open_netns(&place).map_err(|e| place.refused(&e))?;
        // Held until the container runs: two requests cannot both take a name, a namespace or a port.
        let mut containers = self.containers();
        self.check_free(&mut containers, &name, &netns, address)?;
        let number = self.number(&containers, address)?;
        // Under the lock: no other request can take the number before the entry has it.
        config.subnet.apply(number, &mut settings.container);
        // Before the device: a port in use is the more likely failure, and has nothing to undo.
        let publish = self.bind_all(&settings.publish)?;
        let mut guest = GuestNet::from(&settings.container);
        guest.ipv6.iter_mut().for_each(|net| net.required = settings.needs_ipv6);
        let tap = self.privileged.make_device(&netns, &name, &ifname, &guest);
        let tap = tap.map_err(|e| not_attached(&ifname, &e))?;
        let netns = netns.id;
        let entry = Entry { pid, path, netns, ifname, group, settings, options, origin };
        let info = self.serve(&mut containers, &name, entry, tap, publish)?;
        tracing::info!(container = %name, "attached");
        self.events.add("attached", json!({ "container": name }));
        Ok(info)
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

    /// Refuses a name, a namespace or an address in use.
    fn check_free(
        &self,
        containers: &mut BTreeMap<String, Entry>,
        name: &str,
        netns: &Netns,
        address: Option<Ipv4Addr>,
    ) -> Result<(), ApiError> {
        if netns.is_own {
            let message = "the network namespace is that of the daemon: a container has its own";
            return Err(ApiError::invalid("not_a_container", message).key("netns"));
        }
        let same = |(other, entry): (&String, &Entry)| {
            let same = *other == name || entry.netns == netns.id;
            (same || address == Some(entry.ip())).then(|| other.clone())
        };
        // At most three: one of that name, one of that namespace, one of that address.
        while let Some(other) = containers.iter().find_map(same) {
            // A container may have ended, and the event of that may not have arrived yet.
            if !self.daemon.has(&other).map_err(|e| failed(&e))? {
                containers.remove(&other);
                self.privileged.forget(&other);
            } else if other == name {
                let message = format!("name {name:?} is in use");
                return Err(ApiError::conflict("name_in_use", message).key("name"));
            } else if containers.get(&other).is_some_and(|entry| entry.netns != netns.id) {
                let message = format!("address: in use by container {other:?}");
                return Err(ApiError::conflict("address_in_use", message).key("address"));
            } else {
                let message = format!("the network namespace is attached as container {other:?}");
                return Err(ApiError::conflict("netns_in_use", message).key("netns"));
            }
        }
        if containers.len() >= CONTAINERS_MAX {
            let message = format!(
                "{CONTAINERS_MAX} containers are attached, the most that one daemon serves"
            );
            return Err(ApiError::new(429, "too_many_containers", message));
        }
        Ok(())
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

    /// The number of a container's addresses: that of the given address, or the next free one.
    fn number(
        &self,
        containers: &BTreeMap<String, Entry>,
        address: Option<Ipv4Addr>,
    ) -> Result<u32, ApiError> {
        let subnet = self.config().subnet;
        if let Some(address) = address {
            return subnet.number(address).map_err(|e| bad_value("address", e));
        }
        // Read from the entries, so that no end of a container needs to return its number.
        let used: BTreeSet<u32> =
            containers.values().filter_map(|entry| subnet.number(entry.ip()).ok()).collect();
        let number = subnet.free(self.last_number.load(Ordering::Relaxed), &used).ok_or_else(|| {
            let message = "all addresses of the daemon's subnet are in use: set a larger one (subnet in [daemon])";
            ApiError::conflict("no_address", message).key("address")
        })?;
        self.last_number.store(number, Ordering::Relaxed);
        Ok(number)
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

/// Key of the hashes of one container.
fn secret() -> Result<[u64; 2], ApiError> {
    run::secret().map_err(|e| ApiError::new(500, "internal", e.message))
}

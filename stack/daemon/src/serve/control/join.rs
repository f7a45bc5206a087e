//! How a container joins: the request is checked, the device is made, and a worker serves it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::atomic::Ordering;

use serde_json::json;

use super::errors::{bad_value, failed, not_attached, refused};
use super::{CONTAINERS_MAX, Control, Entry, Origin};
use crate::api::{ApiError, AttachRequest, ContainerInfo};
use crate::attach::GuestNet;
use crate::cli::parse_name;
use crate::run;
use crate::serve::target::{self, IFNAME_DEFAULT, Netns, NetnsKey, Place};
use crate::settings::ContainerSettings;

/// A container to be attached.
#[derive(Debug)]
pub(super) struct Joining {
    /// What to attach: the request with the template that applies.
    pub(super) filled: AttachRequest,
    /// What a change of the config is compared with later.
    pub(super) origin: Origin,
    /// Hardware address of its device; `None`: a new one.
    pub(super) mac: Option<[u8; 6]>,
    /// The namespace that must be there. `None`: whichever is.
    pub(super) expected: Option<NetnsKey>,
}

impl Control {
    /// Attaches a container for a client.
    pub(in crate::serve) fn attach(
        &self,
        request: AttachRequest,
    ) -> Result<ContainerInfo, ApiError> {
        self.join(self.joining(request, false))
    }

    /// What a request amounts to with the config in force.
    pub(super) fn joining(&self, request: AttachRequest, configured: bool) -> Joining {
        let filled = self.config().filled(request.clone());
        let origin = Origin { configured, request, filled: filled.clone() };
        Joining { filled, origin, mac: None, expected: None }
    }

    /// Makes the device of a container, then serves it. After an error nothing of it remains.
    pub(super) fn join(&self, joining: Joining) -> Result<ContainerInfo, ApiError> {
        let config = self.config();
        let Joining { filled, origin, mac, expected } = joining;
        let AttachRequest { name, pid, netns: path, ifname, address, group, options } = filled;
        // All that depends on the request alone is first: it needs no lock.
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
        let netns = self.open_target(pid, path.as_deref(), expected)?;
        // Held until the container runs: two requests cannot both take a name, a namespace or a port.
        let mut containers = self.containers();
        self.check_free(&mut containers, &name, &netns, address)?;
        let number = self.number(&containers, address)?;
        // Under the lock: no other request can take the number before the entry has it.
        config.subnet.apply(number, &mut settings.container);
        // Before the device: a port in use is the more likely failure, and has nothing to undo.
        let publish = self.bind_all(&settings.publish)?;
        let mac = mac.map_or_else(new_mac, Ok)?;
        let mut guest = GuestNet { mac: Some(mac), ..GuestNet::from(&settings.container) };
        guest.ipv6.iter_mut().for_each(|net| net.required = settings.needs_ipv6);
        let tap = self.privileged.make_device(&netns, &name, &ifname, &guest);
        let tap = tap.map_err(|e| not_attached(&ifname, &e))?;
        let netns = netns.key();
        let entry = Entry { pid, path, netns, mac, ifname, group, settings, options, origin };
        let info = self.serve(&mut containers, &name, entry, tap, publish)?;
        tracing::info!(container = %name, "attached");
        self.events.add("attached", json!({ "container": name }));
        Ok(info)
    }

    /// Opens the namespace of a request.
    fn open_target(
        &self,
        pid: Option<u32>,
        path: Option<&Path>,
        expected: Option<NetnsKey>,
    ) -> Result<Netns, ApiError> {
        let place = match (pid, path) {
            (Some(_), Some(_)) => {
                let message = "pid and netns: only one of them is allowed";
                return Err(bad_value("netns", message.to_owned()));
            }
            (None, None) => return Err(missing("netns")),
            (Some(pid), None) => Place::Process(pid),
            (None, Some(path)) => Place::at(path)?,
        };
        let netns = self.privileged.open_netns(&place).map_err(|e| place.refused(&e))?;
        // A process id and a path may be those of another container by now.
        if expected.is_some_and(|key| !key.is(&netns.key())) {
            let message = "another network namespace has its place";
            return Err(ApiError::conflict("another_netns", message).key("netns"));
        }
        Ok(netns)
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
            let same = *other == name || entry.netns.id == netns.id;
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
            } else if containers.get(&other).is_some_and(|entry| entry.netns.id != netns.id) {
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

    /// The number of a container's addresses: that of the given address, or the next free one.
    pub(super) fn number(
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
}

/// A key that every request needs.
fn missing(key: &str) -> ApiError {
    ApiError::invalid("missing_key", format!("{key}: missing")).key(key)
}

/// Key of the hashes of one container.
pub(super) fn secret() -> Result<[u64; 2], ApiError> {
    run::secret().map_err(|e| ApiError::new(500, "internal", e.message))
}

/// A hardware address of one device (the lowest bit of the first byte) that is locally administered (the next one).
fn new_mac() -> Result<[u8; 6], ApiError> {
    let [_, _, mut mac @ ..] = secret()?[0].to_be_bytes();
    mac[0] = (mac[0] & !0b11) | 0b10;
    Ok(mac)
}

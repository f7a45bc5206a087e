//! Ports that are published and closed while their container runs.

use serde_json::json;

use super::{Control, failed, no_such_container, refused};
use crate::api::{ApiError, ContainerInfo};
use crate::cli::{Protocol, PublishArg};
use crate::settings::{self, ContainerSettings};
use crate::types::HostPorts;

/// Most published ports of one container.
const PORTS_MAX: usize = 4096;

impl Control {
    /// Publishes more ports of a container, all or none.
    pub(in crate::serve) fn publish(
        &self,
        name: &str,
        ports: &[PublishArg],
    ) -> Result<ContainerInfo, ApiError> {
        let ports = each(ports);
        let mut containers = self.containers();
        let entry = containers.get_mut(name).ok_or_else(|| no_such_container(name))?;
        if entry.settings.publish.len() + ports.len() > PORTS_MAX {
            let message = format!("publish: at most {PORTS_MAX} ports of a container are allowed");
            return Err(ApiError::new(429, "too_many_ports", message).key("publish"));
        }
        let all = [&entry.settings.publish[..], &ports].concat();
        let ContainerSettings { budget, container, .. } = &entry.settings;
        settings::check_udp_ports(budget.limits, container, &all).map_err(|e| refused(&e))?;
        // The sockets are closed again if the budget has no room for their backlogs.
        self.daemon.publish(name, self.bind_all(&ports)?).map_err(|e| failed(&e))?;
        entry.settings.publish.extend(ports);
        self.privileged.record(name, entry.record(name));
        self.events.add("ports_changed", json!({ "container": name }));
        Ok(entry.info(name))
    }

    /// Closes published ports of a container, all or none. Connections that are open stay open.
    pub(in crate::serve) fn unpublish(
        &self,
        name: &str,
        ports: &[PublishArg],
    ) -> Result<ContainerInfo, ApiError> {
        let ports = each(ports);
        let mut containers = self.containers();
        let entry = containers.get_mut(name).ok_or_else(|| no_such_container(name))?;
        if let Some(port) = ports.iter().find(|port| !entry.settings.publish.contains(port)) {
            let message = format!("publish {}: not published", String::from(*port));
            return Err(ApiError::new(404, "no_such_port", message).key("publish"));
        }
        let of = |protocol| {
            let ports = ports.iter().filter(|port| port.protocol == protocol);
            ports.map(|port| port.host).collect()
        };
        let hosts = HostPorts { tcp: of(Protocol::Tcp), udp: of(Protocol::Udp) };
        self.daemon.unpublish(name, hosts).map_err(|e| failed(&e))?;
        entry.settings.publish.retain(|port| !ports.contains(port));
        self.privileged.record(name, entry.record(name));
        self.events.add("ports_changed", json!({ "container": name }));
        Ok(entry.info(name))
    }
}

/// The ports one by one.
fn each(ports: &[PublishArg]) -> Vec<PublishArg> {
    ports.iter().flat_map(|port| port.each()).collect()
}

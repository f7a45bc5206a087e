//! Containers that outlive the process that serves them: the parent has their devices, and records how they are served.

use std::collections::BTreeMap;

use skbudget_stack::Tap;

use super::{Control, Entry, failed, refused, secret};
use crate::api::{ApiError, AttachRequest, ContainerInfo};
use crate::serve::privileged::Record;
use crate::serve::target::IFNAME_DEFAULT;
use crate::settings::{ContainerOptions, ContainerSettings};
use crate::types::{BudgetRef, ContainerSpec, Publish};

impl Control {
    /// Serves a container again that an earlier relay served with this device.
    pub(in crate::serve) fn restore(
        &self,
        name: &str,
        record: Record,
        tap: Tap,
    ) -> Result<ContainerInfo, ApiError> {
        let Record { request, origin, netns, mac } = record;
        let AttachRequest { pid, netns: path, ifname, address, group, options, .. } = request;
        let config = self.config();
        let scope = config.scope(group.as_deref());
        let mut settings =
            ContainerSettings::new(&options, scope, secret()?).map_err(|e| refused(&e))?;
        let mut containers = self.containers();
        let number = self.number(&containers, address)?;
        config.subnet.apply(number, &mut settings.container);
        let publish = self.bind_all(&settings.publish)?;
        let ifname = ifname.unwrap_or_else(|| IFNAME_DEFAULT.to_owned());
        let entry = Entry { pid, path, netns, mac, ifname, group, settings, options, origin };
        self.serve(&mut containers, name, entry, tap, publish)
    }

    /// Gives the container to a worker, and records it. After an error nothing of it remains.
    pub(super) fn serve(
        &self,
        containers: &mut BTreeMap<String, Entry>,
        name: &str,
        entry: Entry,
        tap: Tap,
        publish: Vec<Publish>,
    ) -> Result<ContainerInfo, ApiError> {
        let settings = &entry.settings;
        let spec = ContainerSpec {
            name: name.to_owned(),
            tap,
            config: settings.container.clone(),
            budget: match &entry.group {
                Some(group) => BudgetRef::InGroup(group.clone(), settings.budget),
                None => BudgetRef::Own(settings.budget),
            },
            publish,
            outbound_addr: settings.outbound_addr,
        };
        if let Err(e) = self.daemon.add_container(spec) {
            self.privileged.forget(name);
            return Err(failed(&e));
        }
        self.privileged.record(name, entry.record(name));
        let info = entry.info(name);
        containers.insert(name.to_owned(), entry);
        Ok(info)
    }
}

impl Entry {
    /// How the container is served now.
    pub(super) fn record(&self, name: &str) -> Record {
        let request = AttachRequest {
            name: Some(name.to_owned()),
            pid: self.pid,
            netns: self.path.clone(),
            ifname: Some(self.ifname.clone()),
            address: Some(self.ip()),
            group: self.group.clone(),
            options: ContainerOptions {
                publish: Some(self.settings.publish.clone()),
                ..self.options.clone()
            },
        };
        Record { request, origin: self.origin.clone(), netns: self.netns, mac: self.mac }
    }
}

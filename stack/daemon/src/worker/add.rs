//! Budgets and containers that a worker gets.

use std::net::UdpSocket;

use skbudget_controller::{Budget, BudgetConfig, Instant};
use skbudget_stack::Container;

use super::log_limit::LogLimit;
use super::{BudgetSlot, ContainerSlot, LOG_EVERY, TurnCtx, Worker};
use crate::host::HostSockets;
use crate::listener::Backlog;
use crate::types::{BudgetRef, ContainerSpec, DaemonError, GROUP_DEFAULT, Publish};

impl Worker {
    /// Creates a budget below the level of a group, or of the host. `own`: it is removed with its container.
    pub(super) fn add_budget(
        &mut self,
        name: String,
        config: BudgetConfig,
        group: Option<&str>,
        own: bool,
    ) -> Result<usize, DaemonError> {
        let level = self.levels.above(group)?;
        let budget = Budget::new(config, level).map_err(DaemonError::Limits)?;
        let slot = BudgetSlot {
            name,
            budget,
            members: Vec::new(),
            own,
            log_limit: LogLimit::every(LOG_EVERY),
        };
        Ok(place(&mut self.budgets, slot))
    }

    /// Creates a container. After an error it is charged nothing.
    pub(super) fn add_container(
        &mut self,
        spec: ContainerSpec,
        now: Instant,
    ) -> Result<(), DaemonError> {
        let ContainerSpec { name, tap, config, budget, publish, outbound_addr } = spec;
        self.forget_ended(&name);
        // Needs a descriptor and may fail: before a budget of its own would be left over.
        let registry = self.poll.registry().try_clone()?;
        // The group is the one whose containers it sees.
        let group = match &budget {
            BudgetRef::InGroup(group, _) => group.clone(),
            BudgetRef::Own(_) | BudgetRef::Shared(_) => GROUP_DEFAULT.to_owned(),
        };
        let (at, own) = match budget {
            BudgetRef::Own(config) => (self.add_budget(name.clone(), config, None, true)?, true),
            BudgetRef::InGroup(group, config) => {
                (self.add_budget(name.clone(), config, Some(&group), true)?, true)
            }
            BudgetRef::Shared(id) => (id.index, false),
        };
        let owner = self.budgets.get_mut(at).and_then(Option::as_mut);
        let owner = owner.ok_or(DaemonError::NoSuchBudget)?;
        // Charged first: the device can hold frames from the moment it is watched.
        let dev_bytes = config.dev_queue_bytes;
        let Ok(member) = owner.budget.add_member(dev_bytes) else {
            if own {
                self.budgets[at] = None;
            }
            return Err(DaemonError::NoRoom { dev_bytes });
        };
        let (listeners, datagrams) = Publish::split(publish);
        let ports = listeners.len();
        let backlog = Backlog::fit(owner.budget.limits(), ports);
        // Backlogs are charged whole before the ports listen: the kernel receives into them on its own (H6).
        let backlog_bytes = backlog.bytes() * ports as u64;
        if ports > 0 && owner.budget.charge_listen(member, backlog_bytes, now).is_err() {
            owner.budget.remove_member(member, now);
            if own {
                self.budgets[at] = None;
            }
            return Err(DaemonError::NoRoomForPorts { ports, backlog_bytes });
        }
        let members = &mut owner.members;
        let member_index = usize::from(member.0);
        members.resize(members.len().max(member_index + 1), None);

        let name_servers = config.name_servers.clone();
        let stack = Container::new(config, member);
        let index =
            self.containers.iter().position(Option::is_none).unwrap_or(self.containers.len());
        members[member_index] = Some(index);
        self.captures |= tap.has_captures();
        // The index in the tokens of its events.
        let token_index = index as u16;
        let handed = self.host_servers.clone();
        let host = HostSockets::new(registry, token_index, outbound_addr, name_servers, handed);
        let slot = ContainerSlot::new(name, at, stack, host, tap);
        place(&mut self.containers, slot);
        let registered = match &mut self.containers[index] {
            Some(slot) => slot.register(self.poll.registry(), token_index, listeners, backlog),
            None => Ok(()),
        };
        if let Err(e) = registered {
            // `remove_container` also undoes the charges above.
            self.remove_container(index, now);
            return Err(e.into());
        }
        for (socket, guest_port) in datagrams {
            if let Err(e) = self.publish_datagrams(index, socket, guest_port, now) {
                self.remove_container(index, now);
                return Err(e);
            }
        }
        if let Some(slot) = &mut self.containers[index] {
            self.siblings.add(index, &slot.name, slot.stack.config(), &group);
            if slot.stack.config().siblings {
                slot.stack.set_directory(self.siblings.directory());
            }
        }
        // The device may hold frames that arrived before it was watched.
        self.schedule.add_container(index);
        Ok(())
    }

    /// Charges a published UDP port and gives its socket to the container.
    pub(super) fn publish_datagrams(
        &mut self,
        index: usize,
        socket: UdpSocket,
        guest_port: u16,
        now: Instant,
    ) -> Result<(), DaemonError> {
        let failed = DaemonError::UdpPort { guest_port };
        let Some(slot) = &mut self.containers[index] else { return Err(failed) };
        let Some(owner) = &mut self.budgets[slot.budget] else { return Err(failed) };
        let (pool, scratch) = (&mut self.pool, &mut self.scratch[..]);
        let mut turn = TurnCtx { now, pool, scratch };
        match slot.publish_datagrams(&mut owner.budget, &mut turn, socket, guest_port)? {
            true => Ok(()),
            false => Err(failed),
        }
    }
}

/// Stores the value in the first free place. Returns its index.
fn place<T>(places: &mut Vec<Option<T>>, value: T) -> usize {
    let free = places.iter().position(Option::is_none).unwrap_or(places.len());
    if free == places.len() {
        places.push(Some(value));
    } else {
        places[free] = Some(value);
    }
    free
}

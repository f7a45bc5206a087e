//! Changes of a container that runs: its limits, its guarantee and its published ports.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use skbudget_controller::{Budget, Instant, Level, LimitError, Refusal};

use super::{BudgetChange, TurnCtx, Worker};
use crate::listener::Backlog;
use crate::types::{DaemonError, HostPorts, Ports, Publish};

impl Worker {
    /// The budget that a container is charged to.
    pub(super) fn budget_of(&mut self, index: usize) -> Result<&mut Budget, DaemonError> {
        let slot = self.containers[index].as_ref();
        let owner = slot.and_then(|slot| self.budgets[slot.budget].as_mut());
        Ok(&mut owner.ok_or(DaemonError::NoSuchBudget)?.budget)
    }

    /// Changes limits, guarantee and place of the container's budget: all or nothing.
    pub(super) fn set_budget(
        &mut self,
        name: &str,
        change: BudgetChange,
        now: Instant,
    ) -> Result<(), DaemonError> {
        let index = self.find(name)?;
        let budget = self.budget_of(index)?;
        let BudgetChange { limits, min_bytes, parent } = change;
        // The guarantee is tested against the new limits, and they are undone if it does not fit.
        let before = budget.limits();
        budget.set_limits(limits, now);
        let (level, group) = parent.unzip();
        let placed = match level {
            Some(level) => {
                let moved = budget.set_parent_and_min(level, min_bytes, now);
                moved.map_err(|refusal| match refusal {
                    Refusal::Hard => {
                        let hard_bytes = limits.hard_bytes();
                        DaemonError::Limits(LimitError::MinAboveHard { min_bytes, hard_bytes })
                    }
                    _ => DaemonError::NoRoomInGroup,
                })
            }
            None => budget.set_min(min_bytes, now).map_err(DaemonError::Limits),
        };
        if placed.is_err() {
            budget.set_limits(before, now);
            return placed;
        }
        if let Some(group) = group {
            self.siblings.set_group(index, &group);
        }
        // Its turn polls the budget: higher limits may have room for waiters.
        self.schedule.activate(index);
        Ok(())
    }

    /// Changes the name servers of the container's forwarder, from the next question on. Questions under way end at the
    /// server that they were sent to.
    pub(super) fn set_name_servers(
        &mut self,
        name: &str,
        servers: Option<Vec<SocketAddr>>,
    ) -> Result<(), DaemonError> {
        let index = self.find(name)?;
        if let Some(slot) = &mut self.containers[index] {
            slot.host.set_name_servers(servers);
        }
        Ok(())
    }

    /// Moves the container's budget, with its charge, below another level: whole or not at all (B13).
    pub(super) fn set_parent(
        &mut self,
        name: &str,
        level: Option<Arc<Level>>,
        group: &str,
        now: Instant,
    ) -> Result<(), DaemonError> {
        let index = self.find(name)?;
        let budget = self.budget_of(index)?;
        budget.set_parent(level, now).map_err(|_| DaemonError::NoRoomInGroup)?;
        self.siblings.set_group(index, group);
        self.schedule.activate(index);
        Ok(())
    }

    /// Publishes more ports, all or none.
    pub(super) fn publish(
        &mut self,
        name: &str,
        publish: Vec<Publish>,
        now: Instant,
    ) -> Result<(), DaemonError> {
        let index = self.find(name)?;
        let (listeners, datagrams) = Publish::split(publish);
        let mut opened = Vec::new();
        let publish_all = || {
            for (socket, guest_port) in datagrams {
                let addr = socket.local_addr()?;
                self.publish_datagrams(index, socket, guest_port, now)?;
                opened.push(addr);
            }
            self.publish_listeners(index, listeners, now)
        };
        let published = publish_all();
        if published.is_err() {
            self.close_datagram_ports(index, &opened, now);
        }
        self.schedule.activate(index);
        published
    }

    /// Publishes more TCP ports. Their backlogs are sized as if all ports were published together; the backlogs of
    /// those that are open keep their size.
    fn publish_listeners(
        &mut self,
        index: usize,
        listeners: Ports<TcpListener>,
        now: Instant,
    ) -> Result<(), DaemonError> {
        if listeners.is_empty() {
            return Ok(());
        }
        let slot = self.containers[index].as_mut().ok_or(DaemonError::NoSuchBudget)?;
        let owner = self.budgets[slot.budget].as_mut().ok_or(DaemonError::NoSuchBudget)?;
        let (ports, member) = (listeners.len(), slot.stack.member());
        let backlog = Backlog::fit(owner.budget.limits(), slot.ports() + ports);
        let backlog_bytes = backlog.bytes() * ports as u64;
        // Before the ports listen: the kernel receives into their backlogs on its own (H6).
        if owner.budget.charge_listen(member, backlog_bytes, now).is_err() {
            return Err(DaemonError::NoRoomForPorts { ports, backlog_bytes });
        }
        if let Err(e) = slot.listen(self.poll.registry(), index as u16, listeners, backlog) {
            owner.budget.uncharge_listen(member, backlog_bytes, now);
            return Err(e.into());
        }
        Ok(())
    }

    /// Closes published ports, by their addresses on the host, all or none. The flows of TCP ports stay open.
    pub(super) fn unpublish(
        &mut self,
        name: &str,
        ports: &HostPorts,
        now: Instant,
    ) -> Result<(), DaemonError> {
        let index = self.find(name)?;
        let slot = self.containers[index].as_mut();
        let slot = slot.ok_or_else(|| DaemonError::NoSuchContainer(name.to_owned()))?;
        let owner = self.budgets[slot.budget].as_mut().ok_or(DaemonError::NoSuchBudget)?;
        // Before any port is closed.
        slot.has_datagram_ports(&ports.udp)?;
        let charged = slot.close_ports(&ports.tcp)?;
        owner.budget.uncharge_listen(slot.stack.member(), charged, now);
        self.close_datagram_ports(index, &ports.udp, now);
        // What was released may be room for waiters.
        self.schedule.activate(index);
        Ok(())
    }

    /// Closes published UDP ports.
    fn close_datagram_ports(&mut self, index: usize, ports: &[SocketAddr], now: Instant) {
        let Some(slot) = &mut self.containers[index] else { return };
        let Some(owner) = &mut self.budgets[slot.budget] else { return };
        let (pool, scratch) = (&mut self.pool, &mut self.scratch[..]);
        slot.close_datagram_ports(&mut owner.budget, &mut TurnCtx { now, pool, scratch }, ports);
    }
}

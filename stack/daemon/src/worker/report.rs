//! A worker's part of the stats.

use skbudget_controller::{Counter, Instant};

use super::Worker;
use crate::stats::{self, Categories, ContainerReport, Meter};

/// One worker's part of the stats; `platform_bytes` and `pool_bytes` are charged to no container.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) containers: Vec<ContainerReport>,
    pub(crate) budgets: Vec<Meter>,
    pub(crate) platform_bytes: u64,
    pub(crate) pool_bytes: u64,
}

impl Worker {
    /// Collects the stats of all containers. `meminfo`: one system call for each host socket.
    pub(super) fn report(&mut self, meminfo: bool, now: Instant) -> Report {
        let mut held = vec![None; self.containers.len()];
        for (held, slot) in held.iter_mut().zip(&self.containers).filter(|_| meminfo) {
            let Some(slot) = slot else { continue };
            let (bytes, above) = slot.host.queued();
            *held = Some(bytes);
            // A socket that holds more than its charge breaks the accounting: the counter shows it.
            if let Some(owner) = &mut self.budgets[slot.budget] {
                owner.budget.count(slot.stack.member(), Counter::HostMemExcess, above);
            }
        }
        let owners = || self.budgets.iter().flatten();
        let containers = held.into_iter().enumerate();
        let report = |(index, held)| self.report_of(index, held, now);
        Report {
            containers: containers.filter_map(report).collect(),
            budgets: owners().map(|owner| owner.budget.meter_stats(now).into()).collect(),
            platform_bytes: self.scratch.len() as u64,
            pool_bytes: self.pool.slack_bytes(),
        }
    }

    /// The stats of one container. `host_meminfo_bytes`: what the kernel holds in its host sockets, if queried.
    pub(super) fn report_of(
        &self,
        index: usize,
        host_meminfo_bytes: Option<u64>,
        now: Instant,
    ) -> Option<ContainerReport> {
        let slot = self.containers[index].as_ref()?;
        let owner = self.budgets[slot.budget].as_ref()?;
        let member = owner.budget.member_stats(slot.stack.member());
        let stack = slot.stack.stats();
        Some(ContainerReport {
            name: slot.name.clone(),
            meter: owner.budget.meter_stats(now).into(),
            budget: owner.name.clone(),
            flows: stack.flows,
            flows_total: stack.flows_total,
            categories: Categories::from(&member),
            bytes_from_guest: stack.bytes_from_guest,
            bytes_to_guest: stack.bytes_to_guest,
            frames_from_guest: stack.frames_from_guest,
            frames_to_guest: stack.frames_to_guest,
            host_meminfo_bytes,
            host_sockets: slot.host.open() as u64,
            udp_mappings: stack.mappings,
            cpu_ns: slot.cpu_time.as_nanos() as u64,
            turns: slot.turns,
            counters: stats::counters(&member, &stack, slot.tap.counters()),
        })
    }
}

//! Containers that ended by themselves: what is known of each is kept for a while, because the caller may learn of the
//! end only when it requests the stats.

use skbudget_controller::Instant;

use super::Worker;
use crate::types::{DaemonEvent, Ended};

/// Ended containers that a worker remembers; the oldest is forgotten first. A few kilobytes each.
const ENDED_MAX: usize = 64;

impl Worker {
    /// Removes a container after its device was closed, and reports that.
    pub(super) fn on_device_gone(&mut self, index: usize, now: Instant) {
        self.remember(index, now);
        if let Some(slot) = self.remove_container(index, now) {
            self.event_sink.send(DaemonEvent::ContainerEnded { name: slot.name }, Some(0));
        }
    }

    /// Resets the container's flows and keeps what is known of it.
    fn remember(&mut self, index: usize, now: Instant) {
        let Some(before) = self.lost(index) else { return };
        self.abort_container(index, now);
        // After the reset, which counts the bytes that it discards. Before the removal: the budget still has the
        // container's counters.
        let Some((after, report)) = self.lost(index).zip(self.report_of(index, None, now)) else {
            return;
        };
        self.forget_ended(&report.name);
        if self.ended.len() == ENDED_MAX {
            self.ended.pop_front();
        }
        let (lost_flows, lost_bytes) = (after.0 - before.0, after.1 - before.1);
        self.ended.push_back(Ended { report, lost_flows, lost_bytes });
    }

    /// Flows and bytes of the container given up so far.
    fn lost(&mut self, index: usize) -> Option<(u64, u64)> {
        let lost = self.containers[index].as_mut()?.undelivered();
        Some((lost.lost_flows, lost.lost_bytes))
    }

    /// What is known of a container that ended.
    pub(super) fn ended(&self, name: &str) -> Option<Ended> {
        self.ended.iter().find(|ended| ended.report.name == name).cloned()
    }

    /// A container takes the name, or its entry is removed.
    pub(super) fn forget_ended(&mut self, name: &str) {
        self.ended.retain(|ended| ended.report.name != name);
    }
}

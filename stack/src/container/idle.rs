//! Which flows are active, and which are idle: memory pressure releases the credit of idle ones (H3), and the active
//! ones share the device queue (B12).

use std::collections::VecDeque;
use std::time::Duration;

use skbudget_controller::Instant;

use super::lists;
use crate::flow::Flow;
use crate::flow::table::FlowTable;
use crate::io::FlowId;

/// Without data for this long a flow is idle: its credit may be demoted (H3) and does not count as pressure (K7).
pub(super) const IDLE_AFTER: Duration = Duration::from_secs(1);

/// An idle flow, with the time of its last data.
pub(super) type IdleSince = (Instant, FlowId);

/// The flows of a container by the time of their last data.
#[derive(Debug, Default)]
pub(super) struct IdleTracker {
    /// Flows to test for idleness, in the order of the test times: each entry waits equally long.
    watch: VecDeque<(Instant, FlowId)>,
    /// Flows on `watch` that had data within the idle period.
    active: usize,
    /// Idle flows, longest idle first. Entries of flows that ended or had data since are stale.
    idle: VecDeque<IdleSince>,
}

impl IdleTracker {
    /// Watches a new flow that may never send: after the idle period its initial window counts as idle credit like any
    /// other.
    pub(super) fn watch_new(&mut self, flow: &mut Flow, now: Instant) {
        flow.last_data = now;
        flow.newly_opened = true;
        self.watch.push_back((now + IDLE_AFTER, flow.id));
    }

    /// Data moved on this flow. Returns true if it was idle until now.
    pub(super) fn on_data(&mut self, flow: &mut Flow, now: Instant) -> bool {
        flow.last_data = now;
        if !flow.watched {
            flow.watched = true;
            self.active += 1;
            self.watch.push_back((now + IDLE_AFTER, flow.id));
        }
        std::mem::take(&mut flow.idle)
    }

    /// The next flow whose idle period is over at `now`. The caller calls `set_idle` with it.
    pub(super) fn next_due(&mut self, flows: &mut FlowTable, now: Instant) -> Option<FlowId> {
        while let Some(&(at, id)) = self.watch.front() {
            if at > now {
                return None;
            }
            self.watch.pop_front();
            let Some(flow) = flows.get_mut(id) else { continue };
            if std::mem::take(&mut flow.newly_opened) && flow.watched {
                // Data arrived, so the flow has a second entry that decides.
                continue;
            }
            // Data moves `last_data`, never the entry.
            if flow.last_data + IDLE_AFTER > now {
                // Data arrived meanwhile. The entry waits a whole period again, which keeps the queue sorted.
                self.watch.push_back((now + IDLE_AFTER, id));
                continue;
            }
            return Some(id);
        }
        None
    }

    /// The flow is idle from now on.
    pub(super) fn set_idle(&mut self, flow: &mut Flow) {
        self.forget(flow);
        flow.idle = true;
        self.idle.push_back((flow.last_data, flow.id));
    }

    /// The flow leaves the active ones: it is idle, or ends.
    pub(super) fn forget(&mut self, flow: &mut Flow) {
        self.active -= usize::from(std::mem::take(&mut flow.watched));
    }

    /// Removes the longest idle flow. The entry may be stale (`is_idle_since`).
    pub(super) fn pop_idle(&mut self) -> Option<IdleSince> {
        self.idle.pop_front()
    }

    /// Returns an entry that `pop_idle` removed: it is the oldest of those that are left.
    pub(super) fn restore(&mut self, entry: IdleSince) {
        self.idle.push_front(entry);
    }

    /// Flows that had data within the idle period.
    pub(super) fn active(&self) -> usize {
        self.active
    }

    /// Time of the next test.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.watch.front().map(|entry| entry.0)
    }

    /// Removes all stale entries of a list with more than `most`. No flow may be taken from the table: its entries
    /// would seem stale.
    pub(super) fn prune(&mut self, flows: &FlowTable, most: usize) {
        lists::prune(&mut self.watch, most, |&(_, id)| flows.get(id).is_some());
        lists::prune(&mut self.idle, most, |&(since, id)| {
            flows.get(id).is_some_and(|flow| is_idle_since(flow, since))
        });
    }

    /// Entries of both lists, stale ones included.
    pub(super) fn len(&self) -> usize {
        self.watch.len() + self.idle.len()
    }

    /// Removes all entries.
    pub(super) fn clear(&mut self) {
        self.watch.clear();
        self.idle.clear();
    }

    /// The idle flows, longest idle first.
    #[cfg(test)]
    pub(super) fn idle(&self) -> Vec<IdleSince> {
        self.idle.iter().copied().collect()
    }
}

/// True if the flow is idle and had no data since that time.
pub(super) fn is_idle_since(flow: &Flow, since: Instant) -> bool {
    flow.idle && flow.last_data == since
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::tests::flows::TestFlows;

    /// Runs the tests that are due, as the container does.
    fn fall_idle(flows: &mut TestFlows, tracker: &mut IdleTracker, now: Instant) -> Vec<FlowId> {
        let mut fell = Vec::new();
        while let Some(id) = tracker.next_due(&mut flows.table, now) {
            flows.with(id, |flow| tracker.set_idle(flow));
            fell.push(id);
        }
        fell
    }

    #[test]
    fn a_flow_is_idle_a_period_after_its_last_data() {
        let (mut flows, mut tracker) = (TestFlows::new(), IdleTracker::default());
        let at = Instant::from_millis;
        let [silent, busy] = [0, 0].map(|ms| flows.open(at(ms)));
        flows.with(silent, |flow| tracker.watch_new(flow, at(0)));
        flows.with(busy, |flow| tracker.watch_new(flow, at(0)));
        flows.with(busy, |flow| assert!(!tracker.on_data(flow, at(600))));
        assert_eq!((tracker.active(), tracker.deadline()), (1, Some(at(1000))));
        assert_eq!(fall_idle(&mut flows, &mut tracker, at(999)), []);
        assert_eq!(fall_idle(&mut flows, &mut tracker, at(1000)), [silent]);
        flows.with(busy, |flow| assert!(!tracker.on_data(flow, at(1500))));
        // The entry of 600 ms finds data of 1500 ms and waits a whole period again.
        assert_eq!(fall_idle(&mut flows, &mut tracker, at(1600)), []);
        assert_eq!(tracker.deadline(), Some(at(2600)));
        assert_eq!(fall_idle(&mut flows, &mut tracker, at(2600)), [busy]);
        assert_eq!((tracker.active(), tracker.deadline()), (0, None));
        assert_eq!(tracker.idle(), [(at(0), silent), (at(1500), busy)]);
        flows.with(silent, |flow| assert!(tracker.on_data(flow, at(3000)), "it was idle"));
        flows.with(silent, |flow| tracker.forget(flow));
        assert_eq!(tracker.active(), 0);
        flows.end_all();
    }

    #[test]
    fn stale_entries_go_when_the_list_is_long_and_a_restored_entry_is_the_oldest() {
        let (mut flows, mut tracker) = (TestFlows::new(), IdleTracker::default());
        let at = Instant::from_millis;
        let ids = [0, 1, 2].map(|ms| flows.open(at(ms)));
        for id in ids {
            flows.with(id, |flow| tracker.set_idle(flow));
        }
        let oldest = tracker.pop_idle().unwrap();
        tracker.restore(oldest);
        flows.end(ids[1]);
        tracker.prune(&flows.table, 3);
        assert_eq!(tracker.len(), 3, "not longer than that");
        tracker.prune(&flows.table, 2);
        assert_eq!(tracker.idle(), [(at(0), ids[0]), (at(2), ids[2])]);
        flows.end_all();
    }
}

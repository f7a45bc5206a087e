//! The deadlines of a container's flows, in one heap.
//!
//! An entry is not searched for when its flow ends or gets an earlier deadline; it only turns stale. `Flow::timer_at`
//! tells the live entry of a flow from its stale ones.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use skbudget_controller::Instant;

use crate::flow::Flow;
use crate::flow::table::FlowTable;
use crate::io::FlowId;

/// One entry: time, table index and generation of the flow.
type Entry = Reverse<(Instant, u32, u32)>;

/// Deadlines of flows, earliest first.
#[derive(Debug, Default)]
pub(super) struct FlowTimers {
    heap: BinaryHeap<Entry>,
}

impl FlowTimers {
    /// Adds an entry for the flow's deadline, unless an earlier one is pending.
    pub(super) fn schedule(&mut self, flow: &mut Flow) {
        if let Some(deadline) = flow.deadline()
            && flow.timer_at.is_none_or(|at| deadline < at)
        {
            flow.timer_at = Some(deadline);
            self.heap.push(Reverse((deadline, flow.id.index, flow.id.generation)));
        }
    }

    /// Removes entries up to the first live one that is due at `now`, and returns the table index of its flow.
    pub(super) fn pop_due(&mut self, flows: &FlowTable, now: Instant) -> Option<u32> {
        while let Some(&entry) = self.heap.peek() {
            let Reverse((at, index, _)) = entry;
            if at > now {
                return None;
            }
            self.heap.pop();
            if is_live(flows, entry) {
                return Some(index);
            }
        }
        None
    }

    /// Time of the earliest entry.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.heap.peek().map(|Reverse((at, ..))| *at)
    }

    /// Removes all stale entries if there are more than `most`. Stale ones at the head are removed at once, because
    /// they would wake the container without need. No flow may be taken from the table: its entry would seem stale.
    pub(super) fn prune(&mut self, flows: &FlowTable, most: usize) {
        if self.heap.len() > most {
            self.heap.retain(|&entry| is_live(flows, entry));
            self.heap.shrink_to(most);
        }
        while let Some(&entry) = self.heap.peek()
            && !is_live(flows, entry)
        {
            self.heap.pop();
        }
    }

    /// Entries, stale ones included.
    pub(super) fn len(&self) -> usize {
        self.heap.len()
    }

    /// Removes all entries.
    pub(super) fn clear(&mut self) {
        self.heap.clear();
    }
}

/// True if the flow's next wake-up is this entry.
fn is_live(flows: &FlowTable, Reverse((at, index, generation)): Entry) -> bool {
    flows.get(FlowId { index, generation }).is_some_and(|flow| flow.timer_at == Some(at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::tests::flows::TestFlows;

    #[test]
    fn due_flows_are_returned_in_time_order_and_stale_entries_are_skipped() {
        let (mut flows, mut timers) = (TestFlows::new(), FlowTimers::default());
        let at = Instant::from_millis;
        let [late, early, ended] = [20, 10, 5].map(|ms| flows.open(at(ms)));
        for id in [late, early, ended] {
            flows.with(id, |flow| timers.schedule(flow));
        }
        // An earlier deadline adds an entry, a later one does not.
        flows.with(late, |flow| {
            flow.retry_at = Some(at(30));
            timers.schedule(flow);
            flow.retry_at = Some(at(40));
            timers.schedule(flow);
        });
        flows.end(ended);
        assert_eq!(timers.len(), 4);
        assert_eq!(timers.pop_due(&flows.table, at(29)), None);
        assert_eq!(timers.pop_due(&flows.table, at(30)), Some(late.index));
        flows.with(late, |flow| flow.timer_at = None);
        let end = at(3_600_000);
        assert_eq!(timers.pop_due(&flows.table, end), Some(early.index));
        assert_eq!((timers.pop_due(&flows.table, end), timers.deadline()), (None, None));
        flows.end_all();
    }

    #[test]
    fn pruning_keeps_live_entries_and_frees_the_head() {
        let (mut flows, mut timers) = (TestFlows::new(), FlowTimers::default());
        let at = Instant::from_millis;
        let id = flows.open(at(0));
        for ms in (1..=100).rev() {
            flows.with(id, |flow| {
                flow.retry_at = Some(at(ms));
                timers.schedule(flow);
            });
        }
        timers.prune(&flows.table, 100);
        assert_eq!(timers.len(), 100, "no more than that, and the head is live");
        timers.prune(&flows.table, 99);
        assert_eq!((timers.len(), timers.deadline()), (1, Some(at(1))));
        flows.end(id);
        timers.prune(&flows.table, 99);
        assert_eq!((timers.len(), timers.deadline()), (0, None));
        flows.end_all();
    }
}

//! The SYNs of a container on their way to a flow, in the order in which they are admitted.

use std::collections::VecDeque;

use skbudget_controller::Instant;

use super::crowd::Crowd;
use crate::flow::syn_backlog::SynBacklog;

/// SYNs that wait, published ports that wait, and what is expected to arrive.
#[derive(Debug, Default)]
pub(super) struct AdmissionQueue {
    pub(super) backlog: SynBacklog,
    /// Ids of SYNs to admit: `retry` after a wait for memory, `new` for the first time. Some may have left `backlog`.
    retry: VecDeque<u32>,
    new: VecDeque<u32>,
    /// No SYN is admitted before this time.
    paused_until: Option<Instant>,
    /// Number of connect(2) calls since `Container::take_connects`.
    pub(super) connects: u32,
    pub(super) crowd: Crowd,
    /// The budget has an entry of the published ports among its waiters.
    pub(super) accepts_wait: bool,
}

impl AdmissionQueue {
    /// Appends a SYN that has just been queued.
    pub(super) fn push_new(&mut self, id: u32) {
        self.new.push_back(id);
    }

    /// Appends a SYN that the budget has woken.
    pub(super) fn push_retry(&mut self, id: u32) {
        self.retry.push_back(id);
    }

    /// The next SYN to admit, and whether it may be admitted: a SYN that waits for memory has priority over new ones.
    pub(super) fn next(&mut self) -> Option<(u32, bool)> {
        // An entry whose SYN was reset by the guest, or has expired, is removed.
        while let Some(&id) = self.retry.front() {
            if self.backlog.get(id).is_some() {
                return Some((id, true));
            }
            self.retry.pop_front();
        }
        while let Some(&id) = self.new.front() {
            if self.backlog.get(id).is_some() {
                return Some((id, self.backlog.waiting() == 0));
            }
            self.new.pop_front();
        }
        None
    }

    /// Removes the SYN that `next` returned from the order. It stays in `backlog`.
    pub(super) fn pop(&mut self) {
        if self.retry.pop_front().is_none() {
            self.new.pop_front();
        }
    }

    /// Removes a SYN. It leaves the order, too: a guest that resets each of its SYNs must not make that longer than the
    /// backlog.
    pub(super) fn remove(&mut self, id: u32) {
        self.backlog.remove(id);
        self.retry.retain(|other| *other != id);
        self.new.retain(|other| *other != id);
    }

    /// Admits nothing before `until`.
    pub(super) fn pause(&mut self, until: Instant) {
        self.paused_until = Some(until);
    }

    /// True while admission is paused. The end of the pause is in `deadline`.
    pub(super) fn is_paused(&mut self, now: Instant) -> bool {
        let paused = self.paused_until.is_some_and(|until| until > now);
        if !paused {
            self.paused_until = None;
        }
        paused
    }

    /// When the container must run for its SYNs: the end of a pause, if there are SYNs to admit; the expiry of a SYN;
    /// the end of an expectation.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let resumed = self.paused_until.filter(|_| self.len() > 0);
        [resumed, self.backlog.deadline(), self.crowd.deadline()].into_iter().flatten().min()
    }

    /// SYNs in the order of admission, entries of SYNs that left included.
    pub(super) fn len(&self) -> usize {
        self.retry.len() + self.new.len()
    }

    /// The container has ended, and the backlog is empty: forgets the rest.
    pub(super) fn clear(&mut self) {
        self.retry.clear();
        self.new.clear();
        self.crowd = Crowd::default();
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use skbudget_controller::Budget;

    use super::*;
    use crate::flow::syn_backlog::Pushed;
    use crate::queue::MemberCtx;
    use crate::test_budget::Setting;
    use crate::wire::addresses::Tuple;
    use crate::wire::segment::{Flags, Options, Segment};
    use crate::wire::seq::Seq;

    /// Queues SYNs, one a port, and returns their ids.
    fn queue_syns(queue: &mut AdmissionQueue, budget: &mut Budget, ports: &[u16]) -> Vec<u32> {
        let member = budget.add_member(0).unwrap();
        let at = |port| SocketAddr::from(([10, 0, 2, 100], port));
        let syn = Segment {
            seq: Seq(1),
            ack: Seq(0),
            flags: Flags::SYN,
            wnd: 1000,
            options: Options::default(),
            ecn: 0,
            payload: &[],
        };
        let mut cx = MemberCtx { now: Instant::default(), budget, member };
        let mut push = |port: &u16| {
            let tuple = Tuple::new(at(*port), at(80));
            match queue.backlog.push(tuple, &syn, &mut cx) {
                Pushed::Queued(id) => id,
                other => panic!("{other:?}"),
            }
        };
        ports.iter().map(&mut push).collect()
    }

    #[test]
    fn woken_syns_come_first_and_new_ones_wait_behind_them() {
        let (mut queue, mut budget) = (AdmissionQueue::default(), Setting::Linux.budget());
        let ids = queue_syns(&mut queue, &mut budget, &[1, 2, 3, 4]);
        for id in &ids {
            queue.push_new(*id);
        }
        assert_eq!(queue.next(), Some((ids[0], true)));
        // It finds no room, waits, and is woken.
        queue.pop();
        queue.backlog.set_waiting(ids[0]);
        assert_eq!(queue.next(), Some((ids[1], false)));
        queue.push_retry(ids[0]);
        assert_eq!(queue.next(), Some((ids[0], true)));
        // The guest resets the first two: they leave both lists.
        queue.remove(ids[0]);
        queue.remove(ids[1]);
        assert_eq!((queue.len(), queue.next()), (2, Some((ids[2], true))));
        // One that leaves the backlog alone is skipped.
        queue.backlog.remove(ids[2]);
        assert_eq!((queue.next(), queue.len()), (Some((ids[3], true)), 1));
        queue.backlog.remove(ids[3]);
        assert_eq!((queue.next(), queue.len()), (None, 0));
    }

    #[test]
    fn the_end_of_a_pause_is_a_deadline_while_syns_wait() {
        let (mut queue, mut budget) = (AdmissionQueue::default(), Setting::Linux.budget());
        let at = Instant::from_millis;
        queue.pause(at(5));
        assert_eq!(queue.deadline(), None);
        let ids = queue_syns(&mut queue, &mut budget, &[1]);
        queue.push_new(ids[0]);
        assert_eq!(queue.deadline(), Some(at(5)));
        assert!(queue.is_paused(at(4)) && !queue.is_paused(at(5)));
        // Then only the expiry of the SYN is left.
        assert_eq!(queue.deadline(), Some(at(20_000)));
    }
}

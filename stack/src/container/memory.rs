//! When memory is short: credit of idle flows is written off first, then the flow waits and is woken in order.

use std::time::Duration;

use skbudget_controller::{Budget, CHUNK_SIZE, Counter, Instant, MemberId, Rules};

use super::Container;
use crate::flow::Flow;
use crate::io::Ctx;
use crate::relay;

/// Without data for this long a flow is idle: its credit may be demoted (H3) and does not count as pressure (K7).
const IDLE_AFTER: Duration = Duration::from_secs(1);

/// A flow or a parked SYN that waits for memory; what `Budget::poll_wake` hands back. The member is in it, so that
/// the owner of a shared budget knows whose it is: `member << 48 | kind << 47 | generation << 32 | index`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WakeKey(pub u64);

const PARKED: u64 = 1 << 47;
const GENERATION_MASK: u64 = 0x7fff;

impl WakeKey {
    pub fn member(self) -> MemberId {
        MemberId((self.0 >> 48) as u16)
    }
}

impl Container {
    pub(super) fn wake_key(&self, flow: &Flow) -> WakeKey {
        let generation = u64::from(flow.id.generation) & GENERATION_MASK;
        WakeKey(u64::from(self.member.0) << 48 | generation << 32 | u64::from(flow.id.index))
    }

    pub(super) fn parked_key(&self, id: u32) -> WakeKey {
        WakeKey(u64::from(self.member.0) << 48 | PARKED | u64::from(id))
    }

    /// Memory came back for this waiter.
    pub fn on_wake(&mut self, key: WakeKey) {
        let index = key.0 as u32;
        if key.0 & PARKED != 0 {
            self.woken.push_back(index);
            return;
        }
        let generation = key.0 >> 32 & GENERATION_MASK;
        let Some(flow) = self.flows.index_mut(index) else { return };
        if u64::from(flow.id.generation) & GENERATION_MASK != generation {
            return;
        }
        flow.waiting = false;
        // The window is computed anew, and the host is read again.
        flow.tcb.rcv.moved = true;
        self.mark(index);
    }

    /// The flow could use a chunk and got none.
    pub(super) fn short_of_memory(&mut self, cx: &mut Ctx<'_>, flow: &mut Flow, to_send: bool) {
        if cx.budget.rules() == Rules::Linux {
            // Nothing reopens a socket there when another one frees budget: a sender sleeps, a receiver waits for
            // its reader or a probe.
            if to_send {
                self.retry_later(cx, flow);
            }
            return;
        }
        if self.demote(cx, CHUNK_SIZE, Budget::headroom) {
            flow.tcb.rcv.moved = true;
            self.mark(flow.id.index);
        } else if !flow.waiting {
            flow.waiting = true;
            cx.budget.wait(self.wake_key(flow).0, CHUNK_SIZE);
        }
    }

    /// Writes off credit of idle flows, the longest idle first, and lowers the caps of their host sockets to the floor,
    /// until `room` is `need` bytes. What they advertised stays advertised: if it comes due, the charge is
    /// asked for again. False: that gave no room.
    pub(super) fn demote(&mut self, cx: &mut Ctx<'_>, need: u64, room: fn(&Budget) -> u64) -> bool {
        let mut freed = false;
        // The room decides, not what was written off: the part within a flow's reserve gives none.
        while room(cx.budget) < need {
            let Some((since, id)) = self.idle.pop_front() else { return false };
            if !self.flows.get(id).is_some_and(|flow| is_idle_since(flow, since)) {
                continue;
            }
            let Some(mut flow) = self.flows.take(id.index) else { continue };
            let slots = flow.tcb.rcv.q.close_to(0, cx.budget, &mut flow.ledger, cx.now);
            if slots > 0 {
                cx.budget.count(self.member, Counter::CreditDemoted, u64::from(slots));
                freed = true;
            }
            let before = flow.host.caps;
            self.with_ends(cx, &mut flow, relay::lower_to_floor);
            freed |= flow.host.caps != before;
            self.flows.put(flow);
        }
        freed
    }

    /// The guest or the host moved data on this flow.
    pub(super) fn note_data(&mut self, flow: &mut Flow, cx: &mut Ctx<'_>) {
        flow.last_data = cx.now;
        if flow.idle {
            flow.idle = false;
            cx.budget.set_idle(&mut flow.ledger, false, cx.now);
        }
        if !flow.watched {
            flow.watched = true;
            self.watched += 1;
            self.watch.push_back((cx.now + IDLE_AFTER, flow.id));
        }
    }

    /// A flow that may send from now on, and perhaps never will: the window it was given is lent as all windows are.
    pub(super) fn watch_new(&mut self, flow: &mut Flow, now: Instant) {
        flow.last_data = now;
        flow.fresh = true;
        self.watch.push_back((now + IDLE_AFTER, flow.id));
    }

    /// Flows whose last data is old become idle. The queue is in time order: each entry waits the same time.
    pub(super) fn find_idle(&mut self, cx: &mut Ctx<'_>) {
        while let Some(&(at, id)) = self.watch.front() {
            if at > cx.now {
                break;
            }
            self.watch.pop_front();
            let Some(flow) = self.flows.get_mut(id) else { continue };
            if std::mem::take(&mut flow.fresh) && flow.watched {
                // Data came: it stands on the queue once more, for that.
                continue;
            }
            let due = flow.last_data + IDLE_AFTER;
            if due > cx.now {
                // Data came meanwhile; looked at again a whole interval later, so that order needs no sorting.
                self.watch.push_back((cx.now + IDLE_AFTER, id));
                continue;
            }
            if let Some(mut flow) = self.flows.take(id.index) {
                self.fall_idle(cx, &mut flow);
                self.flows.put(flow);
            }
            self.demote_for_parked(cx);
        }
    }

    fn fall_idle(&mut self, cx: &mut Ctx<'_>, flow: &mut Flow) {
        self.watched -= usize::from(std::mem::take(&mut flow.watched));
        flow.idle = true;
        flow.tcb.rcv.on_idle();
        flow.tcb.snd.on_idle();
        self.with_ends(cx, flow, relay::lower);
        cx.budget.set_idle(&mut flow.ledger, true, cx.now);
        self.idle.push_back((flow.last_data, flow.id));
    }

    /// SYNs wait for room, and nobody else will come to ask idle flows for theirs.
    pub(super) fn demote_for_parked(&mut self, cx: &mut Ctx<'_>) {
        if self.parked.waiting() > 0 {
            self.demote(cx, self.config.sizes.total(), Budget::admission_room);
        }
    }

    /// Forgets a parked SYN. It also leaves the lists of those to admit: a guest that takes back each SYN with a reset
    /// must not make them longer than the list of parked SYNs.
    pub(super) fn unpark(&mut self, id: u32, budget: &mut Budget) {
        self.parked.take(id);
        self.hold_for_admission(budget);
        self.woken.retain(|woken| *woken != id);
        self.arrived.retain(|arrived| *arrived != id);
        budget.forget(self.parked_key(id).0);
    }

    pub(super) fn expire_parked(&mut self, cx: &mut Ctx<'_>) {
        while let Some(id) = self.parked.expired(cx.now) {
            self.unpark(id, cx.budget);
            self.stats.add(crate::counters::Stat::ParkedExpired);
            cx.budget.count(self.member, Counter::AdmissionDenied, 1);
        }
    }
}

/// The flow has been idle without a break since its data of that time.
pub(super) fn is_idle_since(flow: &Flow, since: Instant) -> bool {
    flow.idle && flow.last_data == since
}

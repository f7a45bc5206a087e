//! Shortage of memory: credit of idle flows is released first (H3); otherwise the flow waits and is woken in order
//! (B9).

use skbudget_controller::{Budget, CHUNK_SIZE, Counter, MemberId, Rules};

use super::idle::is_idle_since;
use super::service::with_ends;
use super::{Container, Ctx};
use crate::flow::Flow;
use crate::relay;

/// Names a flow, a queued SYN or the published ports that wait for memory; returned by `Budget::poll_wake`. It contains
/// the member, so that the owner of a shared budget finds the container:
/// `member << 48 | kind << 47 | generation << 32 | index`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WakeKey(pub u64);

const SYN: u64 = 1 << 47;
const GENERATION_MASK: u64 = 0x7fff;
/// Stands in a queued SYN's place for the published ports. The SYN queue is far shorter.
const ACCEPTS: u32 = u32::MAX;

impl WakeKey {
    /// The member that waits.
    pub fn member(self) -> MemberId {
        MemberId((self.0 >> 48) as u16)
    }
}

impl Container {
    pub(super) fn wake_key(&self, flow: &Flow) -> WakeKey {
        let generation = u64::from(flow.id.generation) & GENERATION_MASK;
        WakeKey(u64::from(self.member.0) << 48 | generation << 32 | u64::from(flow.id.index))
    }

    pub(super) fn syn_key(&self, id: u32) -> WakeKey {
        WakeKey(u64::from(self.member.0) << 48 | SYN | u64::from(id))
    }

    pub(super) fn accepts_key(&self) -> WakeKey {
        self.syn_key(ACCEPTS)
    }

    /// Memory has returned for this waiter: serves the flow, or retries the SYN, in the next turn. For the published
    /// ports, the caller polls `can_accept` again.
    pub fn on_wake(&mut self, key: WakeKey) {
        let index = key.0 as u32;
        if key == self.accepts_key() {
            self.admission.accepts_wait = false;
            return;
        }
        if key.0 & SYN != 0 {
            // The SYN may have expired meanwhile; `admit_some` tests that.
            self.admission.push_retry(index);
            return;
        }
        let generation = key.0 >> 32 & GENERATION_MASK;
        let Some(flow) = self.flows.index_mut(index) else { return };
        // The slot belongs to another flow now.
        if u64::from(flow.id.generation) & GENERATION_MASK != generation {
            return;
        }
        // `poll_wake` has removed it from the budget's list.
        flow.waiting = false;
        // `output` then requests credit again; the relay reads the host in the same service.
        flow.tcb.retry_window();
        self.mark(index);
        self.note_sibling_at(index);
    }

    /// The budget refused the flow a chunk, to send or for its window: takes room from idle flows or registers as a
    /// waiter.
    pub(super) fn short_of_memory(&mut self, cx: &mut Ctx<'_>, flow: &mut Flow, to_send: bool) {
        if cx.budget.rules() == Rules::Linux {
            // Linux does not wake a socket when another socket frees budget: a sender sleeps, a receiver waits for its
            // reader or for a probe (L4).
            if to_send {
                self.retry_later(cx, flow);
            }
            return;
        }
        if self.demote(cx, CHUNK_SIZE, Budget::headroom, Some(flow)) {
            flow.tcb.retry_window();
            self.mark(flow.id.index);
            self.note_sibling(flow);
        } else if !flow.waiting {
            flow.waiting = true;
            cx.budget.wait(self.wake_key(flow).0, CHUNK_SIZE);
        }
    }

    /// Releases credit of idle flows, longest idle first, and lowers the caps of their host sockets to the floor, until
    /// `room` is at least `need` bytes (H3). The windows they advertised stay: data that arrives later requests its
    /// charge again. Returns true if something was released and the room is now there.
    ///
    /// `served`: the flow that is being served. It is out of the table, so nothing of it is released, and its entry
    /// stays.
    pub(super) fn demote(
        &mut self,
        cx: &mut Ctx<'_>,
        need: u64,
        room: fn(&Budget) -> u64,
        served: Option<&Flow>,
    ) -> bool {
        let (mut freed, mut kept) = (false, None);
        // Test the room, not the bytes released: credit within a flow's reserve stays reserved and makes no room.
        while room(cx.budget) < need {
            let Some((since, id)) = self.idle.pop_idle() else {
                freed = false;
                break;
            };
            if served.is_some_and(|flow| flow.id == id && is_idle_since(flow, since)) {
                kept = Some((since, id));
                continue;
            }
            // Stale: the flow ended or had data since.
            if !self.flows.get(id).is_some_and(|flow| is_idle_since(flow, since)) {
                continue;
            }
            let Some(mut flow) = self.flows.take(id.index) else { continue };
            let slots = flow.tcb.release_credit(&mut cx.mem(&mut flow.ledger));
            if slots > 0 {
                cx.budget.count(self.member, Counter::CreditDemoted, u64::from(slots));
                freed = true;
            }
            // Caps that the kernel's queues fill cannot be lowered: compare.
            let before = flow.host.caps;
            // May cost the remote 200 ms: its kernel sends into a much smaller window only after the persist timer.
            with_ends(cx, &mut flow, relay::host_caps::lower_to_floor);
            freed |= flow.host.caps != before;
            self.flows.put(flow);
        }
        if let Some(entry) = kept {
            self.idle.restore(entry);
        }
        freed
    }

    /// The guest or the host moved data on this flow: it is active.
    pub(super) fn note_data(&mut self, flow: &mut Flow, cx: &mut Ctx<'_>) {
        if self.idle.on_data(flow, cx.now) {
            // The budget counts active flows for fair shares (H4) and idle credit for the soft test (K7).
            cx.budget.set_idle(&mut flow.ledger, false, cx.now);
        }
    }

    /// Flows without data for the idle period become idle.
    pub(super) fn find_idle(&mut self, cx: &mut Ctx<'_>) {
        while let Some(id) = self.idle.next_due(&mut self.flows, cx.now) {
            if let Some(mut flow) = self.flows.take(id.index) {
                self.fall_idle(cx, &mut flow);
                self.flows.put(flow);
            }
            // Waiting SYNs use the new idle credit now: no event would wake them for it.
            self.demote_for_syns(cx);
        }
    }

    /// Marks a flow idle: its targets and its host send cap return to their first values, its credit can be released
    /// (H3).
    fn fall_idle(&mut self, cx: &mut Ctx<'_>, flow: &mut Flow) {
        self.idle.set_idle(flow);
        flow.tcb.on_idle();
        with_ends(cx, flow, relay::host_caps::lower_idle);
        // After the caps: the budget then classifies what is still charged as idle.
        cx.budget.set_idle(&mut flow.ledger, true, cx.now);
    }

    /// Releases idle credit if SYNs wait for room. A waiting SYN takes no turn in which it could do so itself.
    pub(super) fn demote_for_syns(&mut self, cx: &mut Ctx<'_>) {
        if self.admission.backlog.waiting() > 0 {
            self.demote(cx, self.config.sizes.total(), Budget::admission_room, None);
        }
    }

    /// Removes a SYN from the queue.
    pub(super) fn remove_syn(&mut self, id: u32, budget: &mut Budget) {
        self.admission.remove(id);
        self.hold_for_admission(budget);
        budget.forget(self.syn_key(id).0);
    }

    /// Drops SYNs that the guest has not retransmitted in time.
    pub(super) fn expire_syns(&mut self, cx: &mut Ctx<'_>) {
        while let Some(id) = self.admission.backlog.expired(cx.now) {
            self.remove_syn(id, cx.budget);
            self.stats.add(crate::counters::Stat::SynExpired);
            cx.budget.count(self.member, Counter::AdmissionDenied, 1);
        }
    }
}

//! The strict rules: a guarantee is a reservation, a window is charged before it is advertised,
//! usage never exceeds hard.

use super::{Budget, Rules};
use crate::event::{Counter, Event};
use crate::ledger::{FlowSizes, Ledger, MemberId, Parts, RxKind};
use crate::level::SoftTest;
use crate::linux::Sock;
use crate::meter::Refusal;
use crate::units::CHUNK_SIZE;

impl Budget {
    // ---- admission ----

    pub(super) fn strict_admit(
        &mut self,
        member: MemberId,
        sizes: &FlowSizes,
    ) -> Result<Ledger, Refusal> {
        debug_assert!(u64::from(sizes.rmem_min).is_multiple_of(CHUNK_SIZE), "whole chunks");
        debug_assert!(u64::from(sizes.wmem_min).is_multiple_of(CHUNK_SIZE), "whole chunks");
        let sock = u64::from(sizes.sock);
        // H7: a flood of SYNs must not fill the budget with half-open flows.
        if self.meter.half_open + sock > self.meter.limits.hard_bytes() / 8 {
            self.refused_at = self.releases;
            return Err(Refusal::HalfOpen);
        }
        if let Err(refusal) = self.charge_fixed(sock) {
            return Err(self.note_refusal(member, refusal));
        }
        self.meter.half_open += sock;
        self.meter.fixed += sock;
        let found = self.member_mut(member);
        found.bytes += sock;
        found.sock += sock;
        found.flows += 1;
        self.update_thresholds(member);
        Ok(Ledger::new(member, *sizes, Sock::new(self.sock.wmem[1], self.sock.rmem[1])))
    }

    pub(super) fn strict_establish(&mut self, ledger: &mut Ledger) -> Result<(), Refusal> {
        if ledger.established {
            return Ok(());
        }
        // Only `sock` is held so far, plus what was opened or granted ahead of the reservation.
        let before = ledger.parts();
        let host = u64::from(ledger.sizes.host_floor);
        ledger.established = true;
        ledger.host += host;
        // Chunks opened ahead of the reservation are charged already: charge the difference.
        let more = ledger.parts().held - before.held;
        if let Err(refusal) = self.charge_fixed(more) {
            ledger.established = false;
            ledger.host -= host;
            return Err(self.note_refusal(ledger.member, refusal));
        }
        // Half-open room was released: a flow that waits for it may try again.
        self.releases += 1;
        self.meter.half_open -= u64::from(ledger.sizes.sock);
        self.meter.fixed += ledger.sizes.rest();
        self.update_sums(before, ledger.parts());
        let member = self.member_mut(ledger.member);
        member.bytes += more;
        member.host += host;
        self.update_thresholds(ledger.member);
        Ok(())
    }

    pub(super) fn strict_release(&mut self, ledger: &mut Ledger) {
        let parts = ledger.parts();
        let gone = Parts { held: 0, elastic: 0, idle: 0, active: false };
        self.update_sums(parts, gone);
        self.meter.fixed -= ledger.floor();
        if !ledger.established {
            self.meter.half_open -= u64::from(ledger.sizes.sock);
        }
        let member = self.member_mut(ledger.member);
        member.bytes -= parts.held;
        member.sock -= u64::from(ledger.sizes.sock);
        member.host -= ledger.host;
        member.rmem -= u64::from(ledger.rmem);
        member.ofo -= u64::from(ledger.ofo);
        member.credit -= u64::from(ledger.credit);
        member.wmem -= u64::from(ledger.wmem);
        member.flows -= 1;
        ledger.released = true;
        // `Later`: the fixed part falls with usage, and `update_thresholds` makes the soft test once both are
        // known.
        self.uncharge(parts.held, SoftTest::Later);
        self.update_thresholds(ledger.member);
    }

    // ---- growth: the reserve first, then what the chain and the share allow ----

    pub(super) fn strict_rx_open(&mut self, ledger: &mut Ledger, chunks: u32) -> u32 {
        self.wake(ledger);
        // Slots within the reserve are charged since admission: no meter is touched.
        let free = ledger.rx_unused().min(chunks);
        ledger.credit += free;
        let granted = free + self.grow(ledger, chunks - free, |ledger, n| ledger.credit += n);
        self.member_mut(ledger.member).credit += u64::from(granted);
        granted
    }

    pub(super) fn strict_rx_fill(&mut self, ledger: &mut Ledger, chunks: u32, kind: RxKind) -> u32 {
        self.wake(ledger);
        // A demoted flow released its credit (H3): charge the missing slots now.
        if chunks > ledger.credit {
            self.strict_rx_open(ledger, chunks - ledger.credit);
        }
        let filled = chunks.min(ledger.credit);
        ledger.credit -= filled;
        let member = self.member_mut(ledger.member);
        member.credit -= u64::from(filled);
        match kind {
            RxKind::InOrder => {
                ledger.rmem += filled;
                member.rmem += u64::from(filled);
            }
            RxKind::Ofo => {
                ledger.ofo += filled;
                member.ofo += u64::from(filled);
            }
        }
        filled
    }

    pub(super) fn strict_tx_grant(&mut self, ledger: &mut Ledger, chunks: u32) -> u32 {
        self.wake(ledger);
        let free = ledger.tx_unused().min(chunks);
        ledger.wmem += free;
        let granted = free + self.grow(ledger, chunks - free, |ledger, n| ledger.wmem += n);
        self.member_mut(ledger.member).wmem += u64::from(granted);
        granted
    }

    pub(super) fn strict_host_raise(&mut self, ledger: &mut Ledger, bytes: u64) -> bool {
        // Caps only raise speed: no growth under pressure, or into room held for waiting flows.
        if self.under_pressure() || bytes > self.meter.growth_room() {
            self.refused_at = self.releases;
            return false;
        }
        if let Err(refusal) = self.charge_elastic(bytes) {
            self.note_refusal(ledger.member, refusal);
            return false;
        }
        let before = ledger.parts();
        ledger.host += bytes;
        self.update_sums(before, ledger.parts());
        self.member_mut(ledger.member).bytes += bytes;
        self.soft_test(ledger.member);
        true
    }

    /// Charges up to `want` chunks beyond the reserve, for a flow that is not idle; returns how
    /// many. `apply` records the granted chunks in the ledger.
    #[inline]
    fn grow(&mut self, ledger: &mut Ledger, want: u32, apply: impl Fn(&mut Ledger, u32)) -> u32 {
        debug_assert!(!ledger.idle, "growth ends idleness first");
        if want == 0 {
            return 0;
        }
        // Under the budget's own pressure the flow's fair share bounds growth (H4) ...
        let fair = if self.meter.flag { self.fair_chunks(ledger.parts()).min(want) } else { want };
        // ... and waiting flows keep the room held for them (H1).
        let beside = self.meter.growth_room() / CHUNK_SIZE;
        let fair = fair.min(u32::try_from(beside).unwrap_or(u32::MAX));
        let (granted, refusal) = self.meter.grant(self.chain.leaf.as_deref(), fair);
        if let Some(refusal) = refusal {
            self.note_refusal(ledger.member, refusal);
        } else if granted < want {
            self.refused_at = self.releases;
        }
        if granted > 0 {
            // Test before `apply`: this growth makes the flow count as active.
            self.meter.active += u64::from(!ledger.has_elastic());
            apply(ledger, granted);
            self.member_mut(ledger.member).bytes += u64::from(granted) * CHUNK_SIZE;
            self.soft_test(ledger.member);
        }
        granted
    }

    /// Chunks that a flow may grow by under pressure: the most with `E > n_active * elastic`
    /// afterwards (H4).
    pub(super) fn fair_chunks(&self, parts: Parts) -> u32 {
        // A flow without elastic memory becomes active by growing.
        let active = self.meter.active + u64::from(!parts.active);
        // The largest `elastic` with `active * elastic < E`.
        let most = self.meter.room_bytes().saturating_sub(1) / active;
        let chunks = most.saturating_sub(parts.elastic) / CHUNK_SIZE;
        u32::try_from(chunks).unwrap_or(u32::MAX)
    }

    pub(super) fn wake(&mut self, ledger: &mut Ledger) {
        if ledger.idle {
            self.shrink(ledger, |ledger| ledger.idle = false);
        }
    }

    // ---- release, and the sums ----

    #[inline]
    pub(super) fn strict_rx_free(&mut self, ledger: &mut Ledger, chunks: u32) {
        // An idle flow's credit is counted apart: the general path recomputes it.
        if ledger.idle {
            self.shrink(ledger, |ledger| ledger.rmem -= chunks);
            return;
        }
        let before = ledger.rx_held();
        ledger.rmem -= chunks;
        let freed = before - ledger.rx_held();
        if freed > 0 {
            self.give_back(ledger, freed);
        }
    }

    #[inline]
    pub(super) fn strict_tx_free(&mut self, ledger: &mut Ledger, chunks: u32) {
        let before = ledger.tx_held();
        ledger.wmem -= chunks;
        let freed = before - ledger.tx_held();
        if freed > 0 {
            self.give_back(ledger, freed);
        }
    }

    /// Uncharges `freed` bytes by which the ledger has shrunk; none of them are idle credit.
    fn give_back(&mut self, ledger: &Ledger, freed: u64) {
        // A flow without elastic memory takes no share (H4).
        self.meter.active -= u64::from(!ledger.idle && !ledger.has_elastic());
        self.member_mut(ledger.member).bytes -= freed;
        self.uncharge(freed, SoftTest::Now);
        self.soft_test(ledger.member);
    }

    /// Applies `change`, which lowers what the ledger holds (or moves it between categories), and
    /// uncharges the difference. The caller updates the member's categories.
    #[inline]
    pub(super) fn shrink(&mut self, ledger: &mut Ledger, change: impl FnOnce(&mut Ledger)) {
        let before = ledger.parts();
        change(ledger);
        let after = ledger.parts();
        debug_assert!(after.held <= before.held, "a release that holds more");
        let idle_moved = before.idle != after.idle;
        self.update_sums(before, after);
        let freed = before.held - after.held;
        if freed > 0 {
            self.member_mut(ledger.member).bytes -= freed;
            self.uncharge(freed, if idle_moved { SoftTest::Later } else { SoftTest::Now });
        }
        if idle_moved {
            self.update_thresholds(ledger.member);
        } else {
            self.soft_test(ledger.member);
        }
    }

    /// Replaces a flow's part of the budget's sums, `before` by `after`.
    #[inline]
    pub(super) fn update_sums(&mut self, before: Parts, after: Parts) {
        self.meter.active += u64::from(after.active);
        self.meter.active -= u64::from(before.active);
        self.meter.idle += after.idle;
        self.meter.idle -= before.idle;
    }

    // ---- the meter and the chain ----

    /// Charges a reservation: the soft test waits for [`Self::update_thresholds`].
    pub(super) fn charge_fixed(&mut self, bytes: u64) -> Result<(), Refusal> {
        self.meter.charge(self.chain.leaf.as_deref(), bytes, SoftTest::Later)
    }

    /// Charges growth: the soft test follows at once.
    pub(super) fn charge_elastic(&mut self, bytes: u64) -> Result<(), Refusal> {
        self.meter.charge(self.chain.leaf.as_deref(), bytes, SoftTest::Now)
    }

    #[inline]
    pub(super) fn uncharge(&mut self, bytes: u64, test: SoftTest) {
        self.meter.uncharge(self.chain.leaf.as_deref(), bytes, test);
        self.releases += 1;
    }

    /// Reservations, idle credit or limits changed: computes new thresholds, then makes the soft
    /// test.
    pub(super) fn update_thresholds(&mut self, member: MemberId) {
        if self.rules == Rules::Strict {
            self.meter.update_thresholds(self.chain.leaf.as_deref());
            self.soft_test(member);
        }
    }

    /// The soft test, the same after every change (K7).
    #[inline]
    pub(super) fn soft_test(&mut self, member: MemberId) {
        if self.meter.flag_due() {
            self.turn_flag(member);
        }
    }

    #[cold]
    fn turn_flag(&mut self, member: MemberId) {
        let at = self.now;
        self.meter.flag = !self.meter.flag;
        if self.meter.flag {
            self.meter.since = at;
            self.count(member, Counter::TCPMemoryPressures, 1);
            self.emit(member, Event::PressureEnter { at });
        } else {
            let lasted = at.since(self.meter.since);
            let after_ms = lasted.as_millis() as u64;
            self.meter.pressure_ns += lasted.as_nanos() as u64;
            // Growth that the flow's share refused may fit without pressure.
            self.releases += 1;
            self.count(member, Counter::TCPMemoryPressuresChrono, after_ms);
            self.emit(member, Event::PressureLeave { at, after_ms });
        }
    }

    /// Records a refusal; the first hard one of an episode makes an event.
    pub(super) fn note_refusal(&mut self, member: MemberId, refusal: Refusal) -> Refusal {
        self.refused_at = self.releases;
        if refusal.is_hard() && self.meter.refusal_begins() {
            self.emit(member, Event::HardRefused { at: self.now });
        }
        refusal
    }
}

//! The operations that the stack calls for a flow's ledger and for a container's small entries;
//! each dispatches to the rule set.

use super::{Budget, Rules};
use crate::ledger::{FlowSizes, Ledger, MemberId, RxKind};
use crate::level::{Level, SoftTest};
use crate::meter::{Refusal, Rule};
use crate::units::Instant;

impl Budget {
    // ---- admission ----

    /// Admits a SYN: charges `sock` only, as half-open. Strict: half-open flows together hold at
    /// most hard/8 of `sock` bytes (H7). Linux rules: never refused and not charged (sockets are
    /// slab memory there), but counted in `nsock`.
    ///
    /// # Errors
    /// `HalfOpen` over that bound, or a refused charge; nothing is held then.
    pub fn admit(
        &mut self,
        member: MemberId,
        sizes: &FlowSizes,
        now: Instant,
    ) -> Result<Ledger, Refusal> {
        self.at(now);
        match self.rules {
            Rules::Strict => self.strict_admit(member, sizes),
            Rules::Linux => Ok(self.linux_admit(member, sizes)),
        }
    }

    /// Charges the other parts of the reservation (`rmem_min + wmem_min + host_floor`), all or
    /// nothing; the flow is no longer half-open on success. The stack calls this right after
    /// `admit` and before `connect`, because the host socket's caps are charged first.
    ///
    /// # Errors
    /// A refused charge; the flow then stays half-open.
    pub fn establish(&mut self, ledger: &mut Ledger, now: Instant) -> Result<(), Refusal> {
        self.at(now);
        match self.rules {
            Rules::Strict => self.strict_establish(ledger),
            Rules::Linux => {
                self.linux_establish(ledger);
                Ok(())
            }
        }
    }

    /// Lowers the host socket's part of the reservation to `floor` bytes; the bytes above it stay
    /// charged, as elastic, until `host_lower`. For a host socket that holds more than the floor
    /// when its flow starts: charging the surplus as a reservation avoids a refusal under soft
    /// pressure, and it does not stay reserved.
    pub fn lower_host_floor(&mut self, ledger: &mut Ledger, floor: u32, now: Instant) {
        self.at(now);
        let before = ledger.floor();
        let floor = floor.min(ledger.sizes.host_floor);
        match self.rules {
            Rules::Strict => {
                let parts = ledger.parts();
                ledger.sizes.host_floor = floor;
                // `floor` is part of the ledger: the fixed sum falls by exactly what became
                // elastic.
                self.meter.fixed -= before - ledger.floor();
                self.update_sums(parts, ledger.parts());
                self.update_thresholds(ledger.member);
            }
            Rules::Linux => ledger.sizes.host_floor = floor,
        }
    }

    /// Uncharges everything that the flow holds.
    pub fn release(&mut self, mut ledger: Ledger, now: Instant) {
        self.at(now);
        match self.rules {
            Rules::Strict => self.strict_release(&mut ledger),
            Rules::Linux => self.linux_release(&mut ledger),
        }
    }

    /// Charges small entries of fixed size, `bytes` together (the list of waiting SYNs, TIME-WAIT
    /// entries), shown as `sock`. Returns whether the charge was granted. Linux rules: recorded,
    /// not charged.
    pub fn charge_compact(&mut self, member: MemberId, bytes: u64, now: Instant) -> bool {
        self.at(now);
        if self.rules == Rules::Strict {
            if let Err(refusal) = self.charge_fixed(bytes) {
                self.note_refusal(member, refusal);
                return false;
            }
            self.meter.fixed += bytes;
            self.member_mut(member).bytes += bytes;
            self.update_thresholds(member);
        }
        self.member_mut(member).compact += bytes;
        true
    }

    /// Uncharges such entries.
    pub fn uncharge_compact(&mut self, member: MemberId, bytes: u64, now: Instant) {
        self.at(now);
        self.member_mut(member).compact -= bytes;
        if self.rules == Rules::Strict {
            self.member_mut(member).bytes -= bytes;
            self.meter.fixed -= bytes;
            self.uncharge(bytes, SoftTest::Later);
            self.update_thresholds(member);
        }
    }

    // ---- receive side, in chunks ----
    //
    // The receive queue is a run of chunk slots at fixed stream positions, from the first unread
    // byte to the advertised edge. Strict: every slot of the run is charged before the edge is
    // advertised, so data in the window, in order or not, fills slots that are already charged.

    /// Opens the window by up to `chunks` more slots and returns how many (0..=chunks). Strict: the
    /// slots are charged as credit; hard limits up the chain bound them, and under pressure the
    /// flow's fair share; slots within the reserve are never refused. Linux: returns `chunks`
    /// (credit is not charged there).
    #[inline]
    pub fn rx_open(&mut self, ledger: &mut Ledger, chunks: u32, now: Instant) -> u32 {
        self.at(now);
        match self.rules {
            Rules::Strict => self.strict_rx_open(ledger, chunks),
            Rules::Linux => chunks,
        }
    }

    /// `chunks` slots receive data; returns how many may be filled, a prefix. Strict: the slots are
    /// taken from credit; slots beyond the span (demoted flow, H3) are charged now. Linux:
    /// schedule(RECV) per chunk; an empty receive queue accepts its first chunk by force (L6).
    #[inline]
    pub fn rx_fill(&mut self, ledger: &mut Ledger, chunks: u32, kind: RxKind, now: Instant) -> u32 {
        self.at(now);
        match self.rules {
            Rules::Strict => self.strict_rx_fill(ledger, chunks, kind),
            Rules::Linux => self.linux_rx_fill(ledger, chunks, kind),
        }
    }

    /// `chunks` slots filled out of order are in order now: they move between categories.
    pub fn rx_settle(&mut self, ledger: &mut Ledger, chunks: u32) {
        debug_assert!(chunks <= ledger.ofo, "settles more than is out of order");
        ledger.ofo -= chunks;
        ledger.rmem += chunks;
        let member = self.member_mut(ledger.member);
        member.ofo -= u64::from(chunks);
        member.rmem += u64::from(chunks);
    }

    /// The host socket took in-order chunks: `rmem` and the span shrink.
    #[inline]
    pub fn rx_free(&mut self, ledger: &mut Ledger, chunks: u32, now: Instant) {
        self.at(now);
        debug_assert!(chunks <= ledger.rmem, "frees more than is in order");
        self.member_mut(ledger.member).rmem -= u64::from(chunks);
        match self.rules {
            Rules::Strict => self.strict_rx_free(ledger, chunks),
            Rules::Linux => {
                ledger.rmem -= chunks;
                self.linux_rx_uncharge(ledger, chunks);
            }
        }
    }

    /// The host socket took in-order chunks, and the window over their slots stays open: the queue
    /// is empty and its next byte starts the slot again. Strict: the slots are credit again. Linux:
    /// uncharged.
    #[inline]
    pub fn rx_drain(&mut self, ledger: &mut Ledger, chunks: u32, now: Instant) {
        self.at(now);
        debug_assert!(chunks <= ledger.rmem, "drains more than is in order");
        self.member_mut(ledger.member).rmem -= u64::from(chunks);
        ledger.rmem -= chunks;
        match self.rules {
            Rules::Strict => {
                self.member_mut(ledger.member).credit += u64::from(chunks);
                ledger.credit += chunks;
            }
            Rules::Linux => self.linux_rx_uncharge(ledger, chunks),
        }
    }

    /// Out-of-order chunks were dropped. Strict: the slots are credit again. Linux: uncharged.
    pub fn rx_prune(&mut self, ledger: &mut Ledger, chunks: u32, now: Instant) {
        self.at(now);
        debug_assert!(chunks <= ledger.ofo, "prunes more than is out of order");
        self.member_mut(ledger.member).ofo -= u64::from(chunks);
        match self.rules {
            Rules::Strict => {
                self.member_mut(ledger.member).credit += u64::from(chunks);
                self.shrink(ledger, |ledger| {
                    ledger.ofo -= chunks;
                    ledger.credit += chunks;
                });
            }
            Rules::Linux => {
                ledger.ofo -= chunks;
                self.linux_rx_uncharge(ledger, chunks);
            }
        }
    }

    /// Uncharges up to `chunks` slots of unfilled credit to demote an idle flow (H3), and returns
    /// how many. Linux: 0.
    pub fn rx_close(&mut self, ledger: &mut Ledger, chunks: u32, now: Instant) -> u32 {
        self.at(now);
        let chunks = chunks.min(ledger.credit);
        if chunks > 0 {
            self.member_mut(ledger.member).credit -= u64::from(chunks);
            self.shrink(ledger, |ledger| ledger.credit -= chunks);
        }
        chunks
    }

    // ---- send side, in chunks ----

    /// Requests `chunks` more for data to be read from the host socket and queued to the guest.
    /// Charged at once; returns how many were granted, a prefix. Strict: the reserve first, then
    /// the chain and the share. Linux: per chunk the sndbuf test, then schedule / wmem_copy with
    /// their forced charges.
    #[inline]
    pub fn tx_grant(&mut self, ledger: &mut Ledger, chunks: u32, now: Instant) -> u32 {
        self.at(now);
        match self.rules {
            Rules::Strict => self.strict_tx_grant(ledger, chunks),
            Rules::Linux => self.linux_tx_grant(ledger, chunks),
        }
    }

    /// Uncharges `chunks` of the send queue: acknowledged, or granted and not used.
    #[inline]
    pub fn tx_free(&mut self, ledger: &mut Ledger, chunks: u32, now: Instant) {
        self.at(now);
        debug_assert!(chunks <= ledger.wmem, "frees more than is queued");
        self.member_mut(ledger.member).wmem -= u64::from(chunks);
        match self.rules {
            Rules::Strict => self.strict_tx_free(ledger, chunks),
            Rules::Linux => {
                ledger.wmem -= chunks;
                self.linux_tx_uncharge(ledger, chunks);
            }
        }
    }

    // ---- host sockets, UDP ----

    /// Charges `bytes` more for the caps of the flow's host socket, before setsockopt, and returns
    /// whether it was granted. Refused under pressure. Linux rules: always granted and not charged
    /// (there the socket belongs to another program), only recorded in the ledger.
    pub fn host_raise(&mut self, ledger: &mut Ledger, bytes: u64, now: Instant) -> bool {
        self.at(now);
        let raised = self.rules == Rules::Linux || self.strict_host_raise(ledger, bytes);
        if raised {
            self.member_mut(ledger.member).host += bytes;
        }
        // The strict rules add it with their own charge.
        if self.rules == Rules::Linux {
            ledger.host += bytes;
        }
        raised
    }

    /// Uncharges `bytes` after the caps were lowered or the excess has drained. Never below the
    /// floor.
    pub fn host_lower(&mut self, ledger: &mut Ledger, bytes: u64, now: Instant) {
        self.at(now);
        // The floor is part of the reservation: only `release` returns it.
        let floor = if ledger.established { u64::from(ledger.sizes.host_floor) } else { 0 };
        let bytes = bytes.min(ledger.host.saturating_sub(floor));
        self.member_mut(ledger.member).host -= bytes;
        match self.rules {
            Rules::Strict => self.shrink(ledger, |ledger| ledger.host -= bytes),
            Rules::Linux => ledger.host -= bytes,
        }
    }

    // ---- pressure ----

    /// The container is over soft, or over its share while a level above is flagged.
    #[inline]
    pub fn under_pressure(&self) -> bool {
        match self.rules {
            Rules::Strict => {
                self.meter.flag
                    || self.chain.leaf.as_deref().is_some_and(|level| self.meter.over_share(level))
            }
            Rules::Linux => self.pool.flag || self.chain.flag,
        }
    }

    /// Linux rules: the pool holds less than its low threshold, so a full receive buffer may grow (L7).
    pub fn below_low(&self) -> bool {
        self.pool.alloc < self.pool.low
    }

    /// Bytes that one more charge could take right now, up the chain; a hint, since other workers
    /// change the levels. `u64::MAX` when unlimited.
    pub fn headroom(&self) -> u64 {
        if self.meter.limits.hard == u64::MAX && self.chain.leaf.is_none() {
            return u64::MAX;
        }
        match self.rules {
            Rules::Strict => self.room(&Level::fair_room),
            Rules::Linux => self.linux_headroom(),
        }
    }

    /// As [`Self::headroom`], for the reservation of a new flow.
    pub fn admission_room(&self) -> u64 {
        match self.rules {
            Rules::Strict => self.room(&Level::reservation_room),
            Rules::Linux => self.headroom(),
        }
    }

    fn room(&self, rule: Rule<'_>) -> u64 {
        self.meter.room_for_charge(self.chain.leaf.as_deref(), rule).0
    }

    /// Bytes that autotuning may still grow into: up to the soft threshold, never beyond
    /// `headroom`. Steps well below it keep a container from putting itself under pressure. Linux
    /// rules: the kernel tests only the flag, so `u64::MAX` or 0.
    pub fn calm_room(&self) -> u64 {
        match (self.rules, self.under_pressure()) {
            (_, true) => 0,
            (Rules::Strict, false) => {
                self.meter.calm_room().min(self.headroom()).min(self.meter.growth_room())
            }
            (Rules::Linux, false) => u64::MAX,
        }
    }

    /// Whether autotuning may take `bytes` more: at most a quarter of [`Self::calm_room`]. Many flows
    /// grow at once, and growth must not put the container under pressure.
    pub fn may_grow(&self, bytes: u64) -> bool {
        self.calm_room() / 4 >= bytes
    }

    /// Marks the flow idle (no data for 1 s: its credit leaves the soft test and `n_active`, K7,
    /// H4) or active again. Any growth or arrival ends idleness by itself.
    pub fn set_idle(&mut self, ledger: &mut Ledger, idle: bool, now: Instant) {
        self.at(now);
        match self.rules {
            // Moves credit between idle and elastic, then makes the soft test; uncharges nothing.
            Rules::Strict if ledger.idle != idle => {
                self.shrink(ledger, |ledger| ledger.idle = idle);
            }
            Rules::Strict => {}
            Rules::Linux => ledger.idle = idle,
        }
    }
}

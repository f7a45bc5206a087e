//! The operations the stack calls on a flow's ledger, and on a container's small things: each goes
//! to its rule set.

use super::{Budget, Rules};
use crate::ledger::{FlowSizes, Ledger, MemberId, RxKind};
use crate::level::{Level, SoftTest};
use crate::meter::{Refusal, Rule};
use crate::units::Instant;

impl Budget {
    // ---- admission ----

    /// A SYN: charges `sock` only, as half-open (strict: at most hard/8 of half-open `sock` bytes,
    /// H7). Linux rules: never refused, nothing charged (sockets are slab there), but counted in
    /// nsock.
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

    /// The rest of the reservation (rmem_min + wmem_min + host_floor), all or nothing; leaves
    /// half-open on success. The stack calls it right after `admit`, before `connect`, since the
    /// host socket's caps are charged first.
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

    /// The part of the reservation for the host socket becomes `floor` bytes; what was reserved
    /// beyond is elastic from now on, still charged, until it is lowered. For a socket that holds
    /// more than the floor when its flow begins: that is charged as a reservation, which soft
    /// pressure does not refuse, and not kept as one.
    pub fn lower_host_floor(&mut self, ledger: &mut Ledger, floor: u32, now: Instant) {
        self.at(now);
        let before = ledger.floor();
        let floor = floor.min(ledger.sizes.host_floor);
        match self.rules {
            Rules::Strict => {
                let parts = ledger.parts();
                ledger.sizes.host_floor = floor;
                self.meter.fixed -= before - ledger.floor();
                self.recount(parts, ledger.parts());
                self.rescale(ledger.member);
            }
            Rules::Linux => ledger.sizes.host_floor = floor,
        }
    }

    /// Everything the flow holds goes back.
    pub fn release(&mut self, mut ledger: Ledger, now: Instant) {
        self.at(now);
        match self.rules {
            Rules::Strict => self.strict_release(&mut ledger),
            Rules::Linux => self.linux_release(&mut ledger),
        }
    }

    /// Small fixed things (parked SYN, TIME-WAIT entry): 64 B each, charged as `sock`.
    /// Linux rules: recorded, not charged.
    pub fn charge_compact(&mut self, member: MemberId, bytes: u64, now: Instant) -> bool {
        self.at(now);
        if self.rules == Rules::Strict {
            if let Err(refusal) = self.charge_fixed(bytes) {
                self.note_refusal(member, refusal);
                return false;
            }
            self.meter.fixed += bytes;
            self.member_mut(member).bytes += bytes;
            self.rescale(member);
        }
        self.member_mut(member).compact += bytes;
        true
    }

    /// Such a thing is gone.
    pub fn uncharge_compact(&mut self, member: MemberId, bytes: u64, now: Instant) {
        self.at(now);
        self.member_mut(member).compact -= bytes;
        if self.rules == Rules::Strict {
            self.member_mut(member).bytes -= bytes;
            self.meter.fixed -= bytes;
            self.uncharge(bytes, SoftTest::Later);
            self.rescale(member);
        }
    }

    // ---- receive side, in chunks ---- The receive queue is a run of chunk slots at fixed stream
    // positions, from the first unread byte to the advertised edge. Strict: every slot of the run
    // is charged before the edge is advertised, so in-window data, in order or not, fills slots
    // already paid for.

    /// Strict: charge up to `chunks` more slots of credit and return how many (0..=chunks): bounded
    /// by hard limits up the chain, and under pressure by the flow's fair share; within the reserve
    /// never refused. Linux: returns `chunks` (credit costs nothing there).
    #[inline]
    pub fn rx_open(&mut self, ledger: &mut Ledger, chunks: u32, now: Instant) -> u32 {
        self.at(now);
        match self.rules {
            Rules::Strict => self.strict_rx_open(ledger, chunks),
            Rules::Linux => chunks,
        }
    }

    /// `chunks` slots begin to hold data. Strict: taken from credit; what exceeds the span (demoted
    /// flow, H3) is asked for now. Linux: schedule(RECV) per chunk; an empty receive queue accepts
    /// its first chunk by force (L6). Returns how many slots may be filled, a prefix.
    #[inline]
    pub fn rx_fill(&mut self, ledger: &mut Ledger, chunks: u32, kind: RxKind, now: Instant) -> u32 {
        self.at(now);
        match self.rules {
            Rules::Strict => self.strict_rx_fill(ledger, chunks, kind),
            Rules::Linux => self.linux_rx_fill(ledger, chunks, kind),
        }
    }

    /// `chunks` slots filled out of order are in order now: a category move.
    pub fn rx_settle(&mut self, ledger: &mut Ledger, chunks: u32) {
        debug_assert!(chunks <= ledger.ofo, "settles more than is out of order");
        ledger.ofo -= chunks;
        ledger.rmem += chunks;
        let member = self.member_mut(ledger.member);
        member.ofo -= u64::from(chunks);
        member.rmem += u64::from(chunks);
    }

    /// In-order chunks were taken by the host: rmem and the span shrink.
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

    /// In-order chunks were taken by the host and the window over their slots stays open: the queue is empty and its
    /// next byte begins the slot again. Strict: they are credit again. Linux: uncharged.
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

    /// Out-of-order chunks were dropped. Strict: they are credit again. Linux: uncharged.
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

    /// Strict: give back `chunks` slots of unfilled credit (the stack rebased an empty queue, or
    /// demotes an idle flow, H3). Saturates at what is unfilled. Returns slots given back. Linux:
    /// 0.
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

    /// May `chunks` more be read from the host socket and queued to the guest? Charged at once;
    /// returns a prefix. Strict: the reserve first, then chain and share. Linux: sndbuf test, then
    /// schedule / wmem_copy with all its force rules, per chunk.
    #[inline]
    pub fn tx_grant(&mut self, ledger: &mut Ledger, chunks: u32, now: Instant) -> u32 {
        self.at(now);
        match self.rules {
            Rules::Strict => self.strict_tx_grant(ledger, chunks),
            Rules::Linux => self.linux_tx_grant(ledger, chunks),
        }
    }

    /// Acknowledged (or granted and not used).
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

    /// Raise the charged caps of the flow's host socket by `bytes`, before setsockopt. Refused
    /// under pressure. Linux rules: always true, nothing charged (not ours in that world), recorded
    /// in the ledger.
    pub fn host_raise(&mut self, ledger: &mut Ledger, bytes: u64, now: Instant) -> bool {
        self.at(now);
        let raised = self.rules == Rules::Linux || self.strict_host_raise(ledger, bytes);
        if raised {
            self.member_mut(ledger.member).host += bytes;
        }
        if self.rules == Rules::Linux {
            ledger.host += bytes;
        }
        raised
    }

    /// The caps were lowered, or the excess has drained. Saturates at the floor.
    pub fn host_lower(&mut self, ledger: &mut Ledger, bytes: u64, now: Instant) {
        self.at(now);
        let floor = if ledger.established { u64::from(ledger.sizes.host_floor) } else { 0 };
        let bytes = bytes.min(ledger.host.saturating_sub(floor));
        self.member_mut(ledger.member).host -= bytes;
        match self.rules {
            Rules::Strict => self.shrink(ledger, |ledger| ledger.host -= bytes),
            Rules::Linux => ledger.host -= bytes,
        }
    }

    /// UDP and fragments: together at most hard/8 (M4). Linux rules: bounded alike, recorded, not
    /// charged.
    pub fn charge_udp(&mut self, member: MemberId, bytes: u64, now: Instant) -> bool {
        self.at(now);
        let udp = self.meter.udp.saturating_add(bytes);
        if udp > self.meter.limits.hard_bytes() / 8 {
            return false;
        }
        if self.rules == Rules::Strict {
            if bytes > self.meter.growth_room() {
                return false;
            }
            if let Err(refusal) = self.charge_elastic(bytes) {
                self.note_refusal(member, refusal);
                return false;
            }
            self.member_mut(member).bytes += bytes;
            self.retest(member);
        }
        self.meter.udp = udp;
        self.member_mut(member).udp += bytes;
        true
    }

    /// A datagram or fragment is gone.
    pub fn uncharge_udp(&mut self, member: MemberId, bytes: u64, now: Instant) {
        self.at(now);
        self.meter.udp -= bytes;
        self.member_mut(member).udp -= bytes;
        if self.rules == Rules::Strict {
            self.member_mut(member).bytes -= bytes;
            self.uncharge(bytes, SoftTest::Now);
            self.retest(member);
        }
    }

    // ---- pressure ----

    /// Container over soft, or over its share while a level above is flagged.
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

    /// Fast hint: bytes that one more charge could take right now (strict), up the chain. u64::MAX
    /// when unlimited.
    pub fn headroom(&self) -> u64 {
        if self.meter.limits.hard == u64::MAX && self.chain.leaf.is_none() {
            return u64::MAX;
        }
        match self.rules {
            Rules::Strict => self.room(&Level::fair_room),
            Rules::Linux => self.linux_headroom(),
        }
    }

    /// As [`Self::headroom`] for a reservation: what a new flow is guaranteed.
    pub fn admission_room(&self) -> u64 {
        match self.rules {
            Rules::Strict => self.room(&Level::reservation_room),
            Rules::Linux => self.headroom(),
        }
    }

    fn room(&self, rule: Rule<'_>) -> u64 {
        self.meter.room_for_charge(self.chain.leaf.as_deref(), rule).0
    }

    /// Bytes that autotuning may still spread into: up to where soft pressure begins, never beyond
    /// `headroom`. Steps that stay well below it keep a container from putting itself under
    /// pressure. Linux rules: the kernel asks the flag only, so all or nothing.
    pub fn calm_room(&self) -> u64 {
        match (self.rules, self.under_pressure()) {
            (_, true) => 0,
            (Rules::Strict, false) => {
                self.meter.calm_room().min(self.headroom()).min(self.meter.growth_room())
            }
            (Rules::Linux, false) => u64::MAX,
        }
    }

    /// The flow had no data for 1 s: its credit leaves the soft test and `n_active` (K7, H4); or it
    /// is active again. Any growth or arrival ends idleness by itself.
    pub fn set_idle(&mut self, ledger: &mut Ledger, idle: bool, now: Instant) {
        self.at(now);
        match self.rules {
            Rules::Strict if ledger.idle != idle => {
                self.shrink(ledger, |ledger| ledger.idle = idle);
            }
            Rules::Strict => {}
            Rules::Linux => ledger.idle = idle,
        }
    }
}

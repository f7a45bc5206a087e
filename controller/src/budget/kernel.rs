//! The linux rules applied to chunks: each chunk is a buffer of 4096 bytes in the ladder of
//! [`crate::linux`].

use super::Budget;
use crate::event::{Counter, Event};
use crate::ledger::{FlowSizes, Ledger, MemberId, RxKind};
use crate::linux::{Cause, Kind, Sock, Verdict};
use crate::sizing::{Refused, on_refused};
use crate::units::{CHUNK_SIZE, PAGE_SIZE};

impl Budget {
    pub(super) fn linux_admit(&mut self, member: MemberId, sizes: &FlowSizes) -> Ledger {
        self.pool.nsock += 1;
        let found = self.member_mut(member);
        found.flows += 1;
        found.sock += u64::from(sizes.sock);
        let mut sock = Sock::new(self.sock.wmem[1], self.sock.rmem[1]);
        (sock.rmem_min, sock.wmem_min) = (self.sock.rmem[0], self.sock.wmem[0]);
        Ledger::new(member, *sizes, sock)
    }

    pub(super) fn linux_establish(&mut self, ledger: &mut Ledger) {
        if !ledger.established {
            ledger.established = true;
            ledger.host += u64::from(ledger.sizes.host_floor);
            self.member_mut(ledger.member).host += u64::from(ledger.sizes.host_floor);
        }
    }

    pub(super) fn linux_release(&mut self, ledger: &mut Ledger) {
        // Uncharging both queues reclaims all whole pages, and a queue of chunks has no others.
        self.with_pool(ledger, |sock, pool, chain, now| {
            let (rmem, wmem) = (sock.rmem, sock.wmem);
            sock.uncharge(pool, chain, Kind::Rmem, rmem, now);
            sock.uncharge(pool, chain, Kind::Wmem, wmem, now);
            debug_assert!(sock.fwd == 0, "a socket left with forward_alloc");
        });
        self.pool.nsock -= 1;
        let member = self.member_mut(ledger.member);
        member.rmem -= u64::from(ledger.rmem);
        member.ofo -= u64::from(ledger.ofo);
        member.wmem -= u64::from(ledger.wmem);
        member.sock -= u64::from(ledger.sizes.sock);
        member.host -= ledger.host;
        member.flows -= 1;
        ledger.released = true;
    }

    pub(super) fn linux_rx_fill(&mut self, ledger: &mut Ledger, chunks: u32, kind: RxKind) -> u32 {
        let mut filled = 0;
        while filled < chunks && self.linux_rx_one(ledger, kind) {
            let member = self.member_mut(ledger.member);
            match kind {
                RxKind::InOrder => {
                    ledger.rmem += 1;
                    member.rmem += 1;
                }
                RxKind::Ofo => {
                    ledger.ofo += 1;
                    member.ofo += 1;
                }
            }
            filled += 1;
        }
        filled
    }

    /// `tcp_data_queue`: refused data is dropped, unless it is in order and the receive queue is
    /// empty (L6).
    fn linux_rx_one(&mut self, ledger: &mut Ledger, kind: RxKind) -> bool {
        // Only in-order data lets the reader progress: data behind a hole is never forced. A FIN takes no chunk.
        let empty = ledger.rmem == 0 && kind == RxKind::InOrder;
        let forced = on_refused(empty, false) == Refused::Force;
        let verdict = self.with_pool(ledger, |sock, pool, chain, now| {
            let verdict = sock.schedule(pool, chain, Kind::Rmem, CHUNK_SIZE, now);
            if !verdict.is_ok() && forced {
                sock.force(pool, chain, CHUNK_SIZE);
            }
            if verdict.is_ok() || forced {
                sock.charge(Kind::Rmem, CHUNK_SIZE);
            }
            verdict
        });
        self.note_verdict(ledger.member, verdict);
        verdict.is_ok() || forced
    }

    pub(super) fn linux_rx_uncharge(&mut self, ledger: &mut Ledger, chunks: u32) {
        self.with_pool(ledger, |sock, pool, chain, now| {
            sock.uncharge(pool, chain, Kind::Rmem, u64::from(chunks) * CHUNK_SIZE, now);
        });
    }

    pub(super) fn linux_tx_grant(&mut self, ledger: &mut Ledger, chunks: u32) -> u32 {
        let mut granted = 0;
        while granted < chunks && self.linux_tx_one(ledger) {
            ledger.wmem += 1;
            self.member_mut(ledger.member).wmem += 1;
            granted += 1;
        }
        granted
    }

    /// `tcp_sendmsg`: only below sndbuf. The first buffer of an empty queue is forced; later ones
    /// follow the copy rule (L4), where less than a whole chunk grants nothing.
    fn linux_tx_one(&mut self, ledger: &mut Ledger) -> bool {
        // L4: a new buffer needs `wmem < sndbuf`.
        if !ledger.sock.memory_free() {
            return false;
        }
        let (granted, verdict) = self.with_pool(ledger, |sock, pool, chain, now| {
            let (granted, verdict) = if sock.wmem == 0 {
                sock.force(pool, chain, CHUNK_SIZE);
                (CHUNK_SIZE, Verdict::Fwd)
            } else {
                sock.wmem_copy(pool, chain, CHUNK_SIZE, now)
            };
            if granted == CHUNK_SIZE {
                sock.charge(Kind::Wmem, CHUNK_SIZE);
            } else {
                // The copy rule may have forced a part of the chunk: give its whole pages back.
                sock.reclaim(pool, chain, now);
            }
            (granted, verdict)
        });
        self.note_verdict(ledger.member, verdict);
        granted == CHUNK_SIZE
    }

    pub(super) fn linux_tx_uncharge(&mut self, ledger: &mut Ledger, chunks: u32) {
        self.with_pool(ledger, |sock, pool, chain, now| {
            sock.uncharge(pool, chain, Kind::Wmem, u64::from(chunks) * CHUNK_SIZE, now);
        });
    }

    pub(super) fn linux_headroom(&self) -> u64 {
        let pool = self.pool.high.saturating_sub(self.pool.alloc);
        let chain = self.chain.leaf.as_deref().into_iter().flat_map(|leaf| leaf.chain_to(None));
        chain.map(|level| level.free()).fold(pool, u64::min).saturating_mul(PAGE_SIZE)
    }

    /// Runs one step of the ladder and records the changes of the flag and of `forward_alloc`.
    fn with_pool<T>(
        &mut self,
        ledger: &mut Ledger,
        step: impl FnOnce(
            &mut Sock,
            &mut crate::linux::Pool,
            &mut crate::linux::Chain,
            crate::units::Instant,
        ) -> T,
    ) -> T {
        let (flag, fwd) = (self.pool.flag, ledger.sock.fwd);
        let answer = step(&mut ledger.sock, &mut self.pool, &mut self.chain, self.now);
        let member = self.member_mut(ledger.member);
        // Add before subtracting: the difference may be negative.
        member.fwd = member.fwd + ledger.sock.fwd - fwd;
        self.meter.watermark = self.meter.watermark.max(self.pool.alloc);
        if self.pool.flag != flag {
            self.note_flag(ledger.member);
        }
        answer
    }

    #[cold]
    fn note_flag(&mut self, member: MemberId) {
        let at = self.now;
        if self.pool.flag {
            self.count(member, Counter::TCPMemoryPressures, 1);
            self.emit(member, Event::PressureEnter { at });
        } else {
            let after_ms = at.since(self.pool.since).as_millis() as u64;
            self.count(member, Counter::TCPMemoryPressuresChrono, after_ms);
            self.emit(member, Event::PressureLeave { at, after_ms });
        }
    }

    fn note_verdict(&mut self, member: MemberId, verdict: Verdict) {
        let hard = matches!(verdict.cause(), Some(Cause::Container | Cause::OverHigh));
        // No meter was touched, so the last outcome stays.
        if verdict == Verdict::Fwd {
            return;
        }
        // The pool is this budget's own limit; levels count their refusals themselves.
        if verdict.cause() == Some(Cause::OverHigh) {
            self.meter.failcnt += 1;
        }
        if hard && !self.meter.refused {
            self.emit(member, Event::HardRefused { at: self.now });
        }
        self.meter.refused = hard;
    }
}

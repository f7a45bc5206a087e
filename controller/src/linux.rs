//! The kernel's own ladder, rule set `linux`: `controller/docs/kernel.md`, L1 to L4 and L12.
//!
//! Two gates in this order: the container's chain of hard counters, then a pool with three
//! thresholds. A refusal at the first gate skips the second entirely. The hard limit is exceeded in
//! four cases, all reproduced on purpose: a sender at `wmem_queued + size >= sndbuf`, the first
//! buffer of an empty send queue, `wmem_min` bytes a socket, and the first segment of an empty
//! receive queue.
//!
//! Bytes for queues, pages of 4096 bytes for meters; no per-CPU batching.

use alloc::sync::Arc;

use crate::level::Level;
use crate::sizing;
use crate::units::{Instant, PAGE_SIZE, pages};

/// Which of a socket's two queues a charge is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Receive queue, in order and out of order (`sk_rmem_alloc`).
    Rmem,
    /// Unsent and unacknowledged data (`sk_wmem_queued`).
    Wmem,
}

/// Why the ladder ended in suppression, its last step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// A hard counter of the chain refused.
    Container,
    /// The pool would be over its hard threshold.
    OverHigh,
    /// Under pressure, and the socket is above the average share.
    Unfair,
}

/// Outcome of [`Sock::schedule`]: the rule that decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// `forward_alloc` covered it; no meter was touched.
    Fwd,
    /// The pool is at or below `low`; pressure ends.
    UnderLow,
    /// Receive queue below its guarantee.
    MinRmem,
    /// Send queue below its guarantee.
    MinWmem,
    /// Above `low`, and no pressure.
    NoPressure,
    /// Under pressure, and the socket is below the average share.
    Fair,
    /// A sender that will block on sndbuf anyway: charged beyond the limit.
    Forced(Cause),
    /// Nothing was charged.
    Deny(Cause),
}

impl Verdict {
    /// Whether the caller may queue the buffer.
    pub const fn is_ok(self) -> bool {
        !matches!(self, Self::Deny(_))
    }

    /// The cause, when the ladder ended in suppression, whether the charge was forced or not.
    pub const fn cause(self) -> Option<Cause> {
        match self {
            Self::Forced(cause) | Self::Deny(cause) => Some(cause),
            Self::Fwd
            | Self::UnderLow
            | Self::MinRmem
            | Self::MinWmem
            | Self::NoPressure
            | Self::Fair => None,
        }
    }
}

/// The shared pool (`tcp_mem`). Pages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    /// Pressure ends at or below (charge), below (release).
    pub low: u64,
    /// Pressure starts above.
    pub pressure: u64,
    /// Charges are suppressed above.
    pub high: u64,
    /// Pages charged.
    pub alloc: u64,
    /// Sockets that divide the pool for the share.
    pub nsock: u64,
    /// The pressure flag.
    pub flag: bool,
    /// When the flag was last set.
    pub since: Instant,
    /// Times the flag was set (`TCPMemoryPressures`).
    pub enters: u64,
    /// Nanoseconds in the flag, finished episodes only.
    pub chrono_ns: u64,
}

impl Pool {
    /// An empty pool with these thresholds in pages.
    pub const fn new(low: u64, pressure: u64, high: u64) -> Self {
        Self {
            low,
            pressure,
            high,
            alloc: 0,
            nsock: 0,
            flag: false,
            since: Instant(0),
            enters: 0,
            chrono_ns: 0,
        }
    }

    fn enter(&mut self, now: Instant) {
        if !self.flag {
            self.flag = true;
            self.since = now;
            self.enters += 1;
        }
    }

    fn leave(&mut self, now: Instant) {
        if self.flag {
            self.flag = false;
            self.chrono_ns += now.0.saturating_sub(self.since.0);
        }
    }

    /// `__sk_mem_reduce_allocated`: a release ends pressure at `< low`, a charge at `<= low`.
    fn release(&mut self, n: u64, now: Instant) {
        debug_assert!(self.alloc >= n, "pool would go negative");
        self.alloc -= n;
        if self.flag && self.alloc < self.low {
            self.leave(now);
        }
    }
}

/// The container's chain of hard counters, and the flag that its last charge left (cgroup v1
/// `memory.kmem.tcp`).
#[derive(Debug, Clone, Default)]
pub struct Chain {
    /// The nearest counter; it links to its parent.
    pub leaf: Option<Arc<Level>>,
    /// Whether the last charge failed, at any level.
    pub flag: bool,
}

impl Chain {
    /// `mem_cgroup_charge_skmem`: false when a counter refused; with `nofail` the charge is forced
    /// then.
    fn charge(&mut self, n: u64, nofail: bool) -> bool {
        let Some(leaf) = &self.leaf else { return true };
        // The container's flag is the outcome of its last charge (L1).
        self.flag = leaf.try_charge(n).is_err();
        if self.flag && nofail {
            leaf.charge_forced(n);
            return true;
        }
        !self.flag
    }

    fn uncharge(&self, n: u64) {
        if let Some(leaf) = &self.leaf {
            leaf.uncharge(n);
        }
    }
}

/// One socket's ledger, in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sock {
    /// Charged in whole pages and not used, bytes (`sk_forward_alloc`).
    pub fwd: u64,
    /// Receive queue, in order and out of order, bytes.
    pub rmem: u64,
    /// Send queue, unsent and unacknowledged, bytes.
    pub wmem: u64,
    /// Send cap, bytes.
    pub sndbuf: u32,
    /// Receive cap, bytes.
    pub rcvbuf: u32,
    /// Guarantee of the receive queue (`tcp_rmem[0]`).
    pub rmem_min: u32,
    /// Guarantee of the send queue (`tcp_wmem[0]`).
    pub wmem_min: u32,
    /// The user set SO_SNDBUF: no moderation.
    pub sndbuf_locked: bool,
}

impl Sock {
    /// An empty socket: caps in bytes, guarantees of one page.
    pub const fn new(sndbuf: u32, rcvbuf: u32) -> Self {
        Self {
            fwd: 0,
            rmem: 0,
            wmem: 0,
            sndbuf,
            rcvbuf,
            rmem_min: PAGE_SIZE as u32,
            wmem_min: PAGE_SIZE as u32,
            sndbuf_locked: false,
        }
    }

    /// `sk_wmem_schedule` / `sk_rmem_schedule`: all of `size` or nothing. On success the caller
    /// queues the buffer with [`Self::charge`].
    pub fn schedule(
        &mut self,
        pool: &mut Pool,
        chain: &mut Chain,
        kind: Kind,
        size: u64,
        now: Instant,
    ) -> Verdict {
        if size <= self.fwd {
            return Verdict::Fwd;
        }
        let delta = size - self.fwd;
        let n = pages(delta);
        // Before the ladder: its share test counts the new pages as held.
        self.fwd += n * PAGE_SIZE;
        let verdict = self.raise(pool, chain, kind, Raise { delta, n }, now);
        if !verdict.is_ok() {
            self.fwd -= n * PAGE_SIZE;
        }
        verdict
    }

    /// `__sk_mem_raise_allocated`, every branch in the kernel's order (L2).
    fn raise(
        &mut self,
        pool: &mut Pool,
        chain: &mut Chain,
        kind: Kind,
        raise: Raise,
        now: Instant,
    ) -> Verdict {
        pool.alloc += raise.n;
        // Gate 1 (L1): a refusal of the container skips the pool's thresholds.
        let charged = chain.charge(raise.n, false);
        let cause = if charged {
            match self.ladder(pool, kind, now) {
                Ok(verdict) => return verdict,
                Err(cause) => cause,
            }
        } else {
            Cause::Container
        };
        if kind == Kind::Wmem {
            // L3: cut the cap first; a queue that then reaches the cap is charged by force.
            self.moderate_sndbuf();
            if self.wmem + raise.delta >= u64::from(self.sndbuf) {
                if !charged {
                    chain.charge(raise.n, true);
                }
                return Verdict::Forced(cause);
            }
        }
        // Suppressed: undo both gates.
        pool.alloc -= raise.n;
        if charged {
            chain.uncharge(raise.n);
        }
        Verdict::Deny(cause)
    }

    /// L2, steps 2 to 6: the pool's decision, once the container has let the charge pass.
    fn ladder(&self, pool: &mut Pool, kind: Kind, now: Instant) -> Result<Verdict, Cause> {
        if pool.alloc <= pool.low {
            pool.leave(now);
            return Ok(Verdict::UnderLow);
        }
        // Pressure may start here although a later step grants the charge.
        if pool.alloc > pool.pressure {
            pool.enter(now);
        }
        if pool.alloc > pool.high {
            return Err(Cause::OverHigh);
        }
        // Below its minimum a queue is granted any size.
        match kind {
            Kind::Rmem if self.rmem < u64::from(self.rmem_min) => return Ok(Verdict::MinRmem),
            Kind::Wmem if self.wmem < u64::from(self.wmem_min) => return Ok(Verdict::MinWmem),
            Kind::Rmem | Kind::Wmem => {}
        }
        if !pool.flag {
            return Ok(Verdict::NoPressure);
        }
        // The share of one socket: `high / nsock` pages.
        let held = pages(self.wmem + self.rmem + self.fwd);
        if pool.high > pool.nsock.saturating_mul(held) {
            return Ok(Verdict::Fair);
        }
        Err(Cause::Unfair)
    }

    /// `sk_forced_mem_schedule`: no test, and the pool's flag does not change. Returns the pages
    /// charged.
    pub fn force(&mut self, pool: &mut Pool, chain: &mut Chain, size: u64) -> u64 {
        if size <= self.fwd {
            return 0;
        }
        let n = pages(size - self.fwd);
        self.fwd += n * PAGE_SIZE;
        chain.charge(n, true);
        pool.alloc += n;
        n
    }

    /// `tcp_wmem_schedule`: bytes of `copy` that may be queued; up to the guarantee is forced when
    /// refused.
    pub fn wmem_copy(
        &mut self,
        pool: &mut Pool,
        chain: &mut Chain,
        copy: u64,
        now: Instant,
    ) -> (u64, Verdict) {
        let verdict = self.schedule(pool, chain, Kind::Wmem, copy, now);
        if verdict.is_ok() {
            return (copy, verdict);
        }
        // L4: up to the guarantee, a refused copy is forced.
        let left = u64::from(self.wmem_min).saturating_sub(self.wmem);
        if left > 0 {
            self.force(pool, chain, left.min(copy));
        }
        (copy.min(self.fwd), verdict)
    }

    /// A scheduled buffer of `size` bytes enters its queue.
    pub fn charge(&mut self, kind: Kind, size: u64) {
        debug_assert!(self.fwd >= size, "charged what was not scheduled");
        self.fwd -= size;
        match kind {
            Kind::Rmem => self.rmem += size,
            Kind::Wmem => self.wmem += size,
        }
    }

    /// A buffer of `size` bytes leaves its queue; whole pages are uncharged at once.
    pub fn uncharge(
        &mut self,
        pool: &mut Pool,
        chain: &mut Chain,
        kind: Kind,
        size: u64,
        now: Instant,
    ) {
        let queue = match kind {
            Kind::Rmem => &mut self.rmem,
            Kind::Wmem => &mut self.wmem,
        };
        debug_assert!(*queue >= size, "uncharged what was not charged");
        *queue -= size;
        self.fwd += size;
        self.reclaim(pool, chain, now);
    }

    /// `sk_mem_reclaim`: at most 4095 bytes stay with the socket.
    pub fn reclaim(&mut self, pool: &mut Pool, chain: &mut Chain, now: Instant) {
        let n = self.fwd / PAGE_SIZE;
        if n == 0 {
            return;
        }
        self.fwd -= n * PAGE_SIZE;
        chain.uncharge(n);
        pool.release(n, now);
    }

    /// `sk_stream_moderate_sndbuf` (L3): the cap becomes at most half of what is queued, never
    /// below [`SNDBUF_MIN`](crate::units::SNDBUF_MIN).
    pub fn moderate_sndbuf(&mut self) {
        self.sndbuf = sizing::moderate_sndbuf(self.sndbuf, self.wmem, self.sndbuf_locked);
    }

    /// `sk_stream_memory_free`: whether the send queue is below its cap.
    pub const fn memory_free(&self) -> bool {
        self.wmem < self.sndbuf as u64
    }
}

/// One request to the ladder.
#[derive(Debug, Clone, Copy)]
struct Raise {
    /// Bytes beyond `forward_alloc`.
    delta: u64,
    /// The same in pages.
    n: u64,
}

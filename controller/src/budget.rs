//! A budget: one domain (one container, or one pool shared by several), its rules, its limits, the chain above it.

use alloc::sync::Arc;

use crate::level::Level;
use crate::limits::{LimitError, Limits, SockLimits};
use crate::units::Instant;

/// Which rule set decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rules {
    Strict,
    Linux,
}

/// What one flow reserves at admission, bytes; frozen per flow (pressure model H.0, K2, K6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowSizes {
    /// The flow object itself (S). 1536.
    pub sock: u32,
    /// Receive reserve, whole chunks. 4096, or cost(mtu-40) with offload off.
    pub rmem_min: u32,
    /// Send reserve, whole chunks. 4096.
    pub wmem_min: u32,
    /// Caps of the host-side socket at its floor. 32768.
    pub host_floor: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BudgetConfig {
    pub rules: Rules,
    pub limits: Limits,
    pub sock: SockLimits,
    /// Guarantee, bytes, charged to every ancestor when the budget is made.
    pub min_bytes: u64,
    pub weight: u32,
}

/// One container's seat in a budget. A budget of its own has one member; a shared pool has several.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MemberId(pub u16);

/// Kind of received data that fills chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RxKind {
    InOrder,
    Ofo,
}

/// Why a charge was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The budget's own hard limit.
    Hard,
    /// A level above; 0 = the nearest.
    Ancestor(u8),
    /// Above the share under (container or host) pressure.
    Share,
    /// More half-open flows than hard/8 allows (H7).
    HalfOpen,
}

/// State shown in stats. `Hard` = the last charge was refused by a hard counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pressure {
    None,
    Soft,
    Hard,
}

/// What happened, for logs and `/v1/events`. Bounded queue; overflow is counted, never grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    PressureEnter { at: Instant },
    PressureLeave { at: Instant, after_ms: u64 },
    AdmissionDenied { member: MemberId, at: Instant },
    HardRefused { at: Instant },
}

/// Counters by the kernel's names where it has them. Incremented by the stack through `Budget::count`,
/// or by the budget itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Counter {
    TCPMemoryPressures,
    TCPMemoryPressuresChrono,
    PruneCalled,
    RcvPruned,
    OfoPruned,
    TCPRcvCollapsed,
    TCPRcvQDrop,
    TCPOFOQueue,
    TCPOFODrop,
    TCPZeroWindowDrop,
    TCPFromZeroWindowAdv,
    TCPToZeroWindowAdv,
    TCPWantZeroWindowAdv,
    TCPAbortOnMemory,
    AdmissionDelayed,
    AdmissionDenied,
    CreditDemoted,
    DemotedTrim,
    HostMemExcess,
    TWRecycled,
    EventsLost,
}

/// Bytes by category; they sum to the member's part of `usage` before rounding to pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MemberStats {
    pub rmem: u64,
    pub ofo: u64,
    /// Open window charged and not yet filled (strict), including the unused part of Rmin.
    pub credit: u64,
    pub wmem: u64,
    /// forward_alloc (linux rules).
    pub fwd: u64,
    /// Unused rmem_min / wmem_min of admitted flows (strict).
    pub reserve: u64,
    pub udp: u64,
    /// Flow objects, TIME-WAIT entries, parked SYNs.
    pub sock: u64,
    pub host: u64,
    pub dev: u64,
    pub flows: u64,
    pub counters: [u64; 21],
}

/// The meter of the whole budget. Bytes; `None` = no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MeterStats {
    pub low_bytes: Option<u64>,
    pub soft_bytes: Option<u64>,
    pub hard_bytes: Option<u64>,
    pub hard_effective_bytes: Option<u64>,
    pub min_bytes: u64,
    pub usage_bytes: u64,
    pub max_usage_bytes: u64,
    pub pressure: Pressure,
    pub pressure_ns: u64,
    pub failcnt: u64,
}

/// What one flow holds. Made by `admit`, given back by `release`; in debug builds dropping a live one panics.
#[derive(Debug)]
#[must_use]
pub struct Ledger {
    _private: (),
}

impl Ledger {
    pub fn member(&self) -> MemberId {
        todo!()
    }
    /// In-order bytes held (true size).
    pub fn rmem(&self) -> u64 {
        todo!()
    }
    /// Chunks of the receive span: occupied + credit (strict). Linux rules: occupied chunks only.
    pub fn rx_span(&self) -> u32 {
        todo!()
    }
    pub fn ofo(&self) -> u64 {
        todo!()
    }
    /// Charged for an open window and not filled.
    pub fn credit(&self) -> u64 {
        todo!()
    }
    /// Unsent + unacknowledged (true size).
    pub fn wmem(&self) -> u64 {
        todo!()
    }
    pub fn fwd(&self) -> u64 {
        todo!()
    }
    pub fn host(&self) -> u64 {
        todo!()
    }
    /// Linux rules: current caps of the flow, bytes.
    pub fn sndbuf(&self) -> u32 {
        todo!()
    }
    pub fn rcvbuf(&self) -> u32 {
        todo!()
    }
    pub fn set_rcvbuf(&mut self, _bytes: u32) {
        todo!()
    }
    pub fn set_sndbuf(&mut self, _bytes: u32) {
        todo!()
    }
}

impl Budget {
    /// Fails on disordered limits, a `min` that does not fit, weight 0. Charges `min_bytes` to the chain.
    pub fn new(_config: BudgetConfig, _parent: Option<Arc<Level>>) -> Result<Self, LimitError> {
        todo!()
    }
    pub fn rules(&self) -> Rules {
        todo!()
    }
    pub fn sock_limits(&self) -> &SockLimits {
        todo!()
    }

    // ---- members ----

    /// A container joins: its device queue is charged at once (`dev`).
    pub fn add_member(&mut self, _dev_bytes: u64) -> Result<MemberId, Refusal> {
        todo!()
    }
    /// The container is gone; all its flows were released before. Its `dev` and compact charges come back.
    pub fn remove_member(&mut self, _member: MemberId, _now: Instant) {
        todo!()
    }
    pub fn member_stats(&self, _member: MemberId) -> MemberStats {
        todo!()
    }
    pub fn meter_stats(&self, _now: Instant) -> MeterStats {
        todo!()
    }
    /// The one way the stack counts; the counter lives with the member.
    pub fn count(&mut self, _member: MemberId, _counter: Counter, _by: u64) {
        todo!()
    }

    // ---- admission ----

    /// A SYN: charges `sock` only, as half-open (strict: at most hard/8 of half-open `sock` bytes, H7).
    /// Linux rules: never refused, nothing charged (sockets are slab there), but counted in nsock.
    pub fn admit(
        &mut self,
        _member: MemberId,
        _sizes: &FlowSizes,
        _now: Instant,
    ) -> Result<Ledger, Refusal> {
        todo!()
    }
    /// The rest of the reservation (rmem_min + wmem_min + host_floor), all or nothing; leaves half-open on success.
    /// The stack calls it right after `admit`, before `connect`, since the host socket's caps are charged first.
    pub fn establish(&mut self, _ledger: &mut Ledger, _now: Instant) -> Result<(), Refusal> {
        todo!()
    }
    /// Everything the flow holds goes back.
    pub fn release(&mut self, _ledger: Ledger, _now: Instant) {
        todo!()
    }
    /// Small fixed things (parked SYN, TIME-WAIT entry): 64 B each, charged as `sock`.
    pub fn charge_compact(&mut self, _member: MemberId, _bytes: u64, _now: Instant) -> bool {
        todo!()
    }
    pub fn uncharge_compact(&mut self, _member: MemberId, _bytes: u64, _now: Instant) {
        todo!()
    }

    // ---- receive side, in chunks ----
    // The receive queue is a run of chunk slots at fixed stream positions, from the first unread byte to the
    // advertised edge. Strict: every slot of the run is charged before the edge is advertised, so in-window data,
    // in order or not, fills slots already paid for.

    /// Strict: charge up to `chunks` more slots of credit and return how many (0..=chunks): bounded by hard limits up
    /// the chain, the share under pressure, and no growth beyond the reserve while under pressure unless the flow's
    /// span is below its fair share. Linux: returns `chunks` (credit costs nothing there).
    pub fn rx_open(&mut self, _ledger: &mut Ledger, _chunks: u32, _now: Instant) -> u32 {
        todo!()
    }
    /// `chunks` slots begin to hold data. Strict: taken from credit; what exceeds the span (demoted flow, H3) is
    /// asked for now. Linux: schedule(RECV) per chunk; an empty receive queue accepts its first chunk by force (2.9).
    /// Returns how many slots may be filled, a prefix.
    pub fn rx_fill(
        &mut self,
        _ledger: &mut Ledger,
        _chunks: u32,
        _kind: RxKind,
        _now: Instant,
    ) -> u32 {
        todo!()
    }
    /// `chunks` slots filled out of order are in order now: a category move.
    pub fn rx_settle(&mut self, _ledger: &mut Ledger, _chunks: u32) {
        todo!()
    }
    /// In-order chunks were taken by the host: rmem and the span shrink.
    pub fn rx_free(&mut self, _ledger: &mut Ledger, _chunks: u32, _now: Instant) {
        todo!()
    }
    /// Out-of-order chunks were dropped. Strict: they are credit again. Linux: uncharged.
    pub fn rx_prune(&mut self, _ledger: &mut Ledger, _chunks: u32, _now: Instant) {
        todo!()
    }
    /// Strict: give back `chunks` slots of unfilled credit (the stack rebased an empty queue, or demotes an idle
    /// flow, H3). Saturates at what is unfilled. Returns slots given back. Linux: 0.
    pub fn rx_close(&mut self, _ledger: &mut Ledger, _chunks: u32, _now: Instant) -> u32 {
        todo!()
    }

    // ---- send side, in chunks ----

    /// May `chunks` more be read from the host socket and queued to the guest? Charged at once; returns a prefix.
    /// Strict: the reserve first, then chain and share. Linux: sndbuf test, then schedule / wmem_copy with all its
    /// force rules, per chunk.
    pub fn tx_grant(&mut self, _ledger: &mut Ledger, _chunks: u32, _now: Instant) -> u32 {
        todo!()
    }
    /// Acknowledged (or granted and not used).
    pub fn tx_free(&mut self, _ledger: &mut Ledger, _chunks: u32, _now: Instant) {
        todo!()
    }

    // ---- host sockets, UDP ----

    /// Raise the charged caps of the flow's host socket by `bytes`, before setsockopt. Refused under pressure.
    /// Linux rules: always true, nothing charged (not ours in that world), recorded in the ledger.
    pub fn host_raise(&mut self, _ledger: &mut Ledger, _bytes: u64, _now: Instant) -> bool {
        todo!()
    }
    pub fn host_lower(&mut self, _ledger: &mut Ledger, _bytes: u64, _now: Instant) {
        todo!()
    }
    /// UDP and fragments: together at most hard/8 (M4).
    pub fn charge_udp(&mut self, _member: MemberId, _bytes: u64, _now: Instant) -> bool {
        todo!()
    }
    pub fn uncharge_udp(&mut self, _member: MemberId, _bytes: u64, _now: Instant) {
        todo!()
    }

    // ---- pressure ----

    /// Container over soft, or over its share while a level above is flagged.
    pub fn under_pressure(&self) -> bool {
        todo!()
    }
    /// Fast hint: bytes that one more charge could take right now (strict), up the chain. u64::MAX when unlimited.
    pub fn headroom(&self) -> u64 {
        todo!()
    }
    /// The flow had no data for 1 s: its credit leaves the soft test and `n_active` (K7, H4); or it is active again.
    pub fn set_idle(&mut self, _ledger: &mut Ledger, _idle: bool, _now: Instant) {
        todo!()
    }

    // ---- reopen (B9, H8) ----

    /// Remember who was refused: `key` means something to the stack only. Oldest first; a key waits once.
    /// `need` bytes is what it waits for (one chunk, or a whole reservation). Also registers on shared levels.
    /// Linux rules: does nothing (nothing re-opens a socket there when another one frees budget).
    pub fn wait(&mut self, _key: u64, _need: u64) {
        todo!()
    }
    pub fn forget(&mut self, _key: u64) {
        todo!()
    }
    /// The oldest waiter whose need fits now; it is taken off the list. Called until None after each turn.
    pub fn poll_wake(&mut self, _now: Instant) -> Option<u64> {
        todo!()
    }
    pub fn poll_event(&mut self) -> Option<Event> {
        todo!()
    }

    // ---- live changes (B13, K6) ----

    pub fn set_limits(&mut self, _limits: Limits, _now: Instant) {
        todo!()
    }
    pub fn set_min(&mut self, _min_bytes: u64, _now: Instant) -> Result<(), LimitError> {
        todo!()
    }
}

/// One domain.
#[derive(Debug)]
pub struct Budget {
    _private: (),
}

//! The memory that one flow holds, by category.

use crate::linux::Sock;
use crate::units::CHUNK_SIZE;

/// What one flow reserves at admission, bytes. Fixed for the flow's lifetime (A1, K2, K6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowSizes {
    /// The flow object itself (S). 1536.
    pub sock: u32,
    /// Receive reserve, whole chunks. 4096, or cost(mtu-40) with offload off.
    pub rmem_min: u32,
    /// Send reserve, whole chunks. 4096.
    pub wmem_min: u32,
    /// Caps of the host-side socket at its floor. 12,800 (send 4608, receive 8192).
    pub host_floor: u32,
}

impl FlowSizes {
    /// Bytes one idle flow holds.
    pub const fn total(&self) -> u64 {
        self.sock as u64 + self.rest()
    }

    /// The part `establish` charges.
    pub(crate) const fn rest(&self) -> u64 {
        self.rmem_min as u64 + self.wmem_min as u64 + self.host_floor as u64
    }
}

/// Index of one container in a budget. A budget for one container has one member, a shared pool
/// several.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MemberId(pub u16);

/// Kind of received data that fills chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RxKind {
    /// At the first missing byte: acknowledged, never dropped.
    InOrder,
    /// Beyond a hole: may be dropped.
    Ofo,
}

/// What one flow holds. Created by `admit`, consumed by `release`; in debug builds, dropping a
/// ledger that was not released panics.
///
/// Strict: `held = sock + max(rmem_min, 4096 * span) + max(wmem_min, wmem) + host`, where the span
/// is the in-order, out-of-order and credit chunks; a pure function of the fields. Linux: `held =
/// rmem + wmem + fwd` of the inner [`Sock`]; the other fields are recorded and not charged.
#[derive(Debug)]
#[must_use]
pub struct Ledger {
    /// Linux rules; strict uses only the caps.
    pub(crate) sock: Sock,
    pub(crate) sizes: FlowSizes,
    /// Caps of the host socket, bytes.
    pub(crate) host: u64,
    /// In-order chunks.
    pub(crate) rmem: u32,
    /// Out-of-order chunks.
    pub(crate) ofo: u32,
    /// Chunks of open window, charged and empty.
    pub(crate) credit: u32,
    /// Unsent and unacknowledged chunks.
    pub(crate) wmem: u32,
    pub(crate) member: MemberId,
    pub(crate) established: bool,
    pub(crate) idle: bool,
    pub(crate) released: bool,
}

// The ledger is inside a flow object of at most 1536 bytes.
const _: () = assert!(size_of::<Ledger>() <= 128);

/// A ledger's part of its budget's sums, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Parts {
    /// All bytes held.
    pub(crate) held: u64,
    /// The bytes above the reservation.
    pub(crate) elastic: u64,
    /// The elastic bytes that are open window of an idle flow.
    pub(crate) idle: u64,
    /// The flow counts in `n_active` (H4).
    pub(crate) active: bool,
}

impl Ledger {
    pub(crate) fn new(member: MemberId, sizes: FlowSizes, sock: Sock) -> Self {
        Self {
            sock,
            sizes,
            host: 0,
            rmem: 0,
            ofo: 0,
            credit: 0,
            wmem: 0,
            member,
            established: false,
            idle: false,
            released: false,
        }
    }

    /// The container the flow belongs to.
    pub fn member(&self) -> MemberId {
        self.member
    }
    /// In-order bytes held (true size).
    pub fn rmem(&self) -> u64 {
        chunks(self.rmem)
    }
    /// Chunks of the receive span: occupied + credit (strict). Linux rules: occupied chunks only.
    #[inline]
    pub fn rx_span(&self) -> u32 {
        self.rmem + self.ofo + self.credit
    }
    /// Out-of-order bytes held (true size).
    pub fn ofo(&self) -> u64 {
        chunks(self.ofo)
    }
    /// Bytes charged for an open window and not filled.
    pub fn credit(&self) -> u64 {
        chunks(self.credit)
    }
    /// Received bytes held, in order and out of order (true size): what the linux rules compare with rcvbuf.
    pub fn rx_bytes(&self) -> u32 {
        u32::try_from(self.rmem() + self.ofo()).unwrap_or(u32::MAX)
    }
    /// Unsent and unacknowledged bytes (true size).
    pub fn wmem(&self) -> u64 {
        chunks(self.wmem)
    }
    /// Linux rules: bytes charged to the pool and used by no queue. 0 under strict.
    pub fn fwd(&self) -> u64 {
        self.sock.fwd
    }
    /// Caps of the host-side socket, bytes; includes the floor once established.
    pub fn host(&self) -> u64 {
        self.host
    }
    /// Linux rules: current send cap of the flow, bytes.
    pub fn sndbuf(&self) -> u32 {
        self.sock.sndbuf
    }
    /// Current receive cap of the flow, bytes.
    pub fn rcvbuf(&self) -> u32 {
        self.sock.rcvbuf
    }
    /// Sets the receive cap, when the kernel raises it to what is held (L7).
    pub fn set_rcvbuf(&mut self, bytes: u32) {
        self.sock.rcvbuf = bytes;
    }
    /// Sets the send cap, after autotuning.
    pub fn set_sndbuf(&mut self, bytes: u32) {
        self.sock.sndbuf = bytes;
    }

    /// Strict: all bytes charged for the flow.
    pub fn held(&self) -> u64 {
        u64::from(self.sizes.sock) + self.rx_held() + self.tx_held() + self.host
    }

    /// Strict: bytes charged for the flow's receive side.
    #[inline]
    pub(crate) fn rx_held(&self) -> u64 {
        self.rmem_min().max(chunks(self.rx_span()))
    }

    #[inline]
    pub(crate) fn tx_held(&self) -> u64 {
        self.wmem_min().max(chunks(self.wmem))
    }

    /// Receive reserve, bytes: strict rules never charge less for the receive side. 0 while half-open, when
    /// nothing is reserved yet.
    #[inline]
    pub fn rmem_min(&self) -> u64 {
        if self.established { u64::from(self.sizes.rmem_min) } else { 0 }
    }

    #[inline]
    pub(crate) fn wmem_min(&self) -> u64 {
        if self.established { u64::from(self.sizes.wmem_min) } else { 0 }
    }

    /// The reservation: the flow's part of the budget's fixed sum, bytes.
    pub(crate) fn floor(&self) -> u64 {
        if self.established { self.sizes.total() } else { u64::from(self.sizes.sock) }
    }

    /// Chunks within the reserve that the receive span does not use: they join it without a charge.
    #[inline]
    pub(crate) fn rx_unused(&self) -> u32 {
        ((self.rmem_min() / CHUNK_SIZE) as u32).saturating_sub(self.rx_span())
    }

    #[inline]
    pub(crate) fn tx_unused(&self) -> u32 {
        ((self.wmem_min() / CHUNK_SIZE) as u32).saturating_sub(self.wmem)
    }

    /// Whether the flow holds anything above its reservation.
    #[inline]
    pub(crate) fn has_elastic(&self) -> bool {
        let floor = if self.established { u64::from(self.sizes.host_floor) } else { 0 };
        chunks(self.wmem) > self.wmem_min()
            || chunks(self.rx_span()) > self.rmem_min()
            || self.host > floor
    }

    #[inline]
    pub(crate) fn parts(&self) -> Parts {
        let held = self.held();
        // Credit within the reserve is fixed already and would be subtracted twice (K7).
        let elastic = held - self.floor();
        let idle =
            if self.idle { chunks(self.credit).min(self.rx_held() - self.rmem_min()) } else { 0 };
        Parts { held, elastic, idle, active: elastic > 0 && !self.idle }
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        debug_assert!(self.released, "a ledger was dropped without release: its charge is lost");
    }
}

/// True size of `n` chunks.
#[inline]
pub(crate) const fn chunks(n: u32) -> u64 {
    n as u64 * CHUNK_SIZE
}

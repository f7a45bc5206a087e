//! One container, one flow: the guest's frames come from memory, the host socket takes and gives bytes without a system
//! call, the device discards what it receives. Only the stack is measured: parse, demux, TCP, accounting, the copy into
//! its own buffers, headers out.

use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::net::SocketAddr;
use std::time::Duration;

use skbudget_controller::{Budget, BudgetConfig, Instant, Limits, Rules, SockLimits};
use skbudget_sim::packet::{ACK, SYN};
use skbudget_stack::{
    ChunkPool, Close, Container, ContainerConfig, Ctx, DatagramHost, Device, FlowId, Host,
    HostCaps, HostError, Ready, VnetHdr,
};

use crate::frames::{Fields, FrameBuf, Received, receive};

/// Window that the guest advertises: 8 MiB after scaling by 7.
const GUEST_WINDOW: u16 = u16::MAX;
const MTU: u16 = 1500;
const MSS: u16 = 1448;
/// Time between two steps. Timers run, but none expires in a flow that gets its ACKs.
const STEP: Duration = Duration::from_micros(50);
/// Steps after which a flow without progress is stuck.
const STUCK: usize = 1000;

/// A host socket that takes everything and gives a set number of bytes.
#[derive(Debug, Default)]
struct Sink {
    flow: Option<FlowId>,
    taken: u64,
    to_give: usize,
}

/// Without datagram sockets.
impl DatagramHost for Sink {}

impl Host for Sink {
    fn connect(&mut self, flow: FlowId, _: SocketAddr, _: HostCaps) -> Result<(), HostError> {
        self.flow = Some(flow);
        Ok(())
    }
    fn connect_outcome(&mut self, _: FlowId) -> Option<Result<(), HostError>> {
        Some(Ok(()))
    }
    fn write(&mut self, _: FlowId, parts: &[IoSlice<'_>]) -> Result<usize, HostError> {
        let n: usize = parts.iter().map(|part| part.len()).sum();
        self.taken += n as u64;
        Ok(n)
    }
    /// The buffers stay as they are: copying into them is the kernel's work, not the stack's.
    fn read(&mut self, _: FlowId, parts: &mut [IoSliceMut<'_>]) -> Result<usize, HostError> {
        let room: usize = parts.iter().map(|part| part.len()).sum();
        // At the end of the set bytes a read would block, as a real socket's.
        let n = room.min(self.to_give);
        self.to_give -= n;
        if n > 0 { Ok(n) } else { Err(HostError::WouldBlock) }
    }
    fn shutdown_write(&mut self, _: FlowId) {}
    fn unacknowledged(&mut self, _: FlowId) -> u64 {
        0
    }
    fn set_caps(&mut self, _: FlowId, _: HostCaps) {}
    fn lower_caps(&mut self, _: FlowId, caps: HostCaps) -> HostCaps {
        caps
    }
    fn close(&mut self, _: FlowId, _: Close) {}
}

/// Keeps the headers of frames to the guest until the guest reads them.
#[derive(Debug, Default)]
struct Wire(VecDeque<Received>);

impl Device for Wire {
    fn send(&mut self, _: &VnetHdr, parts: &[IoSlice<'_>]) -> bool {
        self.0.extend(receive(parts));
        true
    }
}

/// The budget of a rig.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accounting {
    /// `skbudget run` with its defaults.
    Strict,
    /// The kernel's rules, same limit.
    Linux,
    /// No limit, as `--isolation off`.
    Unlimited,
}

/// A container with one established flow.
#[derive(Debug)]
pub struct Rig {
    container: Container,
    budget: Budget,
    pool: ChunkPool,
    host: Sink,
    wire: Wire,
    now: Instant,
    /// The guest's next segment: its sequence number, its RCV.NXT, its clock.
    guest: Fields,
    ack: FrameBuf,
}

impl Rig {
    /// # Panics
    /// When the handshake does not succeed.
    pub fn new(accounting: Accounting) -> Self {
        // 256 MiB is the default of `skbudget run`.
        let hard = (accounting != Accounting::Unlimited).then_some(256 << 20);
        let limits = hard.map_or(Limits::NONE, |hard| {
            Limits::from_bytes(hard, None, None).expect("256 MiB is in order")
        });
        let rules = if accounting == Accounting::Linux { Rules::Linux } else { Rules::Strict };
        let sock = SockLimits::default();
        let config = BudgetConfig { rules, limits, sock, min_bytes: 0, weight: 100 };
        let mut budget = Budget::new(config, None).expect("a budget without a level above");
        let container = ContainerConfig::new(MTU, true, hard, [1, 2]);
        let member = budget.add_member(container.dev_queue_bytes).expect("room for the queue");
        let mut rig = Self {
            container: Container::new(container, member),
            budget,
            pool: ChunkPool::new(),
            host: Sink::default(),
            wire: Wire::default(),
            now: Instant::from_millis(1),
            guest: Fields { seq: 1000, window: GUEST_WINDOW, tsval: 1, ..Fields::default() },
            ack: FrameBuf::segment(0, MSS),
        };
        rig.handshake();
        rig
    }

    /// Establishes the flow and warms it up.
    fn handshake(&mut self) {
        let mut syn = FrameBuf::syn();
        self.guest.flags = SYN;
        let fields = self.guest;
        self.give(&mut syn, fields);
        self.turn();
        let flow = self.host.flow.expect("the SYN made a host socket");
        self.container.on_host_ready(flow, Ready { readable: true, writable: true });
        self.turn();
        let answer = self.wire.0.pop_front().expect("an answer to the SYN");
        assert_eq!(answer.flags, SYN | ACK, "{answer:?}");
        self.guest.flags = ACK;
        self.guest.seq += 1;
        self.guest.ack = answer.seq + 1;
        self.acknowledge();
        self.turn();
        // Long enough for windows, buffers and the congestion window to grow.
        for _ in 0..200 {
            self.down(64 << 10);
        }
        let mut frame = Self::data_frame(64 << 10);
        for _ in 0..200 {
            self.up(&mut frame);
        }
    }

    /// A frame with this payload, at most a super-frame's.
    pub fn data_frame(payload: usize) -> FrameBuf {
        FrameBuf::segment(payload.min(65_535 - 52), MSS)
    }

    fn cx<'a>(
        now: Instant,
        budget: &'a mut Budget,
        pool: &'a mut ChunkPool,
        host: &'a mut Sink,
        wire: &'a mut Wire,
    ) -> Ctx<'a> {
        Ctx { now, budget, pool, host, device: wire }
    }

    fn give(&mut self, frame: &mut FrameBuf, fields: Fields) {
        let Self { container, budget, pool, host, wire, now, .. } = self;
        let (vnet, bytes) = frame.with(&fields);
        container.on_frame(&mut Self::cx(*now, budget, pool, host, wire), vnet, bytes);
    }

    fn acknowledge(&mut self) {
        let Self { container, budget, pool, host, wire, now, guest, ack } = self;
        let (vnet, bytes) = ack.with(guest);
        container.on_frame(&mut Self::cx(*now, budget, pool, host, wire), vnet, bytes);
    }

    /// Runs turns until the stack has no work.
    fn turn(&mut self) {
        let Self { container, budget, pool, host, wire, now, .. } = self;
        let cx = &mut Self::cx(*now, budget, pool, host, wire);
        while container.turn(cx) {}
    }

    /// Advances the clock, and the guest's timestamp with it.
    fn step(&mut self) {
        self.now = self.now + STEP;
        self.guest.tsval = (self.now.0 / 1_000_000) as u32;
    }

    /// The guest sends one frame, and the host socket receives it. Returns the payload's length.
    ///
    /// # Panics
    /// When the host socket did not receive all of it.
    pub fn up(&mut self, frame: &mut FrameBuf) -> u64 {
        self.step();
        let before = self.host.taken;
        let fields = self.guest;
        self.give(frame, fields);
        self.turn();
        let sent = self.host.taken - before;
        // What the host took is what the stack accepted: RCV.NXT moves by that.
        self.guest.seq = self.guest.seq.wrapping_add(sent as u32);
        while let Some(seen) = self.wire.0.pop_front() {
            self.guest.tsecr = seen.tsval;
        }
        assert!(sent > 0, "the frame was not taken");
        sent
    }

    /// The host sends `n` bytes; the guest receives and acknowledges them all, with one ACK for each turn.
    ///
    /// # Panics
    /// When they do not arrive.
    pub fn down(&mut self, n: usize) {
        self.step();
        self.host.to_give += n;
        let flow = self.host.flow.expect("an open flow");
        let mut left = n as u32;
        self.container.on_host_ready(flow, Ready { readable: true, writable: false });
        for _ in 0..STUCK {
            self.turn();
            while let Some(seen) = self.wire.0.pop_front() {
                assert!(seen.payload == 0 || seen.seq == self.guest.ack, "out of order: {seen:?}");
                self.guest.ack = self.guest.ack.wrapping_add(seen.payload);
                self.guest.tsecr = seen.tsval;
                left -= seen.payload;
            }
            self.acknowledge();
            if left == 0 {
                return;
            }
            self.step();
        }
        panic!("{left} of {n} bytes never reached the guest");
    }

    /// Bytes charged now.
    pub fn usage_bytes(&self) -> u64 {
        self.budget.meter_stats(self.now).usage_bytes
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let Self { container, budget, pool, host, wire, now, .. } = self;
        container.abort_all(&mut Self::cx(*now, budget, pool, host, wire));
    }
}

#[cfg(test)]
mod tests {
    use super::{Accounting, Rig};

    #[test]
    fn both_directions_move_whole_frames_under_every_accounting() {
        for accounting in [Accounting::Strict, Accounting::Linux, Accounting::Unlimited] {
            let mut rig = Rig::new(accounting);
            for payload in [1, 1448, 64 << 10] {
                let mut frame = Rig::data_frame(payload);
                for _ in 0..100 {
                    assert_eq!(rig.up(&mut frame), payload.min(65_483) as u64);
                    rig.down(payload);
                }
            }
            // Linux rules charge nothing for an idle flow.
            assert!(rig.usage_bytes() > 0 || accounting == Accounting::Linux);
        }
    }
}

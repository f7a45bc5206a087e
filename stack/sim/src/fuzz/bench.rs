//! One container's stack under test, and what must hold of it.

use skbudget_controller::{Budget, BudgetConfig, Instant, Limits, Rules, SockLimits};
use skbudget_stack::fuzz::Script;
use skbudget_stack::vnet::{F_DATA_VALID, VnetHdr};
use skbudget_stack::{ChunkPool, Container, ContainerConfig, Ctx, WakeKey};

use super::device::Checked;
use super::host::{ScriptHost, guest_byte};
use crate::packet::{SYN, Segment};

mod configure;
mod datagrams;
mod operations;

/// Turns in a row after which the stack counts as spinning.
const ROUNDS_MAX: usize = 20_000;

/// Configuration of a script's container, taken from its first bytes.
#[derive(Debug)]
pub(super) struct Plan {
    mtu: u16,
    offload: bool,
    rules: Rules,
    hard: u64,
}

impl Plan {
    pub(super) fn take(script: &mut Script<'_>) -> Self {
        let mtu = script.pick(&[1500, 68, 576, 9000, 65_520, 65_521]);
        let offload = script.below(2) == 1;
        let rules = script.pick(&[Rules::Strict, Rules::Strict, Rules::Strict, Rules::Linux]);
        // From plenty of room down to room for one flow.
        let more = script.pick(&[4 << 20, 0, 16 << 10, 128 << 10]);
        Self { mtu, offload, rules, hard: ContainerConfig::least_hard_bytes(mtu, offload) + more }
    }
}

#[derive(Debug)]
pub(super) struct Bench {
    plan: Plan,
    stack: Container,
    budget: Budget,
    pool: ChunkPool,
    host: ScriptHost,
    device: Checked,
    now: Instant,
}

impl Bench {
    pub(super) fn new(plan: Plan) -> Self {
        let config = BudgetConfig {
            rules: plan.rules,
            limits: Limits::from_bytes(plan.hard, None, None).expect("limits in order"),
            sock: SockLimits::default(),
            min_bytes: 0,
            weight: 100,
        };
        let mut budget = Budget::new(config, None).expect("a budget");
        let container = ContainerConfig::new(plan.mtu, plan.offload, Some(plan.hard), [7, 11]);
        let member = budget.add_member(container.dev_queue_bytes).expect("room for the queue");
        let device = Checked {
            mtu: plan.mtu.into(),
            offload: plan.offload,
            room: usize::MAX,
            ..Checked::default()
        };
        let mut bench = Self {
            stack: Container::new(container, member),
            plan,
            budget,
            pool: ChunkPool::new(),
            host: ScriptHost::default(),
            device,
            now: Instant::from_millis(1000),
        };
        bench.turn();
        bench
    }

    fn with_cx<R>(&mut self, f: impl FnOnce(&mut Container, &mut Ctx<'_>) -> R) -> R {
        let mut cx = Ctx {
            now: self.now,
            budget: &mut self.budget,
            pool: &mut self.pool,
            host: &mut self.host,
            device: &mut self.device,
        };
        f(&mut self.stack, &mut cx)
    }

    /// Runs turns and wakes waiters until the stack has no more work at this time, as the worker loop does.
    fn turn(&mut self) {
        for round in 0.. {
            assert!(round < ROUNDS_MAX, "the stack never comes to rest");
            let mut more = self.with_cx(Container::turn);
            while let Some(key) = self.budget.poll_wake(self.now) {
                self.stack.on_wake(WakeKey(key));
                more = true;
            }
            if !more {
                break;
            }
        }
    }

    // ---- what must hold ----

    /// Tests the limit, and each byte that a host socket received from the guest.
    pub(super) fn check(&mut self) {
        let meter = self.budget.meter_stats(self.now);
        if self.plan.rules == Rules::Strict {
            assert!(meter.max_usage_bytes <= self.plan.hard, "{meter:?}");
        }
        // What the kernel may hold for the mappings is charged, within the bound of M4.
        let udp = self.budget.member_stats(self.stack.member()).udp;
        assert!(self.host.datagram_caps() <= udp && udp <= self.plan.hard / 8, "{udp}");
        // Those of the DNS forwarder have indices of their own.
        let mappings = self.host.datagrams.keys().filter(|id| id.index < 4096).count();
        assert_eq!(mappings, self.stack.stats().mappings as usize);
        assert!(self.host.datagrams.len() - mappings <= 16, "sockets of the forwarder");
        for info in self.stack.flows() {
            let ports = (info.guest.port(), info.host.port());
            let Some(irs) = self.device.peers.get(&ports).and_then(|peer| peer.irs) else {
                continue;
            };
            // Other states are left out: an orphan may have sequence numbers of an earlier handshake on the same ports.
            if matches!(info.state, "ESTAB" | "CLOSE-WAIT" | "FIN-WAIT-1" | "FIN-WAIT-2")
                && let Some(sock) = self.host.socks.get_mut(&info.id)
            {
                for byte in std::mem::take(&mut sock.heard) {
                    let seq = irs.wrapping_add(1).wrapping_add(sock.compared);
                    assert_eq!(byte, guest_byte(seq), "byte {} of the guest's", sock.compared);
                    sock.compared = sock.compared.wrapping_add(1);
                }
            }
        }
    }

    /// Ends the container: all memory must be uncharged and all sockets closed.
    pub(super) fn end(mut self) {
        self.with_cx(Container::abort_all);
        assert_eq!(self.stack.next_deadline(), None, "a timer of nobody");
        assert_eq!(self.pool.live(), 0, "chunks nobody holds");
        assert!(self.host.socks.is_empty(), "a host socket left open");
        assert!(self.host.datagrams.is_empty(), "a datagram socket left open");
        let stats = self.stack.stats();
        assert_eq!((stats.flows, stats.syn_backlog, stats.time_wait), (0, 0, 0));
        self.budget.remove_member(self.stack.member(), self.now);
        assert_eq!(self.budget.meter_stats(self.now).usage_bytes, 0);
        assert_eq!(self.budget.waiting(), 0);
    }

    // ---- frames ----

    fn clock(&self) -> u32 {
        (self.now.0 / 1_000_000) as u32
    }

    /// Sends one segment of the guest. The vnet header vouches for its checksum.
    #[expect(clippy::too_many_arguments, reason = "the fields of a segment")]
    fn send(
        &mut self,
        (guest_port, remote_port): (u16, u16),
        seq: u32,
        ack: u32,
        flags: u8,
        wnd: u16,
        options: &[u8],
        data: u16,
    ) {
        // A SYN takes the first sequence number.
        let first = seq.wrapping_add(u32::from(flags & SYN != 0));
        let segment = Segment {
            seq,
            ack,
            wnd,
            options: options.to_vec(),
            data: (0..u32::from(data)).map(|i| guest_byte(first.wrapping_add(i))).collect(),
            ..Segment::new(guest_port, remote_port, flags)
        };
        let frame = segment.frame();
        if flags & SYN != 0 {
            self.device.peers.entry((guest_port, remote_port)).or_default().hello = Some(seq);
        }
        let vnet = VnetHdr { flags: F_DATA_VALID, ..VnetHdr::default() };
        self.with_cx(|stack, cx| stack.on_frame(cx, &vnet, &frame));
    }
}

/// Aborts the flows when a script panics, so that the ledgers' own panics do not hide the first one.
impl Drop for Bench {
    fn drop(&mut self) {
        self.with_cx(Container::abort_all);
    }
}

//! One container's stack under test, and the operations that scripts consist of.

use std::net::SocketAddr;
use std::time::Duration;

use skbudget_controller::{Budget, BudgetConfig, Instant, Limits, Rules, SockLimits};
use skbudget_stack::fuzz::Script;
use skbudget_stack::vnet::{F_DATA_VALID, VnetHdr};
use skbudget_stack::{
    ChunkPool, Container, ContainerConfig, Ctx, FlowId, HostError, Ready, WakeKey,
};
use smoltcp::wire::{IpProtocol, checksum};

use super::device::Checked;
use super::host::{ScriptHost, Sock, guest_byte};

/// Hardware address of the guest.
const GUEST_MAC: [u8; 6] = [2, 0x67, 0x75, 0x65, 0x73, 0x74];
/// Number of ports. Few, so that a script uses the same connection more than once.
const PORTS: u8 = 4;
/// Turns in a row after which the stack counts as spinning.
const ROUNDS_MAX: usize = 20_000;
/// Deadlines met in one time step, and the least virtual time that they must take.
const DEADLINES_MAX: usize = 2000;
const DEADLINES_TAKE: Duration = Duration::from_millis(200);

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

const ERRORS: [HostError; 6] = [
    HostError::Refused,
    HostError::HostUnreachable,
    HostError::NetUnreachable,
    HostError::TimedOut,
    HostError::Reset,
    HostError::NoResources,
];

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

    // ---- operations ----

    /// Sends a frame of any bytes; its Ethernet and IP headers may be corrected first.
    pub(super) fn any_frame(&mut self, script: &mut Script<'_>) {
        let how = script.u8();
        let vnet = if how & 1 == 0 {
            VnetHdr { flags: script.u8(), ..VnetHdr::default() }
        } else {
            VnetHdr::decode(script.bytes(12).first_chunk().unwrap_or(&[0; 12]))
        };
        let len = script.u16() % 2048;
        let mut frame = script.bytes(len.into()).to_vec();
        if how & 2 != 0 && frame.len() >= 14 {
            frame[..6].copy_from_slice(&self.stack.config().our_mac);
            frame[6..12].copy_from_slice(&GUEST_MAC);
            let kinds = [[8, 0], [8, 6], [0x86, 0xdd], [8, 0]];
            frame[12..14].copy_from_slice(&kinds[usize::from(how >> 6)]);
        }
        let ipv6 = frame.len() >= 62 && frame[12..14] == [0x86, 0xdd];
        if how & 4 != 0 && ipv6 {
            self.put_ipv6_right(how, &mut frame[14..]);
        } else if how & 4 != 0 && frame.len() >= 34 {
            let total = (frame.len() - 14) as u16;
            frame[16..18].copy_from_slice(&total.to_be_bytes());
            frame[26..30].copy_from_slice(&self.stack.config().guest_ip.octets());
            if how & 8 != 0 {
                frame[14] = 0x45;
                frame[20..22].fill(0);
                frame[23] = [1, 6, 17, 6][usize::from(how >> 4 & 3)];
                frame[30..34].copy_from_slice(&self.stack.config().gateway_ip.octets());
            }
            put_ipv4_sum(&mut frame[14..]);
        }
        self.with_cx(|stack, cx| stack.on_frame(cx, &vnet, &frame));
        self.turn();
    }

    /// Gives an IPv6 packet the guest's source and the right length. By `how` it also gets the gateway as destination
    /// and one of: ICMPv6 with its checksum, TCP, destination options, a fragment header.
    fn put_ipv6_right(&self, how: u8, packet: &mut [u8]) {
        let Some(net) = self.stack.config().ipv6 else { return };
        packet[0] = 0x60 | packet[0] & 15;
        let len = packet.len() - 40;
        packet[4..6].copy_from_slice(&(len as u16).to_be_bytes());
        packet[8..24].copy_from_slice(&net.guest.octets());
        if how & 8 == 0 {
            return;
        }
        packet[24..40].copy_from_slice(&net.gateway.octets());
        packet[6] = [58, 6, 60, 44][usize::from(how >> 4 & 3)];
        if packet[6] == 58 {
            packet[7] = 255;
            packet[42..44].fill(0);
            let protocol = IpProtocol::Icmpv6;
            let pseudo = checksum::pseudo_header_v6(&net.guest, &net.gateway, protocol, len as u32);
            let sum = !checksum::combine(&[pseudo, checksum::data(&packet[40..])]);
            packet[42..44].copy_from_slice(&sum.to_be_bytes());
        }
    }

    /// Opens a connection of the guest: the host side connects at once, and the handshake is correct.
    pub(super) fn handshake(&mut self, script: &mut Script<'_>) {
        let ports = self.syn(script);
        let flows: Vec<FlowId> = self.host.socks.keys().copied().collect();
        for flow in flows {
            if let Some(sock) = self.host.socks.get_mut(&flow).filter(|s| s.outcome.is_none()) {
                sock.outcome = Some(Ok(()));
                self.stack.on_host_ready(flow, Ready { readable: false, writable: true });
            }
        }
        self.turn();
        // Absent if the stack has not answered: no room, or a device without room.
        let Some(peer) = self.device.peers.get(&ports).copied() else { return };
        self.send(ports, peer.seq, peer.ack, ACK, 512, &[], 0);
        self.turn();
    }

    /// Sends a SYN with plausible options.
    pub(super) fn syn(&mut self, script: &mut Script<'_>) -> (u16, u16) {
        let ports = ports(script);
        let seq = script.pick(&[1000, 0, u32::MAX, 0x7fff_ffff]);
        let mut options = Vec::new();
        let which = script.u8();
        if which & 1 == 0 {
            options.extend([2, 4]);
            options.extend(script.pick(&[1460_u16, 536, 88, 1, 65_495]).to_be_bytes());
        }
        if which & 2 == 0 {
            options.extend([3, 3, script.pick(&[7, 0, 14, 200]), 1]);
        }
        if which & 4 == 0 {
            options.extend([4, 2, 1, 1]);
        }
        if which & 8 == 0 {
            options.extend([1, 1, 8, 10]);
            options.extend(self.clock().to_be_bytes());
            options.extend([0; 4]);
        }
        let data = if which & 16 == 0 { 0 } else { script.u16() % 2000 };
        self.send(ports, seq, 0, SYN, 64_000, &options, data);
        self.device.peers.entry(ports).or_default().seq = seq.wrapping_add(1);
        self.turn();
        ports
    }

    /// Sends a segment of a connection, often a plausible one.
    pub(super) fn segment(&mut self, script: &mut Script<'_>) {
        let ports = ports(script);
        let peer = self.device.peers.get(&ports).copied().unwrap_or_default();
        let seq = script.near(peer.seq);
        let ack = script.near(peer.ack);
        let any = script.u8();
        let flags = script.pick(&[ACK, ACK, ACK, ACK | FIN, RST, ACK | SYN, SYN, any]);
        let wnd = script.pick(&[512, 0, 1, 65_535, u16::from(any)]);
        let mut options = Vec::new();
        match script.below(8) {
            0 => {
                let len = usize::from(script.below(41));
                options.extend(script.bytes(len));
            }
            1 => {
                let blocks = 1 + script.below(3);
                options.extend([1, 1, 5, 2 + 8 * blocks]);
                for _ in 0..2 * blocks {
                    options.extend(script.near(peer.ack).to_be_bytes());
                }
            }
            2 => {}
            _ => {
                if let Some(recent) = peer.ts {
                    options.extend([1, 1, 8, 10]);
                    options.extend(script.near(self.clock()).to_be_bytes());
                    options.extend(script.near(recent).to_be_bytes());
                }
            }
        }
        let data = script.pick(&[0, 1, 100, 1448, script_len(any)]);
        self.send(ports, seq, ack, flags, wnd, &options, data);
        // Only a segment in order moves the guest's stream on; others are retransmissions or noise.
        if seq == peer.seq
            && let Some(peer) = self.device.peers.get_mut(&ports)
        {
            peer.seq = seq.wrapping_add(data.into()).wrapping_add(u32::from(flags & FIN));
        }
        if script.below(4) != 0 {
            self.turn();
        }
    }

    /// Applies an event to a host socket: connected, data, room, end, failure.
    pub(super) fn host_event(&mut self, script: &mut Script<'_>) {
        let what = script.below(8);
        if what == 0 {
            self.host.connect = Some(script.pick(&ERRORS));
            return;
        }
        let which = usize::from(script.u8());
        let count = self.host.socks.len().max(1);
        let Some((&flow, sock)) = self.host.socks.iter_mut().nth(which % count) else { return };
        match what {
            1 if sock.outcome.is_none() => sock.outcome = Some(Ok(())),
            1 | 2 => sock.says = sock.says.saturating_add(u32::from(script.u16())),
            3 => sock.room = sock.room.saturating_add(script.u16().into()),
            4 => (sock.room, sock.kept) = (0, which as u64),
            5 => sock.ends = true,
            6 if sock.outcome.is_none() => sock.outcome = Some(Err(script.pick(&ERRORS))),
            6 => {
                let e = script.pick(&[HostError::Reset, HostError::TimedOut]);
                sock.broken = Some(e);
                sock.outcome = Some(Err(e));
                self.stack.on_host_broken(flow);
            }
            _ => {}
        }
        // Edges are reported only for what the socket can do, as epoll does.
        let opened = sock.outcome.is_some();
        let readable = opened && (sock.says > 0 || sock.ends || sock.broken.is_some());
        let writable = opened && (sock.room > 0 || sock.broken.is_some());
        self.stack.on_host_ready(flow, Ready { readable, writable });
        if script.below(4) != 0 {
            self.turn();
        }
    }

    /// A client connects to a published port.
    pub(super) fn accept(&mut self, script: &mut Script<'_>) {
        let port = 40_000 + u16::from(script.below(PORTS));
        let from = SocketAddr::from(([192, 0, 2, 1], 5555));
        if !self.with_cx(Container::can_accept) {
            self.stack.wait_to_accept(&mut self.budget);
            return;
        }
        // Half of these clients have sent data before the accept.
        let queued = u32::from(port & 1) * 50_000;
        let accepted = self.with_cx(|stack, cx| stack.on_accept(cx, port, from, queued));
        if let Ok((flow, _)) = accepted {
            let open = Sock::new(Some(Ok(())));
            assert!(self.host.socks.insert(flow, open).is_none(), "an id is used once");
            self.stack.on_host_ready(flow, Ready { readable: false, writable: true });
        }
        self.turn();
    }

    /// Changes the number of frames that the device takes.
    pub(super) fn device_room(&mut self, script: &mut Script<'_>) {
        self.device.room = script.pick(&[usize::MAX, usize::MAX, 0, 1, 3]);
        self.turn();
    }

    /// Lets time pass, deadline by deadline.
    pub(super) fn pass(&mut self, script: &mut Script<'_>) {
        let ms = script.pick(&[1, 40, 250, 1000, 10_000, 60_000, 7_300_000]);
        let (begun, end) = (self.now, Instant(self.now.0 + ms * 1_000_000));
        let mut still = 0;
        for round in 0.. {
            if round == DEADLINES_MAX {
                // Reached legitimately when the device has been full for hours. A loop that spins would take less
                // virtual time.
                assert!(self.now.since(begun) >= DEADLINES_TAKE, "deadlines that are never met");
                return;
            }
            let Some(at) = self.stack.next_deadline().filter(|at| *at <= end) else { break };
            self.now = self.now.max(at);
            self.turn();
            // A turn may set a deadline at the current time, but only a few times in a row.
            still = if self.stack.next_deadline() == Some(at) { still + 1 } else { 0 };
            assert!(still < 4, "a deadline that stays");
        }
        self.now = end;
        self.turn();
    }

    // ---- what must hold ----

    /// Tests the limit, and each byte that a host socket received from the guest.
    pub(super) fn check(&mut self) {
        let meter = self.budget.meter_stats(self.now);
        if self.plan.rules == Rules::Strict {
            assert!(meter.max_usage_bytes <= self.plan.hard, "{meter:?}");
        }
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
        let config = self.stack.config();
        // A data offset cannot describe more than 40 bytes of options.
        let options_len = options.len().min(40).next_multiple_of(4);
        let header = 20 + options_len;
        let total = 20 + header + usize::from(data);
        let mut frame = vec![0; 14 + total];
        frame[..6].copy_from_slice(&config.our_mac);
        frame[6..12].copy_from_slice(&GUEST_MAC);
        frame[12] = 8;
        let ip = &mut frame[14..];
        ip[0] = 0x45;
        ip[2..4].copy_from_slice(&(total as u16).to_be_bytes());
        ip[8] = 64;
        ip[9] = 6;
        ip[12..16].copy_from_slice(&config.guest_ip.octets());
        ip[16..20].copy_from_slice(&config.gateway_ip.octets());
        put_ipv4_sum(ip);
        let tcp = &mut ip[20..];
        tcp[..2].copy_from_slice(&guest_port.to_be_bytes());
        tcp[2..4].copy_from_slice(&remote_port.to_be_bytes());
        tcp[4..8].copy_from_slice(&seq.to_be_bytes());
        tcp[8..12].copy_from_slice(&ack.to_be_bytes());
        tcp[12] = ((header / 4) << 4) as u8;
        tcp[13] = flags;
        tcp[14..16].copy_from_slice(&wnd.to_be_bytes());
        let len = options.len().min(40);
        tcp[20..20 + len].copy_from_slice(&options[..len]);
        // A SYN takes the first sequence number.
        let first = seq.wrapping_add(u32::from(flags & SYN != 0));
        for (i, byte) in tcp[header..].iter_mut().enumerate() {
            *byte = guest_byte(first.wrapping_add(i as u32));
        }
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

/// Guest port and remote port of the next operation.
fn ports(script: &mut Script<'_>) -> (u16, u16) {
    let which = script.u8();
    // Connections to a published port have the client's port 5555 at the remote end.
    let remote = if which & 0x80 == 0 { 80 } else { 5555 };
    (40_000 + u16::from(which & 0x7f) % u16::from(PORTS), remote)
}

fn script_len(any: u8) -> u16 {
    u16::from(any) * 16
}

/// Corrects the IPv4 header checksum, for the header length that the packet states.
fn put_ipv4_sum(ip: &mut [u8]) {
    let len = (usize::from(ip[0] & 15) * 4).clamp(20, ip.len());
    ip[10..12].fill(0);
    let sum = !checksum::data(&ip[..len]);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
}

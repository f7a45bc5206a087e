//! The operations that scripts consist of.

use std::net::SocketAddr;
use std::time::Duration;

use skbudget_controller::Instant;
use skbudget_stack::fuzz::Script;
use skbudget_stack::vnet::VnetHdr;
use skbudget_stack::{Container, FlowId, HostError, Ready};

use super::Bench;
use crate::fuzz::host::Sock;
use crate::packet::{ACK, FIN, GUEST_MAC, RST, SYN, ipv4_checksum, transport_checksum};

/// Number of ports. Few, so that a script uses the same connection more than once.
const PORTS: u8 = 4;
/// Deadlines met in one time step, and the least virtual time that they must take.
const DEADLINES_MAX: usize = 2000;
const DEADLINES_TAKE: Duration = Duration::from_millis(200);

const ERRORS: [HostError; 6] = [
    HostError::Refused,
    HostError::HostUnreachable,
    HostError::NetUnreachable,
    HostError::TimedOut,
    HostError::Reset,
    HostError::NoResources,
];

impl Bench {
    /// Sends a frame of any bytes; its Ethernet and IP headers may be corrected first.
    pub(in crate::fuzz) fn any_frame(&mut self, script: &mut Script<'_>) {
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
            ipv4_checksum(&mut frame);
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
            let (src, dst) = (net.guest.into(), net.gateway.into());
            transport_checksum(src, dst, 58, &mut packet[40..], 2);
        }
    }

    /// Opens a connection of the guest: the host side connects at once, and the handshake is correct.
    pub(in crate::fuzz) fn handshake(&mut self, script: &mut Script<'_>) {
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
    pub(in crate::fuzz) fn syn(&mut self, script: &mut Script<'_>) -> (u16, u16) {
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
    pub(in crate::fuzz) fn segment(&mut self, script: &mut Script<'_>) {
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
    pub(in crate::fuzz) fn host_event(&mut self, script: &mut Script<'_>) {
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
    pub(in crate::fuzz) fn accept(&mut self, script: &mut Script<'_>) {
        let port = 40_000 + u16::from(script.below(PORTS));
        // It appears as the gateway, to which the script's segments go.
        let from = SocketAddr::from(([127, 0, 0, 1], 5555));
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
    pub(in crate::fuzz) fn device_room(&mut self, script: &mut Script<'_>) {
        self.device.room = script.pick(&[usize::MAX, usize::MAX, 0, 1, 3]);
        self.turn();
    }

    /// Lets time pass, deadline by deadline.
    pub(in crate::fuzz) fn pass(&mut self, script: &mut Script<'_>) {
        let ms = script.pick(&[1, 40, 250, 1000, 10_000, 60_000, 7_300_000]);
        let (start, end) = (self.now, Instant(self.now.0 + ms * 1_000_000));
        let mut still = 0;
        for round in 0.. {
            if round == DEADLINES_MAX {
                // Reached legitimately when the device has been full for hours. A loop that spins would take less
                // virtual time.
                assert!(self.now.since(start) >= DEADLINES_TAKE, "deadlines that are never met");
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

//! Datagrams and echo requests built by hand, to our stack and to a kernel: both must answer alike.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use skbudget_sim::packet::{
    self, Datagram, GATEWAY, GATEWAY6, GUEST, GUEST6, ipv4_checksum, transport_checksum,
};
use skbudget_sim::smoltcp::wire::{
    EthernetFrame, EthernetProtocol, IpProtocol, Ipv4Packet, Ipv6Packet,
};
use skbudget_testbed::cable::{Bare, Far};

/// Time without a further answer that ends a step.
const QUIET: Duration = Duration::from_millis(60);
const UDP: u8 = 17;

struct Exchange<'a> {
    bare: &'a Bare,
    server: UdpSocket,
    v6: bool,
    port: u16,
}

impl Exchange<'_> {
    /// A datagram to a port of the gateway.
    fn to(&self, port: u16, data: &[u8]) -> Datagram {
        let (src, dst): (IpAddr, IpAddr) = match self.v6 {
            true => (GUEST6.into(), GATEWAY6.into()),
            false => (GUEST.into(), GATEWAY.into()),
        };
        let (src, dst) = (SocketAddr::new(src, self.port), SocketAddr::new(dst, port));
        Datagram { src, dst, ..Datagram::new(0, 0, data) }
    }

    /// A datagram to the server.
    fn datagram(&self, data: &[u8]) -> Datagram {
        self.to(self.server.local_addr().unwrap().port(), data)
    }

    /// The bytes of UDP in a packet; `None`: in an IPv4 packet with this flags and offset field.
    fn packet(&self, udp: &[u8], fragment: Option<u16>) -> Vec<u8> {
        match (self.v6, fragment) {
            (true, None) => packet::ipv6(UDP, GUEST6, GATEWAY6, udp),
            (true, Some(field)) => {
                // Units of 8 bytes, and more fragments in the lowest bit.
                let word = ((field & 0x1fff) << 3) | field >> 13;
                let header =
                    [&[UDP, 0][..], &word.to_be_bytes(), &[0, 0], &self.port.to_be_bytes()];
                packet::ipv6(44, GUEST6, GATEWAY6, &[&header.concat(), udp].concat())
            }
            (false, fragment) => {
                let mut frame = packet::ipv4(UDP, GUEST, GATEWAY, udp);
                frame[18..20].copy_from_slice(&self.port.to_be_bytes());
                frame[20..22].copy_from_slice(&fragment.unwrap_or(0x4000).to_be_bytes());
                ipv4_checksum(&mut frame);
                frame
            }
        }
    }

    /// Sends frames; returns what the server received and what arrived in answer.
    fn exchange(&mut self, frames: &[Vec<u8>]) -> String {
        let mut wire = std::fs::File::from(self.bare.wire.as_fd().try_clone_to_owned().unwrap());
        for frame in frames {
            wire.write_all(frame).unwrap();
        }
        let mut seen = Vec::new();
        let mut last = Instant::now();
        let mut buffer = vec![0; 1 << 16];
        while last.elapsed() < QUIET {
            if let Ok((len, from)) = self.server.recv_from(&mut buffer) {
                let text = String::from_utf8_lossy(&buffer[..len.min(20)]).into_owned();
                seen.push(format!("server {len} {text:?}"));
                self.server.send_to(&buffer[..len], from).unwrap();
                last = Instant::now();
            }
            match wire.read(&mut buffer) {
                Ok(len) => {
                    if let Some(text) = self.describe(&buffer[..len]) {
                        seen.push(text);
                        last = Instant::now();
                    }
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    std::thread::sleep(Duration::from_micros(300));
                }
                Err(e) => panic!("{e}"),
            }
        }
        if seen.is_empty() { "nothing".to_owned() } else { seen.join(", ") }
    }

    fn describe(&self, frame: &[u8]) -> Option<String> {
        let eth = EthernetFrame::new_checked(frame).ok()?;
        let (protocol, payload) = match eth.ethertype() {
            EthernetProtocol::Ipv4 if !self.v6 => {
                let ip = Ipv4Packet::new_checked(eth.payload()).ok()?;
                (ip.next_header(), ip.payload())
            }
            EthernetProtocol::Ipv6 if self.v6 => {
                let ip = Ipv6Packet::new_checked(eth.payload()).ok()?;
                (ip.next_header(), ip.payload())
            }
            _ => return None,
        };
        match protocol {
            IpProtocol::Udp => {
                let datagram = Datagram::parse(frame)?;
                (datagram.dst.port() == self.port).then(|| format!("udp {}", datagram.data.len()))
            }
            IpProtocol::Icmp => Some(format!("icmp {}/{}", payload[0], payload[1])),
            // Not neighbour discovery.
            IpProtocol::Icmpv6 if payload[0] < 130 => {
                Some(format!("icmp6 {}/{}", payload[0], payload[1]))
            }
            _ => None,
        }
    }
}

type Script = fn(&mut Exchange<'_>) -> Vec<Vec<u8>>;

const SCRIPTS: &[(&str, Script)] = &[
    ("a datagram to a server", |t| vec![t.datagram(b"hello").frame()]),
    ("an empty datagram", |t| vec![t.datagram(b"").frame()]),
    ("a datagram to a closed port", |t| vec![t.to(9, b"hello").frame()]),
    ("a datagram to port 0", |t| vec![t.to(0, b"hello").frame()]),
    ("hop limit 1 to the gateway", |t| {
        vec![Datagram { hop_limit: 1, ..t.datagram(b"near") }.frame()]
    }),
    ("a marked datagram", |t| vec![Datagram { traffic_class: 3, ..t.datagram(b"marked") }.frame()]),
    ("no checksum", |t| {
        let mut udp = t.datagram(b"hello").bytes();
        udp[6..8].fill(0);
        vec![t.packet(&udp, None)]
    }),
    ("a wrong checksum", |t| {
        let mut udp = t.datagram(b"hello").bytes();
        udp[6] ^= 1;
        vec![t.packet(&udp, None)]
    }),
    ("a length beyond the packet", |t| {
        let mut udp = t.datagram(b"hello").bytes();
        udp[5] += 1;
        vec![t.packet(&udp, None)]
    }),
    ("a length below the header", |t| {
        let mut udp = t.datagram(b"hello").bytes();
        udp[5] = 7;
        vec![t.packet(&udp, None)]
    }),
    ("bytes behind the datagram", |t| {
        let mut udp = t.datagram(b"hello").bytes();
        udp.extend([0xee; 9]);
        vec![t.packet(&udp, None)]
    }),
    ("two fragments", |t| {
        let udp = t.datagram(&[b'x'; 1000]).bytes();
        vec![t.packet(&udp[..504], Some(0x2000)), t.packet(&udp[504..], Some(63))]
    }),
    ("three fragments, the last one first", |t| {
        let udp = t.datagram(&[b'x'; 1000]).bytes();
        vec![
            t.packet(&udp[800..], Some(100)),
            t.packet(&udp[400..800], Some(0x2000 | 50)),
            t.packet(&udp[..400], Some(0x2000)),
        ]
    }),
    ("an echo request", |t| {
        let mut message = vec![if t.v6 { 128 } else { 8 }, 0, 0, 0, 0, 7, 0, 1, b'a', b'b'];
        if t.v6 {
            transport_checksum(GUEST6.into(), GATEWAY6.into(), 58, &mut message, 2);
            return vec![packet::ipv6(58, GUEST6, GATEWAY6, &message)];
        }
        let sum = !skbudget_sim::smoltcp::wire::checksum::data(&message);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        vec![packet::ipv4(1, GUEST, GATEWAY, &message)]
    }),
];

fn answers(far: Far, v6: bool) -> Vec<String> {
    let bare = Bare::new(far);
    let run = |index: usize, script: Script| {
        let server = bare.bind_udp(v6);
        server.set_nonblocking(true).unwrap();
        let mut exchange = Exchange { bare: &bare, server, v6, port: 40_000 + index as u16 };
        // Drops what earlier scripts left on the wire.
        exchange.exchange(&[]);
        let frames = script(&mut exchange);
        exchange.exchange(&frames)
    };
    SCRIPTS.iter().enumerate().map(|(index, (_, script))| run(index, *script)).collect()
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn datagrams_are_answered_as_by_a_kernel() {
    for v6 in [false, true] {
        let (ours, kernel) = std::thread::scope(|scope| {
            let ours = scope.spawn(|| answers(Far::Ours, v6));
            let kernel = answers(Far::Kernel, v6);
            (ours.join().unwrap(), kernel)
        });
        let mut wrong = Vec::new();
        for (((name, _), ours), kernel) in SCRIPTS.iter().zip(&ours).zip(&kernel) {
            println!("{name}, ipv6={v6}\n    ours   {ours}\n    kernel {kernel}");
            if ours != kernel {
                wrong.push(format!("{name}, ipv6={v6}: ours {ours}, kernel {kernel}"));
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}

//! The exchange of one script: segments built by hand, and the answers as text that does not depend on which side gave
//! them.
//!
//! `SA 0/1` is a segment with SYN and ACK, sequence number 0 and acknowledgement 1, both relative to the initial
//! numbers. `+5` after it is the length of the payload, `E` and `W` are ECE and CWR, `ect` is a packet with ECT. Commas
//! separate the answers to one step, bars separate the steps.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use skbudget_sim::packet::{self, ACK, GATEWAY, GATEWAY6, GUEST, GUEST6, RST, SYN};
use skbudget_sim::smoltcp::wire::{
    EthernetFrame, EthernetProtocol, IpAddress, IpProtocol, Ipv4Packet, Ipv6Packet, TcpPacket,
};
use skbudget_testbed::cable::Bare;

/// Values of the ECN field.
pub(crate) const ECT_0: u8 = 2;
pub(crate) const CE: u8 = 3;

const TCP: u8 = 6;
const FRAGMENT: u8 = 44;
/// The first informational type of ICMPv6. Lower types are errors; neighbour discovery has higher ones.
const INFORMATION: u8 = 128;

/// Our initial sequence number, and the assumed one of the peer as long as it is not known.
const ISS: u32 = 1_000_000;
const UNKNOWN_IRS: u32 = 5000;
/// Time without a further answer that ends a step: a delayed ACK takes 40 ms.
const QUIET: Duration = Duration::from_millis(90);

/// A segment to send. Its numbers are relative to the initial ones.
#[derive(Debug, Clone)]
pub(crate) struct Spec {
    pub(crate) flags: u8,
    pub(crate) seq: i64,
    pub(crate) ack: i64,
    pub(crate) wnd: u16,
    pub(crate) urgent: u16,
    pub(crate) ecn: u8,
    pub(crate) options: Vec<u8>,
    pub(crate) data: Vec<u8>,
    pub(crate) good_sum: bool,
}

impl Spec {
    pub(crate) fn new(flags: u8, seq: i64, ack: i64) -> Self {
        let (options, data) = (Vec::new(), Vec::new());
        Self { flags, seq, ack, wnd: 0xffff, urgent: 0, ecn: 0, options, data, good_sum: true }
    }
    pub(crate) fn data(self, data: &[u8]) -> Self {
        Self { data: data.to_vec(), ..self }
    }
    pub(crate) fn wnd(self, wnd: u16) -> Self {
        Self { wnd, ..self }
    }
    pub(crate) fn ecn(self, ecn: u8) -> Self {
        Self { ecn, ..self }
    }
    pub(crate) fn options(self, options: &[u8]) -> Self {
        let mut options = options.to_vec();
        options.resize(options.len().next_multiple_of(4), 0);
        Self { options, ..self }
    }
}

#[derive(Debug)]
pub(crate) struct Exchange {
    wire: File,
    listener: TcpListener,
    v6: bool,
    port: u16,
    remote: u16,
    pub(crate) irs: u32,
    /// Options of the segments received in the last step.
    pub(crate) received: Vec<Vec<u8>>,
    log: Vec<String>,
}

impl Exchange {
    pub(crate) fn new(bare: &Bare, v6: bool, index: u16) -> Self {
        let listener = bare.listen(v6);
        let remote = listener.local_addr().unwrap().port();
        let mut exchange = Self {
            wire: bare.wire.as_fd().try_clone_to_owned().unwrap().into(),
            listener,
            v6,
            port: 40_000 + index,
            remote,
            irs: UNKNOWN_IRS,
            received: Vec::new(),
            log: Vec::new(),
        };
        // Drops what earlier scripts left on the wire.
        exchange.listen(Duration::from_millis(1));
        exchange.log.clear();
        exchange
    }

    pub(crate) fn end(mut self) -> String {
        // Resets the connection, so that it sends nothing during the next script.
        let text = std::mem::take(&mut self.log).join(" | ");
        self.send(&Spec::new(RST, 1, 0));
        text
    }

    pub(crate) fn note(&mut self, text: impl Into<String>) {
        self.log.push(text.into());
    }

    /// Drops the notes so far.
    pub(crate) fn forget(&mut self) {
        self.log.clear();
    }

    /// From now on segments go to a closed port.
    pub(crate) fn aim_at_closed_port(&mut self) {
        self.remote = 9;
    }

    pub(crate) fn send(&mut self, spec: &Spec) {
        let frame = self.packet(TCP, 0, spec.ecn, &self.segment(spec));
        self.wire.write_all(&frame).unwrap();
    }

    /// Sends the segment in fragments with these start offsets (multiples of eight), in the order given.
    pub(crate) fn send_fragments(&mut self, spec: &Spec, starts: &[usize]) {
        let segment = self.segment(spec);
        for &start in starts {
            let next = starts.iter().copied().filter(|other| *other > start).min();
            self.send_fragment(&segment, start, next.unwrap_or(segment.len()));
        }
    }

    /// Sends one fragment of a segment.
    pub(crate) fn send_fragment(&mut self, segment: &[u8], start: usize, end: usize) {
        let (more, part) = (end < segment.len(), &segment[start..end]);
        let frame = if self.v6 {
            let word = start as u16 | u16::from(more);
            let header = [&[TCP, 0][..], &word.to_be_bytes(), &[0, 0], &self.port.to_be_bytes()];
            self.packet(FRAGMENT, 0, 0, &[&header.concat(), part].concat())
        } else {
            self.packet(TCP, (start / 8) as u16 | u16::from(more) << 13, 0, part)
        };
        self.wire.write_all(&frame).unwrap();
    }

    /// Sends the segment and notes the answers.
    pub(crate) fn exchange(&mut self, spec: &Spec) {
        self.send(spec);
        self.listen(QUIET);
    }

    /// Opens a connection, without a note of the handshake.
    pub(crate) fn open(&mut self) -> TcpStream {
        self.open_with(&[2, 4, 5, 180])
    }

    pub(crate) fn open_with(&mut self, options: &[u8]) -> TcpStream {
        self.open_syn(&Spec::new(SYN, 0, 0).options(options))
    }

    pub(crate) fn open_syn(&mut self, syn: &Spec) -> TcpStream {
        self.send(syn);
        let start = Instant::now();
        while self.irs == UNKNOWN_IRS && start.elapsed() < Duration::from_secs(2) {
            self.listen(Duration::from_millis(2));
        }
        assert_ne!(self.irs, UNKNOWN_IRS, "a SYN that was not answered: {:?}", self.log);
        self.send(&Spec::new(ACK, 1, 1));
        let server = self.listener.accept().unwrap().0;
        server.set_nodelay(true).unwrap();
        server.set_read_timeout(Some(QUIET)).unwrap();
        self.listen(Duration::from_millis(10));
        self.log.clear();
        server
    }

    /// Notes what arrives within this time.
    pub(crate) fn listen(&mut self, length: Duration) {
        let start = Instant::now();
        let mut received = Vec::new();
        self.received.clear();
        let mut frame = [0; 2048];
        while start.elapsed() < length {
            match self.wire.read(&mut frame) {
                Ok(n) => received.extend(self.receive(&frame[..n])),
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    std::thread::sleep(Duration::from_micros(300));
                }
                Err(e) => panic!("{e}"),
            }
        }
        self.log.push(if received.is_empty() { "nothing".to_owned() } else { received.join(", ") });
    }

    fn receive(&mut self, frame: &[u8]) -> Option<String> {
        let eth = EthernetFrame::new_checked(frame).ok()?;
        let (src, dst, next, ecn, payload): (IpAddress, IpAddress, _, _, _) = match eth.ethertype()
        {
            EthernetProtocol::Ipv4 if !self.v6 => {
                let ip = Ipv4Packet::new_checked(eth.payload()).ok()?;
                (
                    ip.src_addr().into(),
                    ip.dst_addr().into(),
                    ip.next_header(),
                    ip.ecn(),
                    ip.payload(),
                )
            }
            EthernetProtocol::Ipv6 if self.v6 => {
                let ip = Ipv6Packet::new_checked(eth.payload()).ok()?;
                let ecn = ip.traffic_class() & 3;
                (ip.src_addr().into(), ip.dst_addr().into(), ip.next_header(), ecn, ip.payload())
            }
            _ => return None,
        };
        match next {
            IpProtocol::Tcp => {}
            // Neighbour discovery and router solicitations of the kernel.
            IpProtocol::HopByHop => return None,
            IpProtocol::Icmpv6 if payload[0] >= INFORMATION => return None,
            IpProtocol::Icmpv6 => return Some(format!("{next} {}/{}", payload[0], payload[1])),
            other => return Some(format!("{other}")),
        }
        let tcp = TcpPacket::new_checked(payload).unwrap();
        if tcp.dst_port() != self.port {
            return None;
        }
        assert!(tcp.verify_checksum(&src, &dst));
        let seq = tcp.seq_number().0.cast_unsigned();
        if tcp.syn() {
            self.irs = seq;
        }
        let options = if tcp.header_len() > 20 { tcp.options() } else { &[] };
        self.received.push(options.to_vec());
        // A RST without a connection has the absolute sequence number zero.
        let seq = if tcp.rst() && seq == 0 { 0 } else { seq.wrapping_sub(self.irs).cast_signed() };
        let mut text = String::new();
        for (set, letter) in [
            (tcp.fin(), 'F'),
            (tcp.syn(), 'S'),
            (tcp.rst(), 'R'),
            (tcp.ack(), 'A'),
            (tcp.ece(), 'E'),
            (tcp.cwr(), 'W'),
        ] {
            if set {
                text.push(letter);
            }
        }
        text += &format!(" {seq}");
        if tcp.ack() {
            let ack = tcp.ack_number().0.cast_unsigned().wrapping_sub(ISS).cast_signed();
            text += &format!("/{ack}");
        }
        if !tcp.payload().is_empty() {
            text += &format!(" +{}", tcp.payload().len());
        }
        if ecn != 0 {
            text += " ect";
        }
        Some(text)
    }

    /// Notes the bytes that the server's program has received so far.
    pub(crate) fn server_received(&mut self, server: &mut TcpStream) {
        let mut received = Vec::new();
        let mut piece = [0; 4096];
        let text = loop {
            match server.read(&mut piece) {
                Ok(0) => break "end".to_owned(),
                Ok(n) => received.extend_from_slice(&piece[..n]),
                Err(e) if e.kind() == ErrorKind::WouldBlock => break String::new(),
                Err(e) => break format!("{:?}", e.kind()),
            }
        };
        let received = String::from_utf8_lossy(&received).into_owned();
        self.log.push(format!("server {received:?} {text}").trim_end().to_owned());
    }

    pub(crate) fn segment(&self, spec: &Spec) -> Vec<u8> {
        let number = |base: u32, offset: i64| base.wrapping_add(offset as u32);
        let (src, dst): (IpAddr, IpAddr) = match self.v6 {
            true => (GUEST6.into(), GATEWAY6.into()),
            false => (GUEST.into(), GATEWAY.into()),
        };
        let segment = packet::Segment {
            src,
            dst,
            seq: number(ISS, spec.seq),
            ack: if spec.flags & ACK != 0 { number(self.irs, spec.ack) } else { 0 },
            wnd: spec.wnd,
            urgent: spec.urgent,
            options: spec.options.clone(),
            data: spec.data.clone(),
            ..packet::Segment::new(self.port, self.remote, spec.flags)
        };
        let mut tcp = segment.bytes();
        if !spec.good_sum {
            tcp[16] ^= 1;
            tcp[17] ^= 1;
        }
        tcp
    }

    /// Builds a frame. `word`: flags and fragment offset of IPv4.
    fn packet(&self, next: u8, word: u16, ecn: u8, payload: &[u8]) -> Vec<u8> {
        if self.v6 {
            let mut frame = packet::ipv6(next, GUEST6, GATEWAY6, payload);
            frame[15] |= ecn << 4;
            return frame;
        }
        let mut frame = packet::ipv4(next, GUEST, GATEWAY, payload);
        frame[15] |= ecn;
        // Fragments of one script belong together.
        frame[18..20].copy_from_slice(&self.port.to_be_bytes());
        frame[20..22].copy_from_slice(&word.to_be_bytes());
        packet::ipv4_checksum(&mut frame);
        frame
    }
}

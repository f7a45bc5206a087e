//! The exchange of one script: segments built by hand, and the answers as text that does not depend on which side gave
//! them.
//!
//! `SA 0/1` is a segment with SYN and ACK, sequence number 0 and acknowledgement 1, both relative to the initial
//! numbers. `+5` after it is the length of the payload, `E` and `W` are ECE and CWR, `ect` is a packet with ECT. Commas
//! separate the answers to one step, bars separate the steps.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use skbudget_sim::smoltcp::wire::{
    EthernetFrame, EthernetProtocol, IpAddress, IpProtocol, Ipv4Packet, Ipv6Packet, TcpPacket,
    checksum,
};

use crate::bench::Bare;

pub(crate) const FIN: u8 = 1;
pub(crate) const SYN: u8 = 2;
pub(crate) const RST: u8 = 4;
pub(crate) const PSH: u8 = 8;
pub(crate) const ACK: u8 = 16;
pub(crate) const URG: u8 = 32;
pub(crate) const ECE: u8 = 64;
pub(crate) const CWR: u8 = 128;
/// Values of the ECN field.
pub(crate) const ECT_0: u8 = 2;
pub(crate) const CE: u8 = 3;

const OUR_MAC: [u8; 6] = [0x52, 0x55, 0x0a, 0, 2, 2];
const GUEST_MAC: [u8; 6] = [2, 0x67, 0x75, 0x65, 0x73, 0x74];
const GUEST: [u8; 4] = [10, 0, 2, 100];
const GATEWAY: [u8; 4] = [10, 0, 2, 2];
const GUEST6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];
const GATEWAY6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
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
pub(crate) struct Say {
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

impl Say {
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
pub(crate) struct Talk {
    wire: File,
    listener: TcpListener,
    v6: bool,
    port: u16,
    remote: u16,
    pub(crate) irs: u32,
    /// Options of the segments received in the last step.
    pub(crate) heard: Vec<Vec<u8>>,
    log: Vec<String>,
}

impl Talk {
    pub(crate) fn new(bare: &Bare, v6: bool, index: u16) -> Self {
        let listener = bare.listen(v6);
        let remote = listener.local_addr().unwrap().port();
        let mut talk = Self {
            wire: bare.wire.as_fd().try_clone_to_owned().unwrap().into(),
            listener,
            v6,
            port: 40_000 + index,
            remote,
            irs: UNKNOWN_IRS,
            heard: Vec::new(),
            log: Vec::new(),
        };
        // Drops what earlier scripts left on the wire.
        talk.listen(Duration::from_millis(1));
        talk.log.clear();
        talk
    }

    pub(crate) fn end(mut self) -> String {
        // Resets the connection, so that it sends nothing during the next script.
        let text = std::mem::take(&mut self.log).join(" | ");
        self.say(&Say::new(RST, 1, 0));
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

    pub(crate) fn say(&mut self, say: &Say) {
        let frame = self.packet(TCP, 0, say.ecn, &self.segment(say));
        self.wire.write_all(&frame).unwrap();
    }

    /// Sends the segment in fragments with these start offsets (multiples of eight), in the order given.
    pub(crate) fn say_in_pieces(&mut self, say: &Say, begins: &[usize]) {
        let segment = self.segment(say);
        for &begin in begins {
            let next = begins.iter().copied().filter(|other| *other > begin).min();
            self.say_piece(&segment, begin, next.unwrap_or(segment.len()));
        }
    }

    /// Sends one fragment of a segment.
    pub(crate) fn say_piece(&mut self, segment: &[u8], begin: usize, end: usize) {
        let (more, part) = (end < segment.len(), &segment[begin..end]);
        let frame = if self.v6 {
            let word = begin as u16 | u16::from(more);
            let header = [&[TCP, 0][..], &word.to_be_bytes(), &[0, 0], &self.port.to_be_bytes()];
            self.packet(FRAGMENT, 0, 0, &[&header.concat(), part].concat())
        } else {
            self.packet(TCP, (begin / 8) as u16 | u16::from(more) << 13, 0, part)
        };
        self.wire.write_all(&frame).unwrap();
    }

    /// Sends the segment and notes the answers.
    pub(crate) fn ask(&mut self, say: &Say) {
        self.say(say);
        self.listen(QUIET);
    }

    /// Opens a connection, without a note of the handshake.
    pub(crate) fn open(&mut self) -> TcpStream {
        self.open_with(&[2, 4, 5, 180])
    }

    pub(crate) fn open_with(&mut self, options: &[u8]) -> TcpStream {
        self.open_saying(&Say::new(SYN, 0, 0).options(options))
    }

    pub(crate) fn open_saying(&mut self, syn: &Say) -> TcpStream {
        self.say(syn);
        let began = Instant::now();
        while self.irs == UNKNOWN_IRS && began.elapsed() < Duration::from_secs(2) {
            self.listen(Duration::from_millis(2));
        }
        assert_ne!(self.irs, UNKNOWN_IRS, "a SYN that was not answered: {:?}", self.log);
        self.say(&Say::new(ACK, 1, 1));
        let server = self.listener.accept().unwrap().0;
        server.set_nodelay(true).unwrap();
        server.set_read_timeout(Some(QUIET)).unwrap();
        self.listen(Duration::from_millis(10));
        self.log.clear();
        server
    }

    /// Notes what arrives within this time.
    pub(crate) fn listen(&mut self, length: Duration) {
        let began = Instant::now();
        let mut heard = Vec::new();
        self.heard.clear();
        let mut frame = [0; 2048];
        while began.elapsed() < length {
            match self.wire.read(&mut frame) {
                Ok(n) => heard.extend(self.hear(&frame[..n])),
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    std::thread::sleep(Duration::from_micros(300));
                }
                Err(e) => panic!("{e}"),
            }
        }
        self.log.push(if heard.is_empty() { "nothing".to_owned() } else { heard.join(", ") });
    }

    fn hear(&mut self, frame: &[u8]) -> Option<String> {
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
        self.heard.push(options.to_vec());
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
    pub(crate) fn server_heard(&mut self, server: &mut TcpStream) {
        let mut heard = Vec::new();
        let mut piece = [0; 4096];
        let text = loop {
            match server.read(&mut piece) {
                Ok(0) => break "end".to_owned(),
                Ok(n) => heard.extend_from_slice(&piece[..n]),
                Err(e) if e.kind() == ErrorKind::WouldBlock => break String::new(),
                Err(e) => break format!("{:?}", e.kind()),
            }
        };
        let heard = String::from_utf8_lossy(&heard).into_owned();
        self.log.push(format!("server {heard:?} {text}").trim_end().to_owned());
    }

    pub(crate) fn segment(&self, say: &Say) -> Vec<u8> {
        let number = |base: u32, offset: i64| base.wrapping_add(offset as u32).to_be_bytes();
        let mut tcp = Vec::new();
        tcp.extend(self.port.to_be_bytes());
        tcp.extend(self.remote.to_be_bytes());
        tcp.extend(number(ISS, say.seq));
        tcp.extend(if say.flags & ACK != 0 { number(self.irs, say.ack) } else { [0; 4] });
        tcp.push(((20 + say.options.len()) as u8 / 4) << 4);
        tcp.push(say.flags);
        tcp.extend(say.wnd.to_be_bytes());
        tcp.extend([0, 0]);
        tcp.extend(say.urgent.to_be_bytes());
        tcp.extend(&say.options);
        tcp.extend(&say.data);
        let len = tcp.len() as u32;
        let pseudo = if self.v6 {
            let (src, dst) = (GUEST6.into(), GATEWAY6.into());
            checksum::pseudo_header_v6(&src, &dst, IpProtocol::Tcp, len)
        } else {
            let (src, dst) = (GUEST.into(), GATEWAY.into());
            checksum::pseudo_header_v4(&src, &dst, IpProtocol::Tcp, len)
        };
        let sum = !checksum::combine(&[pseudo, checksum::data(&tcp)]);
        let sum = if say.good_sum { sum } else { sum ^ 0x0101 };
        tcp[16..18].copy_from_slice(&sum.to_be_bytes());
        tcp
    }

    /// Builds a frame. `word`: flags and fragment offset of IPv4.
    fn packet(&self, next: u8, word: u16, ecn: u8, payload: &[u8]) -> Vec<u8> {
        let (ethertype, ip) = if self.v6 {
            let len = (payload.len() as u16).to_be_bytes();
            let header = [&[0x60, ecn << 4, 0, 0][..], &len, &[next, 64], &GUEST6, &GATEWAY6];
            ([0x86, 0xdd], header.concat())
        } else {
            let mut ip = vec![0x45, ecn];
            ip.extend((20 + payload.len() as u16).to_be_bytes());
            ip.extend(self.port.to_be_bytes());
            ip.extend(word.to_be_bytes());
            ip.extend([64, next, 0, 0]);
            ip.extend(GUEST);
            ip.extend(GATEWAY);
            let sum = !checksum::data(&ip);
            ip[10..12].copy_from_slice(&sum.to_be_bytes());
            ([8, 0], ip)
        };
        [&OUR_MAC[..], &GUEST_MAC, &ethertype, &ip, payload].concat()
    }
}

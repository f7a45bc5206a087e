//! Clients of DHCP: which messages are answered, with what, and where to.

use std::net::{Ipv4Addr, SocketAddr};

use skbudget_sim::packet::Datagram;
use skbudget_stack::vnet::F_NEEDS_CSUM;

use crate::rig::{GATEWAY, GUEST, Rig, Setup};
use crate::wire::GUEST_MAC;

const ANY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
const ALL: Ipv4Addr = Ipv4Addr::BROADCAST;
pub(crate) const OTHER_MAC: [u8; 6] = [2, 9, 9, 9, 9, 9];

const DISCOVER: u8 = 1;
const OFFER: u8 = 2;
const REQUEST: u8 = 3;
const DECLINE: u8 = 4;
const ACK: u8 = 5;
const NAK: u8 = 6;
const RELEASE: u8 = 7;
const INFORM: u8 = 8;

/// A message of a client, and the addresses of its packet.
struct Message {
    kind: u8,
    client_ip: Ipv4Addr,
    mac: [u8; 6],
    broadcast: bool,
    options: Vec<u8>,
    src: Ipv4Addr,
    dst: Ipv4Addr,
}

impl Message {
    fn new(kind: u8) -> Self {
        let (client_ip, src, dst) = (ANY, ANY, ALL);
        Self { kind, client_ip, mac: GUEST_MAC, broadcast: false, options: vec![], src, dst }
    }

    fn option(mut self, kind: u8, data: &[u8]) -> Self {
        self.options.extend([kind, data.len() as u8]);
        self.options.extend(data);
        self
    }

    /// The client uses its address already and sends to the server alone.
    fn bound(self) -> Self {
        Self { client_ip: GUEST, src: GUEST, dst: GATEWAY, ..self }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![1, 1, 6, 0, 0xde, 0xad, 0xbe, 0xef, 0, 3];
        bytes.extend([if self.broadcast { 0x80 } else { 0 }, 0]);
        bytes.extend(self.client_ip.octets());
        bytes.resize(28, 0);
        bytes.extend(self.mac);
        bytes.resize(236, 0);
        bytes.extend([0x63, 0x82, 0x53, 0x63, 53, 1, self.kind]);
        bytes.extend(&self.options);
        bytes.push(255);
        bytes
    }

    fn datagram(&self) -> Datagram {
        let (src, dst) = ((self.src, 68).into(), (self.dst, 67).into());
        Datagram { src, dst, ..Datagram::new(0, 0, &self.bytes()) }
    }
}

/// An answer of the server.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) datagram: Datagram,
    mac: [u8; 6],
}

impl Answer {
    fn option(&self, kind: u8) -> Option<&[u8]> {
        let mut options = &self.datagram.data[240..];
        while let [k, len, rest @ ..] = options {
            let (data, behind) = rest.split_at((*len).into());
            match *k {
                255 => break,
                k if k == kind => return Some(data),
                _ => options = behind,
            }
        }
        None
    }

    fn kind(&self) -> u8 {
        self.option(53).unwrap()[0]
    }

    fn your_ip(&self) -> Ipv4Addr {
        <[u8; 4]>::try_from(&self.datagram.data[16..20]).unwrap().into()
    }

    pub(crate) fn to(&self) -> SocketAddr {
        self.datagram.dst
    }
}

/// Passes a datagram; returns the datagrams that the stack sent, each checked for a complete checksum.
pub(crate) fn pass(rig: &mut Rig, datagram: &Datagram) -> Vec<Answer> {
    rig.frame(&datagram.frame());
    let frames = std::mem::take(&mut rig.wire.frames);
    let answer = |(vnet, frame): &(skbudget_stack::VnetHdr, Vec<u8>)| {
        assert_eq!(vnet.flags & F_NEEDS_CSUM, 0, "a packet socket gets it as it is");
        let datagram = Datagram::parse(frame).expect("a datagram");
        let udp = frame.len() - 8 - datagram.data.len();
        assert_eq!(frame[udp..udp + 8], datagram.bytes()[..8], "the checksum");
        Answer { datagram, mac: *frame.first_chunk().unwrap() }
    };
    frames.iter().map(answer).collect()
}

fn send(rig: &mut Rig, message: &Message) -> Option<Answer> {
    let mut answers = pass(rig, &message.datagram());
    assert!(answers.len() <= 1, "{answers:?}");
    answers.pop()
}

fn request(ip: Ipv4Addr) -> Message {
    Message::new(REQUEST).option(50, &ip.octets())
}

#[test]
fn a_client_gets_the_containers_address_with_all_options() {
    for offload in [true, false] {
        let mut rig = Rig::with(Setup { offload, ..Setup::default() });
        let discover = Message::new(DISCOVER).option(61, &[255, 1, 2, 3]);
        let offer = send(&mut rig, &discover).expect("an offer");
        assert_eq!((offer.kind(), offer.your_ip()), (OFFER, GUEST));
        assert_eq!(offer.datagram.src, (GATEWAY, 67).into());
        // Without the broadcast flag: to the new address, and to the hardware address.
        assert_eq!((offer.to(), offer.mac), ((GUEST, 68).into(), GUEST_MAC));
        assert_eq!(offer.datagram.data[..10], [2, 1, 6, 0, 0xde, 0xad, 0xbe, 0xef, 0, 3]);
        assert_eq!(offer.datagram.data[28..34], GUEST_MAC);
        let expected: [(u8, &[u8]); 10] = [
            (54, &GATEWAY.octets()),
            (51, &3600u32.to_be_bytes()),
            (58, &1800u32.to_be_bytes()),
            (59, &3150u32.to_be_bytes()),
            (1, &[255, 255, 255, 0]),
            (28, &[10, 0, 2, 255]),
            (3, &GATEWAY.octets()),
            (6, &[10, 0, 2, 3]),
            (26, &1500u16.to_be_bytes()),
            (61, &[255, 1, 2, 3]),
        ];
        for (kind, data) in expected {
            assert_eq!(offer.option(kind), Some(data), "option {kind}");
        }
        assert_eq!((offer.option(12), offer.option(15), offer.option(119)), (None, None, None));
        let ack = send(&mut rig, &request(GUEST).option(54, &GATEWAY.octets())).expect("an answer");
        assert_eq!((ack.kind(), ack.your_ip()), (ACK, GUEST));
        assert_eq!((rig.stat("DhcpAnswered"), rig.usage()), (2, rig.empty));
    }
}

#[test]
fn the_name_and_the_search_domains_are_options() {
    let mut rig = Rig::configured(|config| {
        config.host_name = Some("web".to_owned());
        config.search = vec!["a.example".to_owned(), "b".to_owned()];
    });
    let offer = send(&mut rig, &Message::new(DISCOVER)).unwrap();
    assert_eq!(offer.option(12), Some(&b"web"[..]));
    assert_eq!(offer.option(15), Some(&b"a.example"[..]));
    assert_eq!(offer.option(119), Some(&b"\x01a\x07example\0\x01b\0"[..]));
    // Too many for one message: the others are there.
    let mut rig = Rig::configured(|config| {
        config.host_name = Some("h".repeat(64));
        config.search = vec!["a".repeat(60); 4];
    });
    let offer = send(&mut rig, &Message::new(DISCOVER).option(61, &[7; 200])).unwrap();
    assert!(offer.datagram.data.len() <= 548);
    assert_eq!((offer.option(119), offer.option(6)), (None, Some(&[10, 0, 2, 3][..])));
}

#[test]
fn a_client_that_cannot_receive_yet_gets_a_broadcast() {
    let mut rig = Rig::new();
    let discover = Message { broadcast: true, ..Message::new(DISCOVER) };
    let offer = send(&mut rig, &discover).unwrap();
    assert_eq!((offer.to(), offer.mac), ((ALL, 68).into(), [0xff; 6]));
    assert_eq!(offer.datagram.data[10] & 0x80, 0x80);
    // To the broadcast address of the subnet as well.
    let dst = Ipv4Addr::new(10, 0, 2, 255);
    assert!(send(&mut rig, &Message { dst, ..Message::new(DISCOVER) }).is_some());
}

#[test]
fn a_lease_is_renewed_by_the_address_in_use() {
    let mut rig = Rig::new();
    let renew = Message::new(REQUEST).bound();
    // The stack knows no lease: it may have started again.
    let ack = send(&mut rig, &renew).unwrap();
    assert_eq!((ack.kind(), ack.your_ip(), ack.to()), (ACK, GUEST, (GUEST, 68).into()));
    // Rebinding: to all, from the address in use.
    let rebind = Message { dst: ALL, ..Message::new(REQUEST).bound() };
    assert_eq!(send(&mut rig, &rebind).unwrap().kind(), ACK);
    let inform = send(&mut rig, &Message::new(INFORM).bound()).unwrap();
    assert_eq!((inform.kind(), inform.your_ip(), inform.option(51)), (ACK, ANY, None));
    assert!(inform.option(6).is_some());
}

#[test]
fn a_wrong_address_is_refused() {
    let mut rig = Rig::new();
    for wrong in [Ipv4Addr::new(10, 0, 2, 15), Ipv4Addr::new(192, 168, 1, 7)] {
        let nak = send(&mut rig, &request(wrong)).unwrap();
        assert_eq!((nak.kind(), nak.your_ip()), (NAK, ANY));
        assert_eq!((nak.to(), nak.mac), ((ALL, 68).into(), [0xff; 6]));
        assert_eq!(nak.option(54), Some(&GATEWAY.octets()[..]));
        let renew = Message { client_ip: wrong, ..Message::new(REQUEST) };
        assert_eq!(send(&mut rig, &renew).unwrap().kind(), NAK);
    }
    assert_eq!((rig.stat("DhcpRefused"), rig.stat("DhcpAnswered")), (4, 0));
}

#[test]
fn one_client_has_the_lease() {
    let mut rig = Rig::new();
    let of_other = |message: Message| Message { mac: OTHER_MAC, ..message };
    assert_eq!(send(&mut rig, &request(GUEST)).unwrap().kind(), ACK);
    assert!(send(&mut rig, &of_other(Message::new(DISCOVER))).is_none());
    assert_eq!(send(&mut rig, &of_other(request(GUEST))).unwrap().kind(), NAK);
    assert!(send(&mut rig, &of_other(Message::new(RELEASE).bound())).is_none());
    assert_eq!(rig.stat("DhcpReleased"), 0, "the lease of another client");
    // The holder may discover again, as another program of the container does.
    assert!(send(&mut rig, &Message::new(DISCOVER)).is_some());
    assert!(send(&mut rig, &Message::new(RELEASE).bound()).is_none());
    assert_eq!(rig.stat("DhcpReleased"), 1);
    assert_eq!(send(&mut rig, &of_other(request(GUEST))).unwrap().kind(), ACK);
    // It expires.
    assert!(send(&mut rig, &Message::new(DISCOVER)).is_none());
    rig.pass(3_600_000);
    assert!(send(&mut rig, &Message::new(DISCOVER)).is_some());
    // Reported as in use: free again, and counted.
    assert_eq!(send(&mut rig, &request(GUEST)).unwrap().kind(), ACK);
    assert!(send(&mut rig, &Message::new(DECLINE).option(50, &GUEST.octets())).is_none());
    assert_eq!(rig.stat("DhcpDeclined"), 1);
    assert!(send(&mut rig, &of_other(Message::new(DISCOVER))).is_some());
}

#[test]
fn other_messages_are_dropped() {
    let mut rig = Rig::new();
    let other_server = |kind| Message::new(kind).option(54, &[192, 0, 2, 1]);
    let valid = Message::new(DISCOVER).bytes();
    let changed = |at: usize, to: u8| {
        let mut bytes = valid.clone();
        bytes[at] = to;
        bytes
    };
    let messages = [
        other_server(REQUEST).option(50, &GUEST.octets()).bytes(),
        other_server(RELEASE).bytes(),
        // Neither an address in use nor a requested one.
        Message::new(REQUEST).bytes(),
        // From a client with another address.
        Message { client_ip: Ipv4Addr::new(192, 0, 2, 5), ..Message::new(INFORM) }.bytes(),
        Message::new(OFFER).bytes(),
        Message::new(99).bytes(),
        changed(0, 2),
        changed(1, 6),
        changed(2, 16),
        changed(24, 10),
        changed(28, 1),
        changed(236, 0),
        valid[..240].to_vec(),
        valid[..242].to_vec(),
        valid[..100].to_vec(),
        Vec::new(),
    ];
    for (n, bytes) in messages.iter().enumerate() {
        let (src, dst) = ((ANY, 68).into(), (ALL, 67).into());
        let datagram = Datagram { src, dst, ..Datagram::new(0, 0, bytes) };
        assert!(pass(&mut rig, &datagram).is_empty(), "message {n}");
        assert_eq!(rig.stat("DropDhcp"), n as u64 + 1, "message {n}");
    }
    // From other addresses and ports they are no messages of a client.
    let strange = [
        (SocketAddr::from((Ipv4Addr::new(10, 0, 2, 15), 68)), SocketAddr::from((ALL, 67))),
        ((ANY, 69).into(), (ALL, 67).into()),
        ((ANY, 68).into(), (Ipv4Addr::new(192, 0, 2, 1), 67).into()),
    ];
    for (src, dst) in strange {
        let datagram = Datagram { src, dst, ..Datagram::new(0, 0, &valid) };
        assert!(pass(&mut rig, &datagram).is_empty());
    }
    assert_eq!(rig.stat("DropSource"), 3);
    // A wrong checksum.
    let mut frame = Message::new(DISCOVER).datagram().frame();
    *frame.last_mut().unwrap() ^= 1;
    rig.frame(&frame);
    assert_eq!((rig.turn(), rig.stat("DropUdpChecksum")), (vec![], 1));
    assert_eq!(rig.stat("DhcpAnswered"), 0);
}

#[test]
fn the_rate_is_limited() {
    let mut rig = Rig::new();
    let discover = Message::new(DISCOVER);
    let answered = (0..1000).filter(|_| send(&mut rig, &discover).is_some()).count();
    assert_eq!((answered, rig.stat("DhcpRateLimited")), (50, 950));
    rig.pass(1000);
    assert!(send(&mut rig, &discover).is_some());
}

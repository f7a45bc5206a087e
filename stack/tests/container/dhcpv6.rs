//! Clients of DHCPv6: which messages are answered, with what, and where to.

use std::net::Ipv6Addr;

use skbudget_sim::packet::Datagram;

use crate::dhcp::{OTHER_MAC, pass};
use crate::rig::{GUEST6, Rig, Setup};
use crate::wire::OUR_MAC;

const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x77);
const ROUTER: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);
const SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);
const CLIENT_DUID: [u8; 6] = [0, 4, 9, 9, 9, 9];

const SOLICIT: u8 = 1;
const ADVERTISE: u8 = 2;
const REQUEST: u8 = 3;
const CONFIRM: u8 = 4;
const RENEW: u8 = 5;
const REBIND: u8 = 6;
const REPLY: u8 = 7;
const RELEASE: u8 = 8;
const DECLINE: u8 = 9;
const INFORMATION: u8 = 11;

type Options<'a> = &'a [(u16, &'a [u8])];

fn options6(options: Options<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (kind, data) in options {
        bytes.extend(kind.to_be_bytes());
        bytes.extend((data.len() as u16).to_be_bytes());
        bytes.extend(*data);
    }
    bytes
}

fn message6(kind: u8, options: Options<'_>) -> Datagram {
    let data = [&[kind, 0xa, 0xb, 0xc][..], &options6(options)].concat();
    let (src, dst) = ((LINK_LOCAL, 546).into(), (SERVERS, 547).into());
    Datagram { src, dst, ..Datagram::new(0, 0, &data) }
}

fn server_duid() -> Vec<u8> {
    [&[0, 3, 0, 1][..], &OUR_MAC].concat()
}

/// An IA of non-temporary addresses with these.
fn ia(id: u8, addresses: &[Ipv6Addr]) -> Vec<u8> {
    let mut data = vec![0, 0, 0, id, 0, 0, 0, 0, 0, 0, 0, 0];
    for ip in addresses {
        data.extend(options6(&[(5, &[&ip.octets()[..], &[0; 8]].concat())]));
    }
    data
}

/// Type and value of each option.
type Parsed = Vec<(u16, Vec<u8>)>;

/// Type of the message and its options.
fn send6(rig: &mut Rig, message: &Datagram) -> Option<(u8, Parsed)> {
    let answers = pass(rig, message);
    let answer = answers.first()?;
    assert_eq!(answer.datagram.src, (ROUTER, 547).into());
    assert_eq!(answer.to(), (LINK_LOCAL, 546).into());
    let [kind, 0xa, 0xb, 0xc, rest @ ..] = &answer.datagram.data[..] else {
        panic!("another identifier")
    };
    Some((*kind, parse6(rest)))
}

fn parse6(mut rest: &[u8]) -> Parsed {
    let mut options = Vec::new();
    while let [a, b, c, d, behind @ ..] = rest {
        let (data, behind) = behind.split_at(u16::from_be_bytes([*c, *d]).into());
        options.push((u16::from_be_bytes([*a, *b]), data.to_vec()));
        rest = behind;
    }
    assert!(rest.is_empty());
    options
}

fn all(options: &[(u16, Vec<u8>)], kind: u16) -> Vec<&[u8]> {
    options.iter().filter(|(k, _)| *k == kind).map(|(_, data)| &data[..]).collect()
}

/// Addresses in an IA with their valid lifetimes, and its status.
fn granted(ia: &[u8]) -> (Vec<(Ipv6Addr, u32)>, Option<u8>) {
    let inner = parse6(&ia[12..]);
    let address = |data: &&[u8]| {
        let ip: [u8; 16] = *data.first_chunk().unwrap();
        (Ipv6Addr::from(ip), u32::from_be_bytes(*data[20..].first_chunk().unwrap()))
    };
    let status = all(&inner, 13).first().map(|status| status[1]);
    (all(&inner, 5).iter().map(address).collect(), status)
}

#[test]
fn a_client_of_dhcpv6_gets_the_containers_address() {
    for offload in [true, false] {
        let mut rig = Rig::with(Setup { offload, ..Setup::default() });
        let solicit = message6(SOLICIT, &[(1, &CLIENT_DUID), (3, &ia(1, &[])), (3, &ia(2, &[]))]);
        let (kind, options) = send6(&mut rig, &solicit).expect("an answer");
        assert_eq!(kind, ADVERTISE);
        assert_eq!(all(&options, 1), [CLIENT_DUID]);
        assert_eq!(all(&options, 2), [&server_duid()[..]]);
        assert_eq!(all(&options, 7), [[255]], "preference");
        assert_eq!(all(&options, 23), ["fd00::3".parse::<Ipv6Addr>().unwrap().octets()]);
        let ias = all(&options, 3);
        assert_eq!(ias[0][..12], [0, 0, 0, 1, 0, 0, 7, 8, 0, 0, 0xb, 0x40]);
        assert_eq!(granted(ias[0]), (vec![(GUEST6, 3600)], None));
        assert_eq!(granted(ias[1]), (vec![], Some(2)), "there is one address");
        let ours = server_duid();
        let request = message6(REQUEST, &[(1, &CLIENT_DUID), (2, &ours), (3, &ia(1, &[GUEST6]))]);
        let (kind, options) = send6(&mut rig, &request).unwrap();
        assert_eq!((kind, granted(all(&options, 3)[0])), (REPLY, (vec![(GUEST6, 3600)], None)));
        assert!(all(&options, 7).is_empty());
    }
}

#[test]
fn rapid_commit_saves_two_messages() {
    let mut rig = Rig::new();
    let options: Options<'_> = &[(1, &CLIENT_DUID), (3, &ia(1, &[])), (14, &[])];
    let (kind, options) = send6(&mut rig, &message6(SOLICIT, options)).unwrap();
    assert_eq!((kind, all(&options, 14).len()), (REPLY, 1));
    assert_eq!(granted(all(&options, 3)[0]).0, [(GUEST6, 3600)]);
}

#[test]
fn other_addresses_expire_and_prefixes_are_refused() {
    let mut rig = Rig::new();
    let (ours, other) = (server_duid(), "fd00::77".parse().unwrap());
    let renewed = ia(1, &[other]);
    let renew = message6(
        RENEW,
        &[(1, &CLIENT_DUID), (2, &ours), (3, &renewed), (25, &ia(5, &[])), (4, &[0, 0, 0, 6])],
    );
    let (kind, options) = send6(&mut rig, &renew).unwrap();
    assert_eq!(kind, REPLY);
    assert_eq!(granted(all(&options, 3)[0]).0, [(GUEST6, 3600), (other, 0)]);
    assert_eq!(granted(all(&options, 25)[0]), (vec![], Some(6)));
    assert_eq!(parse6(&all(&options, 4)[0][4..])[0].0, 13, "temporary addresses");
    let rebind = message6(REBIND, &[(1, &CLIENT_DUID), (3, &ia(1, &[GUEST6]))]);
    assert_eq!(send6(&mut rig, &rebind).unwrap().0, REPLY);
    // Whether the addresses fit the link.
    for (ip, status) in [("fd00::77", 0), ("2001:db8::1", 4)] {
        let had = ia(1, &[ip.parse().unwrap()]);
        let confirm = message6(CONFIRM, &[(1, &CLIENT_DUID), (3, &had)]);
        let (kind, options) = send6(&mut rig, &confirm).unwrap();
        assert_eq!((kind, all(&options, 13)[0][1]), (REPLY, status));
    }
}

#[test]
fn the_address_of_a_client_that_is_gone_is_free_after_its_lease() {
    let mut rig = Rig::new();
    let ours = server_duid();
    let of_other = |datagram: Datagram| {
        let mut frame = datagram.frame();
        frame[6..12].copy_from_slice(&OTHER_MAC);
        frame
    };
    let request = message6(REQUEST, &[(1, &CLIENT_DUID), (2, &ours), (3, &ia(1, &[GUEST6]))]);
    assert_eq!(send6(&mut rig, &request).unwrap().0, REPLY);
    let solicit = message6(SOLICIT, &[(1, &[0, 4, 7]), (3, &ia(1, &[]))]);
    rig.frame(&of_other(solicit.clone()));
    let refused = rig.stat("DhcpRefused");
    assert_eq!(refused, 1);
    let release = message6(RELEASE, &[(1, &CLIENT_DUID), (2, &ours), (3, &ia(1, &[GUEST6]))]);
    rig.frame(&release.frame());
    assert_eq!(rig.stat("DhcpReleased"), 1);
    rig.frame(&of_other(solicit));
    assert_eq!(rig.stat("DhcpRefused"), 1, "it is free");
    let decline = message6(DECLINE, &[(1, &CLIENT_DUID), (2, &ours), (3, &ia(1, &[GUEST6]))]);
    rig.frame(&decline.frame());
    assert_eq!(rig.stat("DhcpDeclined"), 1);
}

#[test]
fn options_alone_need_no_address() {
    let mut rig = Rig::configured(|config| config.search = vec!["a.example".to_owned()]);
    let (kind, options) = send6(&mut rig, &message6(INFORMATION, &[])).unwrap();
    assert_eq!((kind, all(&options, 24)), (REPLY, vec![&b"\x01a\x07example\0"[..]]));
    assert!(all(&options, 3).is_empty() && all(&options, 1).is_empty());
}

#[test]
fn other_messages_of_dhcpv6_are_dropped() {
    let mut rig = Rig::new();
    let (client, ours, had) = ((1, &CLIENT_DUID[..]), server_duid(), ia(1, &[GUEST6]));
    let with = (2, &ours[..]);
    let long = [7; 131];
    let mut cut = message6(SOLICIT, &[client, (3, &had)]);
    cut.data.pop();
    let relayed = Datagram { src: (GUEST6, 546).into(), ..message6(SOLICIT, &[client]) };
    let messages = [
        message6(SOLICIT, &[(3, &had)]),
        message6(SOLICIT, &[client, with]),
        message6(SOLICIT, &[(1, &long)]),
        message6(SOLICIT, &[(1, &[])]),
        message6(REQUEST, &[client, (3, &had)]),
        message6(REQUEST, &[client, (2, &[0, 3, 0, 1, 9, 9, 9, 9, 9, 9]), (3, &had)]),
        message6(CONFIRM, &[client]),
        message6(INFORMATION, &[(3, &had)]),
        message6(ADVERTISE, &[client]),
        message6(12, &[client]),
        message6(99, &[]),
        cut,
        relayed,
        Datagram { src: (LINK_LOCAL, 547).into(), ..message6(SOLICIT, &[client]) },
        Datagram { data: vec![1, 2], ..message6(SOLICIT, &[]) },
    ];
    for (n, message) in messages.iter().enumerate() {
        assert_eq!(send6(&mut rig, message), None, "message {n}");
        assert_eq!(rig.stat("DropDhcp"), n as u64 + 1, "message {n}");
    }
}

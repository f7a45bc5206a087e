use super::*;

/// An Ethernet frame of that type.
fn ethernet(kind: u16, rest: &[u8]) -> Vec<u8> {
    [&[0; 12], &kind.to_be_bytes()[..], rest].concat()
}

/// A packet from 10.0.2.100 to 192.0.2.7, with options, at this fragment offset.
fn ipv4(protocol: u8, offset: u8, payload: &[u8]) -> Vec<u8> {
    let header = [
        0x46, 0, 0, 0, 0, 0, 0, offset, 64, protocol, 0, 0, 10, 0, 2, 100, 192, 0, 2, 7, 1, 1, 1, 1,
    ];
    ethernet(0x0800, &[&header, payload].concat())
}

/// A packet from fd00::100 to 2001:db8::7, with these headers behind the first one.
fn ipv6(next: u8, rest: &[u8]) -> Vec<u8> {
    let source: std::net::Ipv6Addr = "fd00::100".parse().unwrap();
    let destination: std::net::Ipv6Addr = "2001:db8::7".parse().unwrap();
    let head = [0x60, 0, 0, 0, 0, 0, next, 64];
    ethernet(0x86dd, &[&head, &source.octets()[..], &destination.octets(), rest].concat())
}

/// Ports 40000 and 443.
const PORTS: [u8; 4] = [0x9c, 0x40, 0x01, 0xbb];

fn selects(filter: &str, frame: &[u8]) -> bool {
    let whole = Filter::parse(filter).unwrap_or_else(|e| panic!("{filter}: {e}"));
    let selected = whole.selects(&[IoSlice::new(frame)]);
    // The same frame in two parts.
    for at in [0, 14, frame.len() / 2] {
        let (head, rest) = frame.split_at(at);
        assert_eq!(whole.selects(&[IoSlice::new(head), IoSlice::new(rest)]), selected, "{filter}");
    }
    selected
}

#[test]
fn a_tcp_packet_over_ipv4() {
    let frame = ipv4(6, 0, &PORTS);
    for filter in [
        "tcp",
        "ip",
        "host 10.0.2.100",
        "host 192.0.2.7",
        "src host 10.0.2.100",
        "dst net 192.0.2.0/24",
        "net 0.0.0.0/0",
        "port 443",
        "src port 40000",
        "port 1-1000",
        "tcp port 443",
        "tcp dst port 443 and host 192.0.2.7",
        "udp or (port 443 and not icmp)",
        "!udp&&!(arp||ip6)",
        "not not tcp",
    ] {
        assert!(selects(filter, &frame), "{filter}");
    }
    for filter in [
        "udp",
        "ip6",
        "arp",
        "dst host 10.0.2.100",
        "net 192.0.3.0/24",
        "net ::/0",
        "dst port 40000",
        "udp port 443",
        "src port 1-443",
        "not tcp",
        "tcp and udp",
        "udp or icmp",
    ] {
        assert!(!selects(filter, &frame), "{filter}");
    }
}

#[test]
fn a_packet_over_ipv6_with_extension_headers() {
    // Destination options of 16 bytes, then a first fragment, then UDP.
    let options = [44, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let fragment = |offset: u8| [17, 0, 0, offset | 1, 0, 0, 0, 9];
    let first = ipv6(60, &[&options[..], &fragment(0), &PORTS].concat());
    for filter in ["ip6", "udp", "udp port 443", "src net fd00::/64", "host 2001:db8::7"] {
        assert!(selects(filter, &first), "{filter}");
    }
    assert!(!selects("tcp or ip or net 0.0.0.0/0", &first));
    let later = ipv6(60, &[&options[..], &fragment(8), &PORTS].concat());
    assert!(selects("udp and not port 443", &later));
    assert!(selects("icmp6", &ipv6(58, &[128, 0])));
}

#[test]
fn fragments_have_no_ports_and_arp_has_addresses() {
    let later = ipv4(17, 1, &PORTS);
    assert!(selects("udp and not port 443", &later));
    let mut arp = [0; 28];
    arp[14..18].copy_from_slice(&[10, 0, 2, 100]);
    arp[24..28].copy_from_slice(&[10, 0, 2, 2]);
    let arp = ethernet(0x0806, &arp);
    assert!(selects("arp and src host 10.0.2.100 and dst host 10.0.2.2", &arp));
    assert!(!selects("ip or tcp or port 0-65535", &arp));
}

#[test]
fn frames_that_end_anywhere_or_are_random_do_no_harm() {
    let filter = Filter::parse("host 1.2.3.4 or host ::1 or port 7 or icmp6").unwrap();
    for frame in [ipv4(6, 0, &PORTS), ipv6(60, &[0; 200]), ethernet(0x0806, &[0; 28])] {
        for len in 0..frame.len() {
            filter.selects(&[IoSlice::new(&frame[..len])]);
        }
    }
    let mut x = 1u32;
    for kind in [0x0800, 0x86dd, 0x0806] {
        for _ in 0..20_000 {
            let mut bytes = [0; 80];
            for byte in &mut bytes {
                x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                *byte = (x >> 24) as u8;
            }
            filter.selects(&[IoSlice::new(&ethernet(kind, &bytes))]);
        }
    }
}

#[test]
fn what_is_wrong_is_named_with_what_is_allowed() {
    for (filter, expected) in [
        ("", "empty"),
        ("  ", "empty"),
        ("host", "ends after \"host\": an address must follow"),
        ("host a.b", "\"a.b\" must be an IPv4 or IPv6 address"),
        ("host 10.0.0.1 port 80", "\"port\": `and` or `or` must be between"),
        ("prt 80", "\"prt\" is not allowed here; did you mean port?"),
        ("port 65536", "\"65536\" must be N or N-M"),
        ("port 9-8", "\"9-8\" must be N or N-M"),
        ("net 10.0.0.0/33", "\"10.0.0.0/33\" must be ADDRESS/BITS"),
        ("tcp and", "ends after \"and\"; allowed: host"),
        ("src", "ends after \"src\"; allowed: host, net, port"),
        ("dst tcp", "\"tcp\" is not allowed here; allowed: host, net, port"),
        ("tcp src host 10.0.0.1", "\"src\": after tcp or udp only a port"),
        ("(tcp", "ends before a `)`"),
        ("(tcp udp)", "\"udp\": `)`, `and` or `or` is allowed here"),
        ("tcp)", "\")\": `and` or `or`"),
        ("\u{1b}[2J", "\"\\u{1b}[2J\" is not allowed here"),
    ] {
        let error = Filter::parse(filter).unwrap_err();
        assert!(error.contains(expected), "{filter}: {error}");
    }
}

#[test]
fn filters_are_bounded() {
    let deep = "(".repeat(DEPTH_MAX + 1);
    assert!(Filter::parse(&deep).unwrap_err().contains("deep"));
    let deep = format!("{}tcp{}", "(".repeat(DEPTH_MAX - 1), ")".repeat(DEPTH_MAX - 1));
    Filter::parse(&deep).unwrap();
    let wide = vec!["tcp"; PRIMITIVES_MAX + 1].join(" or ");
    assert!(Filter::parse(&wide).unwrap_err().contains("primitives"));
    let long = " ".repeat(TEXT_MAX + 1);
    assert!(Filter::parse(&long).unwrap_err().contains("at most 1024"));
}

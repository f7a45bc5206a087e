//! The scripts. The first number of a `Spec` is the sequence number, the second the acknowledgement, both relative to
//! the initial ones: 1 is the first byte of either stream.

use std::io::Write;
use std::net::Shutdown;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use skbudget_sim::packet::{ACK, CWR, ECE, FIN, PSH, RST, SYN, URG};

use crate::exchange::{CE, ECT_0, Exchange, Spec};

/// Longer than the time to the first retransmission or probe, shorter than that to the second.
const ONE_TIMEOUT: Duration = Duration::from_millis(330);

/// Longer than the time to the second one, shorter than that to the third.
const TWO_TIMEOUTS: Duration = Duration::from_millis(900);

pub(crate) type Script = fn(&mut Exchange);

pub(crate) const SCRIPTS: &[(&str, Script)] = &[
    // A closed port.
    ("SYN to a closed port", |t| at_closed(t, SYN)),
    ("ACK to a closed port", |t| at_closed(t, ACK)),
    ("FIN to a closed port", |t| at_closed(t, FIN)),
    ("RST to a closed port", |t| at_closed(t, RST)),
    ("SYN-ACK to a closed port", |t| at_closed(t, SYN | ACK)),
    ("no flag to a closed port", |t| at_closed(t, 0)),
    ("FIN, PSH and URG to a closed port", |t| at_closed(t, FIN | PSH | URG)),
    // A listening port.
    ("ACK to a listener", |t| t.exchange(&Spec::new(ACK, 0, 0))),
    ("RST to a listener", |t| t.exchange(&Spec::new(RST, 0, 0))),
    ("SYN-ACK to a listener", |t| t.exchange(&Spec::new(SYN | ACK, 0, 0))),
    ("no flag to a listener", |t| t.exchange(&Spec::new(0, 0, 0))),
    ("FIN to a listener", |t| t.exchange(&Spec::new(FIN, 0, 0))),
    ("FIN, PSH and URG to a listener", |t| t.exchange(&Spec::new(FIN | PSH | URG, 0, 0))),
    ("SYN and FIN to a listener", |t| t.exchange(&Spec::new(SYN | FIN, 0, 0))),
    ("SYN and RST to a listener", |t| t.exchange(&Spec::new(SYN | RST, 0, 0))),
    // Half-open connections.
    ("SYN", |t| t.exchange(&Spec::new(SYN, 0, 0))),
    ("SYN with data", |t| t.exchange(&Spec::new(SYN, 0, 0).data(b"early"))),
    ("SYN with a bad checksum", |t| t.exchange(&Spec { good_sum: false, ..Spec::new(SYN, 0, 0) })),
    ("SYN again", |t| {
        t.exchange(&Spec::new(SYN, 0, 0));
        t.exchange(&Spec::new(SYN, 0, 0));
    }),
    ("ACK of data that was not sent, half open", |t| {
        t.exchange(&Spec::new(SYN, 0, 0));
        t.exchange(&Spec::new(ACK, 1, 77));
        t.exchange(&Spec::new(ACK, 1, 1).data(b"x"));
    }),
    ("RST, half open", |t| {
        t.exchange(&Spec::new(SYN, 0, 0));
        t.exchange(&Spec::new(RST, 1, 0));
        t.exchange(&Spec::new(ACK, 1, 1));
    }),
    ("RST outside the window, half open", |t| {
        t.exchange(&Spec::new(SYN, 0, 0));
        t.exchange(&Spec::new(RST, -100_000, 0));
        t.exchange(&Spec::new(ACK, 1, 1).data(b"x"));
    }),
    // Established connections.
    ("data", |t| {
        let mut server = t.open();
        t.exchange(&Spec::new(ACK | PSH, 1, 1).data(b"hello"));
        t.server_received(&mut server);
    }),
    ("SYN of the next byte, established", |t| {
        let _server = t.open();
        t.exchange(&Spec::new(SYN, 1, 0));
    }),
    ("SYN far away, established", |t| {
        let _server = t.open();
        t.exchange(&Spec::new(SYN, 9_000_000, 0));
    }),
    ("SYN-ACK, established", |t| {
        let _server = t.open();
        t.exchange(&Spec::new(SYN | ACK, 0, 1));
    }),
    ("ACK of data that was not sent, with data", |t| {
        let mut server = t.open();
        t.exchange(&Spec::new(ACK | PSH, 1, 70_000).data(b"hello"));
        t.server_received(&mut server);
    }),
    ("very old ACK with data", |t| {
        let mut server = t.open();
        t.exchange(&Spec::new(ACK | PSH, 1, -1_000_000).data(b"hello"));
        t.server_received(&mut server);
    }),
    ("RST of the next byte", |t| {
        let mut server = t.open();
        t.exchange(&Spec::new(RST, 1, 0));
        t.server_received(&mut server);
        t.exchange(&Spec::new(ACK | PSH, 1, 1).data(b"x"));
    }),
    ("RST within the window", |t| {
        let mut server = t.open();
        t.exchange(&Spec::new(RST, 100, 0));
        t.server_received(&mut server);
    }),
    ("RST outside the window", |t| {
        let mut server = t.open();
        t.exchange(&Spec::new(RST, -100_000, 0));
        t.server_received(&mut server);
    }),
    ("no flag but data", |t| {
        let mut server = t.open();
        t.exchange(&Spec::new(0, 1, 0).data(b"hello"));
        t.server_received(&mut server);
    }),
    ("data with a bad checksum", |t| {
        let mut server = t.open();
        t.exchange(&Spec { good_sum: false, ..Spec::new(ACK | PSH, 1, 1).data(b"hello") });
        t.server_received(&mut server);
    }),
    ("a hole, then the segment that fills it", |t| {
        let mut server = t.open();
        t.exchange(&Spec::new(ACK | PSH, 6, 1).data(b"world"));
        t.exchange(&Spec::new(ACK | PSH, 1, 1).data(b"hello"));
        t.server_received(&mut server);
    }),
    ("overlapping segments", |t| {
        let mut server = t.open();
        t.exchange(&Spec::new(ACK | PSH, 3, 1).data(b"CDEF"));
        t.exchange(&Spec::new(ACK | PSH, 5, 1).data(b"efgh"));
        t.exchange(&Spec::new(ACK | PSH, 1, 1).data(b"abcd"));
        t.server_received(&mut server);
    }),
    ("data that was received before", |t| {
        let mut server = t.open();
        t.exchange(&Spec::new(ACK | PSH, 1, 1).data(b"hello"));
        t.exchange(&Spec::new(ACK | PSH, 1, 1).data(b"HELLO"));
        t.exchange(&Spec::new(ACK | PSH, 3, 1).data(b"LLO w"));
        t.server_received(&mut server);
    }),
    ("data beyond the window", |t| {
        let mut server = t.open();
        t.exchange(&Spec::new(ACK | PSH, 9_000_000, 1).data(b"hello"));
        t.server_received(&mut server);
    }),
    ("keep-alive", |t| {
        let _server = t.open();
        t.exchange(&Spec::new(ACK, 0, 1));
        t.exchange(&Spec::new(ACK, 0, 1).data(b"?"));
    }),
    ("urgent data", |t| {
        let mut server = t.open();
        t.exchange(&Spec { urgent: 3, ..Spec::new(ACK | PSH | URG, 1, 1).data(b"abcde") });
        t.server_received(&mut server);
    }),
    // ECN: congestion that is marked instead of a loss.
    ("SYN that requests ECN", |t| t.exchange(&Spec::new(SYN | ECE | CWR, 0, 0))),
    ("SYN with ECE alone", |t| t.exchange(&Spec::new(SYN | ECE, 0, 0))),
    ("SYN with CWR alone", |t| t.exchange(&Spec::new(SYN | CWR, 0, 0))),
    ("SYN that requests ECN in an ECT(0) packet", |t| {
        t.exchange(&Spec::new(SYN | ECE | CWR, 0, 0).ecn(ECT_0));
    }),
    ("a CE mark on a connection without ECN", |t| {
        let _server = t.open();
        t.exchange(&Spec::new(ACK | PSH, 1, 1).data(b"hello").ecn(CE));
    }),
    ("a mark is echoed until CWR", |t| {
        let _server = t.open_syn(&Spec::new(SYN | ECE | CWR, 0, 0));
        t.exchange(&Spec::new(ACK | PSH, 1, 1).data(b"hello").ecn(ECT_0));
        t.exchange(&Spec::new(ACK | PSH, 6, 1).data(b"hello").ecn(CE));
        t.exchange(&Spec::new(ACK | PSH, 11, 1).data(b"hello").ecn(ECT_0));
        t.exchange(&Spec::new(ACK | PSH | CWR, 16, 1).data(b"hello").ecn(ECT_0));
        t.exchange(&Spec::new(ACK | PSH, 21, 1).data(b"hello").ecn(ECT_0));
    }),
    ("a mark that is echoed is answered with CWR", |t| {
        let mut server = t.open_syn(&Spec::new(SYN | ECE | CWR, 0, 0));
        server.write_all(b"one").unwrap();
        t.listen(Duration::from_millis(20));
        t.exchange(&Spec::new(ACK | ECE, 1, 4));
        server.write_all(b"two").unwrap();
        t.listen(Duration::from_millis(20));
        t.exchange(&Spec::new(ACK | ECE, 1, 4));
        t.exchange(&Spec::new(ACK, 1, 7));
        server.write_all(b"three").unwrap();
        t.listen(Duration::from_millis(20));
        t.exchange(&Spec::new(ACK, 1, 12));
    }),
    ("timestamps that go back", |t| {
        let stamp = |value: u32| [&[1, 1, 8, 10][..], &value.to_be_bytes(), &[0; 4]].concat();
        let mut server = t.open_with(&[&[2, 4, 5, 180][..], &stamp(100_000)].concat());
        t.exchange(&Spec::new(ACK | PSH, 1, 1).data(b"hello").options(&stamp(100_001)));
        t.exchange(&Spec::new(ACK | PSH, 6, 1).data(b"world").options(&stamp(99_000)));
        t.exchange(&Spec::new(ACK | PSH, 6, 1).data(b"again").options(&stamp(100_002)));
        t.server_received(&mut server);
    }),
    // Options that the peer sends.
    ("segments without an MSS option", |t| {
        let mut server = t.open_with(&[]);
        server.write_all(&[7; 1100]).unwrap();
        t.listen(Duration::from_millis(60));
    }),
    ("segments after a tiny MSS", |t| {
        let mut server = t.open_with(&[2, 4, 0, 1]);
        server.write_all(&[7; 100]).unwrap();
        t.listen(Duration::from_millis(60));
    }),
    ("data that is not acknowledged", |t| {
        let mut server = t.open();
        server.write_all(b"hello").unwrap();
        t.listen(ONE_TIMEOUT);
    }),
    ("a window of zero", |t| {
        let mut server = t.open();
        t.exchange(&Spec::new(ACK, 1, 1).wnd(0));
        server.write_all(b"hello").unwrap();
        t.listen(ONE_TIMEOUT);
        t.exchange(&Spec::new(ACK, 1, 1).wnd(1000));
    }),
    ("a window of zero, and nothing else", |t| {
        let mut server = t.open();
        t.exchange(&Spec::new(ACK, 1, 1).wnd(0));
        server.write_all(b"hello").unwrap();
        t.listen(TWO_TIMEOUTS);
        t.exchange(&Spec::new(ACK, 1, 1).wnd(0));
    }),
    ("three times the same ACK", |t| {
        let mut server = t.open();
        for _ in 0..5 {
            server.write_all(&[7; 1000]).unwrap();
            t.listen(Duration::from_millis(3));
        }
        t.forget();
        (0..2).for_each(|_| t.send(&Spec::new(ACK, 1, 1)));
        t.exchange(&Spec::new(ACK, 1, 1));
        t.exchange(&Spec::new(ACK, 1, 5001));
    }),
    ("a SACK of data that was never sent", |t| {
        let mut server = t.open_with(&[2, 4, 5, 180, 4, 2]);
        server.write_all(b"hello").unwrap();
        t.listen(Duration::from_millis(20));
        let block = t.irs.wrapping_add(100_000);
        let sack = [&[5, 10][..], &block.to_be_bytes(), &block.wrapping_add(500).to_be_bytes()];
        (0..3).for_each(|_| t.send(&Spec::new(ACK, 1, 1).options(&sack.concat())));
        t.exchange(&Spec::new(ACK, 1, 1).options(&sack.concat()));
        t.exchange(&Spec::new(ACK, 1, 6));
    }),
    // Fragments.
    ("a SYN in fragments", |t| {
        t.send_fragments(&syn_with_data(), &[0, 24]);
        t.listen(Duration::from_millis(60));
    }),
    ("a SYN in fragments, the last first", |t| {
        t.send_fragments(&syn_with_data(), &[40, 24, 0]);
        t.listen(Duration::from_millis(60));
    }),
    ("a SYN whose TCP header is split over two fragments", |t| {
        t.send_fragments(&syn_with_data(), &[0, 16]);
        t.listen(Duration::from_millis(60));
    }),
    ("a SYN of which the last fragment is missing", |t| {
        let segment = t.segment(&syn_with_data());
        t.send_fragment(&segment, 0, 24);
        t.listen(Duration::from_millis(60));
    }),
    ("a SYN whose fragments overlap", |t| {
        let segment = t.segment(&syn_with_data());
        t.send_fragment(&segment, 0, 40);
        t.send_fragment(&segment, 32, segment.len());
        t.listen(Duration::from_millis(60));
    }),
    ("data in fragments", |t| {
        let mut server = t.open();
        t.send_fragments(&Spec::new(ACK | PSH, 1, 1).data(b"hello, world in pieces"), &[24, 0]);
        t.listen(Duration::from_millis(60));
        t.server_received(&mut server);
    }),
    // Ends of connections.
    ("the guest ends, then the server", |t| {
        let mut server = t.open();
        t.exchange(&Spec::new(FIN | ACK, 1, 1));
        t.server_received(&mut server);
        server.shutdown(Shutdown::Write).unwrap();
        t.listen(Duration::from_millis(60));
        t.exchange(&Spec::new(ACK, 2, 2));
        t.exchange(&Spec::new(ACK, 2, 2).data(b"x"));
    }),
    ("the end with data, early", |t| {
        let mut server = t.open();
        t.exchange(&Spec::new(FIN | ACK, 6, 1).data(b"world"));
        t.exchange(&Spec::new(ACK, 1, 1).data(b"hello"));
        t.server_received(&mut server);
    }),
    ("data after the end", |t| {
        let mut server = t.open();
        t.exchange(&Spec::new(FIN | ACK, 1, 1));
        t.exchange(&Spec::new(ACK | PSH, 2, 1).data(b"more"));
        t.server_received(&mut server);
    }),
    ("the server ends and is not acknowledged", |t| {
        let server = t.open();
        server.shutdown(Shutdown::Write).unwrap();
        t.listen(ONE_TIMEOUT);
    }),
    ("the server ends its half, the guest goes on", |t| {
        let mut server = t.open();
        server.shutdown(Shutdown::Write).unwrap();
        t.listen(Duration::from_millis(60));
        t.exchange(&Spec::new(ACK | PSH, 1, 2).data(b"hello"));
        t.server_received(&mut server);
    }),
    ("the server ends first, the guest's FIN comes twice", |t| {
        let server = t.open();
        server.shutdown(Shutdown::Write).unwrap();
        t.listen(Duration::from_millis(60));
        t.exchange(&Spec::new(FIN | ACK, 1, 2));
        t.exchange(&Spec::new(FIN | ACK, 1, 2));
    }),
    ("FINs that cross", |t| {
        let server = t.open();
        server.shutdown(Shutdown::Write).unwrap();
        t.listen(Duration::from_millis(60));
        t.exchange(&Spec::new(FIN | ACK, 1, 1));
        t.exchange(&Spec::new(ACK, 2, 2));
    }),
    ("the server resets", |t| {
        let server = t.open();
        reset_on_close(&server);
        drop(server);
        t.listen(Duration::from_millis(60));
        t.exchange(&Spec::new(ACK | PSH, 1, 1).data(b"x"));
    }),
    ("the server closes, the guest still sends", |t| {
        let server = t.open();
        drop(server);
        t.listen(Duration::from_millis(60));
        t.exchange(&Spec::new(ACK | PSH, 1, 2).data(b"hello"));
        t.exchange(&Spec::new(ACK | PSH, 6, 2).data(b"world"));
    }),
    // A SYN with an option of each wrong length, followed by a valid one.
    ("MSS of every length", |t| bad_lengths(t, 2, 4)),
    ("window scale of every length", |t| bad_lengths(t, 3, 3)),
    ("SACK permitted of every length", |t| bad_lengths(t, 4, 2)),
    ("timestamps of every length", |t| bad_lengths(t, 8, 10)),
    ("unknown option of every length", |t| bad_lengths(t, 200, 99)),
];

fn syn_with_data() -> Spec {
    Spec::new(SYN, 0, 0).options(&[2, 4, 5, 180]).data(&[7; 40])
}

fn at_closed(t: &mut Exchange, flags: u8) {
    t.aim_at_closed_port();
    t.exchange(&Spec::new(flags, 0, 0));
}

fn reset_on_close(server: &std::net::TcpStream) {
    let now = libc::linger { l_onoff: 1, l_linger: 0 };
    setsockopt(server, sockopt::Linger, &now).unwrap();
}

/// The option kinds in the answer to a SYN that has a bad option before a valid window scale.
fn bad_lengths(t: &mut Exchange, kind: u8, good: u8) {
    let mut all = Vec::new();
    for len in (0..=14).filter(|len| *len != good) {
        let mut options = vec![kind, len];
        options.resize(usize::from(len).max(2), 1);
        options.extend(if kind == 3 { &[2, 4, 5, 180][..] } else { &[3, 3, 5] });
        t.send(&Spec::new(SYN, 0, 0).options(&options));
        t.listen(Duration::from_millis(15));
        let kinds =
            t.received.first().map_or_else(|| "nothing".to_owned(), |options| kinds(options));
        all.push(format!("{len}: {kinds}"));
        t.send(&Spec::new(RST, 1, 0));
        t.listen(Duration::from_millis(3));
    }
    t.forget();
    t.note(all.join("; "));
}

fn kinds(mut options: &[u8]) -> String {
    let mut kinds = Vec::new();
    while let [kind, rest @ ..] = options {
        match (kind, rest) {
            (0, _) => break,
            (1, _) => options = rest,
            (_, [len, ..]) => {
                kinds.push(kind.to_string());
                options = options.get(usize::from(*len).max(2)..).unwrap_or_default();
            }
            _ => break,
        }
    }
    kinds.join("+")
}

use std::net::Ipv4Addr;

use super::*;

const FLOW: FlowId = FlowId { index: 1, generation: 1 };
const CAPS: HostCaps = HostCaps { sndbuf: 16_384, rcvbuf: 16_384 };

fn to(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::new(10, 0, 2, 2), port))
}

fn connected(server: Server) -> SimHost {
    let mut host = SimHost::new();
    host.serve(80..=80, server);
    host.connect(FLOW, to(80), CAPS).unwrap();
    assert_eq!(host.connect_outcome(FLOW), None);
    host.advance(Instant::from_micros(20));
    assert_eq!(host.connect_outcome(FLOW), Some(Ok(())));
    assert!(host.poll_ready().unwrap().1.writable);
    host
}

fn write_all(host: &mut SimHost, mut from: u64, want: usize) -> u64 {
    let mut data = vec![0; want];
    crate::pattern::Pattern::from_guest(80).fill(from, &mut data);
    let start = from;
    loop {
        let at = (from - start) as usize;
        match host.write(FLOW, &[IoSlice::new(&data[at..])]) {
            Ok(n) => from += n as u64,
            Err(HostError::WouldBlock) => return from,
            Err(e) => panic!("{e:?}"),
        }
        if (from - start) as usize == want {
            return from;
        }
    }
}

#[test]
fn a_port_without_server_refuses_after_a_round_trip() {
    let mut host = SimHost::new();
    host.connect(FLOW, to(81), CAPS).unwrap();
    assert_eq!(host.poll_ready(), None);
    host.advance(Instant::from_micros(20));
    assert_eq!(host.poll_ready(), Some((FLOW, Ready { readable: true, writable: true })));
    assert_eq!(host.connect_outcome(FLOW), Some(Err(HostError::Refused)));
}

#[test]
fn a_server_that_never_reads_takes_its_buffers_full_and_no_more() {
    let mut host = connected(Server::never_reads());
    let n = write_all(&mut host, 0, 1 << 20);
    assert_eq!(n, 8192 + 65_536);
    host.advance(Instant::from_millis(10_000));
    assert_eq!(host.poll_ready(), None);
    assert_eq!(host.port(80).consumed, 0);

    host.start_reading(80..=80, Instant::from_millis(10_000));
    host.advance(Instant::from_millis(10_001));
    assert_eq!(host.poll_ready(), Some((FLOW, Ready { readable: false, writable: true })));
    assert_eq!(host.poll_ready(), None);
    assert_eq!(host.port(80).consumed, n);
}

#[test]
fn the_writable_edge_comes_once_and_only_after_would_block() {
    let mut host = connected(Server::sink());
    write_all(&mut host, 0, 1000);
    host.advance(Instant::from_millis(1));
    assert_eq!(host.poll_ready(), None);
    let n = write_all(&mut host, 1000, 1 << 20);
    host.advance(Instant::from_millis(2));
    assert_eq!(host.poll_ready(), Some((FLOW, Ready { readable: false, writable: true })));
    assert_eq!(host.poll_ready(), None);
    assert_eq!(host.port(80).consumed, n);
    assert_eq!(host.port(80).corrupt, 0);
}

#[test]
fn a_pusher_fills_half_of_rcvbuf_and_then_ends() {
    let mut host = connected(Server::pusher(Some(10_000)));
    host.advance(Instant::from_millis(1));
    assert!(host.poll_ready().unwrap().1.readable);
    let mut buf = vec![0; 65_536];
    let mut read = |host: &mut SimHost| host.read(FLOW, &mut [IoSliceMut::new(&mut buf)]);
    assert_eq!(read(&mut host), Ok(8192));
    assert_eq!(read(&mut host), Err(HostError::WouldBlock));
    assert_eq!(host.poll_ready(), None);
    host.advance(Instant::from_millis(2));
    assert!(host.poll_ready().unwrap().1.readable);
    assert_eq!(read(&mut host), Ok(1808));
    assert_eq!(read(&mut host), Ok(0));
}

#[test]
fn a_responder_answers_whole_requests_and_closes_after_the_guest() {
    let mut host = connected(Server::responder(100, 1000));
    write_all(&mut host, 0, 250);
    host.advance(Instant::from_millis(1));
    assert!(host.poll_ready().unwrap().1.readable);
    let mut buf = vec![0; 65_536];
    assert_eq!(host.read(FLOW, &mut [IoSliceMut::new(&mut buf)]), Ok(2000));
    host.shutdown_write(FLOW);
    assert_eq!(host.read(FLOW, &mut [IoSliceMut::new(&mut buf)]), Ok(0));
    assert_eq!(host.port(80).eofs, 1);
}

#[test]
fn a_paced_reader_keeps_its_rate() {
    let mut host = connected(Server { read_rate: Some(1_000_000), ..Server::sink() });
    let mut at = write_all(&mut host, 0, 1 << 20);
    for ms in 1..=1000 {
        host.advance(Instant::from_millis(ms));
        if host.poll_ready().is_some() {
            at = write_all(&mut host, at, 1 << 20);
        }
    }
    let consumed = host.port(80).consumed;
    assert!((980_000..=1_000_000).contains(&consumed), "{consumed}");
}

#[test]
fn frozen_servers_do_nothing_until_the_thaw() {
    let freeze = (Instant::from_millis(5), Instant::from_millis(9));
    let mut host = connected(Server { frozen: vec![freeze], ..Server::responder(100, 10) });
    host.advance(Instant::from_millis(6));
    write_all(&mut host, 0, 100);
    host.advance(Instant::from_millis(8));
    assert_eq!(host.port(80).consumed, 0);
    host.advance(Instant::from_millis(10));
    assert_eq!(host.port(80).consumed, 100);
}

#[test]
fn wrong_bytes_are_counted() {
    let mut host = connected(Server::sink());
    host.write(FLOW, &[IoSlice::new(&[1, 2, 3, 4, 5, 6, 7, 8])]).unwrap();
    assert_eq!(host.port(80).corrupt, 1);
}

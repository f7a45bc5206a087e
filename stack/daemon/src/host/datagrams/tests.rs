//! Sockets of the kernel's loopback. No privileges are needed.

use std::net::UdpSocket;
use std::time::Duration;

use mio::Poll;
use skbudget_stack::datagram::DatagramSocket;

use super::*;

const CAPS: HostCaps = HostCaps { sndbuf: 32 << 10, rcvbuf: 32 << 10 };
const FIELDS: IpFields = IpFields { hop_limit: 40, traffic_class: 0xba, dont_fragment: true };

struct Bench {
    host: HostSockets,
    id: DatagramId,
    /// Keeps the registry's poll open.
    _poll: Poll,
}

impl Bench {
    fn new(ipv6: bool, port: u16) -> Self {
        let poll = Poll::new().unwrap();
        let mut host = HostSockets::new(poll.registry().try_clone().unwrap(), 1, None, None, None);
        let id = DatagramId { index: 3, generation: 9 };
        host.open_datagram(id, &DatagramSocket { kind: DatagramKind::Udp, ipv6, port, caps: CAPS })
            .unwrap();
        Self { host, id, _poll: poll }
    }

    fn send(
        &mut self,
        to: SocketAddr,
        ip: IpFields,
        payloads: &[&[u8]],
    ) -> (usize, Option<SendStop>) {
        let batch: Vec<SendDatagram<'_>> =
            payloads.iter().map(|payload| SendDatagram { to, ip, payload }).collect();
        self.host.send_datagrams(self.id, &batch)
    }

    /// Receives until `count` datagrams arrived.
    fn receive(&mut self, count: usize) -> Vec<(SocketAddr, IpFields, Vec<u8>)> {
        let mut got = Vec::new();
        for _ in 0..1000 {
            self.host.receive_datagrams(self.id, &mut |d| {
                got.push((d.from, d.ip, d.payload.to_vec()));
            });
            if got.len() >= count {
                return got;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        panic!("{} of {count} datagrams", got.len());
    }

    fn errors(&mut self, count: usize) -> Vec<(SocketAddr, Option<IpAddr>, Undeliverable, usize)> {
        let mut got = Vec::new();
        for _ in 0..1000 {
            self.host.receive_errors(self.id, &mut |e| {
                got.push((e.to, e.by, e.why, e.payload.len()));
            });
            if got.len() >= count {
                return got;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        panic!("{} of {count} errors", got.len());
    }
}

/// A server on a loopback address; `None` where the kernel has no IPv6.
fn server(ipv6: bool) -> Option<(UdpSocket, SocketAddr)> {
    let socket = UdpSocket::bind(if ipv6 { "[::1]:0" } else { "127.0.0.1:0" }).ok()?;
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let addr = socket.local_addr().unwrap();
    Some((socket, addr))
}

#[test]
fn batches_arrive_in_order_and_the_answers_with_their_fields() {
    for (socket, addr) in [false, true].into_iter().filter_map(server) {
        let mut bench = Bench::new(addr.is_ipv6(), 0);
        let payloads: Vec<Vec<u8>> = (0..40u8).map(|n| vec![n; usize::from(n) * 30]).collect();
        let parts: Vec<&[u8]> = payloads.iter().map(Vec::as_slice).collect();
        assert_eq!(bench.send(addr, FIELDS, &parts[..20]), (20, None));
        // Another setting of the flag, in the middle of a batch.
        let free = IpFields { dont_fragment: false, ..FIELDS };
        assert_eq!(bench.send(addr, free, &parts[20..]), (20, None));
        let mut buffer = [0; 2000];
        for payload in &payloads {
            let (len, from) = socket.recv_from(&mut buffer).unwrap();
            assert_eq!(buffer[..len], payload[..]);
            socket.set_ttl(17).ok();
            socket.send_to(&buffer[..len], from).unwrap();
            // One by one: the receive buffer is smaller than all of them.
            let (from, ip, received) = bench.receive(1).remove(0);
            assert_eq!((from, &received), (addr, payload));
            assert!(ip.hop_limit == 17 || addr.is_ipv6() && ip.hop_limit == 64, "{ip:?}");
        }
    }
}

#[test]
fn the_fields_of_a_datagram_are_those_that_were_asked_for() {
    for (_, addr) in [false, true].into_iter().filter_map(server) {
        // Two sockets of ours: one of them reports what arrived.
        let mut receiver = Bench::new(addr.is_ipv6(), 0);
        let slot = receiver.host.datagrams.slot(receiver.id).unwrap();
        let local = socket::getsockname::<SockaddrStorage>(slot.socket.as_raw_fd()).unwrap();
        let port = local
            .as_sockaddr_in()
            .map(|a| a.port())
            .or_else(|| local.as_sockaddr_in6().map(|a| a.port()));
        let to = SocketAddr::new(addr.ip(), port.unwrap());
        let mut sender = Bench::new(addr.is_ipv6(), 0);
        for ip in [FIELDS, IpFields { hop_limit: HOP_LIMIT, traffic_class: 0, ..FIELDS }] {
            assert_eq!(sender.send(to, ip, &[b"x"]), (1, None));
            let got = &receiver.receive(1)[0];
            assert_eq!(got.1, IpFields { dont_fragment: false, ..ip });
        }
    }
}

#[test]
fn a_port_is_kept_if_it_is_free_and_not_privileged() {
    let (socket, addr) = server(false).unwrap();
    let bound = |port| {
        let mut bench = Bench::new(false, port);
        let slot = bench.host.datagrams.slot(bench.id).unwrap();
        let local = socket::getsockname::<SockaddrStorage>(slot.socket.as_raw_fd()).unwrap();
        local.as_sockaddr_in().unwrap().port()
    };
    assert_ne!(bound(addr.port()), addr.port(), "taken");
    drop(socket);
    assert_eq!(bound(addr.port()), addr.port());
    assert!(bound(53) >= 1024);
}

#[test]
fn an_error_of_one_destination_fails_no_datagram_to_another() {
    for (socket, addr) in [false, true].into_iter().filter_map(server) {
        let (gone, closed) = server(addr.is_ipv6()).unwrap();
        drop(gone);
        let mut bench = Bench::new(addr.is_ipv6(), 0);
        for round in 0..20u8 {
            // The kernel returns the refusal from the next call on the socket.
            assert_eq!(bench.send(closed, FIELDS, &[b"refused"]), (1, None));
            assert_eq!(bench.send(addr, FIELDS, &[&[round]]), (1, None));
            let mut buffer = [0; 8];
            let (len, from) = socket.recv_from(&mut buffer).unwrap();
            assert_eq!(buffer[..len], [round]);
            socket.send_to(b"answer", from).unwrap();
            // And no call to receive. The errors stay in their queue meanwhile, as long as the buffer holds them.
            assert_eq!(bench.receive(1).remove(0).2, b"answer");
            if round % 5 == 4 {
                // Of equal errors in a row one is passed on.
                let errors = bench.errors(1);
                assert_eq!(errors[0], (closed, Some(addr.ip()), Undeliverable::Port, 7));
            }
        }
    }
}

#[test]
fn a_datagram_above_the_mtu_is_reported_with_the_mtu_unless_it_may_be_fragmented() {
    // The largest payload passes no MTU: loopback's is 65,536 bytes, without room for headers over IPv6.
    let (_socket, addr) = server(false).unwrap();
    let mut bench = Bench::new(false, 0);
    let large = vec![0; 65_508];
    let (sent, stop) = bench.send(addr, FIELDS, &[b"small", &large, b"small"]);
    assert_eq!((sent, stop), (1, Some(SendStop::Undeliverable(None))));
}

#[test]
fn a_full_receive_buffer_is_counted() {
    let (socket, _) = server(false).unwrap();
    let mut bench = Bench::new(false, 0);
    let slot = bench.host.datagrams.slot(bench.id).unwrap();
    let local = socket::getsockname::<SockaddrStorage>(slot.socket.as_raw_fd()).unwrap();
    let to = SocketAddr::from(([127, 0, 0, 1], local.as_sockaddr_in().unwrap().port()));
    for _ in 0..200 {
        socket.send_to(&[7; 1000], to).unwrap();
    }
    let before = bench.receive(1).len();
    // The count arrives with the first datagram that was received after the loss.
    socket.send_to(&[8], to).unwrap();
    let mut got = before;
    loop {
        let more = bench.receive(1);
        got += more.len();
        if more.iter().any(|datagram| datagram.2 == [8]) {
            break;
        }
    }
    let lost = bench.host.take_datagram_drops(bench.id);
    assert_eq!(got as u32 + lost, 201);
    assert!(lost > 100, "{lost}");
    assert_eq!(bench.host.take_datagram_drops(bench.id), 0);
}

#[test]
fn the_kernel_holds_no_more_than_the_charge() {
    let (socket, _) = server(false).unwrap();
    let mut bench = Bench::new(false, 0);
    let slot = bench.host.datagrams.slot(bench.id).unwrap();
    let local = socket::getsockname::<SockaddrStorage>(slot.socket.as_raw_fd()).unwrap();
    let to = SocketAddr::from(([127, 0, 0, 1], local.as_sockaddr_in().unwrap().port()));
    for size in [1, 1000, 9000, 60_000] {
        for _ in 0..300 {
            socket.send_to(&vec![7; size], to).unwrap();
        }
        let slot = bench.host.datagrams.slot(bench.id).unwrap();
        let (_, received) = crate::sys::socket_queued_bytes(slot.socket.as_fd()).unwrap();
        // The cap, and one datagram of the largest size.
        assert!(received <= CAPS.rcvbuf + (64 << 10), "{received} bytes of {size}");
        assert!(received > CAPS.rcvbuf / 2 && bench.host.queued() == (0, 0), "{received}");
        while !bench.receive(0).is_empty() {}
    }
}

#[test]
fn closed_sockets_and_late_events_are_told_apart() {
    let mut bench = Bench::new(false, 0);
    let token = token::datagram(1, bench.id);
    assert_eq!(bench.host.datagram(token), Some(bench.id));
    assert_eq!(
        bench.host.datagram(token::datagram(1, DatagramId { generation: 8, ..bench.id })),
        None
    );
    assert_eq!(bench.host.open(), 1);
    bench.host.close_datagram(bench.id);
    assert_eq!((bench.host.open(), bench.host.datagram(token)), (0, None));
    assert_eq!(bench.send(SocketAddr::from(([127, 0, 0, 1], 9)), FIELDS, &[b"x"]), (0, None));
}

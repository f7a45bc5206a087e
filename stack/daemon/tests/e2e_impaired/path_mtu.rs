//! A container that is a router: the container's address is behind it, on a link with the same MTU, over a route with a
//! smaller one. Our segments do not fit, the router's kernel reports that (RFC 1191, RFC 8201), and our stack sends
//! smaller ones.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::Command;
use std::thread;
use std::time::Duration;

use skbudget::attach;
use skbudget_testbed::network::{Network, container, report};
use skbudget_testbed::streams::{receive_all, send_all};

const NARROW: u32 = 1300;
const LEN: u64 = 8_000_000;
const PATIENCE: Duration = Duration::from_secs(20);

/// Set-up of the router. The address stays on the device as the source of ICMP errors, but is no longer local.
const ROUTER: &str = "
echo 1 > /proc/sys/net/ipv4/ip_forward
echo 1 > /proc/sys/net/ipv6/conf/all/forwarding
ip link add in0 type veth peer name out0
ip link set out0 netns /proc/PID/fd/INNER
ip link set in0 up
echo 1 > /proc/sys/net/ipv4/conf/in0/accept_local
ip addr add 10.9.0.1/24 dev in0
ip addr add fd09::1/64 dev in0 nodad
ip route add 10.0.2.2 dev tap0 src 10.0.2.100
ip route del local 10.0.2.100 dev tap0 table local
ip -6 route del local fd00::100 dev tap0 table local
ip route add 10.0.2.100 via 10.9.0.2 dev in0 mtu MTU
ip -6 route add fd00::100 via fd09::2 dev in0 metric 1 mtu MTU
";

/// Set-up of the host behind the router.
const INNER: &str = "
ip link set out0 up
ip addr add 10.9.0.2/24 dev out0
ip addr add 10.0.2.100/32 dev out0
ip addr add fd09::2/64 dev out0 nodad
ip addr add fd00::100/128 dev out0 nodad
ip route add default via 10.9.0.1 src 10.0.2.100
ip -6 route add default via fd09::1 src fd00::100
";

fn script(netns: &OwnedFd, text: &str) {
    let run = || Command::new("sh").args(["-exc", text]).output().unwrap();
    let output = attach::run_in(netns.as_fd(), run).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// A listener that the daemon can reach, and its address as the container sees it.
fn listener(world: &Network, v6: bool) -> (TcpListener, SocketAddr) {
    let (here, there): (IpAddr, IpAddr) = if v6 {
        let gateway = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);
        (Ipv6Addr::LOCALHOST.into(), gateway.into())
    } else {
        (Ipv4Addr::LOCALHOST.into(), skbudget_sim::packet::GATEWAY.into())
    };
    let listener = world.within(|| TcpListener::bind((here, 0)).unwrap());
    let port = listener.local_addr().unwrap().port();
    (listener, SocketAddr::new(there, port))
}

fn down_and_up(offload: bool) {
    let world = Network::create();
    let daemon = world.daemon(64 << 20);
    let router = container(&daemon, "router", 32 << 20, None, offload);
    let inner = attach::create_netns().unwrap();
    let text = ROUTER
        .replace("PID", &std::process::id().to_string())
        .replace("INNER", &inner.as_raw_fd().to_string())
        .replace("MTU", &NARROW.to_string());
    script(&router, &text);
    script(&inner, INNER);
    for v6 in [false, true] {
        let before = report(&daemon, "router").counters["PathMtuLowered"];
        let (listener, to) = listener(&world, v6);
        let dial = || TcpStream::connect_timeout(&to, PATIENCE).unwrap();
        let mut client = attach::run_in(inner.as_fd(), dial).unwrap();
        let mut server = listener.accept().unwrap().0;
        for end in [&client, &server] {
            end.set_read_timeout(Some(PATIENCE)).unwrap();
            end.set_write_timeout(Some(PATIENCE)).unwrap();
        }
        let began = daemon.flows("router").unwrap()[0].mss;
        let says = thread::spawn(move || {
            send_all(&mut server, 2, LEN).unwrap();
            server.shutdown(Shutdown::Write).unwrap();
            let heard = receive_all(&mut server).unwrap();
            (heard.got, heard.wrong)
        });
        let heard = receive_all(&mut client).unwrap();
        assert_eq!((heard.got, heard.wrong), (LEN, 0));
        let flow = daemon.flows("router").unwrap().remove(0);
        send_all(&mut client, 1, LEN).unwrap();
        client.flush().unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(says.join().unwrap(), (LEN, 0));
        let lowered = report(&daemon, "router").counters["PathMtuLowered"] - before;
        println!(
            "narrow: ipv6={v6} offload={offload} mtu={NARROW} mss={began}->{} lowered={lowered}",
            flow.mss
        );
        let headers = if v6 { 60 } else { 40 };
        assert!(u32::from(began) > NARROW - headers, "the first MSS was already small: {began}");
        assert!(u32::from(flow.mss) <= NARROW - headers, "{flow:?}");
        assert!(lowered >= 1);
    }
    daemon.shutdown().unwrap();
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn segments_fit_the_path_that_the_guest_reports() {
    down_and_up(false);
    down_and_up(true);
}

//! A long round trip to the guest, or beyond the host, must not limit a flow: windows and queues of both halves grow
//! until the link is full, within `tcp_rmem`, `tcp_wmem` and the budget.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use skbudget_sim::{LinkConfig, NodeConfig, PeerStack, Server, SimHost, Tally, World};
use skbudget_stack::ContainerConfig;
use skbudget_stack::controller::{Budget, Instant, Rules};

use crate::run;

const BITS_PER_SECOND: u64 = 60_000_000;
/// Two seconds after the last necessary doubling.
const GROWN: Instant = Instant::from_millis(9000);
const MEASURED: Duration = Duration::from_secs(3);

pub(crate) fn budget() -> Budget {
    run::budget(Rules::Strict, 256 << 20)
}

/// A flow without an end, and the tally of its bytes. `offload` is the link's.
fn flow(
    up: bool,
    offload: bool,
    guest_rtt: Duration,
    host_rtt: Duration,
    bits_per_second: Option<u64>,
) -> (World, Rc<RefCell<Tally>>) {
    let mut config = ContainerConfig::new(1500, offload, Some(256 << 20), [3, 4]);
    // Without router advertisements every frame is the flow's.
    config.ipv6 = None;
    let tally = Tally::shared();
    let watch: Rc<RefCell<Tally>> = tally.clone();
    let (near, far) = if up {
        (Server::sink().watched(watch), Server::pusher(None))
    } else {
        (Server::pusher(None), Server::sink().watched(watch))
    };
    let mut host = SimHost::new();
    host.serve(80..=80, near.with_delay(host_rtt / 2));
    let mut peer = PeerStack::new(&config, budget(), SimHost::new());
    peer.open(Instant::default(), 80, far.at_guest());
    let link = LinkConfig {
        delay: guest_rtt / 2,
        bits_per_second,
        queue_frames: 512,
        ..LinkConfig::default()
    };
    let mut world = World::new(1);
    let budget = world.add_budget(budget());
    let (guest, container) = (Box::new(peer), config);
    world
        .add_container(NodeConfig { container, budget, up: link, down: link, guest, host })
        .expect("room for the device queue");
    (world, tally)
}

/// Bit/s that arrive once the flow has grown.
fn rate(up: bool, offload: bool, guest_rtt: Duration, host_rtt: Duration) -> u64 {
    let (mut world, tally) = flow(up, offload, guest_rtt, host_rtt, Some(BITS_PER_SECOND));
    // Only the grown flow is measured.
    world.run_until(GROWN);
    let before = tally.borrow().bytes;
    world.run_until(GROWN + MEASURED);
    let bytes = tally.borrow().bytes - before;
    assert_eq!(tally.borrow().corrupt, 0);
    bytes * 8 / MEASURED.as_secs()
}

#[test]
fn neither_a_far_guest_nor_a_far_host_caps_a_flow() {
    let ms = Duration::from_millis;
    for (guest_rtt, host_rtt) in [(ms(300), ms(0)), (ms(0), ms(100)), (ms(300), ms(100))] {
        for (up, offload) in [(true, true), (false, true), (true, false), (false, false)] {
            let rate = rate(up, offload, guest_rtt, host_rtt);
            // Headers take a twentieth of a segment of 1460 bytes.
            assert!(
                rate > BITS_PER_SECOND * 9 / 10,
                "{rate} bit/s, up: {up}, offload: {offload}, guest {guest_rtt:?}, host {host_rtt:?}"
            );
        }
    }
}

#[test]
fn neither_windows_nor_queues_hold_slow_start_back() {
    let rtt = Duration::from_millis(100);
    for up in [true, false] {
        let (mut world, tally) = flow(up, false, rtt, Duration::ZERO, None);
        for rounds in 1..=7 {
            // Two round trips for addresses and the handshake; the data sent then arrives half a round trip later.
            world.run_until(Instant::default() + rtt * (2 + rounds) + rtt / 4);
            let segments = tally.borrow().bytes / 1448;
            // RFC 6928: ten segments, doubled each round trip.
            let doubling = 10 * ((1 << rounds) - 1);
            assert!(
                segments >= doubling * 9 / 10 && segments <= doubling,
                "{segments} segments after {rounds} round trips of {doubling}, up: {up}"
            );
        }
    }
}

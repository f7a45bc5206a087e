//! One container floods while its neighbour is active.

use std::sync::atomic::AtomicBool;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use skbudget::stats::ContainerReport;

use crate::{descriptors, length};
use skbudget_sim::flood::{Attack, Kind};
use skbudget_testbed::flood_rig::{FloodRig, HARD};

const PER_SECOND: u64 = 50_000;
const CONNECTIONS: u16 = 50;

/// Runs a flood. Returns the report of the attacker's container.
fn flood(kind: Kind) -> ContainerReport {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    let fds_before = descriptors();
    let mut rig = FloodRig::new(1);
    let fds = descriptors();
    rig.add_attacker(false);
    let mut attack = Attack::new(kind, length("FLOOD", 100_000), PER_SECOND, CONNECTIONS);
    let from = rig.now();
    let sent = rig.attack(&mut attack, &AtomicBool::new(false));
    let to = rig.now();
    let report = rig.attacker();
    let host = rig.daemon.stats(false).unwrap().host;
    rig.remove_attacker();
    assert_eq!(descriptors(), fds, "descriptors of the attacker");
    let (seen, left) = rig.end();
    let stretch = seen.between(from, to);
    println!(
        "flood: kind={kind:?} sent={} lost={} per_second={:.0} peak={} hard={HARD} flows={} cpu_share={:.3} \
         neighbour: answers={} p50={:?} p99={:?} worst={:?} stall={:?} delivered={:.4}",
        sent.frames,
        sent.lost,
        sent.frames as f64 / sent.took.as_secs_f64(),
        report.meter.max_usage_bytes,
        report.flows,
        report.cpu_ns as f64 / sent.took.as_nanos() as f64,
        stretch.answers,
        stretch.p50,
        stretch.p99,
        stretch.worst,
        stretch.stall,
        stretch.delivered,
    );
    // The flood took place.
    assert!(sent.frames > attack.sent / 2 && attack.sent > 1000, "{sent:?} of {}", attack.sent);
    // The worker throttles a container under pressure beside an active neighbour. Frames that its queue has no room for
    // meanwhile are dropped.
    assert!(report.frames_from_guest > sent.frames / 10, "{report:?}");
    // The container keeps within its hard limit, and all of them within the host's.
    assert!(report.meter.max_usage_bytes <= HARD, "{report:?}");
    assert!(host.max_usage_bytes <= host.hard_bytes.unwrap(), "{host:?}");
    assert_eq!(left, 0, "bytes still charged after the end");
    assert_eq!(descriptors(), fds_before);
    report
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn spoofed_syns() {
    let report = flood(Kind::Syn);
    // Half of the segments have source addresses that are not the container's. Of the others, as many connections open
    // as there is memory for.
    let stat = |name: &str| report.counters[name];
    assert!(stat("DropSource") > report.frames_from_guest / 3, "{report:?}");
    assert!(stat("PassiveOpens") > 400, "{report:?}");
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn syns_that_are_refused() {
    let report = flood(Kind::Refused);
    assert!(report.counters["HostConnectFailed"] > 100, "{report:?}");
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn segments_out_of_order() {
    let report = flood(Kind::OutOfOrder);
    assert!(report.counters["TCPOFOQueue"] > 100, "{report:?}");
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn segments_of_one_byte() {
    let report = flood(Kind::OneByte);
    assert!(report.bytes_from_guest > 1000, "{report:?}");
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn acks_of_data_that_was_not_sent() {
    let report = flood(Kind::AckLie);
    assert!(report.counters["AckUnsent"] > 100, "{report:?}");
}

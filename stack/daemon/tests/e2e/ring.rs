//! A command that configures its device cannot make the kernel hold more for it than is charged.

use std::fs;

use serde_json::Value;
use skbudget_stack::ContainerConfig;

use crate::support::{TempFile, script, succeed, text};

/// Prints queue length and MTU of the device as soon as they are set back; the run fails if they never are.
const SET_BACK: &str = "
set_back() {
    for i in $(seq 500); do
        now=$($IN ip -o link show $1 | sed -nE 's/.* mtu ([0-9]+) .* qlen ([0-9]+).*/\\1 \\2/p')
        [ \"$now\" = \"$WANT\" ] && echo \"$now\" && return
        sleep 0.01
    done
    echo \"still $now\"; exit 1
}
";

/// Runs the script with the settings to which the device must return. Returns the counters of the run.
fn counters(options: &[&str], mtu: u16, lines: &str) -> Value {
    let queue = ContainerConfig::new(mtu, true, Some(4 << 20), [0; 2]).txqueuelen();
    let (stats, mtu) = (TempFile::new("stats"), mtu.to_string());
    let more = ["--hard", "4MiB", "--mtu", &mtu, "--stats-file", stats.path()];
    let lines = format!("WANT='{mtu} {queue}'\n{SET_BACK}\n{lines}");
    let output = script(&[&more[..], options].concat(), &lines);
    assert_eq!(succeed(&output), format!("{mtu} {queue}\n"));
    assert!(text(&output.stderr).contains("restored"), "{output:?}");
    let all: Value = serde_json::from_slice(&fs::read(&stats.0).unwrap()).unwrap();
    all["containers"][0]["counters"].clone()
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn a_longer_queue_and_a_larger_mtu_are_set_back_and_counted() {
    for options in [&["--cap-add", "NET_ADMIN"][..], &["--privileged"]] {
        let lines = "ip link set tap0 txqueuelen 9000; set_back tap0";
        let found = counters(options, 65520, lines);
        assert_eq!(
            (&found["RingTampered"], &found["RingTamperedBytes"]),
            (&1.into(), &589_824_000.into())
        );
        let found = counters(options, 1500, "ip link set tap0 mtu 9000; set_back tap0");
        assert_eq!(found["RingTampered"], 1);
    }
}

/// The watch follows the device.
#[test]
#[ignore = "needs root and /dev/net/tun"]
fn another_name_and_another_namespace_do_not_hide_the_device() {
    let renamed = "ip link set tap0 down; ip link set tap0 name eth7; ip link set eth7 up
ip link set eth7 txqueuelen 9000; set_back eth7";
    assert_eq!(counters(&["--cap-add", "NET_ADMIN"], 65520, renamed)["RingTampered"], 1);
    let moved = "unshare -n sleep 1000 & sleep 0.3; IN=\"nsenter --net=/proc/$!/ns/net\"
ip link set tap0 name eth8 netns $!
$IN ip link set eth8 up; $IN ip link set eth8 txqueuelen 9000; set_back eth8";
    assert_eq!(counters(&["--privileged"], 1500, moved)["RingTampered"], 1);
}

/// The work of setting the device back is bounded to once a millisecond, whatever the command does.
#[test]
#[ignore = "needs root and /dev/net/tun"]
fn a_device_that_is_changed_all_the_time_is_set_back_with_bounded_work() {
    let file = TempFile::new("batch");
    let flip = format!(
        "for i in $(seq 1000); do echo link set tap0 txqueuelen 90$((i % 10)); done > {0}\n\
         ip -batch {0}; set_back tap0",
        file.path()
    );
    let found = counters(&["--cap-add", "NET_ADMIN"], 65520, &flip);
    let times = found["RingTampered"].as_u64().unwrap();
    assert!((1..=1000).contains(&times), "{times}");
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn a_shorter_queue_and_a_smaller_mtu_are_the_commands_own_business() {
    let lines = "ip link set tap0 txqueuelen 5 mtu 1400; sleep 0.3; ip -o link show tap0";
    let said = succeed(&script(&["--cap-add", "NET_ADMIN"], lines));
    assert!(said.contains("mtu 1400") && said.contains("qlen 5"), "{said}");
}

/// Deleting the device hides neither the changes nor what was charged.
#[test]
#[ignore = "needs root and /dev/net/tun"]
fn the_stats_of_a_deleted_device_are_its_last() {
    let lines = "ip link set tap0 txqueuelen 9000; set_back tap0; ip link del tap0; sleep 0.2";
    let found = counters(&["--cap-add", "NET_ADMIN"], 65520, lines);
    assert_eq!(found["RingTampered"], 1);
    assert_eq!(found["RingTamperedBytes"], 589_824_000);
    assert!(found["OutRsts"].is_u64(), "{found}");
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn a_command_that_deletes_the_device_ends_with_its_own_code() {
    for lines in [
        "ip link del tap0; sleep 0.2; exit 7",
        "ip link set tap0 netns 1; ip link del tap0; exit 7",
    ] {
        let output = script(&["--cap-add", "NET_ADMIN"], lines);
        assert_eq!(output.status.code(), Some(7), "{}", text(&output.stderr));
    }
}

//! Floods from one container: the memory it may hold, and the effect on its neighbour.

use std::time::Duration;

use skbudget_sim::flood::{Attack, Kind, RawGuest};
use skbudget_stack::controller::Instant;

use crate::scene::Scene;

const HARD: u64 = 16 << 20;

/// The neighbour's p99 without an attack.
fn alone(until: Instant) -> Duration {
    let attack = Attack::new(Kind::Syn, 1, 1, 0);
    let mut scene = Scene::new(Box::new(RawGuest::new(attack)), HARD, until);
    scene.world.run_until(until);
    scene.neighbours_p99()
}

/// Sends `count` hostile segments at a rate and checks the limits and the neighbour's p99.
fn flood(kind: Kind, count: u64, per_second: u64) -> Scene {
    let length = Duration::from_millis(1000 * count / per_second + 200);
    let until = Instant::default() + length;
    let attack = Attack::new(kind, count, per_second, 50);
    let mut scene = Scene::new(Box::new(RawGuest::new(attack)), HARD, until);
    let attacker = scene.attacker;
    scene.world.run_until(until);
    let sent = scene.world.with_guest(attacker, |raw: &mut RawGuest<Attack>| raw.script.sent);
    scene.assert_within_limits();
    let (alone, beside) = (alone(until), scene.neighbours_p99());
    println!(
        "{kind:?}: {sent} segments, peak {} of {HARD}, p99 {alone:?} -> {beside:?}",
        scene.peak()
    );
    // Otherwise the flood was too weak to prove anything.
    assert!(sent * 2 > count, "{sent} of {count} hostile segments were sent");
    // Virtual time: CPU costs nothing, so only memory and windows could delay the neighbour.
    assert!(beside <= alone.mul_f64(1.2), "the neighbour's p99: {beside:?}, alone {alone:?}");
    scene
}

#[test]
fn a_million_spoofed_syns() {
    let mut scene = flood(Kind::Syn, 1_000_000, 50_000);
    // Half of the SYNs are spoofed; of the others, as many flows are opened as memory allows.
    let spoofed = scene.stat("DropSource");
    assert!((480_000..520_000).contains(&spoofed), "{spoofed}");
    let opens = scene.stat("PassiveOpens");
    assert!(opens > 400, "{opens} were opened");
    // Connections without an answer end by themselves, except those to a host that never answers either.
    // Longer than all retransmissions of a SYN-ACK.
    let later = scene.world.now() + Duration::from_secs(600);
    scene.world.run_until(later);
    scene.assert_within_limits();
    scene.stop_attacker();
    scene.end();
}

#[test]
fn syns_that_are_refused() {
    let mut scene = flood(Kind::Refused, 200_000, 50_000);
    scene.stop_attacker();
    scene.end();
}

#[test]
fn segments_out_of_order() {
    let mut scene = flood(Kind::OutOfOrder, 200_000, 100_000);
    scene.stop_attacker();
    scene.end();
}

#[test]
fn segments_of_one_byte() {
    let mut scene = flood(Kind::OneByte, 200_000, 100_000);
    scene.stop_attacker();
    scene.end();
}

#[test]
fn acks_of_data_that_was_not_sent() {
    let mut scene = flood(Kind::AckLie, 200_000, 100_000);
    scene.stop_attacker();
    scene.end();
}

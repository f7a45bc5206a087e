//! Many honest connections: all are served, and nothing of them is left.

use std::time::Duration;

use skbudget_sim::flood::RawGuest;
use skbudget_stack::controller::Instant;

use crate::clients::Clients;
use crate::scene::Scene;

/// The guarantee of a flow (README, "How large --hard should be"), and the largest device queue.
const FLOW: u64 = 22_528;
const QUEUE: u64 = 4 << 20;

fn run(clients: Clients, hard: u64, length: Duration) -> (Scene, Outcome) {
    let until = Instant::default() + length;
    let mut scene = Scene::new(Box::new(RawGuest::new(clients)), hard, until);
    let attacker = scene.attacker;
    scene.world.run_until(until);
    scene.assert_within_limits();
    let outcome = scene.world.with_guest(attacker, |raw: &mut RawGuest<Clients>| {
        let mut took = std::mem::take(&mut raw.script.took);
        took.sort_unstable();
        let p99 = Duration::from_nanos(took.get(took.len() * 99 / 100).copied().unwrap_or(0));
        let Clients { established, most, done, resets, .. } = raw.script;
        Outcome { established, most, done, resets, answered: took.len(), p99 }
    });
    (scene, outcome)
}

#[derive(Debug)]
struct Outcome {
    established: u32,
    most: usize,
    done: u32,
    resets: u32,
    answered: usize,
    p99: Duration,
}

#[test]
fn ten_thousand_connections_one_after_the_other() {
    // Room for a few flows: earlier ones must be freed completely.
    let (mut scene, outcome) = run(Clients::new(10_000, 1), 1 << 20, Duration::from_secs(10));
    assert_eq!((outcome.established, outcome.done, outcome.resets), (10_000, 10_000, 0));
    assert_eq!(outcome.most, 1);
    scene.world.run_until(scene.world.now() + Duration::from_secs(90));
    scene.assert_nothing_left();
    scene.end();
}

#[test]
fn five_thousand_connections_at_once() {
    // Soft is two thirds of hard, and admission is bound by hard alone.
    let hard = (5000 * FLOW + QUEUE + (1 << 20)).next_multiple_of(4096);
    let clients = Clients::new(5000, 5000).gathering();
    let (mut scene, outcome) = run(clients, hard, Duration::from_secs(30));
    println!("5000 at once below {hard} bytes: {outcome:?}, peak {}", scene.peak());
    assert_eq!((outcome.established, outcome.done, outcome.resets), (5000, 5000, 0));
    assert_eq!(outcome.most, 5000);
    scene.world.run_until(scene.world.now() + Duration::from_secs(90));
    scene.assert_nothing_left();
    scene.end();
}

#[test]
fn two_hundred_dead_destinations_beside_a_hundred_live_flows() {
    let live = || Clients::new(100, 100).requesting(100, Duration::from_millis(20));
    let hard = (300 * FLOW + QUEUE + (4 << 20)).next_multiple_of(4096);
    let length = Duration::from_secs(5);
    let (alone_scene, alone) = run(live(), hard, length);
    alone_scene.end();
    let (mut scene, beside) = run(live().beside_dead(200), hard, length);
    println!("dead destinations: p99 {:?} -> {:?}", alone.p99, beside.p99);
    assert_eq!((alone.answered, beside.answered), (10_000, 10_000));
    assert_eq!((beside.done, beside.resets), (100, 0));
    assert!(beside.p99 <= alone.p99.mul_f64(1.5), "{:?}, alone {:?}", beside.p99, alone.p99);
    // Their host sockets are still connecting: the guest cannot end them.
    assert_eq!(scene.world.container(scene.attacker).stats().flows, 200);
    scene.stop_attacker();
    scene.end();
}

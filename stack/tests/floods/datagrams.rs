//! Floods of datagrams from one container: they hold at most their part of its memory, leave its flows their own, and
//! do not affect its neighbour.

use std::net::SocketAddr;
use std::time::Duration;

use skbudget_sim::packet::Datagram;
use skbudget_sim::{
    Buffers, BulkSend, DatagramGuest, Frame, FramePool, Guest, GuestConfig, Open, SmolGuest, Tally,
};
use skbudget_stack::controller::Instant;

use crate::scene::{DATAGRAMS, Scene};

const HARD: u64 = 16 << 20;
const COUNT: u32 = 100_000;
const PER_SECOND: u64 = 100_000;

/// The datagrams of a flood, with their times.
fn plan(make: impl Fn(u32) -> Datagram) -> Vec<(Instant, Datagram)> {
    let at = |n: u32| Instant(u64::from(n) * 1_000_000_000 / PER_SECOND);
    (0..COUNT).map(|n| (at(n), make(n))).collect()
}

/// Runs a flood and checks the limits and the neighbour; nothing is left two minutes later.
fn flood(name: &str, make: impl Fn(u32) -> Datagram) -> Scene {
    // Longer than the flood, and enough for the neighbour's p99.
    let until = Instant::from_millis(1500);
    let mut alone = Scene::new(Box::new(DatagramGuest::new(Vec::new())), HARD, until);
    alone.world.run_until(until);
    let alone = alone.neighbours_p99();
    let mut scene = Scene::new(Box::new(DatagramGuest::new(plan(make))), HARD, until);
    scene.world.run_until(until);
    scene.assert_within_limits();
    let beside = scene.neighbours_p99();
    println!("{name}: peak {} of {HARD}, p99 {alone:?} -> {beside:?}", scene.peak());
    assert!(beside <= alone.mul_f64(1.2), "the neighbour's p99: {beside:?}, alone {alone:?}");
    // Beside the device queue, only datagrams.
    assert!(scene.peak() <= HARD / 8 + HARD / 8 + (64 << 10), "{}", scene.peak());
    scene.world.run_until(until + Duration::from_secs(130));
    scene.assert_nothing_left();
    scene
}

#[test]
fn datagrams_of_one_port() {
    let scene = flood("udp-flood", |_| Datagram::new(5000, DATAGRAMS, &[7; 1200]));
    assert_eq!(scene.stat("UdpOutDatagrams"), u64::from(COUNT));
    let back = scene.stat("UdpInDatagrams") + scene.stat("UdpRcvbufErrors");
    assert!(back > u64::from(COUNT) * 9 / 10, "{back} came back");
    assert_eq!(scene.stat("UdpMappingsOpened"), 1);
    scene.end();
}

#[test]
fn a_port_for_each_datagram() {
    let scene = flood("mapping-exhaust", |n| {
        Datagram::new(1024 + (n % 60_000) as u16, DATAGRAMS, &[7; 200])
    });
    let (opened, evicted) = (scene.stat("UdpMappingsOpened"), scene.stat("UdpMappingsEvicted"));
    assert!(opened > 90_000 && evicted > 90_000, "{opened} opened, {evicted} evicted");
    scene.end();
}

#[test]
fn questions_that_no_server_answers() {
    let scene = flood("dns-flood", |n| {
        let mut message = (n as u16).to_be_bytes().to_vec();
        message.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, b'x', 0, 0, 1, 0, 1]);
        let dst = SocketAddr::from(([10, 0, 2, 3], 53));
        Datagram { dst, ..Datagram::new(1024 + (n % 60_000) as u16, 53, &message) }
    });
    assert_eq!(scene.stat("DnsRefused") + scene.stat("DnsQuestions"), u64::from(COUNT));
    scene.end();
}

/// Two guests on one link: TCP of the one, datagrams of the other.
#[derive(Debug)]
struct Both {
    tcp: SmolGuest,
    datagrams: DatagramGuest,
}

impl Guest for Both {
    fn on_frame(&mut self, now: Instant, frame: Frame) {
        // Each ignores what is not its own.
        match Datagram::parse(frame.bytes()) {
            Some(_) => self.datagrams.on_frame(now, frame),
            None => self.tcp.on_frame(now, frame),
        }
    }
    fn poll(&mut self, now: Instant, room: usize, frames: &mut FramePool, out: &mut Vec<Frame>) {
        self.tcp.poll(now, room / 2, frames, out);
        self.datagrams.poll(now, room / 2, frames, out);
    }
    fn next_deadline(&self) -> Option<Instant> {
        self.tcp.next_deadline().into_iter().chain(self.datagrams.next_deadline()).min()
    }
    fn is_blocked(&self) -> bool {
        self.tcp.is_blocked() || self.datagrams.is_blocked()
    }
    fn as_any(&mut self) -> &mut dyn std::any::Any {
        self
    }
}

/// Bytes that fifty flows of a container send in a fifth of a second, beside its own datagrams.
fn goodput(datagrams: Vec<(Instant, Datagram)>) -> u64 {
    let until = Instant::from_millis(200);
    let mut tcp = SmolGuest::new(&GuestConfig::new(1500, false, 9));
    let to = SocketAddr::from(([10, 0, 2, 2], skbudget_sim::flood::SINK));
    for _ in 0..50 {
        let app = Box::new(BulkSend::new(None, Tally::shared()));
        tcp.open(Instant(0), Open::Connect(to), Buffers::default(), app);
    }
    let guest = Both { tcp, datagrams: DatagramGuest::new(datagrams) };
    let mut scene = Scene::new(Box::new(guest), HARD, until);
    scene.world.run_until(until);
    scene.assert_within_limits();
    let bytes = scene.world.container(scene.attacker).stats().bytes_from_guest;
    scene.end();
    bytes
}

#[test]
fn the_containers_own_flows_keep_their_memory() {
    let alone = goodput(Vec::new());
    // As many ports as memory holds, each of them with a fast server.
    let beside = goodput(plan(|n| Datagram::new(1024 + (n % 1000) as u16, DATAGRAMS, &[7; 1000])));
    println!("fifty flows: {alone} bytes alone, {beside} beside a flood");
    assert!(beside * 5 >= alone * 4, "{beside} of {alone} bytes");
}

//! Guests that probe whether their peer is alive: they learn the truth, by their own interval and count.

use std::time::Duration;

use skbudget_stack::HostError;

use crate::peer::{Hello, Peer, bytes, end};
use crate::rig::{Rig, one};
use crate::wire::{ACK, RST, Seg};

const DAY: u64 = 24 * 3_600_000;

/// A guest's TCP_KEEPIDLE, TCP_KEEPINTVL (milliseconds) and TCP_KEEPCNT, and the form of its probes.
#[derive(Debug, Clone, Copy)]
struct KeepAlive {
    idle: u64,
    interval: u64,
    count: u32,
    /// The probe carries one byte of garbage, as old stacks send it (RFC 9293 section 3.8.4).
    garbage: bool,
}

const fn seconds(idle: u64, interval: u64, count: u32) -> KeepAlive {
    KeepAlive { idle: idle * 1000, interval: interval * 1000, count, garbage: false }
}

/// Outcome of a run.
#[derive(Debug, Default, PartialEq, Eq)]
struct Outcome {
    /// Probes sent, and how many of them were answered before the next.
    probes: usize,
    answered: usize,
    /// The longest wait for an answer.
    waited_ms: u64,
    /// When the guest gave up.
    gone_after_ms: Option<u64>,
}

impl KeepAlive {
    fn probe(self, peer: &Peer) -> Seg {
        Seg { flags: ACK, ..peer.data_at(-1, if self.garbage { b"?" } else { b"" }) }
    }

    fn run(self, rig: &mut Rig, peer: &Peer, for_ms: u64) -> Outcome {
        Timer::new(self).run(rig, peer, for_ms)
    }
}

/// The guest's timer, as in Linux' tcp_keepalive_timer: `idle` after an answer, `interval` after none, the end after
/// `count` probes without one.
struct Timer {
    keepalive: KeepAlive,
    unanswered: u32,
    wait: u64,
}

impl Timer {
    fn new(keepalive: KeepAlive) -> Self {
        Self { keepalive, unanswered: 0, wait: keepalive.idle }
    }

    /// Segments that arrive while `ms` pass; the stack's own probes are answered as the guest's kernel does.
    fn pass(rig: &mut Rig, peer: &Peer, ms: u64) -> Vec<(u64, Seg)> {
        let mut all = Vec::new();
        let mut passed = 0;
        while passed < ms {
            // In steps, so that a probe of the stack is answered within a minute of its time.
            let step = (ms - passed).min(60_000);
            for (at, seg) in rig.pass_segs(step) {
                // A probe of the stack: SEG.SEQ is one below RCV.NXT.
                if seg.seq == peer.ack.wrapping_sub(1) {
                    assert_eq!(rig.send(peer.pure_ack()), []);
                } else {
                    all.push((passed + at, seg));
                }
            }
            passed += step;
        }
        all
    }

    fn run(&mut self, rig: &mut Rig, peer: &Peer, for_ms: u64) -> Outcome {
        // Linux starts a count only after `idle`; later probes follow at `interval`.
        let KeepAlive { idle, interval, count, .. } = self.keepalive;
        let mut seen = Outcome::default();
        let mut passed = 0;
        while passed + self.wait <= for_ms {
            let answers = Self::pass(rig, peer, self.wait);
            passed += self.wait;
            if self.unanswered > 0 && !answers.is_empty() {
                let after = answers[0].0;
                assert!(answers.len() == 1 && answers[0].1.is(ACK), "{answers:?}");
                seen.answered += 1;
                seen.waited_ms = seen.waited_ms.max(after);
                self.unanswered = 0;
                // The answer arrived in the middle of the interval: `idle` counts from there.
                self.wait = (after + idle).saturating_sub(self.wait);
                continue;
            }
            assert_eq!(answers, []);
            if self.unanswered >= count {
                seen.gone_after_ms = Some(passed);
                break;
            }
            seen.probes += 1;
            let at_once = rig.send(self.keepalive.probe(peer));
            if at_once.is_empty() {
                self.unanswered += 1;
                self.wait = interval;
            } else {
                assert!(one(at_once).is(ACK));
                seen.answered += 1;
                self.unanswered = 0;
                self.wait = idle;
            }
        }
        seen
    }
}

/// Connections of either direction and family, to a peer that answers after `rtt`.
fn connections(rtt: Option<Duration>) -> Vec<(Rig, Peer)> {
    let mut all = Vec::new();
    for v6 in [false, true] {
        let mut rig = Rig::new();
        let hello = Hello { v6, ..Hello::default() };
        let peer = Peer::open_with(&mut rig, 40_000, &hello);
        all.push((rig, peer));
        let mut rig = Rig::new();
        crate::peer::introduce(&mut rig);
        let from = if v6 { "[::1]:5555" } else { "127.0.0.1:5555" };
        let peer = Peer::accept_from(&mut rig, 80, from.parse().unwrap());
        all.push((rig, peer));
    }
    for (rig, peer) in &mut all {
        let now = rig.now;
        let sock = rig.sock(peer.flow);
        (sock.rtt, sock.last_segment) = (rtt, now);
    }
    all
}

#[test]
fn a_peer_that_is_gone_is_found_by_the_guests_own_count() {
    let settings = [
        seconds(2, 2, 3),
        seconds(7200, 75, 9),
        seconds(1, 1, 5),
        seconds(10, 3, 4),
        seconds(60, 300, 2),
        seconds(5, 1, 1),
        KeepAlive { garbage: true, ..seconds(4, 2, 3) },
    ];
    for keepalive in settings {
        for (mut rig, peer) in connections(None) {
            let seen = keepalive.run(&mut rig, &peer, 10 * DAY);
            let KeepAlive { idle, interval, count, .. } = keepalive;
            // The first probe is always answered, and so is one that follows a segment of the peer within a second.
            assert!((1..=2).contains(&seen.answered), "{keepalive:?}: {seen:?}");
            assert_eq!(seen.probes, seen.answered + count as usize);
            let gone = (seen.answered as u64 + 1) * idle + u64::from(count) * interval;
            assert_eq!(seen.gone_after_ms, Some(gone), "{keepalive:?}: {seen:?}");
            end(rig, &peer);
        }
    }
}

#[test]
fn a_peer_that_is_well_and_idle_is_never_given_up() {
    let far = [0, 1, 30, 250, 700];
    let settings = [seconds(2, 2, 1), seconds(7200, 75, 9), seconds(1, 1, 2), seconds(30, 1, 1)];
    for keepalive in settings {
        for rtt in far {
            for (mut rig, peer) in connections(Some(Duration::from_millis(rtt))) {
                let seen = keepalive.run(&mut rig, &peer, (4 * keepalive.idle).max(200_000));
                assert!(seen.probes >= 3, "{seen:?}");
                let waits = seen.probes - seen.answered;
                assert!(seen.gone_after_ms.is_none() && waits <= 1, "{keepalive:?}: {seen:?}");
                // The answer follows the peer's own answer without delay.
                assert!(seen.waited_ms <= rtt * 2 + 20, "{rtt} ms: {seen:?}");
                let sock = rig.sock(peer.flow);
                assert!(sock.probes <= seen.probes, "never more probes than the guest sends");
                assert!(sock.polls <= 12 * seen.probes, "{} looks", sock.polls);
                end(rig, &peer);
            }
        }
    }
}

#[test]
fn a_peer_that_comes_back_in_time_is_found_there() {
    let far = Some(Duration::from_millis(1));
    for away_ms in [7000, 12_000, 24_000] {
        let (mut rig, peer) = connections(far).remove(0);
        let mut timer = Timer::new(seconds(10, 5, 4));
        timer.run(&mut rig, &peer, 30_000);
        rig.sock(peer.flow).rtt = None;
        let seen = timer.run(&mut rig, &peer, away_ms);
        assert_eq!(seen.gone_after_ms, None, "{away_ms} ms");
        rig.sock(peer.flow).rtt = far;
        let seen = timer.run(&mut rig, &peer, 100_000);
        assert!(timer.unanswered <= 1 && seen.gone_after_ms.is_none(), "{away_ms} ms: {seen:?}");
        assert!(seen.answered >= 8, "{away_ms} ms: {seen:?}");
        end(rig, &peer);
    }
}

#[test]
fn the_host_socket_probes_as_often_as_the_guest_does() {
    // 40,000 s exceed what TCP_KEEPIDLE accepts.
    for (idle, interval) in [(2, 2), (7200, 75), (1, 1), (40_000, 10)] {
        let (mut rig, peer) = connections(Some(Duration::ZERO)).remove(0);
        let keepalive = seconds(idle, interval, 9);
        assert_eq!(rig.sock(peer.flow).keep_alive, None);
        keepalive.run(&mut rig, &peer, idle * 1000);
        // The kernel accepts at most 32767 seconds.
        let every = Some(Duration::from_secs(idle.min(32_767)));
        assert_eq!(rig.sock(peer.flow).keep_alive, every, "as it was seen, from the first on");
        keepalive.run(&mut rig, &peer, 3 * idle * 1000);
        assert_eq!(rig.sock(peer.flow).keep_alive, every, "also after the peer was asked");
        end(rig, &peer);
    }
}

#[test]
fn bytes_on_their_way_to_the_peer_are_not_for_keep_alive_to_judge() {
    let keepalive = seconds(2, 2, 2);
    for held_here in [false, true] {
        for (mut rig, mut peer) in connections(None) {
            // A slow reader: the sent bytes are queued in the host's socket, or in the stack.
            rig.sock(peer.flow).owes_ack = !held_here;
            rig.sock(peer.flow).room = if held_here { 0 } else { usize::MAX };
            let out = rig.send(peer.data(&bytes(100)));
            peer.receive(&out);
            let seen = keepalive.run(&mut rig, &peer, 600_000);
            assert_eq!(seen, Outcome { probes: 300, answered: 300, ..Outcome::default() });
            assert_eq!(rig.sock(peer.flow).probes, 0);
            // The peer took everything and vanished.
            rig.sock(peer.flow).owes_ack = false;
            rig.sock(peer.flow).room = usize::MAX;
            let ready = rig.ready(peer.flow, false, true);
            peer.receive(&ready);
            rig.send(peer.pure_ack());
            let seen = keepalive.run(&mut rig, &peer, 600_000);
            assert_eq!(seen.gone_after_ms, Some(6000), "{seen:?}");
            end(rig, &peer);
        }
    }
}

#[test]
fn a_probe_of_a_closed_window_is_answered_whatever_the_peer_does() {
    for (mut rig, mut peer) in connections(None) {
        rig.sock(peer.flow).room = 0;
        while peer.window() > 0 {
            let n = peer.window().min(1460);
            let out = rig.send(peer.data(&vec![1; n]));
            peer.receive(&out);
        }
        for _ in 0..20 {
            rig.pass(5000);
            let ack = one(rig.send(Seg { flags: ACK, ..peer.data_at(-1, b"") }));
            assert_eq!((ack.ack, ack.wnd), (peer.seq, 0));
        }
        let sock = rig.sock(peer.flow);
        assert_eq!((sock.probes, sock.keep_alive), (0, None));
        assert_eq!(rig.stat("GuestKeepAlive"), 0);
        end(rig, &peer);
    }
}

#[test]
fn a_guest_that_sent_its_end_and_waits_for_the_peers_finds_out_too() {
    for (mut rig, mut peer) in connections(None) {
        let out = rig.send(peer.fin());
        peer.receive(&out);
        assert!(rig.sock(peer.flow).shut);
        let seen = seconds(2, 2, 3).run(&mut rig, &peer, 60_000);
        assert_eq!((seen.answered, seen.gone_after_ms), (1, Some(10_000)), "{seen:?}");
        end(rig, &peer);
    }
}

#[test]
fn the_end_of_a_silence_is_not_a_probe_and_data_starts_it_anew() {
    let (mut rig, mut peer) = connections(None).remove(0);
    // Within half a second of data it is a duplicate segment, not a probe.
    for _ in 0..5 {
        rig.send(peer.data(b"x"));
        rig.pass(200);
        let again = rig.send(Seg { flags: ACK, ..peer.data_at(-1, b"x") });
        assert!(one(again).is(ACK), "what came twice is acknowledged at once");
    }
    assert_eq!(rig.stat("GuestKeepAlive"), 0);
    // Probes without an answer, then data: the next silence starts a new count, and the peer has been heard from
    // meanwhile.
    let keepalive = seconds(2, 2, 9);
    keepalive.run(&mut rig, &peer, 6000);
    assert_eq!(rig.stat("GuestKeepAliveRelayed"), 2);
    rig.pass(700);
    rig.send(peer.data(b"y"));
    let now = rig.now;
    rig.sock(peer.flow).rtt = Some(Duration::ZERO);
    rig.sock(peer.flow).last_segment = now;
    let seen = keepalive.run(&mut rig, &peer, 60_000);
    assert!(seen.answered >= 28 && seen.gone_after_ms.is_none(), "{seen:?}");
    end(rig, &peer);
}

#[test]
fn probes_that_come_too_fast_cost_no_system_calls() {
    let (mut rig, peer) = connections(None).remove(0);
    rig.pass(2000);
    for _ in 0..1000 {
        rig.send(Seg { flags: ACK, ..peer.data_at(-1, b"?") });
        rig.pass(1);
    }
    let probes = rig.stat("GuestKeepAlive");
    let sock = rig.sock(peer.flow);
    assert!(probes <= 11 && sock.probes <= 11 && sock.polls <= 60, "{probes} {sock:?}");
    end(rig, &peer);
}

#[test]
fn a_host_socket_that_timed_out_resets_the_guest() {
    for (mut rig, peer) in connections(None) {
        seconds(2, 2, 9).run(&mut rig, &peer, 8000);
        let out = rig.host_breaks(peer.flow, HostError::TimedOut);
        assert!(one(out).flags & RST != 0);
        rig.assert_empty();
    }
}

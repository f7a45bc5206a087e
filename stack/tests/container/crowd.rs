//! Many SYNs at once, beside earlier flows that take all the memory they can get.

use skbudget_stack::controller::Counter;
use skbudget_stack::{Container, ContainerConfig, FlowId, Ready, WakeKey};

use crate::peer::Hello;
use crate::rig::{Rig, Setup};
use crate::wire::{ACK, SYN, Seg, Sent};

/// Bytes the host sends to each flow, several times the budget in sum; no guest acknowledges any of them.
const PUSH: usize = 400_000;

/// Rounds of one turn each: the guest opens flows, the host answers and sends into them.
struct Crowd {
    rig: Rig,
    answered: usize,
    /// Data that the guest received: the proof that flows take memory.
    bytes: usize,
}

impl Crowd {
    fn new(hard: u64) -> Self {
        let rig = Rig::with(Setup { hard, mtu: 65_520, offload: true, ..Setup::default() });
        Self { rig, answered: 0, bytes: 0 }
    }

    fn syn(&mut self, ports: std::ops::Range<u16>) {
        for port in ports {
            self.rig.frame(&Hello { wnd: u16::MAX, ..Hello::default() }.syn(port, 80).frame());
        }
    }

    /// One round; true while there is work left.
    fn round(&mut self) -> bool {
        let rig = &mut self.rig;
        let mut more = rig.with_cx(Container::turn);
        while let Some(key) = rig.budget.poll_wake(rig.now) {
            rig.stack.on_wake(WakeKey(key));
            more = true;
        }
        let opened: Vec<FlowId> = rig.host.connects[self.answered..].to_vec();
        self.answered += opened.len();
        for flow in opened {
            rig.sock(flow).incoming.extend(std::iter::repeat_n(7, PUSH));
            rig.stack.on_host_ready(flow, Ready { readable: true, writable: true });
            more = true;
        }
        for sent in rig.taken() {
            let Sent::Tcp(seg) = sent else { continue };
            self.bytes += seg.data.len();
            if seg.is(SYN | ACK) {
                let (seq, ack) = (seg.ack, seg.seq.wrapping_add(1));
                let ports = (seg.guest_port, seg.remote_port);
                let (guest_port, remote_port) = ports;
                let answer = Seg {
                    guest_port,
                    remote_port,
                    seq,
                    ack,
                    flags: ACK,
                    wnd: u16::MAX,
                    ..Seg::default()
                };
                rig.frame(&answer.frame());
                more = true;
            }
        }
        more
    }

    fn rest(&mut self) {
        for round in 0.. {
            assert!(round < 20_000, "it never comes to rest");
            if !self.round() {
                break;
            }
        }
    }

    fn delayed(&self) -> u64 {
        self.rig.counter(Counter::AdmissionDelayed)
    }

    fn elastic(&self) -> u64 {
        self.rig.memory().wmem + self.rig.memory().host
    }
}

#[test]
fn a_crowd_is_admitted_without_a_wait_when_its_first_burst_fits() {
    // All at once, and in groups: the first flows send already when the last SYNs arrive.
    for (hard, flows, group) in
        [(16, 300, 300), (16, 300, 150), (16, 360, 360), (8, 150, 150), (32, 500, 250)]
    {
        let mut crowd = Crowd::new(hard << 20);
        let mut port = 20_000;
        for _ in 0..flows / group {
            crowd.syn(port..port + group);
            port += group;
            // Half of the group is admitted; the others wait while those send.
            // Rounds until half of the group is connected.
            while crowd.answered < usize::from(port - 20_000 - group / 2) {
                assert!(crowd.round());
            }
        }
        crowd.rest();
        assert_eq!(crowd.answered, usize::from(flows), "{hard} MiB");
        assert_eq!(crowd.delayed(), 0, "{hard} MiB, {flows} flows in groups of {group}");
        assert!(crowd.bytes > usize::from(flows) * 4000, "they do push: {}", crowd.bytes);
        let meter = crowd.rig.budget.meter_stats(crowd.rig.now);
        assert!(meter.max_usage_bytes <= hard << 20);
    }
}

#[test]
fn a_guest_that_was_interrupted_in_the_middle_finds_room_for_the_rest() {
    for (first, ms) in [(150, 1), (150, 40), (180, 99), (200, 20)] {
        let mut crowd = Crowd::new(16 << 20);
        crowd.syn(20_000..20_000 + first);
        crowd.rest();
        crowd.rig.now = skbudget_stack::controller::Instant(crowd.rig.now.0 + ms * 1_000_000);
        crowd.rest();
        crowd.syn(30_000..30_000 + 300 - first);
        crowd.rest();
        assert_eq!((crowd.answered, crowd.delayed()), (300, 0), "{first}, then {ms} ms");
    }
}

#[test]
fn flows_grow_again_once_all_are_in() {
    let mut crowd = Crowd::new(16 << 20);
    crowd.syn(20_000..20_100);
    crowd.rest();
    for _ in 0..3 {
        crowd.rig.now = crowd.rig.stack.next_deadline().unwrap();
        crowd.rest();
    }
    let reserve = 100 * ContainerConfig::new(65_520, true, Some(16 << 20), [7, 11]).sizes.total();
    let usage = crowd.rig.usage() - crowd.rig.empty;
    assert!(usage > 2 * reserve, "{usage} bytes where {reserve} are reserved");
}

#[test]
fn a_flood_of_syns_leaves_those_before_it_half_of_the_room() {
    let mut crowd = Crowd::new(16 << 20);
    crowd.syn(20_000..20_004);
    crowd.rest();
    let before = crowd.elastic();
    // Admission is paused: the list is full, while the four flows would take everything.
    // A second, far longer than the flood takes.
    let later = skbudget_stack::controller::Instant(crowd.rig.now.0 + 1_000_000_000);
    crowd.rig.stack.hold_admissions(later);
    crowd.syn(30_000..31_000);
    assert_eq!(crowd.rig.stack.stats().syn_backlog, 512);
    let held = 512 * ContainerConfig::new(65_520, true, Some(16 << 20), [7, 11]).sizes.total();
    let room = (16 << 20) - crowd.rig.empty;
    assert!(held > room / 2, "a flood that would take more than half");
    let calm = crowd.rig.budget.calm_room();
    assert!(calm + before >= room / 2 - (1 << 20), "{calm} and {before} of {room}");
    // After the SYNs are gone, all the room is available again.
    for port in 30_000..31_000 {
        let rst = Seg { flags: crate::wire::RST, seq: 1001, ..Hello::default().syn(port, 80) };
        crowd.rig.frame(&rst.frame());
    }
    crowd.rig.pass(300);
    assert_eq!(crowd.rig.stack.stats().syn_backlog, 0);
    assert!(crowd.rig.budget.calm_room() > calm);
}

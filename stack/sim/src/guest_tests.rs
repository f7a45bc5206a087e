//! Two guests on one cable without a stack between them: tests the simulator's own parts.

use std::collections::VecDeque;

use super::*;
use crate::app::{BulkSend, Next};
use crate::observer::{Tally, Watch};
use crate::pattern::Pattern;

/// Checks the stream of `BulkSend`.
#[derive(Debug)]
struct Check {
    received: u64,
    watch: Watch,
    reads: bool,
}

impl App for Check {
    fn poll(&mut self, now: Instant, socket: &mut tcp::Socket<'static>) -> Next {
        let before = self.received;
        while self.reads && socket.can_recv() {
            let at = self.received;
            let (n, ok) = socket
                .recv(|b| (b.len(), (b.len(), Pattern::from_guest(80).check(at, b).is_ok())))
                .unwrap();
            self.received += n as u64;
            let mut watch = self.watch.borrow_mut();
            watch.bytes(now, n as u64);
            if !ok {
                watch.corrupt(now, at);
            }
        }
        if socket.state() == tcp::State::CloseWait && !socket.can_recv() {
            socket.close();
            return Next::Wait { wake: None, busy: true };
        }
        Next::Wait { wake: None, busy: self.received > before }
    }
}

/// Polls both guests whenever one has work; frames arrive after 10 us.
fn run(a: &mut SmolGuest, b: &mut SmolGuest, until: Instant) -> usize {
    let mut frames = FramePool::default();
    let mut flying: VecDeque<(Instant, bool, Frame)> = VecDeque::new();
    let (mut now, mut polls) = (Instant(0), 0);
    loop {
        while flying.front().is_some_and(|f| f.0 <= now) {
            let (_, to_b, frame) = flying.pop_front().unwrap();
            if to_b { b.on_frame(now, frame) } else { a.on_frame(now, frame) }
        }
        let mut out = Vec::new();
        for (guest, to_b) in [(&mut *a, true), (&mut *b, false)] {
            guest.poll(now, 1000, &mut frames, &mut out);
            polls += 1;
            let at = Instant(now.0 + 10_000);
            flying.extend(out.drain(..).map(|f| (at, to_b, f)));
        }
        let timers = a.next_deadline().into_iter().chain(b.next_deadline());
        let next = timers.chain(flying.front().map(|f| f.0)).min();
        match next {
            Some(at) if at <= until => now = at,
            _ => return polls,
        }
    }
}

fn pair(offload: bool) -> (SmolGuest, SmolGuest) {
    let client = GuestConfig::new(1500, offload, 1);
    let server =
        GuestConfig { ip: client.gateway, gateway: client.ip, mac: [2, 0, 0, 0, 0, 9], ..client };
    (SmolGuest::new(&client), SmolGuest::new(&server))
}

fn to() -> Open {
    Open::Connect("10.0.2.2:80".parse().unwrap())
}

#[test]
fn a_stream_arrives_whole_and_both_ends_close() {
    for offload in [false, true] {
        let (mut a, mut b) = pair(offload);
        let (sent, got) = (Tally::shared(), Tally::shared());
        let check = Check { received: 0, watch: got.clone(), reads: true };
        b.open(Instant(0), Open::Listen(80), Buffers::default(), Box::new(check));
        let send = BulkSend::new(Some(1_000_000), sent.clone());
        a.open(Instant::from_millis(3), to(), Buffers::default(), Box::new(send));
        run(&mut a, &mut b, Instant::from_millis(30_000));
        assert_eq!((got.borrow().bytes, got.borrow().corrupt), (1_000_000, 0));
        assert_eq!(sent.borrow().broken, 0);
        assert_eq!(a.count(tcp::State::Established) + b.count(tcp::State::Established), 0);
    }
}

#[test]
fn a_peer_that_never_reads_stops_the_sender_without_spinning() {
    let (mut a, mut b) = pair(false);
    let got = Tally::shared();
    let check = Check { received: 0, watch: got, reads: false };
    b.open(Instant(0), Open::Listen(80), Buffers::default(), Box::new(check));
    let id = a.open(
        Instant(0),
        to(),
        Buffers::default(),
        Box::new(BulkSend::new(None, Tally::shared())),
    );
    let polls = run(&mut a, &mut b, Instant::from_millis(60_000));
    assert!(polls < 2000, "{polls}");
    assert_eq!(b.count(tcp::State::Established), 1);
    assert_eq!(a.socket(id).unwrap().send_queue(), 65_536);
}

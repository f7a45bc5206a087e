//! Data in both directions, and its acknowledgements.

use crate::peer::{Hello, Peer, bytes};
use crate::rig::{Rig, Setup, one};
use crate::wire::{ACK, Seg};

#[test]
fn every_turn_with_data_is_acknowledged_once() {
    let mut rig = Rig::new();
    let mut peer = Peer::open(&mut rig);
    let data = bytes(5840);
    let batch: Vec<Seg> = data.chunks(1460).map(|c| peer.data(c)).collect();
    let ack = one(rig.send_all(&batch));
    assert_eq!(ack.ack, peer.seq);
    assert_eq!(rig.sock(peer.flow).received, data);
    assert_eq!(rig.sock(peer.flow).writes, 1, "a batch costs one write");
    rig.send(peer.rst());
    rig.assert_empty();
}

#[test]
fn an_ack_rides_on_the_reply_or_follows_4_ms_later() {
    let mut rig = Rig::new();
    let mut peer = Peer::open(&mut rig);
    // The first request is acknowledged at once; its reply shows that replies follow.
    one(rig.send(peer.data(b"one")));
    let reply = rig.host_sends(peer.flow, b"ONE");
    peer.receive(&reply);
    rig.send(peer.pure_ack());
    let quick = rig.send(peer.data(b"two"));
    assert_eq!(quick.len(), 1, "data that was acknowledged before its reply is no exchange yet");
    // A reply in the same turn carries the ACK.
    rig.sock(peer.flow).incoming.extend(b"THREE");
    rig.stack.on_host_ready(peer.flow, skbudget_stack::Ready { readable: true, writable: false });
    let both = one(rig.send(peer.data(b"three")));
    assert_eq!((both.ack, &both.data[..]), (peer.seq, &b"THREE"[..]));
    peer.receive(&[both]);
    // Now the flow is interactive: the ACK waits for the reply, for a bounded time.
    assert_eq!(rig.send(peer.data(b"four")), []);
    let later = rig.pass_segs(100);
    assert_eq!(later.len(), 1, "{later:?}");
    assert_eq!((later[0].0, later[0].1.ack), (4, peer.seq));
    assert_eq!(rig.stat("DelayedACKs"), 1);
    // After an ACK without a reply, the next request is acknowledged at once.
    one(rig.send(peer.data(b"five")));
    rig.send(peer.rst());
    rig.assert_empty();
}

#[test]
fn a_delayed_ack_is_not_delayed_past_two_segments() {
    let mut rig = Rig::new();
    let mut peer = Peer::open(&mut rig);
    rig.sock(peer.flow).incoming.extend(b"x");
    rig.stack.on_host_ready(peer.flow, skbudget_stack::Ready { readable: true, writable: false });
    let reply = rig.send(peer.data(b"ping"));
    peer.receive(&reply);
    assert_eq!(rig.send(peer.data(&bytes(1460))), []);
    assert_eq!(one(rig.send(peer.data(&bytes(1460)))).ack, peer.seq);
    rig.send(peer.rst());
    rig.assert_empty();
}

#[test]
fn sack_reports_holes_the_latest_first() {
    let mut rig = Rig::new();
    let mut peer = Peer::open(&mut rig);
    let data = bytes(700);
    let (base, part) = (peer.seq, |i: usize| data[100 * i..100 * (i + 1)].to_vec());
    let at = |i: u32| (base + 100 * i, base + 100 * (i + 1));
    let send = |rig: &mut Rig, peer: &Peer, i: usize| {
        let ack = one(rig.send(peer.data_at(100 * i as i32, &part(i))));
        (ack.ack - base, ack.sack)
    };
    assert_eq!(send(&mut rig, &peer, 1), (0, vec![at(1)]));
    assert_eq!(send(&mut rig, &peer, 3), (0, vec![at(3), at(1)]));
    assert_eq!(send(&mut rig, &peer, 5), (0, vec![at(5), at(1), at(3)]));
    // A range that grows is the latest (RFC 2018 section 4).
    assert_eq!(send(&mut rig, &peer, 2), (0, vec![(at(1).0, at(3).1), at(5)]));
    // A duplicate: acknowledged at once, and nothing changes.
    assert_eq!(send(&mut rig, &peer, 5).0, 0);
    assert_eq!(rig.sock(peer.flow).received, []);
    assert_eq!(send(&mut rig, &peer, 0), (400, vec![at(5)]));
    assert_eq!(send(&mut rig, &peer, 4), (600, vec![]));
    assert_eq!(rig.sock(peer.flow).received, &data[..600]);
    peer.seq += 600;
    rig.send(peer.rst());
    rig.assert_empty();
}

#[test]
fn without_sack_duplicate_acks_alone_report_holes() {
    let mut rig = Rig::new();
    let hello = Hello { sack_ok: false, ..Hello::default() };
    let peer = Peer::open_with(&mut rig, 40_000, &hello);
    for offset in [100, 300, 500] {
        let ack = one(rig.send(peer.data_at(offset, &[1; 50])));
        assert_eq!((ack.ack, ack.sack), (peer.seq, vec![]));
    }
    rig.send(peer.rst());
    rig.assert_empty();
}

#[test]
fn retransmitted_data_is_acknowledged_and_not_delivered_twice() {
    let mut rig = Rig::new();
    let mut peer = Peer::open(&mut rig);
    let data = bytes(3000);
    rig.send(peer.data(&data[..1000]));
    for _ in 0..3 {
        let ack = one(rig.send(peer.data_at(-1000, &data[..1000])));
        assert!(ack.is(ACK) && ack.ack == peer.seq);
    }
    // Half old, half new; then all of it in one segment.
    assert_eq!(one(rig.send(peer.data_at(-500, &data[500..2000]))).ack, peer.seq + 1000);
    assert_eq!(one(rig.send(peer.data_at(-1000, &data))).ack, peer.seq + 2000);
    assert_eq!(rig.sock(peer.flow).received, data);
    peer.seq += 2000;
    rig.send(peer.rst());
    rig.assert_empty();
}

#[test]
fn data_beyond_the_window_is_cut_at_its_edge() {
    let mut rig = Rig::new();
    let mut peer = Peer::open(&mut rig);
    rig.sock(peer.flow).room = 0;
    let window = peer.window();
    let data = bytes(window + 5000);
    let ack = one(rig.send(peer.data_at(0, &data)));
    assert_eq!(ack.ack, peer.seq.wrapping_add(window as u32));
    assert_eq!(ack.wnd, 0);
    // Entirely outside the window: answered, not stored.
    let ack = one(rig.send(peer.data_at(window as i32 + 200_000, b"far")));
    assert_eq!(ack.ack, peer.seq.wrapping_add(window as u32));
    // Only the segment wholly outside counts; the first one was cut.
    assert_eq!(rig.stat("OutOfWindow"), 1);
    rig.sock(peer.flow).room = usize::MAX;
    rig.ready(peer.flow, false, true);
    assert_eq!(rig.sock(peer.flow).received, &data[..window]);
    peer.seq = ack.ack;
    rig.send(peer.rst());
    rig.assert_empty();
}

#[test]
fn bulk_to_the_host() {
    for offload in [false, true] {
        let mut rig = Rig::with(Setup { offload, ..Setup::default() });
        let mut peer = Peer::open(&mut rig);
        let data = bytes(3 << 20);
        let mut at = 0;
        while at < data.len() {
            let mut batch = Vec::new();
            // With offload the guest sends super-frames.
            let frame = if offload { 64_000 } else { 1460 };
            while peer.window() > 0 && at < data.len() && batch.len() < 64 {
                let n = peer.window().min(frame).min(data.len() - at);
                batch.push(peer.data(&data[at..at + n]));
                at += n;
            }
            assert!(!batch.is_empty(), "a window that stays closed");
            let out = rig.send_all(&batch);
            peer.receive(&out);
        }
        assert_eq!(rig.sock(peer.flow).received.len(), data.len());
        assert!(rig.sock(peer.flow).received == data);
        assert!(peer.window() > 100_000, "the window followed what the host took");
        rig.send(peer.rst());
        rig.assert_empty();
    }
}

#[test]
fn bulk_to_the_guest() {
    for offload in [false, true] {
        let mut rig = Rig::with(Setup { offload, ..Setup::default() });
        let mut peer = Peer::open(&mut rig);
        let data = bytes(3 << 20);
        let mut heard = Vec::new();
        let mut out = rig.host_sends(peer.flow, &data);
        let mut largest = 0;
        while !out.is_empty() {
            largest = out.iter().map(|s| s.data.len()).max().unwrap().max(largest);
            heard.extend(peer.receive(&out));
            out = rig.send(peer.pure_ack());
        }
        assert!(heard == data, "{} of {}", heard.len(), data.len());
        assert_eq!(largest > 60_000, offload, "super-frames: {largest}");
        assert_eq!(rig.stat("RetransSegs"), 0);
        rig.send(peer.rst());
        rig.assert_empty();
    }
}

#[test]
fn both_ways_at_once_through_a_full_device() {
    let mut rig = Rig::new();
    let mut peer = Peer::open(&mut rig);
    let data = bytes(400_000);
    rig.sock(peer.flow).incoming.extend(&data);
    rig.stack.on_host_ready(peer.flow, skbudget_stack::Ready { readable: true, writable: false });
    let (mut heard, mut at) = (Vec::new(), 0);
    for _ in 0..10_000 {
        if at == data.len() && heard.len() == data.len() {
            break;
        }
        // Three frames, then the device is full until the guest has read them.
        rig.wire.room = 3;
        let n = peer.window().min(1460).min(data.len() - at);
        let seg = if n > 0 { peer.data(&data[at..at + n]) } else { peer.pure_ack() };
        at += n;
        let out = rig.send(seg);
        heard.extend(peer.receive(&out));
        rig.wire.room = 3;
        let out: Vec<Seg> = rig.pass_segs(2).into_iter().map(|(_, s)| s).collect();
        heard.extend(peer.receive(&out));
    }
    rig.wire.room = usize::MAX;
    assert!(heard == data, "{} of {}", heard.len(), data.len());
    assert!(rig.sock(peer.flow).received == data);
    assert!(rig.stat("DeviceFull") > 0);
    rig.send(peer.rst());
    rig.assert_empty();
}

#[test]
fn an_ack_of_what_was_never_sent_is_answered_and_ignored() {
    let mut rig = Rig::new();
    let mut peer = Peer::open(&mut rig);
    let ack = one(rig.send(Seg { ack: peer.ack.wrapping_add(1), ..peer.data_at(0, b"x") }));
    assert_eq!((ack.ack, ack.seq), (peer.seq, peer.ack), "its data is not taken either");
    assert_eq!(rig.stat("AckUnsent"), 1);
    let said = rig.host_sends(peer.flow, b"hello");
    assert_eq!(peer.receive(&said), b"hello");
    rig.send(peer.rst());
    rig.assert_empty();
}

#[test]
fn an_old_timestamp_is_refused() {
    let mut rig = Rig::new();
    let hello = Hello { ts: Some(1000), ..Hello::default() };
    let mut peer = Peer::open_with(&mut rig, 40_000, &hello);
    peer.ts.as_mut().unwrap().0 = 2000;
    let ack = one(rig.send(peer.data(b"new")));
    assert_eq!(ack.ts.unwrap().1, 2000, "echoed");
    peer.ts.as_mut().unwrap().0 = 1500;
    let ack = one(rig.send(peer.data_at(0, b"old")));
    assert_eq!(ack.ack, peer.seq);
    assert_eq!(rig.stat("PAWSEstab"), 1);
    assert_eq!(rig.sock(peer.flow).received, b"new");
    peer.ts.as_mut().unwrap().0 = 2001;
    rig.send(peer.data(b"er"));
    assert_eq!(rig.sock(peer.flow).received, b"newer");
    rig.send(peer.rst());
    rig.assert_empty();
}

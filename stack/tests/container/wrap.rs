//! Sequence numbers wrap: 2^31 and 2^32 in the middle of a stream, in both directions.

use crate::peer::{Hello, Peer, bytes};
use crate::rig::{Rig, Setup, one};
use crate::wire::{FIN, Seg};

/// A rig with a first flow whose initial sequence number is shortly before `at`.
fn rig_before(at: u32) -> Rig {
    for low in 0.. {
        let mut rig = Rig::with(Setup { secret: [low, 3], ..Setup::default() });
        rig.send(Hello::default().syn(40_000, 80));
        let flow = rig.host.connects[0];
        let syn_ack = one(rig.ready(flow, false, true));
        if at.wrapping_sub(syn_ack.seq) < 400_000 {
            return Rig::with(Setup { secret: [low, 3], ..Setup::default() });
        }
    }
    unreachable!("the secret decides")
}

#[test]
fn a_stream_to_the_guest_crosses_the_middle_and_the_end() {
    for at in [1 << 31, 0] {
        let mut rig = rig_before(at);
        let mut peer = Peer::open(&mut rig);
        let start = peer.ack;
        assert!(at.wrapping_sub(start) < 400_000);
        let data = bytes(1 << 20);
        let mut out = rig.host_sends(peer.flow, &data);
        let mut heard = Vec::new();
        let mut lost = false;
        while !out.is_empty() || heard.len() < data.len() {
            // The segment at the wrap is lost, and the later ones arrive.
            let at_edge = |s: &Seg| at.wrapping_sub(s.seq) < s.data.len() as u32;
            if let Some(i) = out.iter().position(at_edge).filter(|_| !lost) {
                lost = true;
                heard.extend(peer.receive(&out[..i]));
                out.drain(..=i);
                for _ in 0..4 {
                    out.extend(rig.send(peer.pure_ack()));
                }
            }
            out.sort_by_key(|s| s.seq.wrapping_sub(start));
            heard.extend(peer.receive(&out));
            out = rig.send(peer.pure_ack());
            if out.is_empty() && heard.len() < data.len() {
                out = rig.pass_segs(2000).into_iter().map(|(_, s)| s).collect();
            }
        }
        assert!(heard == data && lost);
        let fin = one(rig.host_ends(peer.flow));
        assert!(fin.flags & FIN != 0);
        rig.send(peer.rst());
        rig.assert_empty();
    }
}

#[test]
fn a_stream_to_the_host_crosses_the_middle_and_the_end() {
    for at in [1u32 << 31, 0] {
        for before in [1, 2, 1000, 100_000] {
            let mut rig = Rig::new();
            let hello = Hello { seq: at.wrapping_sub(before), ..Hello::default() };
            let mut peer = Peer::open_with(&mut rig, 40_000, &hello);
            let data = bytes(300_000);
            let mut from = 0;
            while from < data.len() {
                let n = peer.window().min(2920).min(data.len() - from);
                let half = n / 2;
                // The second half first.
                let late = peer.data_at(half as i32, &data[from + half..from + n]);
                let sack = one(rig.send(late)).sack;
                let first = peer.seq.wrapping_add(half as u32);
                assert_eq!(sack, [(first, peer.seq.wrapping_add(n as u32))]);
                let out = rig.send(peer.data_at(0, &data[from..from + half]));
                peer.seq = peer.seq.wrapping_add(n as u32);
                assert_eq!(out.last().unwrap().ack, peer.seq);
                peer.receive(&out);
                from += n;
            }
            assert!(rig.sock(peer.flow).received == data);
            rig.send(peer.fin());
            assert_eq!(rig.state(peer.flow), "CLOSE-WAIT");
            rig.send(peer.rst());
            rig.assert_empty();
        }
    }
}

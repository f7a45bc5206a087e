//! Guest windows that are closed, small or shrinking.

use crate::peer::{Hello, Peer, bytes, end};
use crate::rig::{Rig, one};
use crate::wire::{ACK, FIN, Seg};

/// A flow with a closed guest window and `n` bytes queued for it.
fn closed(n: usize) -> (Rig, Peer) {
    let mut rig = Rig::new();
    let mut peer = Peer::open(&mut rig);
    peer.wnd = 0;
    rig.send(peer.pure_ack());
    assert_eq!(rig.host_sends(peer.flow, &bytes(n)), []);
    (rig, peer)
}

#[test]
fn probes_start_again_after_the_window_was_open() {
    let (mut rig, mut peer) = closed(20_000);
    let first: Vec<u64> = rig.pass_segs(60_000).iter().map(|(at, _)| *at).collect();
    assert!(first.len() >= 5);
    // Open for a moment: the back-off of the probes must start again.
    peer.wnd = 20;
    let out = rig.send(peer.pure_ack());
    peer.receive(&out);
    peer.wnd = 0;
    rig.send(peer.pure_ack());
    let again: Vec<u64> = rig.pass_segs(2000).iter().map(|(at, _)| *at).collect();
    assert!(again[0] <= first[0] + 10, "not backed off: {again:?} after {first:?}");
    end(rig, &peer);
}

#[test]
fn a_fin_waits_behind_data_that_waits_for_the_window() {
    let (mut rig, mut peer) = closed(5000);
    assert_eq!(rig.host_ends(peer.flow), []);
    assert!(rig.pass_segs(10_000).iter().all(|(_, s)| s.data.is_empty() && s.flags & FIN == 0));
    peer.wnd = 512;
    let out = rig.send(peer.pure_ack());
    assert_eq!(peer.receive(&out), bytes(5000));
    assert!(out.last().unwrap().flags & FIN != 0);
    end(rig, &peer);
}

#[test]
fn a_fin_alone_needs_no_window() {
    let (mut rig, peer) = closed(0);
    let fin = one(rig.host_ends(peer.flow));
    assert!(fin.is(FIN | ACK) && fin.data.is_empty());
    end(rig, &peer);
}

#[test]
fn a_guest_that_answers_probes_with_data_stays_connected() {
    let (mut rig, mut peer) = closed(5000);
    assert!(!rig.pass_segs(3000).is_empty());
    one(rig.send(peer.data(b"still here")));
    assert_eq!(rig.sock(peer.flow).received, b"still here");
    peer.wnd = 512;
    let seg = peer.data(b"and open");
    let out = rig.send(seg);
    assert_eq!(peer.receive(&out), bytes(5000), "a window update on data counts");
    end(rig, &peer);
}

#[test]
fn a_window_that_moves_back_over_what_was_sent_is_no_loss() {
    let mut rig = Rig::new();
    let mut peer = Peer::open(&mut rig);
    let said = rig.host_sends(peer.flow, &bytes(14_600));
    peer.ack = said[4].seq;
    peer.wnd = 1;
    rig.send(peer.pure_ack());
    // RFC 9293 section 3.8.6: a shrunk window must be handled; nothing beyond it is retransmitted.
    let edge = peer.ack + 128;
    let again: Vec<Seg> = rig.pass_segs(2000).into_iter().map(|(_, s)| s).collect();
    let within = |s: &Seg| s.seq + (s.data.len() as u32) <= edge || s.seq == said[9].seq;
    assert!(!again.is_empty() && again.iter().all(within), "{again:?}");
    let mut heard = peer.receive(&again);
    peer.wnd = 512;
    let mut out = rig.send(peer.pure_ack());
    for _ in 0..20 {
        heard.extend(peer.receive(&out));
        out = rig.send(peer.pure_ack());
        out.extend(rig.pass_segs(20).into_iter().map(|(_, s)| s));
    }
    assert_eq!(heard.len(), 14_600 - 4 * 1460);
    end(rig, &peer);
}

#[test]
fn an_old_segment_does_not_close_the_window() {
    let mut rig = Rig::new();
    let mut peer = Peer::open(&mut rig);
    let old = Seg { wnd: 0, ..peer.data_at(0, b"first") };
    rig.send(peer.data(b"first"));
    rig.send(peer.data(b"second"));
    // RFC 9293 section 3.10.7.4: SND.WL1 keeps the order of updates.
    rig.send(old);
    assert_eq!(rig.host_sends(peer.flow, b"open").len(), 1);
    end(rig, &peer);
}

#[test]
fn the_window_of_a_syn_is_not_scaled() {
    let mut rig = Rig::new();
    let hello = Hello { wnd: 1000, wscale: Some(10), ..Hello::default() };
    let syn = hello.syn(40_000, 80);
    rig.send(syn.clone());
    let flow = rig.host.connects[0];
    let syn_ack = one(rig.ready(flow, false, true));
    let mut peer = Peer::answering(flow, &syn, &syn_ack);
    assert_eq!(rig.flow(flow).unwrap().snd_wnd, 1000, "RFC 7323 section 2.2");
    peer.wnd = 3;
    rig.send(peer.pure_ack());
    assert_eq!(rig.flow(flow).unwrap().snd_wnd, 3 << 10);
    end(rig, &peer);
}

#[test]
fn a_scale_beyond_fourteen_is_fourteen() {
    let mut rig = Rig::new();
    let hello = Hello { wscale: Some(200), ..Hello::default() };
    let mut peer = Peer::open_with(&mut rig, 40_000, &hello);
    peer.wnd = 2;
    rig.send(peer.pure_ack());
    assert_eq!(rig.flow(peer.flow).unwrap().snd_wnd, 2 << 14, "RFC 7323 section 2.3");
    end(rig, &peer);
}

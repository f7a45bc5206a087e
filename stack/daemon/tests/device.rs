//! The device alone against the kernel of a namespace, without a stack.

use std::fs::File;
use std::io::{ErrorKind, IoSlice, Read, Write};
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use skbudget::attach::{self, GuestNet};
use skbudget_stack::tap::{SCRATCH_BYTES, Tap, is_gone};
use skbudget_stack::{Device, VnetHdr};

const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 100);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
const OUR_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

fn device(offload: bool) -> (OwnedFd, Tap) {
    let (gateway, gateway_mac) = (GATEWAY, OUR_MAC);
    let guest = GuestNet {
        ip: GUEST,
        gateway,
        gateway_mac,
        mac: None,
        prefix_len: 24,
        ipv6: None,
        mtu: 1500,
        txqueuelen: 8,
        offload,
    };
    let netns = attach::create_netns().unwrap();
    let tap = attach::tap_into(netns.as_fd(), &guest).unwrap();
    (netns, tap)
}

/// The next frame with this start after its two addresses. Other frames, which the kernel sends by itself, are skipped.
fn frame_like(tap: &mut Tap, start: &[u8]) -> Vec<u8> {
    let mut scratch = vec![0; SCRATCH_BYTES];
    loop {
        match tap.recv(&mut scratch) {
            Ok((_, range)) if scratch[range.clone()][12..].starts_with(start) => {
                return scratch[range].to_vec();
            }
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            Err(e) => panic!("{e}"),
        }
    }
}

/// Answers an ARP request for any address with the device's own hardware address.
fn answer_arp(tap: &mut Tap, request: &[u8]) {
    let header = [&request[6..12], &OUR_MAC, &[8, 6]].concat();
    let start = [0, 1, 8, 0, 6, 4, 0, 2];
    let parts = [
        IoSlice::new(&header),
        IoSlice::new(&start),
        IoSlice::new(&OUR_MAC),
        IoSlice::new(&request[38..42]),
        IoSlice::new(&request[22..32]),
    ];
    assert!(tap.send(&VnetHdr::default(), &parts));
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn frames_both_ways_with_and_without_header() {
    for offload in [true, false] {
        let (netns, mut tap) = device(offload);
        let said = attach::run_in(netns.as_fd(), || {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.send_to(b"outward", (GATEWAY, 9)).unwrap();
            socket.send_to(b"outward", (NEIGHBOUR, 9)).unwrap();
            socket
        });
        let known = frame_like(&mut tap, &[8, 0, 0x45]);
        assert!(known.starts_with(&OUR_MAC) && known.ends_with(b"outward"));
        let request = frame_like(&mut tap, &[8, 6]);
        answer_arp(&mut tap, &request);
        let datagram = frame_like(&mut tap, &[8, 0, 0x45]);
        assert_eq!(&datagram[..6], OUR_MAC, "the answer was understood");
        assert!(datagram.ends_with(b"outward"));
        drop(said);
        assert_eq!(tap.counters(), Default::default());
    }
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn a_descriptor_handed_in_is_recognised() {
    for offload in [true, false] {
        let (_netns, tap) = device(offload);
        let dup = tap.as_fd().try_clone_to_owned().unwrap();
        assert_eq!(Tap::from_fd(dup).unwrap().offload(), offload);
    }
    let null = File::open("/dev/null").unwrap();
    assert!(Tap::from_fd(null.into()).is_err());
}

#[test]
fn one_end_of_a_packet_socket_is_a_device_until_the_other_is_closed() {
    let flags = SockFlag::SOCK_CLOEXEC;
    let (near, far) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap();
    let mut tap = Tap::from_fd(near).unwrap();
    assert!(!tap.offload());
    let mut scratch = vec![0; SCRATCH_BYTES];
    assert_eq!(tap.recv(&mut scratch).unwrap_err().kind(), ErrorKind::WouldBlock);
    let far = File::from(far);
    (&far).write_all(b"one").unwrap();
    (&far).write_all(b"another").unwrap();
    for frame in [&b"one"[..], b"another"] {
        let (vnet, range) = tap.recv(&mut scratch).unwrap();
        assert_eq!((vnet, &scratch[range]), (VnetHdr::default(), frame));
    }
    assert!(tap.send(&VnetHdr::default(), &[IoSlice::new(b"in "), IoSlice::new(b"parts")]));
    let mut heard = [0; 100];
    assert_eq!((&far).read(&mut heard).unwrap(), 8);
    assert!(heard.starts_with(b"in parts"));
    drop(far);
    assert!(is_gone(&tap.recv(&mut scratch).unwrap_err()));
    assert!(tap.gone());
    // A stream socket carries no frames.
    let (stream, _other) = socketpair(AddressFamily::Unix, SockType::Stream, None, flags).unwrap();
    assert!(Tap::from_fd(stream).is_err());
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn a_frame_the_kernel_refuses_is_counted_and_many_parts_are_one_frame() {
    let (_netns, mut tap) = device(true);
    // The checksum is to be written beyond the end of the frame.
    let vnet = VnetHdr { flags: 1, csum_start: 9000, csum_offset: 16, ..VnetHdr::default() };
    assert!(tap.send(&vnet, &[IoSlice::new(&[0; 60])]), "reported as sent");
    assert_eq!(tap.counters().refused, 1);
    let bytes = [0; 200];
    let parts: Vec<_> = bytes.chunks(1).map(IoSlice::new).collect();
    assert!(tap.send(&VnetHdr::default(), &parts));
    assert_eq!(tap.counters().refused, 1);
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn the_end_of_the_namespace_is_seen() {
    let (netns, mut tap) = device(true);
    drop(netns);
    let mut scratch = vec![0; SCRATCH_BYTES];
    // The kernel removes a namespace asynchronously.
    let error = loop {
        match tap.recv(&mut scratch) {
            Err(e) if e.kind() != ErrorKind::WouldBlock => break e,
            _ => std::thread::sleep(std::time::Duration::from_millis(1)),
        }
    };
    assert!(is_gone(&error), "{error}");
    assert!(tap.gone());
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn names_that_are_none() {
    for name in ["a-name-that-is-too-long", "a/b"] {
        for offload in [true, false] {
            assert_eq!(Tap::open(name, offload).unwrap_err().kind(), ErrorKind::InvalidInput);
        }
    }
}

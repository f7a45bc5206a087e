//! The servers by themselves: leases, and messages that are no requests.

use std::net::Ipv6Addr;

use skbudget_seed::{Rng, each_seed};

use super::*;
use crate::config::ContainerConfig;

const CLIENT: [u8; 6] = [2, 0, 0, 0, 0, 1];
const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 2];

fn at(seconds: u64) -> Instant {
    Instant::from_millis(seconds * 1000)
}

#[test]
fn a_lease_has_one_holder_until_it_ends_or_is_released() {
    let mut lease = Lease::default();
    assert!(lease.is_free_for(CLIENT, at(0)) && lease.is_free_for(OTHER, at(0)));
    lease.grant(CLIENT, at(0));
    assert!(lease.is_free_for(CLIENT, at(1)) && !lease.is_free_for(OTHER, at(3599)));
    assert!(lease.is_free_for(OTHER, at(3600)), "expired");
    // Renewed.
    lease.grant(CLIENT, at(1800));
    assert!(!lease.is_free_for(OTHER, at(3600)));
    assert!(!lease.release(OTHER), "of another client");
    assert!(lease.release(CLIENT) && lease.is_free_for(OTHER, at(1801)));
    assert!(!lease.release(CLIENT), "twice");
}

#[test]
fn times_are_in_their_order() {
    assert_eq!((seconds(1, 2), seconds(7, 8), seconds(1, 1)), (1800, 3150, 3600));
}

/// Random messages, and random changes of a valid one: an answer has bounded length, and none panics.
#[test]
fn no_message_makes_a_long_answer() {
    let mut config = ContainerConfig::new(1500, true, None, [1, 2]);
    config.host_name = Some("n".repeat(64));
    config.search = vec!["a".repeat(63); 30];
    let link_local = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
    each_seed!(0..50, |seed| {
        let mut rng = Rng::new(seed);
        let mut leases = Leases::default();
        for _ in 0..200 {
            let len = rng.below(600) as usize;
            let mut message: Vec<u8> = (0..len).map(|_| rng.next_u64() as u8).collect();
            if rng.below(4) > 0 && len > 250 {
                message[..4].copy_from_slice(&[1, 1, 6, 0]);
                message[24..28].fill(0);
                message[28] = 2;
                message[236..243].copy_from_slice(&[0x63, 0x82, 0x53, 0x63, 53, 1, 1]);
                message[242] = rng.below(9) as u8;
            }
            if let Ok(reply) = answer_v4(&config, &mut leases, &message, at(1)) {
                assert!((300..=548).contains(&reply.bytes.len()), "{}", reply.bytes.len());
                assert!(reply.bytes.contains(&255));
            }
            let mut message = vec![rng.below(13) as u8, 1, 2, 3];
            for _ in 0..rng.below(12) {
                let len = rng.below(60) as usize;
                message.extend([0, [1, 3, 4, 25, 14][rng.below(5) as usize], 0, len as u8]);
                message.extend((0..len).map(|_| rng.next_u64() as u8));
            }
            let client = (link_local, CLIENT);
            if let Ok(reply) = answer_v6(&config, &mut leases, client, &message, at(1)) {
                assert!(reply.bytes.len() <= 1200, "{}", reply.bytes.len());
            }
        }
    });
}

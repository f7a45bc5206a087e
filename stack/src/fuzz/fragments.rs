//! Fragments of a few datagrams, in any order and with any holes. Each byte is a function of its datagram and its
//! position, so every reassembled datagram can be checked.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use skbudget_controller::{Budget, BudgetConfig, Instant, Limits, MemberId, Rules, SockLimits};

use super::script::Script;
use crate::queue::MemberCtx;
use crate::wire::addresses::Addrs;
use crate::wire::reassembly::{Fragment, Key, Outcome, Reassembly};

/// The byte at a position of a datagram.
fn byte(id: u32, at: u32) -> u8 {
    (at.wrapping_mul(0x9e37_79b1).wrapping_add(id.wrapping_mul(0x85eb_ca6b)) >> 24) as u8
}

#[derive(Debug)]
pub(super) struct Fragments {
    budget: Budget,
    member: MemberId,
    hard: u64,
    now: Instant,
    reassembly: Reassembly,
}

impl Fragments {
    pub(super) fn new(script: &mut Script<'_>) -> Self {
        let hard = script.pick(&[8 << 20, 32 << 10, 128 << 10, 1 << 20]);
        let limits = Limits::from_bytes(hard, None, None).expect("limits in order");
        let (rules, sock) = (Rules::Strict, SockLimits::default());
        let config = BudgetConfig { rules, limits, sock, min_bytes: 0, weight: 100 };
        let mut budget = Budget::new(config, None).expect("a budget");
        let member = budget.add_member(0).expect("room for nothing");
        Self {
            budget,
            member,
            hard,
            now: Instant::from_millis(1000),
            reassembly: Reassembly::default(),
        }
    }

    /// Sends one fragment, or lets time pass and checks what expires.
    pub(super) fn step(&mut self, script: &mut Script<'_>) {
        let mut mem = MemberCtx { budget: &mut self.budget, member: self.member, now: self.now };
        let what = script.u8();
        if what == 255 {
            self.now = self.now + Duration::from_secs(script.u8().into());
            mem.now = self.now;
            while let Some(expired) = self.reassembly.expire(&mut mem) {
                for (at, found) in expired.begin.iter().enumerate() {
                    assert_eq!(*found, byte(expired.key.id, at as u32), "byte {at}");
                }
            }
            let due = self.reassembly.deadline();
            assert!(due.is_none_or(|at| at > self.now), "an entry that outlived its time");
        } else {
            self.fragment(what, script);
        }
        let meter = self.budget.meter_stats(self.now);
        assert!(meter.max_usage_bytes <= self.hard, "{meter:?}");
    }

    fn fragment(&mut self, what: u8, script: &mut Script<'_>) {
        // Many ids fill the table of datagrams; few ids collect many fragments in each.
        let id = u32::from(if what & 1 == 0 { what >> 6 } else { script.u8() });
        let unit = script.pick(&[8, 1280, 64, 1480]);
        let offset = u32::from(script.u16() % 8192) % script.pick(&[8192, 16, 64]) * 8;
        // Half of the fragments are aligned, so that whole datagrams occur.
        let offset = if what & 2 == 0 { offset } else { offset / unit * unit };
        let odd = unit - u32::from(script.u8() & 7);
        let len = script.pick(&[unit, 8, unit, odd]);
        let payload: Vec<u8> = (0..len).map(|i| byte(id, offset.wrapping_add(i))).collect();
        let addrs = if what & 4 == 0 {
            Addrs::V4 { src: Ipv4Addr::new(10, 0, 2, 100), dst: Ipv4Addr::new(10, 0, 2, 2) }
        } else {
            Addrs::V6 { src: Ipv6Addr::LOCALHOST, dst: Ipv6Addr::LOCALHOST }
        };
        let next = script.pick(&[17, 6, 1]);
        let key = Key { addrs, id, protocol: if what & 4 == 0 { next } else { 0 } };
        let more = what & 8 == 0;
        let ecn = what >> 4 & 3;
        let fragment = Fragment { key, next, offset, more, ecn, payload: &payload };
        let mut mem = MemberCtx { budget: &mut self.budget, member: self.member, now: self.now };
        if let Outcome::Whole(datagram) = self.reassembly.on_fragment(&fragment, &mut mem) {
            assert_eq!(datagram.addrs, addrs);
            assert!(datagram.payload.len() <= 65_535);
            for (at, found) in datagram.payload.iter().enumerate() {
                assert_eq!(*found, byte(id, at as u32), "byte {at}");
            }
        }
    }

    pub(super) fn end(mut self) {
        let mut mem = MemberCtx { budget: &mut self.budget, member: self.member, now: self.now };
        self.reassembly.clear(&mut mem);
        assert_eq!(self.reassembly.deadline(), None);
        self.budget.remove_member(self.member, self.now);
        assert_eq!(self.budget.meter_stats(self.now).usage_bytes, 0);
    }
}

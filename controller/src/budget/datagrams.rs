//! Charges of UDP datagrams and of IP fragments (M4).

use super::{Budget, Rules};
use crate::ledger::MemberId;
use crate::level::SoftTest;
use crate::units::Instant;

impl Budget {
    /// Charges UDP datagrams; returns whether it was granted. They and fragments hold at most hard/8
    /// together (M4). Linux rules: the same bound, recorded, not charged.
    pub fn charge_udp(&mut self, member: MemberId, bytes: u64, now: Instant) -> bool {
        let granted = self.charge_datagrams(member, bytes, now);
        self.member_mut(member).udp += if granted { bytes } else { 0 };
        granted
    }

    /// Uncharges UDP datagrams.
    pub fn uncharge_udp(&mut self, member: MemberId, bytes: u64, now: Instant) {
        self.member_mut(member).udp -= bytes;
        self.uncharge_datagrams(member, bytes, now);
    }

    /// As [`Self::charge_udp`], for the fragments of incomplete IP datagrams.
    pub fn charge_frag(&mut self, member: MemberId, bytes: u64, now: Instant) -> bool {
        let granted = self.charge_datagrams(member, bytes, now);
        self.member_mut(member).frag += if granted { bytes } else { 0 };
        granted
    }

    /// Uncharges fragments.
    pub fn uncharge_frag(&mut self, member: MemberId, bytes: u64, now: Instant) {
        self.member_mut(member).frag -= bytes;
        self.uncharge_datagrams(member, bytes, now);
    }

    fn charge_datagrams(&mut self, member: MemberId, bytes: u64, now: Instant) -> bool {
        self.at(now);
        let datagrams = self.meter.datagrams.saturating_add(bytes);
        if datagrams > self.meter.limits.hard_bytes() / 8 {
            return false;
        }
        if self.rules == Rules::Strict {
            // Datagrams have no flow control: they must not take room held for waiting flows (H1).
            if bytes > self.meter.growth_room() {
                return false;
            }
            if let Err(refusal) = self.charge_elastic(bytes) {
                self.note_refusal(member, refusal);
                return false;
            }
            self.member_mut(member).bytes += bytes;
            self.soft_test(member);
        }
        self.meter.datagrams = datagrams;
        true
    }

    fn uncharge_datagrams(&mut self, member: MemberId, bytes: u64, now: Instant) {
        self.at(now);
        self.meter.datagrams -= bytes;
        if self.rules == Rules::Strict {
            self.member_mut(member).bytes -= bytes;
            self.uncharge(bytes, SoftTest::Now);
            self.soft_test(member);
        }
    }
}

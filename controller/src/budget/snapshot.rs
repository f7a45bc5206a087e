//! What a budget reports: categories, meters, pressure.

use super::{Budget, Member, Rules};
use crate::event::COUNTERS;
use crate::ledger::MemberId;
use crate::units::{CHUNK_SIZE, Instant, PAGE_SIZE};

/// Pressure as stats report it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pressure {
    /// Below soft.
    None,
    /// The soft flag is set.
    Soft,
    /// The last charge was refused by a hard counter.
    Hard,
}

/// Bytes by category. Strict: they sum to the member's part of `usage` before rounding to pages.
/// Linux rules: `rmem`, `ofo`, `wmem` and `fwd` do; the other categories are recorded and not
/// charged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MemberStats {
    /// In order.
    pub rmem: u64,
    /// Out of order.
    pub ofo: u64,
    /// Open window, charged and not yet filled (strict), including its part within `rmem_min`.
    pub credit: u64,
    /// Unsent and unacknowledged.
    pub wmem: u64,
    /// forward_alloc (linux rules).
    pub fwd: u64,
    /// Unused rmem_min / wmem_min of admitted flows (strict).
    pub reserve: u64,
    /// UDP datagrams.
    pub udp: u64,
    /// Fragments of incomplete IP datagrams.
    pub frag: u64,
    /// Flow objects, TIME-WAIT entries, the list of waiting SYNs.
    pub sock: u64,
    /// Caps of host sockets, `listen` included.
    pub host: u64,
    /// Part of `host`: what the backlogs of published ports may hold.
    pub listen: u64,
    /// Device queue.
    pub dev: u64,
    /// Admitted flows, half-open ones included. A count, not bytes.
    pub flows: u64,
    /// One value per [`crate::Counter`], in its order.
    pub counters: [u64; COUNTERS],
}

/// The meter of the whole budget. Bytes; `None` means no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MeterStats {
    /// As set.
    pub low_bytes: Option<u64>,
    /// As set.
    pub soft_bytes: Option<u64>,
    /// As set.
    pub hard_bytes: Option<u64>,
    /// `max(hard, usage)`: above `hard` after `hard` was lowered below usage.
    pub hard_effective_bytes: Option<u64>,
    /// Guarantee.
    pub min_bytes: u64,
    /// Charged, in whole pages.
    pub usage_bytes: u64,
    /// The most ever charged.
    pub max_usage_bytes: u64,
    /// At this moment.
    pub pressure: Pressure,
    /// Time in the soft flag, the current episode included.
    pub pressure_ns: u64,
    /// Charges refused by this budget's own hard limit.
    pub failcnt: u64,
}

impl Budget {
    /// What one member holds, by category; zero for an unknown member.
    pub fn member_stats(&self, member: MemberId) -> MemberStats {
        let Some(Some(found)) = self.members.get(usize::from(member.0)) else {
            return MemberStats::default();
        };
        let &Member {
            bytes,
            rmem,
            ofo,
            credit,
            wmem,
            fwd,
            sock,
            compact,
            host,
            listen,
            udp,
            frag,
            dev,
            hold: _,
            flows,
            counters,
        } = found;
        let queues = (rmem + ofo + credit + wmem) * CHUNK_SIZE;
        // The part of the charge that no category shows: reserves that queues do not use.
        let reserve = match self.rules {
            Rules::Strict => bytes - queues - sock - compact - host - udp - frag - dev,
            Rules::Linux => 0,
        };
        MemberStats {
            rmem: rmem * CHUNK_SIZE,
            ofo: ofo * CHUNK_SIZE,
            credit: credit * CHUNK_SIZE,
            wmem: wmem * CHUNK_SIZE,
            fwd,
            reserve,
            udp,
            frag,
            sock: sock + compact,
            host,
            listen,
            dev,
            flows,
            counters,
        }
    }

    /// The meter of the whole budget at `now`.
    pub fn meter_stats(&self, now: Instant) -> MeterStats {
        let now = now.max(self.now);
        let limits = self.meter.limits;
        let usage = self.usage();
        let (flag, since, past_ns) = match self.rules {
            Rules::Strict => (self.meter.flag, self.meter.since, self.meter.pressure_ns),
            Rules::Linux => (self.pool.flag, self.pool.since, self.pool.chrono_ns),
        };
        // A refusal by hard counts more than the soft flag.
        let pressure = match (self.meter.refused, flag) {
            (true, _) => Pressure::Hard,
            (false, true) => Pressure::Soft,
            (false, false) => Pressure::None,
        };
        let current_ns = if flag { now.0.saturating_sub(since.0) } else { 0 };
        MeterStats {
            low_bytes: bytes(limits.low),
            soft_bytes: bytes(limits.soft),
            hard_bytes: bytes(limits.hard),
            hard_effective_bytes: bytes(limits.hard.max(usage)),
            min_bytes: self.meter.min * PAGE_SIZE,
            usage_bytes: usage * PAGE_SIZE,
            max_usage_bytes: self.meter.watermark * PAGE_SIZE,
            pressure,
            pressure_ns: past_ns + current_ns,
            failcnt: self.meter.failcnt,
        }
    }
}

/// Pages to bytes; `u64::MAX` pages means no limit.
fn bytes(pages: u64) -> Option<u64> {
    (pages != u64::MAX).then(|| pages.saturating_mul(PAGE_SIZE))
}

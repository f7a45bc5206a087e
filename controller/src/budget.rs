//! A budget: one domain (one container, or one pool that several share), with its rules, its limits
//! and the chain of levels above it.

mod datagrams;
mod flow;
mod kernel;
mod live;
mod snapshot;
mod strict;
mod transfer;
mod waiting;

use alloc::sync::Arc;
use alloc::vec::Vec;

pub use snapshot::{MemberStats, MeterStats, Pressure};
pub use transfer::transfer;

use crate::event::{COUNTERS, Counter, Event, EventQueue};
use crate::ledger::MemberId;
use crate::level::{DEPTH_MAX, Level, Reservations, SoftTest};
use crate::limits::{LimitError, Limits, SockLimits};
use crate::linux::{Chain, Pool};
use crate::meter::{Meter, Refusal};
use crate::share::Child;
use crate::units::Instant;
use crate::wait::WaitList;

/// Which rule set decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rules {
    /// Usage never exceeds hard, a guarantee is a reservation, a window is charged before it is
    /// advertised.
    Strict,
    /// The kernel's ladder with its bypasses.
    Linux,
}

/// Configuration of a [`Budget`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BudgetConfig {
    /// Which rule set decides.
    pub rules: Rules,
    /// Thresholds, pages.
    pub limits: Limits,
    /// Minimum, initial value and maximum of one flow's buffers, bytes.
    pub sock: SockLimits,
    /// Guarantee, bytes, charged to every level above when the budget is created. Rounded up to
    /// pages.
    pub min_bytes: u64,
    /// Share among its siblings while a level above is under pressure.
    pub weight: u32,
}

/// One domain: its meter, its members, its waiting flows and its events.
#[derive(Debug)]
pub struct Budget {
    rules: Rules,
    sock: SockLimits,
    meter: Meter,
    pool: Pool,
    /// The levels above, and the flag that the last charge left there (linux rules).
    chain: Chain,
    members: Vec<Option<Member>>,
    vacant: Vec<u16>,
    waiters: WaitList,
    /// Counts the releases, and every other change that may let a waiter proceed.
    releases: u64,
    /// `releases` at the last refusal.
    refused_at: u64,
    /// Speculative wake-ups since `poll_wake` last returned `None`: waiters refused for a reason
    /// other than room, retried because something was released.
    speculative_wakes: u32,
    events: EventQueue,
    now: Instant,
}

/// One container's part of the budget. Queues in chunks, everything from `sock` to `hold` in bytes.
#[derive(Debug, Default)]
struct Member {
    /// Strict: everything charged for this member.
    bytes: u64,
    rmem: u64,
    ofo: u64,
    credit: u64,
    wmem: u64,
    /// Linux rules: `forward_alloc` of all flows.
    fwd: u64,
    sock: u64,
    compact: u64,
    host: u64,
    /// Part of `host`: connections that published ports hold before they are accepted.
    listen: u64,
    udp: u64,
    frag: u64,
    dev: u64,
    /// Bytes that its waiting flows are going to reserve.
    hold: u64,
    flows: u64,
    counters: [u64; COUNTERS],
}

impl Budget {
    /// An empty budget below `parent`. Charges `min_bytes` to the chain.
    ///
    /// # Errors
    /// `Disorder` for limits out of order, `ZeroWeight`, `TooDeep` below more than three levels,
    /// `MinAboveHard`, and `MinDoesNotFit` when a level above has no room for `min_bytes`.
    pub fn new(config: BudgetConfig, parent: Option<Arc<Level>>) -> Result<Self, LimitError> {
        let BudgetConfig { rules, limits, sock, min_bytes, weight } = config;
        let limits = Limits::new(limits.low, limits.soft, limits.hard)?;
        if weight == 0 {
            return Err(LimitError::ZeroWeight);
        }
        // A level's depth counts the level itself.
        if parent.as_ref().is_some_and(|p| p.depth() > DEPTH_MAX) {
            return Err(LimitError::TooDeep);
        }
        let mut budget = Self {
            rules,
            sock,
            meter: Meter::new(limits, 0, weight),
            pool: Pool::new(limits.low, limits.soft, limits.hard),
            chain: Chain { leaf: parent, flag: false },
            members: Vec::new(),
            vacant: Vec::new(),
            waiters: WaitList::new(),
            releases: 0,
            refused_at: 0,
            speculative_wakes: 0,
            events: EventQueue::new(),
            now: Instant(0),
        };
        // Before the charge of `min`: `drop` undoes it when that is refused.
        if let Some(level) = &budget.chain.leaf {
            level.join(weight, limits.hard);
        }
        budget.set_min(min_bytes, Instant(0))?;
        Ok(budget)
    }

    /// The rule set.
    pub fn rules(&self) -> Rules {
        self.rules
    }

    /// Minimum, initial value and maximum of one flow's buffers.
    pub fn sock_limits(&self) -> &SockLimits {
        &self.sock
    }

    /// Thresholds as set.
    pub fn limits(&self) -> Limits {
        self.meter.limits
    }

    /// This budget as the level above counts it for the fair share: usage plus an eighth. A child
    /// below its share thus has room to grow, at the cost of children above theirs, until the
    /// shares are computed again. Computed from usage alone, a level that holds exactly its soft
    /// threshold would never publish a bound.
    pub fn as_child(&self) -> Child {
        let usage = self.usage();
        let usage = usage.saturating_add(usage / 8);
        Child { usage, min: self.meter.min, weight: self.meter.weight }
    }

    /// The nearest level above.
    pub fn parent(&self) -> Option<&Arc<Level>> {
        self.chain.leaf.as_ref()
    }

    // ---- members ----

    /// Adds a container: its device queue is charged at once (`dev`). Linux rules: recorded, not
    /// charged.
    ///
    /// # Errors
    /// A refused charge of `dev_bytes`; `Hard` also when 65,536 members exist.
    pub fn add_member(&mut self, dev_bytes: u64) -> Result<MemberId, Refusal> {
        if self.vacant.is_empty() && self.members.len() > usize::from(u16::MAX) {
            return Err(Refusal::Hard);
        }
        let mut member = Member { dev: dev_bytes, ..Member::default() };
        if self.rules == Rules::Strict {
            // Charge first: on a refusal nothing has changed yet.
            self.charge_fixed(dev_bytes)?;
            member.bytes = dev_bytes;
            self.meter.fixed += dev_bytes;
        }
        // Reuse the index of a removed container: indices have 16 bits.
        let id = if let Some(id) = self.vacant.pop() {
            self.members[usize::from(id)] = Some(member);
            id
        } else {
            self.members.push(Some(member));
            (self.members.len() - 1) as u16
        };
        self.update_thresholds(MemberId(id));
        Ok(MemberId(id))
    }

    /// Ports are published for a container: the memory that their backlogs may hold is charged at
    /// once, as `host`, and uncharged by `remove_member`. Linux rules: recorded, not charged.
    ///
    /// # Errors
    /// A refused charge; nothing changes then.
    pub fn charge_listen(
        &mut self,
        member: MemberId,
        bytes: u64,
        now: Instant,
    ) -> Result<(), Refusal> {
        self.at(now);
        if self.rules == Rules::Strict {
            if let Err(refusal) = self.charge_fixed(bytes) {
                return Err(self.note_refusal(member, refusal));
            }
            self.meter.fixed += bytes;
            self.member_mut(member).bytes += bytes;
            self.update_thresholds(member);
        }
        let member = self.member_mut(member);
        member.host += bytes;
        member.listen += bytes;
        Ok(())
    }

    /// Ports are closed: uncharges what [`Self::charge_listen`] charged for them.
    pub fn uncharge_listen(&mut self, member: MemberId, bytes: u64, now: Instant) {
        self.at(now);
        debug_assert!(self.member_mut(member).listen >= bytes, "more than was charged");
        if self.rules == Rules::Strict {
            self.meter.fixed -= bytes;
            self.member_mut(member).bytes -= bytes;
            self.uncharge(bytes, SoftTest::Later);
            self.update_thresholds(member);
        }
        let member = self.member_mut(member);
        member.host -= bytes;
        member.listen -= bytes;
    }

    /// Removes a container after all its flows were released. Uncharges `dev`, `listen`, compact
    /// entries, UDP and fragments.
    pub fn remove_member(&mut self, member: MemberId, now: Instant) {
        self.at(now);
        let Some(gone) = self.members[usize::from(member.0)].take() else {
            debug_assert!(false, "no such member");
            return;
        };
        debug_assert!(gone.flows == 0, "a container left with live flows");
        self.vacant.push(member.0);
        self.meter.datagrams -= gone.udp + gone.frag;
        // Room held for its waiting SYNs is free again.
        self.meter.hold -= gone.hold;
        if self.rules == Rules::Strict {
            self.meter.fixed -= gone.dev + gone.listen + gone.compact;
            let bytes = gone.dev + gone.listen + gone.compact + gone.udp + gone.frag;
            self.uncharge(bytes, SoftTest::Later);
            self.update_thresholds(member);
        }
    }

    /// Adds `by` to a counter of the member; the stack counts only here. `AdmissionDenied` also
    /// makes an event.
    pub fn count(&mut self, member: MemberId, counter: Counter, by: u64) {
        if let Some(Some(member)) = self.members.get_mut(usize::from(member.0)) {
            member.counters[counter as usize] += by;
        }
        if counter == Counter::AdmissionDenied {
            self.emit(member, Event::AdmissionDenied { member, at: self.now });
        }
    }

    /// The oldest event not yet polled.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop()
    }

    // ---- internals ----

    fn at(&mut self, now: Instant) {
        // Time never runs backwards, whatever a caller passes.
        self.now = self.now.max(now);
    }

    /// Pages charged to the levels above.
    fn charged_up(&self) -> u64 {
        match self.rules {
            Rules::Strict => self.meter.charged_up(self.meter.usage),
            Rules::Linux => self.pool.alloc,
        }
    }

    fn usage(&self) -> u64 {
        match self.rules {
            Rules::Strict => self.meter.usage,
            Rules::Linux => self.pool.alloc,
        }
    }

    fn member_mut(&mut self, member: MemberId) -> &mut Member {
        self.members[usize::from(member.0)].as_mut().expect("a live member")
    }

    fn first_member(&self) -> MemberId {
        let at = self.members.iter().position(Option::is_some).unwrap_or(0);
        MemberId(at as u16)
    }

    fn emit(&mut self, member: MemberId, event: Event) {
        if !self.events.push(event) {
            self.count(member, Counter::EventsLost, 1);
        }
    }
}

impl Drop for Budget {
    /// Uncharges the levels above: a guarantee lasts as long as its budget.
    fn drop(&mut self) {
        if let Some(level) = self.chain.leaf.as_deref() {
            level.uncharge_below(self.charged_up(), None, SoftTest::Later);
            self.meter.move_reservations(Some(level), None, None, Reservations::default());
        }
    }
}

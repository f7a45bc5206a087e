//! The strict rules' meter of one budget: plain integers, owned by one worker.

use crate::level::{Level, Reservations, SoftTest};
use crate::limits::Limits;
use crate::share::ChildRequest;
use crate::units::{CHUNK_SIZE, Instant, PAGE_SIZE, pages, scale};

/// Why a charge was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The budget's own hard limit.
    Hard,
    /// The hard limit of a level above; 0 is the nearest level.
    Ancestor(u8),
    /// The fair share of the container, while a level above is under pressure.
    Share,
    /// The bound of half-open flows, hard/8 (H7).
    HalfOpen,
}

impl Refusal {
    /// Whether a hard counter refused, at any level.
    pub const fn is_hard(self) -> bool {
        matches!(self, Self::Hard | Self::Ancestor(_))
    }
}

/// Usage of one budget, its limits, and the sums for the soft test. Bytes unless stated otherwise.
#[derive(Debug)]
pub(crate) struct Meter {
    pub(crate) bytes: u64,
    /// `pages(bytes)`, rounded once for the whole budget (K8).
    pub(crate) usage: u64,
    pub(crate) limits: Limits,
    /// Guarantee, pages; charged to every level above, used or not (K4).
    pub(crate) min: u64,
    pub(crate) weight: u32,
    /// Reservations of flows, compact entries, device queues, listen backlogs.
    pub(crate) fixed: u64,
    /// Open windows of idle flows above their reserve; whole pages.
    pub(crate) idle: u64,
    /// Flows that hold something elastic and are not idle (H4).
    pub(crate) active: u64,
    /// `sock` bytes of half-open flows (H7).
    pub(crate) half_open: u64,
    /// UDP datagrams and fragments, bytes (M4).
    pub(crate) datagrams: u64,
    /// Bytes that flows waiting for admission are going to reserve (H1).
    pub(crate) hold: u64,
    /// Usage above which the flag is set, pages.
    enter_at: u64,
    /// Usage at or below which the flag is cleared, pages.
    leave_at: u64,
    /// E: the room that reservations leave, pages.
    room: u64,
    pub(crate) flag: bool,
    pub(crate) since: Instant,
    /// Nanoseconds in finished episodes.
    pub(crate) pressure_ns: u64,
    pub(crate) watermark: u64,
    pub(crate) failcnt: u64,
    /// The last charge was refused by a hard counter.
    pub(crate) refused: bool,
    /// The current run of refusals has made its event.
    refusing: bool,
    /// The values that the levels above last received.
    reported: Reservations,
}

/// Pages by which one level lets a child grow.
pub(crate) type Rule<'a> = &'a dyn Fn(&Level, ChildRequest) -> u64;

impl Meter {
    pub(crate) fn new(limits: Limits, min: u64, weight: u32) -> Self {
        let mut meter = Self {
            bytes: 0,
            usage: 0,
            limits,
            min,
            weight,
            fixed: 0,
            idle: 0,
            active: 0,
            half_open: 0,
            datagrams: 0,
            hold: 0,
            enter_at: 0,
            leave_at: 0,
            room: 0,
            flag: false,
            since: Instant(0),
            pressure_ns: 0,
            watermark: 0,
            failcnt: 0,
            refused: false,
            refusing: false,
            reported: Reservations::default(),
        };
        meter.update_thresholds(None);
        meter
    }

    /// Pages that the levels above count for this budget: the guarantee is charged when it is set.
    #[inline]
    pub(crate) fn charged_up(&self, usage: u64) -> u64 {
        usage.max(self.min)
    }

    // ---- charging ----

    /// Charges all of `bytes`, up the whole chain, or nothing.
    #[inline]
    pub(crate) fn charge(
        &mut self,
        parent: Option<&Level>,
        bytes: u64,
        test: SoftTest,
    ) -> Result<(), Refusal> {
        let after = self.bytes.saturating_add(bytes);
        let usage = pages(after);
        // Within a page nothing above changes: no level is touched.
        if usage != self.usage {
            self.raise(parent, usage, test)?;
        }
        self.bytes = after;
        Ok(())
    }

    fn raise(&mut self, parent: Option<&Level>, usage: u64, test: SoftTest) -> Result<(), Refusal> {
        if usage > self.limits.hard {
            return Err(self.refuse(None, Refusal::Hard));
        }
        let up = self.charged_up(usage) - self.charged_up(self.usage);
        if let Some(parent) = parent
            && up > 0
        {
            // `Later` charges are reservations; the others are growth.
            let rule: Rule<'_> = match test {
                SoftTest::Now => &Level::fair_room,
                SoftTest::Later => &Level::reservation_room,
            };
            self.allows(parent, up, rule)?;
            parent.charge_below(up, None, test).map_err(|at| self.refuse_seen(at))?;
        }
        self.set_usage(usage);
        self.passed();
        Ok(())
    }

    /// Charges as many of `want` chunks as fit; returns how many, and what refused the others.
    pub(crate) fn grant(&mut self, parent: Option<&Level>, want: u32) -> (u32, Option<Refusal>) {
        if want == 0 {
            return (0, None);
        }
        let bytes = u64::from(want) * CHUNK_SIZE;
        // Fast path without levels above.
        if parent.is_none() && self.bytes.saturating_add(bytes) <= self.limits.hard_bytes() {
            self.bytes += bytes;
            self.set_usage(pages(self.bytes));
            self.passed();
            return (want, None);
        }
        // A racing worker may take the room between the test and the charge. Test again then, at
        // most four times.
        for _ in 0..4 {
            let (room, by) = self.room_for_charge(parent, &Level::fair_room);
            let fits = u32::try_from(room / CHUNK_SIZE).unwrap_or(u32::MAX).min(want);
            if fits > 0 && self.charge(parent, u64::from(fits) * CHUNK_SIZE, SoftTest::Now).is_err()
            {
                continue;
            }
            if fits == want {
                return (want, None);
            }
            // Counts the refusal of the chunks that did not fit.
            return (fits, Some(self.refuse(parent, by)));
        }
        // Four lost races: the flow waits and is woken after the next release.
        (0, Some(Refusal::Ancestor(0)))
    }

    /// Uncharges `bytes`, up the whole chain.
    #[inline]
    pub(crate) fn uncharge(&mut self, parent: Option<&Level>, bytes: u64, test: SoftTest) {
        debug_assert!(self.bytes >= bytes, "budget would go negative");
        self.bytes -= bytes;
        let usage = pages(self.bytes);
        if usage != self.usage {
            if let Some(parent) = parent {
                let up = self.charged_up(self.usage) - self.charged_up(usage);
                if up > 0 {
                    parent.uncharge_below(up, None, test);
                }
            }
            self.usage = usage;
        }
    }

    /// Records that a charge passed: the run of refusals ends.
    pub(crate) fn passed(&mut self) {
        self.refused = false;
        self.refusing = false;
    }

    pub(crate) fn set_usage(&mut self, usage: u64) {
        self.usage = usage;
        self.watermark = self.watermark.max(usage);
    }

    /// Counts a refusal at the meter that refused.
    pub(crate) fn refuse(&mut self, parent: Option<&Level>, by: Refusal) -> Refusal {
        match by {
            Refusal::Hard => self.failcnt += 1,
            Refusal::Ancestor(at) => {
                if let Some(level) = parent.and_then(|p| p.chain_to(None).nth(usize::from(at))) {
                    level.note_refusal();
                }
            }
            Refusal::Share | Refusal::HalfOpen => {}
        }
        self.refused |= by.is_hard();
        by
    }

    // ---- room ----

    /// Bytes that one more charge could take now, and what bounds them.
    pub(crate) fn room_for_charge(&self, parent: Option<&Level>, rule: Rule<'_>) -> (u64, Refusal) {
        let mut room = self.limits.hard_bytes().saturating_sub(self.bytes);
        let mut by = Refusal::Hard;
        let Some(parent) = parent else { return (room, by) };
        let base = self.charged_up(self.usage);
        // Pages of the levels above to bytes of this budget, which rounds up to pages once (K8).
        let mut bound = |up: u64, why: Refusal| {
            let bytes =
                base.saturating_add(up).saturating_mul(PAGE_SIZE).saturating_sub(self.bytes);
            if bytes < room {
                (room, by) = (bytes, why);
            }
        };
        for (at, level) in parent.chain_to(None).enumerate() {
            bound(level.free(), Refusal::Ancestor(at as u8));
        }
        bound(self.share_room(parent, rule), Refusal::Share);
        (room, by)
    }

    /// The least growth in pages that `rule` allows at any level above (H5).
    fn share_room(&self, parent: &Level, rule: Rule<'_>) -> u64 {
        let mut room = u64::MAX;
        let held = self.charged_up(self.usage);
        let mut child = ChildRequest { held, weight: self.weight, hard: self.limits.hard };
        for level in parent.chain_to(None) {
            room = room.min(rule(level, child));
            child = level.as_request();
        }
        room
    }

    /// Over the fair share of a flagged level above, and over `min`.
    pub(crate) fn over_share(&self, parent: &Level) -> bool {
        let mut child = (self.usage, self.weight);
        for level in parent.chain_to(None) {
            // The share bounds usage, not the charged `min`.
            let over = child.0 > level.share().of(child.1);
            if over && level.under_pressure() && self.usage > self.min {
                return true;
            }
            child = (level.usage(), level.weight());
        }
        false
    }

    /// E in bytes: the room that reservations leave.
    pub(crate) fn room_bytes(&self) -> u64 {
        self.room.saturating_mul(PAGE_SIZE)
    }

    /// Bytes kept from growth for flows that wait for admission: what they need, at most half of
    /// the room that reservations leave. So admitted flows keep the other half, however many flows
    /// wait (H1).
    #[inline]
    pub(crate) fn held_back(&self) -> u64 {
        self.hold.min(self.room_bytes() / 2)
    }

    /// Bytes by which flows may grow beside the flows that wait for admission.
    #[inline]
    pub(crate) fn growth_room(&self) -> u64 {
        let taken = self.bytes.saturating_add(self.held_back());
        // Without a waiting flow only the meters bound growth.
        if self.hold == 0 { u64::MAX } else { self.limits.hard_bytes().saturating_sub(taken) }
    }

    /// Whether `rule` allows growth by `up` pages at all levels above.
    pub(crate) fn allows(&self, parent: &Level, up: u64, rule: Rule<'_>) -> Result<(), Refusal> {
        if up > 0 && up > self.share_room(parent, rule) { Err(Refusal::Share) } else { Ok(()) }
    }

    /// Records the refusal of a level above, which has counted it already.
    pub(crate) fn refuse_seen(&mut self, at: u8) -> Refusal {
        self.refused = true;
        Refusal::Ancestor(at)
    }

    /// True once in each run of refusals.
    pub(crate) fn refusal_begins(&mut self) -> bool {
        !core::mem::replace(&mut self.refusing, true)
    }

    // ---- the soft test (K7) ----

    /// Recomputes the thresholds after a change of the fixed part, the idle part, `min` or a limit,
    /// and reports the change to the levels above.
    pub(crate) fn update_thresholds(&mut self, parent: Option<&Level>) {
        let Limits { low, soft, hard } = self.limits;
        let fixed = pages(self.fixed);
        self.room = hard.saturating_sub(fixed);
        // K7: neither reservations nor idle credit count as elastic.
        let calm = fixed + self.idle / PAGE_SIZE;
        self.enter_at = calm.saturating_add(scale(self.room, soft, hard));
        self.leave_at = calm.saturating_add(scale(self.room, low, hard));
        let now = self.reservations();
        if let Some(parent) = parent {
            parent.shift_reservations(now - self.reported, None);
        }
        self.reported = now;
    }

    /// The fixed and idle parts of this budget as the levels above count them. There a guarantee is
    /// a reservation, used or not, as a flow's reserve is here.
    pub(crate) fn reservations(&self) -> Reservations {
        let fixed = pages(self.fixed);
        let calm = self.charged_up(fixed + self.idle / PAGE_SIZE);
        let fixed = self.charged_up(fixed);
        Reservations { fixed: fixed as i64, idle: (calm - fixed) as i64, min: self.min as i64 }
    }

    /// Moves what this budget reports: subtracts it from the levels from `from` up to `end`, adds it
    /// to those from `to`, where it is `after`. The levels from `end` see the difference.
    pub(crate) fn move_reservations(
        &mut self,
        from: Option<&Level>,
        to: Option<&Level>,
        end: Option<&Level>,
        after: Reservations,
    ) {
        let before = core::mem::replace(&mut self.reported, after);
        if let Some(from) = from {
            from.shift_reservations(Reservations::default() - before, end);
            from.leave(self.weight, self.limits.hard);
        }
        if let Some(to) = to {
            to.shift_reservations(self.reported, end);
            to.join(self.weight, self.limits.hard);
        }
        // Each level gets its change in one step: between two, its soft test could set the flag.
        if let Some(end) = end.filter(|_| self.reported != before) {
            end.shift_reservations(self.reported - before, None);
        }
    }

    /// Bytes by which usage may grow before the flag is set; 0 while it is set.
    pub(crate) fn calm_room(&self) -> u64 {
        if self.flag {
            0
        } else {
            self.enter_at.saturating_sub(self.usage).saturating_mul(PAGE_SIZE)
        }
    }

    /// Whether the flag must change.
    #[inline]
    pub(crate) fn flag_due(&self) -> bool {
        if self.flag { self.usage <= self.leave_at } else { self.usage > self.enter_at }
    }
}

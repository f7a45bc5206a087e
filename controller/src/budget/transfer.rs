//! Moves a byte between containers: one of them holds it at any time (B11, K5).

use super::live::common_level;
use super::{Budget, Rules};
use crate::ledger::Ledger;
use crate::level::{Level, SoftTest};
use crate::meter::Refusal;
use crate::units::{CHUNK_SIZE, Instant, pages};

/// Moves up to `chunks` in-order chunks of `from` (held by `giver`) into the send queue of `to`
/// (held by `taker`). Returns how many moved, a prefix.
///
/// The taker's chain is charged below the lowest level common to both, then the giver's chain is
/// uncharged; the common levels see only the net difference, and only a positive one can be refused
/// there. Chunks that do not move stay with the giver, whose window then closes. Both budgets must
/// follow the same rules; under linux rules, and between budgets of different rules, a transfer is
/// a plain grant followed by a plain release.
pub fn transfer(
    giver: &mut Budget,
    from: &mut Ledger,
    taker: &mut Budget,
    to: &mut Ledger,
    chunks: u32,
    now: Instant,
) -> u32 {
    let chunks = chunks.min(from.rmem);
    if chunks == 0 {
        return 0;
    }
    if giver.rules == Rules::Linux || taker.rules == Rules::Linux {
        let granted = taker.tx_grant(to, chunks, now);
        giver.rx_free(from, granted, now);
        return granted;
    }
    giver.at(now);
    taker.at(now);
    taker.wake(to);
    let mut moved = 0;
    while moved < chunks && taker.take_one(giver, from, to) {
        moved += 1;
    }
    moved
}

impl Budget {
    /// As [`transfer`], between two flows of one budget: members of a shared pool, or one container
    /// with itself.
    pub fn transfer_within(
        &mut self,
        from: &mut Ledger,
        to: &mut Ledger,
        chunks: u32,
        now: Instant,
    ) -> u32 {
        self.at(now);
        let chunks = chunks.min(from.rmem);
        if chunks > 0 && self.rules == Rules::Strict {
            self.wake(to);
        }
        let mut moved = 0;
        while moved < chunks && self.pass_one(from, to) {
            moved += 1;
        }
        moved
    }

    fn pass_one(&mut self, from: &mut Ledger, to: &mut Ledger) -> bool {
        let now = self.now;
        if self.rules == Rules::Strict && to.tx_unused() == 0 && from.rx_held() > from.rmem_min() {
            // Net zero: the chunk's charge moves to the other flow, no meter is tested.
            let share_ok = !self.meter.flag || self.fair_chunks(to.parts()) > 0;
            if !share_ok {
                self.refused_at = self.releases;
                return false;
            }
            self.hand_over(from, to);
            return true;
        }
        if self.tx_grant(to, 1, now) == 0 {
            return false;
        }
        self.rx_free(from, 1, now);
        true
    }

    /// Moves the charge of one chunk between two flows of this budget.
    fn hand_over(&mut self, from: &mut Ledger, to: &mut Ledger) {
        let before = (from.parts(), to.parts());
        from.rmem -= 1;
        to.wmem += 1;
        self.update_sums(before.0, from.parts());
        self.update_sums(before.1, to.parts());
        let giver = self.member_mut(from.member);
        giver.rmem -= 1;
        giver.bytes -= CHUNK_SIZE;
        let taker = self.member_mut(to.member);
        taker.wmem += 1;
        taker.bytes += CHUNK_SIZE;
        // Usage stays, but the giver's flow shrank: a waiter bounded by its share may proceed.
        self.releases += 1;
        self.update_thresholds(to.member);
    }

    /// Moves one chunk from `giver` to this budget. On a refusal it returns false and nothing
    /// changes.
    fn take_one(&mut self, giver: &mut Self, from: &mut Ledger, to: &mut Ledger) -> bool {
        // A chunk within the taker's reserve, or within the giver's, changes no charge.
        let grows = u64::from(to.tx_unused() == 0) * CHUNK_SIZE;
        let frees = u64::from(from.rx_held() > from.rmem_min()) * CHUNK_SIZE;
        let unfair = self.meter.flag && self.fair_chunks(to.parts()) == 0;
        if grows > 0 && (unfair || grows > self.meter.growth_room()) {
            self.refused_at = self.releases;
            return false;
        }
        if let Err(refusal) = self.exchange(giver, grows, frees) {
            self.note_refusal(to.member, refusal);
            return false;
        }
        self.book_taken(to, grows);
        giver.book_given(from, frees);
        // The giver first: its change of idle credit belongs to the common levels' test.
        giver.update_thresholds(from.member);
        self.update_thresholds(to.member);
        true
    }

    /// The meters' side of one chunk's move. The soft tests follow in [`Self::update_thresholds`].
    fn exchange(&mut self, giver: &mut Self, grows: u64, frees: u64) -> Result<(), Refusal> {
        let usage = pages(self.meter.bytes + grows);
        let left = pages(giver.meter.bytes - frees);
        // Above a lowered `hard` only growth is refused (K6).
        if usage > self.meter.limits.hard && usage > self.meter.usage {
            return Err(self.meter.refuse(None, Refusal::Hard));
        }
        let up = self.meter.charged_up(usage) - self.meter.charged_up(self.meter.usage);
        let down = giver.meter.charged_up(giver.meter.usage) - giver.meter.charged_up(left);
        let (mine, theirs) = (self.chain.leaf.as_deref(), giver.chain.leaf.as_deref());
        let common = common_level(mine, theirs);
        if let Some(level) = mine
            && up > 0
        {
            // The levels above both grow by the difference only.
            let keeps = |at: &Level| {
                let above = common.is_some_and(|c| c.chain_to(None).any(|l| core::ptr::eq(l, at)));
                above && up <= down
            };
            let rule = |at: &Level, child| match keeps(at) {
                true => at.published_room(child),
                false => at.fair_room(child),
            };
            self.meter.allows(level, up, &rule)?;
            level
                .charge_below(up, common, SoftTest::Later)
                .map_err(|at| self.meter.refuse_seen(at))?;
        }
        if let Some(common) = common {
            settle_net(common, up, down).map_err(|at| {
                // The taker's own levels are charged already: undo them.
                let below = mine.map_or(0, |level| {
                    level.uncharge_below(up, Some(common), SoftTest::Later);
                    level.chain_to(Some(common)).count() as u8
                });
                self.meter.refuse_seen(below + at)
            })?;
        }
        if let Some(level) = theirs
            && down > 0
        {
            level.uncharge_below(down, common, SoftTest::Later);
        }
        // Only a charge ends a run of refusals; a move within the reserve does not.
        if usage > self.meter.usage {
            self.meter.passed();
        }
        self.meter.bytes += grows;
        self.meter.set_usage(usage);
        giver.meter.bytes -= frees;
        giver.meter.usage = left;
        Ok(())
    }

    // Records the chunk in the taker's ledger and member.
    fn book_taken(&mut self, to: &mut Ledger, grows: u64) {
        let before = to.parts();
        to.wmem += 1;
        self.update_sums(before, to.parts());
        let member = self.member_mut(to.member);
        member.wmem += 1;
        member.bytes += grows;
    }

    // Records the release in the giver's ledger and member.
    fn book_given(&mut self, from: &mut Ledger, frees: u64) {
        let before = from.parts();
        from.rmem -= 1;
        let after = from.parts();
        debug_assert!(before.held - after.held == frees, "the ledger formula disagrees");
        self.update_sums(before, after);
        let member = self.member_mut(from.member);
        member.rmem -= 1;
        member.bytes -= frees;
        self.releases += 1;
    }
}

/// Changes the common levels by the difference only.
fn settle_net(common: &Level, up: u64, down: u64) -> Result<(), u8> {
    if up > down {
        common.charge_below(up - down, None, SoftTest::Later)
    } else {
        common.uncharge_below(down - up, None, SoftTest::Later);
        Ok(())
    }
}

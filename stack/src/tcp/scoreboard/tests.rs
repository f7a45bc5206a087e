//! Random ACKs, SACKs, losses and retransmissions against a model of single bytes.

use skbudget_seed::{Rng, each_seed};

use super::*;

/// State of one byte in the model: its state, when it was last sent, whether it was retransmitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Byte {
    state: SegState,
    at: Instant,
    again: bool,
}

struct Model {
    board: Scoreboard,
    bytes: VecDeque<Byte>,
    una: Seq,
    now: Instant,
    chunks: usize,
}

impl Model {
    fn new(iss: u32, chunks: usize) -> Self {
        let una = Seq(iss);
        Self { board: Scoreboard::new(una), bytes: VecDeque::new(), una, now: Instant(1), chunks }
    }

    fn step(&mut self, rng: &mut Rng) {
        self.now = Instant(self.now.0 + rng.index(2) as u64);
        let held = self.bytes.len();
        match rng.index(100) {
            0..30 => self.send(1 + rng.index(40)),
            30..45 => self.ack(rng.index(held + 1)),
            45..70 => {
                let start = rng.index(held + 1);
                self.sack(start, start + rng.index(30));
            }
            70..78 => self.mark_lost(rng),
            _ => self.again(rng),
        }
        self.check();
    }

    fn send(&mut self, len: usize) {
        self.board.sent(len as u32, self.now, self.chunks);
        let byte = Byte { state: SegState::Flying, at: self.now, again: false };
        self.bytes.extend(std::iter::repeat_n(byte, len));
    }

    fn ack(&mut self, len: usize) {
        let newly_sacked = self.bytes.drain(..len).filter(|b| b.state != SegState::Sacked).count();
        self.una = self.una + len as u32;
        let mut reported = 0;
        let mut last = self.una - len as u32;
        let bytes = self.board.acked(self.una, |run| {
            assert!(run.state != SegState::Sacked && run.end.gt(last), "in order, once");
            last = run.end;
            reported += 1;
        });
        assert_eq!(bytes as usize, newly_sacked);
        assert_eq!(reported > 0, newly_sacked > 0);
    }

    fn sack(&mut self, start: usize, end: usize) {
        let end = end.min(self.bytes.len());
        let range = Range { start: self.una + start as u32, end: self.una + end as u32 };
        let newly_sacked = if start < end {
            self.bytes.range_mut(start..end).filter(|b| b.state != SegState::Sacked).count()
        } else {
            0
        };
        let runs = self.board.runs.len();
        let bytes =
            self.board.sack(range, self.chunks, |run| assert!(run.state != SegState::Sacked));
        if bytes == 0 && newly_sacked > 0 {
            assert!(
                runs + 2 > Scoreboard::most(self.chunks),
                "ignored only where the list is full"
            );
            return;
        }
        assert_eq!(bytes as usize, newly_sacked);
        if start < end {
            self.bytes.range_mut(start..end).for_each(|b| b.state = SegState::Sacked);
        }
    }

    fn mark_lost(&mut self, rng: &mut Rng) {
        // Times are exact only while the list is below its bound.
        let ago = if self.chunks < 100 { 0 } else { rng.index(20) as u64 };
        let before = Instant(self.now.0.saturating_sub(ago));
        let lost = |b: &&mut Byte| b.state == SegState::Flying && b.at <= before;
        let expected = self.bytes.iter_mut().filter(lost).map(|b| b.state = SegState::Lost).count();
        assert_eq!(self.board.mark_lost(|run| run.at <= before) as usize, expected);
    }

    fn again(&mut self, rng: &mut Rng) {
        let Some(lost) = self.board.first_lost() else {
            assert!(self.bytes.iter().all(|b| b.state != SegState::Lost));
            return;
        };
        let first = self.bytes.iter().position(|b| b.state == SegState::Lost);
        assert_eq!(Some(lost.start.diff(self.una) as usize), first);
        let len = 1 + rng.index(lost.len() as usize) as u32;
        let range = Range { end: lost.start + len, ..lost };
        self.board.retransmitted(range, self.now, self.chunks);
        let start = lost.start.diff(self.una) as usize;
        for byte in self.bytes.range_mut(start..start + len as usize) {
            *byte = Byte { state: SegState::Flying, at: self.now, again: true };
        }
    }

    /// Compares fates byte by byte; times exactly while the list is below its bound, and never too early.
    fn check(&self) {
        let count = |state| self.bytes.iter().filter(|b| b.state == state).count() as u32;
        assert_eq!(
            (self.board.una(), self.board.outstanding()),
            (self.una, self.bytes.len() as u32)
        );
        assert_eq!(
            (self.board.sacked(), self.board.lost),
            (count(SegState::Sacked), count(SegState::Lost))
        );
        assert_eq!(self.board.pipe(), count(SegState::Flying));
        let mut bytes = self.bytes.iter();
        let mut start = self.una;
        for run in self.board.runs() {
            assert!(run.end.gt(start), "no empty run");
            for byte in bytes.by_ref().take(run.end.diff(start) as usize) {
                assert_eq!(byte.state, run.state);
                if byte.state == SegState::Flying {
                    assert!(run.at >= byte.at);
                    assert!(run.at == byte.at || self.chunks < 100);
                }
            }
            start = run.end;
        }
        assert!(bytes.next().is_none());
        assert!(self.board.runs.len() <= 2 * Scoreboard::most(self.chunks));
    }
}

#[test]
fn the_scoreboard_equals_a_model_of_single_bytes() {
    for chunks in [0, 3, 1000] {
        each_seed!(0..60, |seed| {
            let rng = &mut Rng::new(seed);
            let mut model = Model::new(u32::MAX - 500 + rng.index(400) as u32, chunks);
            for _ in 0..400 {
                model.step(rng);
            }
            model.ack(model.bytes.len());
            model.check();
            assert!(
                model.board.runs.capacity() <= 2 * RUNS_MIN,
                "an idle flow holds next to nothing"
            );
        });
    }
}

#[test]
fn a_burst_is_one_record_and_an_ack_in_order_needs_no_more() {
    let mut board = Scoreboard::new(Seq(0));
    for _ in 0..64 {
        board.sent(65_000, Instant(5), 1000);
    }
    assert_eq!(board.runs.len(), 1);
    assert_eq!(board.acked(Seq(1_000_000), |_| {}), 1_000_000);
    assert_eq!((board.runs.len(), board.pipe()), (1, 64 * 65_000 - 1_000_000));
}

#[test]
fn a_flow_of_tiny_segments_holds_no_more_records_than_its_chunks_pay_for() {
    let mut board = Scoreboard::new(Seq(0));
    for i in 0..10_000 {
        board.sent(48, Instant(i), 10);
    }
    for i in (0..10_000).step_by(2) {
        let range = Range { start: Seq(48 * i), end: Seq(48 * (i + 1)) };
        board.sack(range, 10, |_| {});
    }
    assert!(board.runs.len() <= Scoreboard::most(10), "{}", board.runs.len());
    board.mark_lost(|_| true);
    let mut now = 20_000;
    while let Some(lost) = board.first_lost() {
        now += 1;
        let len = lost.len().min(48);
        board.retransmitted(Range { end: lost.start + len, ..lost }, Instant(now), 10);
    }
    assert!(board.runs.len() <= 2 * Scoreboard::most(10), "{}", board.runs.len());
}

#[test]
fn a_run_that_others_joined_for_want_of_room_tells_no_round_trip() {
    let mut board = Scoreboard::new(Seq(1));
    for i in 0..3 * RUNS_MIN as u64 {
        board.sent(10, Instant(i), 0);
    }
    let mut reported = Vec::new();
    board.acked(board.nxt(), |run| reported.push((run.at, run.mixed)));
    let exact: Vec<_> = (0..RUNS_MIN as u64 - 1).map(|i| (Instant(i), false)).collect();
    assert_eq!(reported[..RUNS_MIN - 1], exact);
    assert_eq!(reported[RUNS_MIN - 1..], [(Instant(3 * RUNS_MIN as u64 - 1), true)]);
}

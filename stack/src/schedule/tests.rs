//! The order of steps, and the pauses, without containers.

use super::*;

const MS: Duration = Duration::from_millis(1);

/// A container that used this CPU time while its budget was under pressure.
fn pressed(cpu: Duration) -> Used {
    Used { cpu, connects: 0, pause_factor: Some(8) }
}

const CALM: Used = Used { cpu: Duration::ZERO, connects: 0, pause_factor: None };

/// A loop of containers that share budget 0, without work of their own.
#[derive(Default)]
struct Loop {
    schedule: Schedule,
    /// Containers that `Wake` wakes, by pass; those of later passes are none.
    wakes: VecDeque<Vec<usize>>,
    used: Option<Used>,
    /// The deadline, and whether more work is left, after each turn.
    left: (Option<Instant>, bool),
}

impl Loop {
    fn new(containers: usize) -> Self {
        let mut own = Self::default();
        (0..containers).for_each(|container| own.schedule.add_container(container));
        own
    }

    /// One turn of the loop; returns its steps.
    fn turn(&mut self, now: Instant) -> Vec<Step> {
        self.schedule.start(now);
        let mut steps = Vec::new();
        while let Some(step) = self.schedule.next_step(now) {
            steps.push(step);
            match step {
                Step::Turn(container) | Step::StackTurn(container) => {
                    self.schedule.poll_budget(0);
                    self.schedule.ran(container, &self.used.unwrap_or(CALM), now);
                    let (deadline, more) = self.left;
                    self.schedule.finish(container, deadline, more);
                }
                Step::Wake(_) => {
                    let woken = self.wakes.pop_front().unwrap_or_default();
                    woken.into_iter().for_each(|container| self.schedule.woken(container));
                }
                Step::Level | Step::Events(_) => {}
            }
        }
        steps
    }

    /// The containers that ran in one turn of the loop, for whichever reason.
    fn ran(&mut self, now: Instant) -> Vec<usize> {
        let container = |step| match step {
            Step::Turn(container) | Step::StackTurn(container) => Some(container),
            _ => None,
        };
        self.turn(now).into_iter().filter_map(container).collect()
    }
}

#[test]
fn a_turn_runs_the_active_then_checks_the_level_then_wakes_then_reads_events() {
    let mut own = Loop::new(2);
    own.wakes = [vec![1, 0, 1], vec![1]].into();
    use Step::{Events, Level, StackTurn, Turn, Wake};
    let steps = [
        vec![Turn(0), Turn(1), Level, Wake(0), StackTurn(0), StackTurn(1)],
        vec![Level, Wake(0), StackTurn(1)],
        vec![Level, Wake(0), Events(0)],
    ];
    assert_eq!(own.turn(Instant(0)), steps.concat());
    assert!(!own.schedule.has_work(), "no container stopped at a bound");
    assert_eq!(own.turn(Instant(1)), [Level]);
}

#[test]
fn a_container_that_stops_at_a_bound_runs_once_more_in_the_next_turn() {
    let mut own = Loop::new(2);
    own.left = (None, true);
    assert_eq!(own.ran(Instant(0)), [0, 1]);
    own.schedule.activate(1);
    own.left = (None, false);
    assert!(own.schedule.has_work());
    assert_eq!(own.ran(Instant(0)), [0, 1], "each once");
    assert!(!own.schedule.has_work());
}

#[test]
fn waiters_left_by_the_last_pass_are_polled_in_the_next_turn() {
    let mut own = Loop::new(1);
    own.wakes = vec![vec![0]; WAKE_PASSES].into();
    assert_eq!(own.ran(Instant(0)), [0; 1 + WAKE_PASSES]);
    assert!(own.schedule.has_work(), "the loop does not wait");
    assert_eq!(own.turn(Instant(0)), [Step::Level, Step::Wake(0), Step::Events(0)]);
    assert!(!own.schedule.has_work());
}

#[test]
fn a_container_runs_at_its_deadline() {
    let mut own = Loop::new(2);
    own.left = (Some(Instant(50)), false);
    own.turn(Instant(0));
    assert_eq!(own.schedule.next_deadline(), Some(Instant(50)));
    assert_eq!(own.ran(Instant(49)), []);
    own.left = (None, false);
    assert_eq!(own.ran(Instant(50)), [0, 1]);
    assert_eq!(own.schedule.next_deadline(), None);
}

#[test]
fn under_pressure_a_container_pauses_beside_a_neighbour() {
    let mut own = Loop::new(2);
    own.turn(Instant(0));
    own.used = Some(pressed(MS / 10));
    own.left = (Some(Instant(1)), true);
    own.schedule.activate(0);
    assert_eq!(own.ran(Instant(0)), [0]);
    // Nine times its CPU time from the start of the turn: the turn itself, and the pause.
    let end = Instant(0) + 9 * MS / 10;
    assert!(!own.schedule.has_work(), "the pause ends by a deadline");
    assert_eq!(own.schedule.next_deadline(), Some(end));
    own.schedule.activate(0);
    assert_eq!(own.ran(Instant(end.0 - 1)), [], "an event does not end the pause");
    assert_eq!(own.ran(end), [0], "the end of the pause, and the event");
}

#[test]
fn a_woken_container_keeps_its_pause_and_pays_for_its_turn() {
    let mut own = Loop::new(2);
    own.turn(Instant(0));
    // Woken without a turn before: it runs, and pauses for the time that it used.
    own.used = Some(pressed(MS / 10));
    own.schedule.poll_budget(0);
    own.wakes = [vec![0], vec![0]].into();
    assert_eq!(own.ran(Instant(1)), [0], "the second wake falls into the pause");
    let end = Instant(1) + 9 * MS / 10;
    assert_eq!(own.schedule.next_deadline(), Some(end));
    // Its own releases wake it again and again: it does not run before the end of the pause.
    for at in [2, 100, end.0 - 1] {
        own.schedule.poll_budget(0);
        own.wakes = vec![vec![0]; WAKE_PASSES].into();
        assert_eq!(own.ran(Instant(at)), [], "at {at}");
    }
    assert_eq!(own.ran(end), [0]);
}

#[test]
fn connections_pause_admissions_beside_a_neighbour() {
    let mut schedule = Schedule::default();
    let opened = Used { connects: 2, ..CALM };
    (0..2).for_each(|container| schedule.add_container(container));
    assert_eq!(schedule.ran(0, &opened, Instant(0)), None, "alone");
    assert_eq!(schedule.ran(1, &CALM, Instant(5)), None, "no connection");
    assert_eq!(
        schedule.ran(0, &opened, Instant(5)),
        Some(Instant::from_micros(300) + Duration::from_nanos(5))
    );
}

#[test]
fn an_index_that_is_taken_again_has_nothing_of_the_container_before() {
    let mut own = Loop::new(2);
    own.used = Some(pressed(MS));
    own.left = (None, true);
    own.turn(Instant(0));
    own.used = None;
    own.schedule.activate(1);
    own.schedule.remove_container(1);
    assert_eq!(own.schedule.next_deadline(), None, "container 0 ran alone, and is active");
    assert_eq!(own.ran(Instant(0)), [0]);
    own.schedule.add_container(1);
    assert_eq!(own.ran(Instant(1)), [0, 1], "without the pause");
}

#[test]
fn a_device_is_read_up_to_the_bound_of_frames_or_bytes() {
    let frames_per_turn = |bytes| {
        let mut bound = DeviceBound { frames: 32, bytes: DEVICE_BYTES_PER_TURN };
        let mut frames = 0;
        while bound.has_room() {
            bound.count(bytes);
            frames += 1;
        }
        frames
    };
    assert_eq!(frames_per_turn(1500), 32);
    assert_eq!(frames_per_turn(60_000), 9, "the frame that exceeds the bytes is the last");
}

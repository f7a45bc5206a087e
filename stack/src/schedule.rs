//! The order of the loop that runs containers: which container runs next, which budget is polled, when the loop waits.
//!
//! It is pure: the clock and the CPU time of a turn are arguments, and it calls nothing. The daemon's worker and the
//! virtual world both carry out its steps, so what is measured in virtual time is the loop that ships.
//!
//! ```text
//! wait until next_deadline; not at all if has_work
//! events of devices, host sockets and ports ──▶ activate
//! start: containers with an expired deadline are activated
//!   Turn       each active container once: device, ports, stack           ──▶ ran, finish
//!   Level      shares of the level above; memory released there           ──▶ poll_budget       ┐
//!   Wake       each budget in use: notify its waiters that have room now  ──▶ woken             │ while any container
//!   StackTurn  each woken container once: its stack only                  ──▶ ran, finish       ┘ is woken, 4 times
//!   Events     each of these budgets: read its events                                             at most
//! ```
//!
//! A container that the CPU throttle pauses takes neither kind of turn. Its events stay recorded, its deadline is the
//! end of the pause.

mod cpu_throttle;

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use skbudget_controller::Instant;

use crate::pressure::Throttle;
use cpu_throttle::Neighbours;

/// Wake passes of one turn of the loop. Each pass runs only the containers that it wakes, because their work releases
/// memory again. Waiters that remain are polled in the next turn.
const WAKE_PASSES: usize = 4;

/// Bytes read from one device in one turn, for the reasons that bound the frames (`Throttle::frames_per_turn`).
const DEVICE_BYTES_PER_TURN: usize = 512 << 10;

/// What the loop does next. Containers and budgets are named by their index, which the loop assigns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Run a container: frames of its device, connections of its published ports, its stack. Report the result with
    /// [`Schedule::ran`] and [`Schedule::finish`].
    Turn(usize),
    /// Check the level above the budgets: publish shares that are due; if memory was released there, pass each budget
    /// to [`Schedule::poll_budget`].
    Level,
    /// Notify the waiters of this budget that have room now. Pass the container of each to [`Schedule::woken`].
    Wake(usize),
    /// Run the stack of a woken container in this turn, not in the next (B9). Report as for `Turn`.
    StackTurn(usize),
    /// Read the events of this budget.
    Events(usize),
}

/// What a container used in its turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Used {
    /// CPU time of the turn.
    pub cpu: Duration,
    /// Connections that it opened (`Container::take_connects`).
    pub connects: u32,
    /// `Throttle::pause_factor` after the turn.
    pub pause_factor: Option<u32>,
}

/// How far the current turn of the loop is.
#[derive(Debug, Clone, Copy, Default)]
enum Phase {
    #[default]
    Done,
    Turns,
    /// The level of this pass was returned; the budgets follow.
    Level {
        pass: usize,
    },
    /// `at`: place in `to_poll` of the next budget.
    Wake {
        pass: usize,
        at: usize,
    },
    /// `ran`: a container of this pass was not paused.
    Woken {
        pass: usize,
        ran: bool,
    },
    /// `waiting`: the last pass still woke containers, so waiters may remain.
    Events {
        waiting: bool,
    },
}

/// The scheduling state of one container.
#[derive(Debug, Clone, Copy, Default)]
struct Entry {
    /// It is on the list of containers to run.
    active: bool,
    /// Its entry in `deadlines`.
    deadline: Option<Instant>,
    /// The CPU throttle pauses it until this time.
    paused_until: Option<Instant>,
}

/// The containers and budgets of one loop that have work, and their deadlines. The cost of a turn depends on what
/// happened, not on the number of containers.
#[derive(Debug, Default)]
pub struct Schedule {
    phase: Phase,
    containers: Vec<Entry>,
    /// Containers to run in the next turn, each once.
    active: VecDeque<usize>,
    /// Containers still to run in this turn.
    running: VecDeque<usize>,
    /// Containers still to run in this wake pass.
    woken: BTreeSet<usize>,
    /// Next deadline of each container that has one.
    deadlines: BTreeSet<(Instant, usize)>,
    /// Budgets in use since their waiters and events were last polled, each once.
    to_poll: Vec<usize>,
    /// Budgets with events still to be read in this turn.
    with_events: VecDeque<usize>,
    /// By budget: it is in `to_poll`.
    is_polled: Vec<bool>,
    neighbours: Neighbours,
}

impl Schedule {
    /// A container takes this index. It runs in the next turn: its device may hold frames that no event announces.
    pub fn add_container(&mut self, container: usize) {
        if self.containers.len() <= container {
            self.containers.resize_with(container + 1, Entry::default);
        }
        self.remove_container(container);
        self.activate(container);
    }

    /// The container has ended. Its index may be given to another.
    pub fn remove_container(&mut self, container: usize) {
        let Some(entry) = self.containers.get_mut(container) else { return };
        if let Some(at) = std::mem::take(entry).deadline {
            self.deadlines.remove(&(at, container));
        }
        self.active.retain(|other| *other != container);
        self.running.retain(|other| *other != container);
        self.woken.remove(&container);
    }

    /// An event concerns the container: it runs in the next turn.
    pub fn activate(&mut self, container: usize) {
        if let Some(entry) = self.containers.get_mut(container)
            && !std::mem::replace(&mut entry.active, true)
        {
            self.active.push_back(container);
        }
    }

    /// The budget was used, or may have room: its waiters and events are polled in this turn, or in the next one if
    /// none is under way.
    pub fn poll_budget(&mut self, budget: usize) {
        if self.is_polled.len() <= budget {
            self.is_polled.resize(budget + 1, false);
        }
        if !std::mem::replace(&mut self.is_polled[budget], true) {
            self.to_poll.push(budget);
        }
    }

    /// True while containers or budgets have work: the loop must not wait.
    pub fn has_work(&self) -> bool {
        !self.active.is_empty() || !self.to_poll.is_empty()
    }

    /// The earliest deadline of a container.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// Starts a turn of the loop after the events were recorded: activates the containers with an expired deadline.
    pub fn start(&mut self, now: Instant) {
        while let Some(&(at, container)) = self.deadlines.first() {
            if at > now {
                break;
            }
            self.deadlines.pop_first();
            if let Some(entry) = self.containers.get_mut(container) {
                entry.deadline = None;
            }
            self.activate(container);
        }
        // A new list is filled meanwhile: a container that stops at a bound runs again in the next turn.
        std::mem::swap(&mut self.running, &mut self.active);
        self.phase = Phase::Turns;
    }

    /// The next step of the turn; `None`: the turn is over.
    pub fn next_step(&mut self, now: Instant) -> Option<Step> {
        loop {
            match self.phase {
                Phase::Done => return None,
                Phase::Turns => {
                    if let Some(container) = self.next_active(now) {
                        return Some(Step::Turn(container));
                    }
                    self.phase = Phase::Level { pass: 0 };
                    return Some(Step::Level);
                }
                Phase::Level { pass } => {
                    // What the level has released goes to the budgets in a fixed order.
                    self.to_poll.sort_unstable();
                    self.phase = Phase::Wake { pass, at: 0 };
                }
                Phase::Wake { pass, at } => {
                    if let Some(&budget) = self.to_poll.get(at) {
                        self.phase = Phase::Wake { pass, at: at + 1 };
                        return Some(Step::Wake(budget));
                    }
                    if self.woken.is_empty() {
                        self.end_wakes(false);
                    } else {
                        self.phase = Phase::Woken { pass, ran: false };
                    }
                }
                Phase::Woken { pass, ran } => {
                    if let Some(container) = self.next_woken(now) {
                        self.phase = Phase::Woken { pass, ran: true };
                        return Some(Step::StackTurn(container));
                    }
                    // All are paused, so nothing was released. They poll the budget again after their pause.
                    if !ran {
                        self.end_wakes(false);
                    } else if pass + 1 == WAKE_PASSES {
                        self.end_wakes(true);
                    } else {
                        // These containers may have released memory at the level, too.
                        self.phase = Phase::Level { pass: pass + 1 };
                        return Some(Step::Level);
                    }
                }
                Phase::Events { waiting } => match self.with_events.pop_front() {
                    Some(budget) => {
                        // Polled again in the next turn, which then does not wait.
                        if waiting {
                            self.poll_budget(budget);
                        }
                        return Some(Step::Events(budget));
                    }
                    None => self.phase = Phase::Done,
                },
            }
        }
    }

    /// A waiter of the container was notified: its stack runs in this wake pass.
    pub fn woken(&mut self, container: usize) {
        self.woken.insert(container);
    }

    /// Records what a container used in its turn, and computes the pauses. Returns the time until which its admissions
    /// are paused (`Container::hold_admissions`); `None`: they are not.
    pub fn ran(&mut self, container: usize, used: &Used, now: Instant) -> Option<Instant> {
        // Before the pauses are computed: they depend on which other containers ran.
        self.neighbours.ran(container, now);
        let pause = used
            .pause_factor
            .and_then(|factor| self.neighbours.pause(container, used.cpu, factor, now));
        if let Some(entry) = self.containers.get_mut(container) {
            // It starts after the CPU time just used, as `now` was read before the turn.
            entry.paused_until = pause.map(|pause| now + used.cpu + pause);
        }
        let admissions = self.neighbours.admission_pause(container, used.connects, now);
        admissions.map(|pause| now + pause)
    }

    /// A turn of the container is over: `deadline` is when it must run again without an event, `more` whether it
    /// stopped at a bound.
    pub fn finish(&mut self, container: usize, deadline: Option<Instant>, more: bool) {
        let Some(entry) = self.containers.get(container) else { return };
        // Everything waits for the end of the pause, and the turn after it continues where this one stopped.
        let pause = entry.paused_until;
        self.set_deadline(container, pause.or(deadline));
        if more && pause.is_none() {
            self.activate(container);
        }
    }

    /// The next container of this turn that is not paused.
    fn next_active(&mut self, now: Instant) -> Option<usize> {
        while let Some(container) = self.running.pop_front() {
            if let Some(entry) = self.containers.get_mut(container) {
                entry.active = false;
            }
            if self.may_run(container, now) {
                return Some(container);
            }
        }
        None
    }

    /// The next container of this wake pass that is not paused.
    fn next_woken(&mut self, now: Instant) -> Option<usize> {
        while let Some(container) = self.woken.pop_first() {
            // A container under pressure wakes itself with what it releases. Without this test it would not be
            // throttled.
            if self.may_run(container, now) {
                return Some(container);
            }
        }
        None
    }

    /// Whether no pause holds the container. Otherwise it runs at the end of the pause.
    fn may_run(&mut self, container: usize, now: Instant) -> bool {
        let Some(entry) = self.containers.get_mut(container) else { return false };
        entry.paused_until = entry.paused_until.filter(|until| *until > now);
        let pause = entry.paused_until;
        if pause.is_some() {
            self.set_deadline(container, pause);
        }
        pause.is_none()
    }

    fn set_deadline(&mut self, container: usize, deadline: Option<Instant>) {
        let Some(entry) = self.containers.get_mut(container) else { return };
        if entry.deadline == deadline {
            return;
        }
        if let Some(before) = std::mem::replace(&mut entry.deadline, deadline) {
            self.deadlines.remove(&(before, container));
        }
        if let Some(at) = deadline {
            self.deadlines.insert((at, container));
        }
    }

    /// The wake passes are over: the events of the polled budgets follow.
    fn end_wakes(&mut self, waiting: bool) {
        self.with_events.extend(self.to_poll.drain(..));
        for budget in &self.with_events {
            self.is_polled[*budget] = false;
        }
        self.phase = Phase::Events { waiting };
    }
}

/// Bound of what one turn reads from a device.
#[derive(Debug)]
pub struct DeviceBound {
    frames: usize,
    bytes: usize,
}

impl DeviceBound {
    /// The bound of a turn that starts now.
    pub fn new(throttle: Throttle) -> Self {
        Self { frames: throttle.frames_per_turn, bytes: DEVICE_BYTES_PER_TURN }
    }

    /// Whether the turn may read another frame.
    pub fn has_room(&self) -> bool {
        self.frames > 0 && self.bytes > 0
    }

    /// Counts a frame that was read.
    pub fn count(&mut self, bytes: usize) {
        self.frames = self.frames.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

#[cfg(test)]
mod tests;

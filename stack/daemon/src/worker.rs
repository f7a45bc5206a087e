//! A worker: one thread, its containers and their budgets.
//!
//! One turn of the loop, in this order: wait; read the clock once; record what the poll reported; activate the
//! containers with an expired deadline; run each active container (device frames, accepts, the stack, each with a
//! bound); wake and run the flows that memory was released for; read the events of the budgets. A container that
//! stopped at a bound runs again in the next turn, which does not wait. The cost of a turn depends on what happened,
//! not on the number of containers.

mod control;
mod ended;
mod quiet;
mod rest;
mod seat;

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use mio::{Events, Poll, Waker};
use skbudget_controller::{Budget, Event, Instant};
use skbudget_stack::tap::SCRATCH_BYTES;
use skbudget_stack::{ChunkPool, Ready, Throttle, WakeKey};

use crate::clock;
use crate::events::EventSink;
use crate::host_level::HostLevel;
use crate::token::{self, Kind};
use crate::types::{DaemonEvent, Ended};

pub(crate) use control::Command;
use quiet::Quiet;
use rest::Recent;
use seat::{After, Seat, Shared};

/// Events taken from the poll in one turn.
const EVENTS_PER_TURN: usize = 1024;

/// Wake passes of one turn. Each pass runs only the containers that the pass before woke, because their work releases
/// memory again. Waiters that remain are polled in the next turn.
const WAKE_PASSES: usize = 4;

/// Least interval between two log lines of one budget.
const LOG_EVERY: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(crate) struct Worker {
    index: usize,
    poll: Poll,
    inbox: Receiver<Command>,
    host: Option<Arc<HostLevel>>,
    /// When this worker last published the shares; `None` while the host level is not flagged.
    shared: Option<Instant>,
    event_sink: EventSink,
    pool: ChunkPool,
    /// When to return free chunks to the system if no event arrives before; `None`: there is none to return.
    tend_at: Option<Instant>,
    scratch: Vec<u8>,
    budgets: Vec<Option<BudgetSeat>>,
    seats: Vec<Option<Seat>>,
    /// The last containers that ended by themselves.
    ended: VecDeque<Ended>,
    /// Containers to run in the next turn, each once.
    active: Vec<u16>,
    /// Budgets in use since their waiters and events were last polled.
    touched: Vec<usize>,
    /// The last two containers that ran, for the CPU throttle.
    recent: Recent,
    /// Next deadline of each container. The map gives the wait its timeout.
    deadlines: BTreeSet<(Instant, u16)>,
    /// A frame capture is active on at least one container: the worker flushes captures before each wait.
    captures: bool,
    /// The waker fired: commands are pending, or memory was released at the host level.
    called: bool,
    stop: bool,
}

#[derive(Debug)]
struct BudgetSeat {
    name: String,
    budget: Budget,
    /// Containers (indices of `seats`) by member number.
    members: Vec<Option<u16>>,
    /// The budget belongs to one container and is removed with it.
    own: bool,
    /// The budget is in the worker's `touched` list.
    touched: bool,
    /// Rate limit of the log lines of its events.
    log_limit: Quiet,
}

impl Worker {
    /// A worker that is not running yet, and the waker that interrupts its wait.
    pub(crate) fn new(
        index: usize,
        host: Option<Arc<HostLevel>>,
        inbox: Receiver<Command>,
        event_sink: EventSink,
    ) -> io::Result<(Self, Arc<Waker>)> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), token::WAKER)?);
        if let Some(host) = &host {
            host.join(Arc::clone(&waker));
        }
        let worker = Self {
            index,
            poll,
            inbox,
            host,
            shared: None,
            event_sink,
            pool: ChunkPool::new(),
            tend_at: None,
            scratch: vec![0; SCRATCH_BYTES],
            budgets: Vec::new(),
            seats: Vec::new(),
            ended: VecDeque::new(),
            active: Vec::new(),
            touched: Vec::new(),
            recent: Recent::default(),
            deadlines: BTreeSet::new(),
            captures: false,
            called: false,
            stop: false,
        };
        Ok((worker, waker))
    }

    /// The loop of the thread. Returns after `Command::Stop`, or when the poll fails.
    pub(crate) fn run(mut self) {
        let mut events = Events::with_capacity(EVENTS_PER_TURN);
        while !self.stop {
            if let Err(e) = self.wait(&mut events) {
                log::error!("worker {}: poll: {e}", self.index);
                break;
            }
            // One reading for the whole turn: every part of the turn sees the same time.
            let now = clock::now();
            for event in &events {
                self.called |= self.on_event(event);
            }
            self.activate_due(now);
            self.pass(now);
            self.wake(now);
            // Commands last: a reply describes the state after the events that arrived before it.
            if self.called {
                // Still set when commands may remain: the next turn executes them, and does not wait.
                self.called = self.on_commands(now);
            }
            // Free chunks are kept for the next burst for a while, then returned to the system.
            self.tend_at = self.pool.tend(now);
        }
        self.remove_all(clock::now());
    }

    /// Waits for events. Does not block while a container or a budget still has work.
    fn wait(&mut self, events: &mut Events) -> io::Result<()> {
        let timeout = if self.active.is_empty() && self.touched.is_empty() && !self.called {
            // Here the thread has time: the capture is written between bursts, not within one.
            if self.captures {
                self.seats.iter_mut().flatten().for_each(|seat| seat.tap.flush_capture());
            }
            let due = self.deadlines.first().map(|(at, _)| *at).into_iter();
            due.chain(self.tend_at).min().map(|at| at.since(clock::now()))
        } else {
            // A bound stopped a container or the commands, or waiters remain: only collect what is ready.
            Some(Duration::ZERO)
        };
        match self.poll.poll(events, timeout) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {
                events.clear();
                Ok(())
            }
            other => other,
        }
    }

    /// Records one event and activates its container. True when the waker fired.
    fn on_event(&mut self, event: &mio::event::Event) -> bool {
        let token = event.token();
        let kind = token::kind(token);
        if kind == Kind::Waker {
            return true;
        }
        let index = token::seat(token);
        // A late event of a container that was removed.
        let Some(seat) = self.seats.get_mut(usize::from(index)).and_then(Option::as_mut) else {
            return false;
        };
        match kind {
            Kind::Device => seat.on_device_event(),
            Kind::Listener(which) => seat.on_listener_event(which),
            Kind::Flow => {
                // The flow of a late event is closed: the generation in the token does not match.
                let Some(flow) = seat.host.flow(token) else { return false };
                // After a hang-up or an error both directions are ready: the next read or write returns the cause.
                let ended = event.is_error() || event.is_read_closed() && event.is_write_closed();
                let ready = Ready {
                    readable: event.is_readable() || event.is_read_closed() || ended,
                    writable: event.is_writable() || event.is_write_closed() || ended,
                };
                seat.stack.on_host_ready(flow, ready);
                // After the mark the stack writes nothing more and reads up to the error.
                if event.is_error() {
                    seat.stack.on_host_broken(flow);
                }
            }
            Kind::Waker => {}
        }
        self.activate(index);
        false
    }

    /// Puts the container on the list of the next pass, once.
    fn activate(&mut self, index: u16) {
        if let Some(seat) = &mut self.seats[usize::from(index)]
            && !seat.active
        {
            seat.active = true;
            self.active.push(index);
        }
    }

    /// Activates the containers with an expired deadline.
    fn activate_due(&mut self, now: Instant) {
        while let Some(&(at, index)) = self.deadlines.first() {
            if at > now {
                break;
            }
            self.deadlines.pop_first();
            if let Some(seat) = &mut self.seats[usize::from(index)] {
                // `reschedule` then inserts it again.
                seat.deadline = None;
            }
            self.activate(index);
        }
    }

    /// Runs every active container once. The CPU clock is read between two containers only, which is one reading each.
    fn pass(&mut self, now: Instant) {
        let mut cpu = clock::thread_cpu_ns();
        // `activate` fills a new list meanwhile: a container that stops at a bound runs in the next turn.
        for index in std::mem::take(&mut self.active) {
            let Some(seat) = &mut self.seats[usize::from(index)] else { continue };
            let Some(owner) = &mut self.budgets[seat.budget] else { continue };
            seat.active = false;
            // Throttled: its deadline is the end of the pause. Its events stay recorded in the seat.
            if seat.rests(now) {
                self.reschedule(index);
                continue;
            }
            // The turn may charge and release memory: `wake` polls this budget.
            if !std::mem::replace(&mut owner.touched, true) {
                self.touched.push(seat.budget);
            }
            let (pool, scratch) = (&mut self.pool, &mut self.scratch[..]);
            let after = seat.turn(&mut owner.budget, &mut Shared { now, pool, scratch });
            let before = std::mem::replace(&mut cpu, clock::thread_cpu_ns());
            let took = cpu.saturating_sub(before);
            seat.cpu_ns += took;
            // Before the throttle is computed: it depends on which other containers ran.
            self.recent.ran(index, now);
            seat.hold_admissions(&self.recent, index, now);
            // Only pressure is throttled. The pause starts after the CPU time just used, as `now` was read before it.
            if let Some(factor) = Throttle::of(&owner.budget).pause_factor {
                let ran_until = now + Duration::from_nanos(took);
                seat.rest_until =
                    self.recent.rest(index, took, factor, now).map(|rest| ran_until + rest);
            }
            self.reschedule(index);
            match after {
                After::Idle => {}
                After::Again => self.activate(index),
                After::Gone => self.on_gone(index, now),
            }
        }
    }

    /// Updates the container's entry in `deadlines`.
    fn reschedule(&mut self, index: u16) {
        let Some(seat) = &mut self.seats[usize::from(index)] else { return };
        let next = seat.next_deadline();
        if next == seat.deadline {
            return;
        }
        if let Some(before) = seat.deadline {
            self.deadlines.remove(&(before, index));
        }
        if let Some(at) = next {
            self.deadlines.insert((at, index));
        }
        seat.deadline = next;
    }

    /// Wakes the waiters that released memory now suffices for, and runs their containers in this turn, not in the next
    /// (B9).
    fn wake(&mut self, now: Instant) {
        if let Some(host) = &self.host {
            let owners = self.budgets.iter().flatten();
            let usage = || owners.map(|owner| owner.budget.as_child()).collect();
            // Memory that one budget released may be what a waiter of another budget needs.
            if host.on_turn(self.index, &mut self.shared, usage, now) || self.called {
                self.touched = (0..self.budgets.len()).collect();
            }
        }
        let touched = std::mem::take(&mut self.touched);
        let mut left_over = true;
        // A container that runs may release memory for the next waiter: hence more than one pass.
        for _ in 0..WAKE_PASSES {
            let woken: BTreeSet<u16> =
                touched.iter().flat_map(|budget| self.wake_waiters(*budget, now)).collect();
            if woken.is_empty() {
                left_over = false;
                break;
            }
            woken.into_iter().for_each(|index| self.run_woken(index, now));
        }
        for index in touched {
            let Some(owner) = &mut self.budgets[index] else { continue };
            // Waiters remain after the last pass: the budget is polled again in the next turn, which then does not
            // wait.
            owner.touched = left_over;
            if left_over {
                self.touched.push(index);
            }
            while let Some(event) = owner.budget.poll_event() {
                let unlogged = owner.log_limit.note(now);
                // A flood of SYNs causes many events: one that no line and no caller shows is not described.
                if unlogged.is_some() || self.event_sink.has_reader() {
                    self.event_sink.send(owner.describe(event, &self.seats), unlogged);
                }
            }
        }
    }

    /// Notifies the waiters of a budget that now have room. Returns their containers, one entry for each waiter.
    fn wake_waiters(&mut self, budget: usize, now: Instant) -> Vec<u16> {
        let mut woken = Vec::new();
        let Some(owner) = &mut self.budgets[budget] else { return woken };
        while let Some(key) = owner.budget.poll_wake(now) {
            let key = WakeKey(key);
            let member = usize::from(key.member().0);
            // No container has this member any more.
            let Some(index) = owner.members.get(member).copied().flatten() else { continue };
            if let Some(seat) = &mut self.seats[usize::from(index)] {
                seat.stack.on_wake(key);
                woken.push(index);
            }
        }
        woken
    }

    /// Runs the stack of a woken container, without its device and accepts, which the next turn serves.
    fn run_woken(&mut self, index: u16, now: Instant) {
        let Some(seat) = &mut self.seats[usize::from(index)] else { return };
        let Some(owner) = &mut self.budgets[seat.budget] else { return };
        let before = clock::thread_cpu_ns();
        let (pool, scratch) = (&mut self.pool, &mut self.scratch[..]);
        let again = seat.stack_turn(&mut owner.budget, &mut Shared { now, pool, scratch });
        seat.cpu_ns += clock::thread_cpu_ns().saturating_sub(before);
        seat.hold_admissions(&self.recent, index, now);
        self.reschedule(index);
        // A published port may also have waited for the room: accepts run in the next turn.
        if again || self.seats[usize::from(index)].as_ref().is_some_and(Seat::has_listeners) {
            self.activate(index);
        }
    }
}

impl BudgetSeat {
    /// The event in the daemon's terms. `seats`: all containers of the worker.
    fn describe(&self, event: Event, seats: &[Option<Seat>]) -> DaemonEvent {
        let budget = self.name.clone();
        match event {
            Event::PressureEnter { .. } => DaemonEvent::PressureStarted { budget },
            Event::PressureLeave { after_ms, .. } => {
                DaemonEvent::PressureEnded { budget, after_ms }
            }
            Event::AdmissionDenied { member, .. } => {
                let index = self.members.get(usize::from(member.0)).copied().flatten();
                let seat = index.and_then(|index| seats[usize::from(index)].as_ref());
                DaemonEvent::FlowRefused { budget, container: seat.map(|seat| seat.name.clone()) }
            }
            Event::HardRefused { .. } => DaemonEvent::HardReached { budget },
        }
    }
}

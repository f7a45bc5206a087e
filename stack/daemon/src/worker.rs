//! A worker: one thread, its containers and their budgets.
//!
//! One turn of the loop, in this order: wait; read the clock once; record what the poll reported; activate the
//! containers with an expired deadline; run each active container (device frames, accepts, the stack, each with a
//! bound); wake and run the flows that memory was released for; read the events of the budgets. A container that
//! stopped at a bound runs again in the next turn, which does not wait. The cost of a turn depends on what happened,
//! not on the number of containers.

mod container_slot;
mod control;
mod cpu_throttle;
mod ended;
mod log_limit;

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

use container_slot::{ContainerSlot, TurnCtx, TurnOutcome};
pub(crate) use control::Command;
use cpu_throttle::Neighbours;
use log_limit::LogLimit;

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
    shares_computed_at: Option<Instant>,
    event_sink: EventSink,
    pool: ChunkPool,
    /// When to return free chunks to the system if no event arrives before; `None`: there is none to return.
    tend_at: Option<Instant>,
    scratch: Vec<u8>,
    budgets: Vec<Option<BudgetSlot>>,
    containers: Vec<Option<ContainerSlot>>,
    /// The last containers that ended by themselves.
    ended: VecDeque<Ended>,
    /// Containers to run in the next turn, each once.
    active: Vec<u16>,
    /// Budgets in use since their waiters and events were last polled.
    budgets_to_poll: Vec<usize>,
    /// The last two containers that ran, for the CPU throttle.
    neighbours: Neighbours,
    /// Next deadline of each container. The map gives the wait its timeout.
    deadlines: BTreeSet<(Instant, u16)>,
    /// A frame capture is active on at least one container: the worker flushes captures before each wait.
    captures: bool,
    /// The waker fired: commands are pending, or memory was released at the host level.
    wake_requested: bool,
    stop: bool,
}

#[derive(Debug)]
struct BudgetSlot {
    name: String,
    budget: Budget,
    /// Containers (indices of `containers`) by member number.
    members: Vec<Option<u16>>,
    /// The budget belongs to one container and is removed with it.
    own: bool,
    /// The budget is in the worker's `budgets_to_poll` list.
    to_poll: bool,
    /// Rate limit of the log lines of its events.
    log_limit: LogLimit,
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
            shares_computed_at: None,
            event_sink,
            pool: ChunkPool::new(),
            tend_at: None,
            scratch: vec![0; SCRATCH_BYTES],
            budgets: Vec::new(),
            containers: Vec::new(),
            ended: VecDeque::new(),
            active: Vec::new(),
            budgets_to_poll: Vec::new(),
            neighbours: Neighbours::default(),
            deadlines: BTreeSet::new(),
            captures: false,
            wake_requested: false,
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
                self.wake_requested |= self.on_event(event);
            }
            self.activate_due(now);
            self.pass(now);
            self.wake(now);
            // Commands last: a reply describes the state after the events that arrived before it.
            if self.wake_requested {
                // Still set when commands may remain: the next turn executes them, and does not wait.
                self.wake_requested = self.on_commands(now);
            }
            // Free chunks are kept for the next burst for a while, then returned to the system.
            self.tend_at = self.pool.tend(now);
        }
        self.remove_all(clock::now());
    }

    /// Waits for events. Does not block while a container or a budget still has work.
    fn wait(&mut self, events: &mut Events) -> io::Result<()> {
        let timeout =
            if self.active.is_empty() && self.budgets_to_poll.is_empty() && !self.wake_requested {
                // Here the thread has time: the capture is written between bursts, not within one.
                if self.captures {
                    self.containers.iter_mut().flatten().for_each(|slot| slot.tap.flush_capture());
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
        let index = token::container(token);
        // A late event of a container that was removed.
        let Some(slot) = self.containers.get_mut(usize::from(index)).and_then(Option::as_mut)
        else {
            return false;
        };
        match kind {
            Kind::Device => slot.on_device_event(),
            Kind::Listener(which) => slot.on_listener_event(which),
            Kind::Flow => {
                // The flow of a late event is closed: the generation in the token does not match.
                let Some(flow) = slot.host.flow(token) else { return false };
                // After a hang-up or an error both directions are ready: the next read or write returns the cause.
                let ended = event.is_error() || event.is_read_closed() && event.is_write_closed();
                let ready = Ready {
                    readable: event.is_readable() || event.is_read_closed() || ended,
                    writable: event.is_writable() || event.is_write_closed() || ended,
                };
                slot.stack.on_host_ready(flow, ready);
                // After the mark the stack writes nothing more and reads up to the error.
                if event.is_error() {
                    slot.stack.on_host_broken(flow);
                }
            }
            Kind::Waker => {}
        }
        self.activate(index);
        false
    }

    /// Puts the container on the list of the next pass, once.
    fn activate(&mut self, index: u16) {
        if let Some(slot) = &mut self.containers[usize::from(index)]
            && !slot.active
        {
            slot.active = true;
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
            if let Some(slot) = &mut self.containers[usize::from(index)] {
                // `reschedule` then inserts it again.
                slot.deadline = None;
            }
            self.activate(index);
        }
    }

    /// Runs every active container once. The CPU clock is read between two containers only, which is one reading each.
    fn pass(&mut self, now: Instant) {
        let mut cpu = clock::thread_cpu_ns();
        // `activate` fills a new list meanwhile: a container that stops at a bound runs in the next turn.
        for index in std::mem::take(&mut self.active) {
            let Some(slot) = &mut self.containers[usize::from(index)] else { continue };
            let Some(owner) = &mut self.budgets[slot.budget] else { continue };
            slot.active = false;
            // Throttled: its deadline is the end of the pause. Its events stay recorded in the slot.
            if slot.is_throttled(now) {
                self.reschedule(index);
                continue;
            }
            // The turn may charge and release memory: `wake` polls this budget.
            if !std::mem::replace(&mut owner.to_poll, true) {
                self.budgets_to_poll.push(slot.budget);
            }
            let (pool, scratch) = (&mut self.pool, &mut self.scratch[..]);
            let after = slot.turn(&mut owner.budget, &mut TurnCtx { now, pool, scratch });
            let before = std::mem::replace(&mut cpu, clock::thread_cpu_ns());
            let took = cpu.saturating_sub(before);
            slot.cpu_ns += took;
            // Before the throttle is computed: it depends on which other containers ran.
            self.neighbours.ran(index, now);
            slot.hold_admissions(&self.neighbours, index, now);
            // Only pressure is throttled. The pause starts after the CPU time just used, as `now` was read before it.
            if let Some(factor) = Throttle::of(&owner.budget).pause_factor {
                let ran_until = now + Duration::from_nanos(took);
                slot.throttled_until =
                    self.neighbours.pause(index, took, factor, now).map(|pause| ran_until + pause);
            }
            self.reschedule(index);
            match after {
                TurnOutcome::Idle => {}
                TurnOutcome::MoreWork => self.activate(index),
                TurnOutcome::DeviceGone => self.on_device_gone(index, now),
            }
        }
    }

    /// Updates the container's entry in `deadlines`.
    fn reschedule(&mut self, index: u16) {
        let Some(slot) = &mut self.containers[usize::from(index)] else { return };
        let next = slot.next_deadline();
        if next == slot.deadline {
            return;
        }
        if let Some(before) = slot.deadline {
            self.deadlines.remove(&(before, index));
        }
        if let Some(at) = next {
            self.deadlines.insert((at, index));
        }
        slot.deadline = next;
    }

    /// Wakes the waiters that released memory now suffices for, and runs their containers in this turn, not in the next
    /// (B9).
    fn wake(&mut self, now: Instant) {
        if let Some(host) = &self.host {
            let owners = self.budgets.iter().flatten();
            let usage = || owners.map(|owner| owner.budget.as_child()).collect();
            // Memory that one budget released may be what a waiter of another budget needs.
            if host.on_turn(self.index, &mut self.shares_computed_at, usage, now)
                || self.wake_requested
            {
                self.budgets_to_poll = (0..self.budgets.len()).collect();
            }
        }
        let to_poll = std::mem::take(&mut self.budgets_to_poll);
        let mut left_over = true;
        // A container that runs may release memory for the next waiter: hence more than one pass.
        for _ in 0..WAKE_PASSES {
            let woken: BTreeSet<u16> =
                to_poll.iter().flat_map(|budget| self.wake_waiters(*budget, now)).collect();
            if woken.is_empty() {
                left_over = false;
                break;
            }
            woken.into_iter().for_each(|index| self.run_woken(index, now));
        }
        for index in to_poll {
            let Some(owner) = &mut self.budgets[index] else { continue };
            // Waiters remain after the last pass: the budget is polled again in the next turn, which then does not
            // wait.
            owner.to_poll = left_over;
            if left_over {
                self.budgets_to_poll.push(index);
            }
            while let Some(event) = owner.budget.poll_event() {
                let unlogged = owner.log_limit.note(now);
                // A flood of SYNs causes many events: one that no line and no caller shows is not described.
                if unlogged.is_some() || self.event_sink.has_reader() {
                    self.event_sink.send(owner.describe(event, &self.containers), unlogged);
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
            if let Some(slot) = &mut self.containers[usize::from(index)] {
                slot.stack.on_wake(key);
                woken.push(index);
            }
        }
        woken
    }

    /// Runs the stack of a woken container, without its device and accepts, which the next turn serves.
    fn run_woken(&mut self, index: u16, now: Instant) {
        let Some(slot) = &mut self.containers[usize::from(index)] else { return };
        let Some(owner) = &mut self.budgets[slot.budget] else { return };
        let before = clock::thread_cpu_ns();
        let (pool, scratch) = (&mut self.pool, &mut self.scratch[..]);
        let again = slot.stack_turn(&mut owner.budget, &mut TurnCtx { now, pool, scratch });
        slot.cpu_ns += clock::thread_cpu_ns().saturating_sub(before);
        slot.hold_admissions(&self.neighbours, index, now);
        self.reschedule(index);
        // A published port may also have waited for the room: accepts run in the next turn.
        if again
            || self.containers[usize::from(index)]
                .as_ref()
                .is_some_and(ContainerSlot::has_listeners)
        {
            self.activate(index);
        }
    }
}

impl BudgetSlot {
    /// The event in the daemon's terms. `containers`: all containers of the worker.
    fn describe(&self, event: Event, containers: &[Option<ContainerSlot>]) -> DaemonEvent {
        let budget = self.name.clone();
        match event {
            Event::PressureEnter { .. } => DaemonEvent::PressureStarted { budget },
            Event::PressureLeave { after_ms, .. } => {
                DaemonEvent::PressureEnded { budget, after_ms }
            }
            Event::AdmissionDenied { member, .. } => {
                let index = self.members.get(usize::from(member.0)).copied().flatten();
                let slot = index.and_then(|index| containers[usize::from(index)].as_ref());
                DaemonEvent::FlowRefused { budget, container: slot.map(|slot| slot.name.clone()) }
            }
            Event::HardRefused { .. } => DaemonEvent::HardReached { budget },
        }
    }
}

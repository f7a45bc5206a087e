//! A worker: one thread, its containers and their budgets.
//!
//! One turn of the loop, in this order: wait; read the clock once; record what the poll reported; carry out the steps
//! of the [`Schedule`], as the virtual world does; execute commands. A container that stopped at a bound runs again in
//! the next turn, which does not wait.

mod add;
mod container_slot;
mod control;
mod ended;
mod flows;
mod live;
mod log_limit;
mod report;
mod siblings;

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use mio::{Events, Poll, Waker};
use skbudget_controller::{Budget, Event, Instant, Level};
use skbudget_stack::schedule::{Schedule, Step, Used};
use skbudget_stack::tap::SCRATCH_BYTES;
use skbudget_stack::{ChunkPool, Ready, Siblings, Throttle, WakeKey};

use crate::clock::{self, CpuMeter};
use crate::events::EventSink;
use crate::levels::{Levels, View};
use crate::resolv_conf::HostServers;
use crate::token::{self, Kind};
use crate::types::{DaemonEvent, Ended};

use container_slot::{ContainerSlot, TurnCtx, TurnOutcome};
pub(crate) use control::{BudgetChange, Command};
use log_limit::LogLimit;

/// Events taken from the poll in one turn.
const EVENTS_PER_TURN: usize = 1024;

/// Least interval between two log lines of one budget.
const LOG_EVERY: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(crate) struct Worker {
    index: usize,
    poll: Poll,
    inbox: Receiver<Command>,
    /// The meters above the budgets.
    levels: Arc<Levels>,
    /// The levels as of its last turn.
    view: View,
    event_sink: EventSink,
    /// The host's name servers; `None`: each container reads them from the file.
    host_servers: Option<HostServers>,
    pool: ChunkPool,
    /// When to return free chunks to the system if no event arrives before; `None`: there is none to return.
    tend_at: Option<Instant>,
    scratch: Vec<u8>,
    budgets: Vec<Option<BudgetSlot>>,
    containers: Vec<Option<ContainerSlot>>,
    /// The last containers that ended by themselves.
    ended: VecDeque<Ended>,
    /// What runs next, and when.
    schedule: Schedule,
    /// Which containers reach each other.
    siblings: Siblings,
    /// CPU time of the thread, for the throttle.
    cpu: CpuMeter,
    /// A frame capture is active on at least one container: the worker flushes captures before each wait.
    captures: bool,
    /// The waker fired: commands are pending, or memory was released at a level above.
    wake_requested: bool,
    stop: bool,
}

#[derive(Debug)]
struct BudgetSlot {
    name: String,
    budget: Budget,
    /// Containers (indices of `containers`) by member number.
    members: Vec<Option<usize>>,
    /// The budget belongs to one container and is removed with it.
    own: bool,
    /// Rate limit of the log lines of its events.
    log_limit: LogLimit,
}

impl Worker {
    /// A worker that is not running yet, and the waker that interrupts its wait.
    pub(crate) fn new(
        index: usize,
        levels: Arc<Levels>,
        inbox: Receiver<Command>,
        event_sink: EventSink,
        host_servers: Option<HostServers>,
    ) -> io::Result<(Self, Arc<Waker>)> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), token::WAKER)?);
        levels.join(Arc::clone(&waker));
        let worker = Self {
            index,
            poll,
            inbox,
            view: View::default(),
            levels,
            event_sink,
            host_servers,
            pool: ChunkPool::new(),
            tend_at: None,
            scratch: vec![0; SCRATCH_BYTES],
            budgets: Vec::new(),
            containers: Vec::new(),
            ended: VecDeque::new(),
            schedule: Schedule::default(),
            siblings: Siblings::default(),
            cpu: CpuMeter::default(),
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
                tracing::error!("worker {}: poll: {e}", self.index);
                break;
            }
            // One reading for the whole turn: every part of the turn sees the same time.
            let now = clock::now();
            for event in &events {
                self.wake_requested |= self.on_event(event);
            }
            self.schedule.start(now);
            while let Some(step) = self.schedule.next_step(now) {
                self.carry_out(step, now);
            }
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
        let timeout = if self.schedule.has_work() || self.wake_requested {
            // A bound stopped a container or the commands, or waiters remain: only collect what is ready.
            Some(Duration::ZERO)
        } else {
            // Here the thread has time: the capture is written between bursts, not within one.
            if self.captures {
                self.containers.iter_mut().flatten().for_each(|slot| slot.tap.flush_captures());
                // Those that have ended are removed by the flush.
                self.captures = self.containers.iter().flatten().any(|s| s.tap.has_captures());
            }
            let due = self.schedule.next_deadline().into_iter();
            due.chain(self.tend_at).min().map(|at| at.since(clock::now()))
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
        let index = usize::from(token::container(token));
        // A late event of a container that was removed.
        let Some(slot) = self.containers.get_mut(index).and_then(Option::as_mut) else {
            return false;
        };
        match kind {
            Kind::Device => slot.on_device_event(),
            Kind::Listener(which) => slot.on_listener_event(which),
            Kind::Datagram => {
                let Some(id) = slot.host.datagram(token) else { return false };
                slot.stack.on_datagram_ready(id);
            }
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
        self.schedule.activate(index);
        false
    }

    /// Carries out one step of the schedule.
    fn carry_out(&mut self, step: Step, now: Instant) {
        match step {
            Step::Turn(index) => self.run_container(index, now),
            Step::Level => self.check_level(now),
            Step::Wake(budget) => self.wake_waiters(budget, now),
            Step::StackTurn(index) => self.run_woken(index, now),
            Step::Events(budget) => self.send_events(budget, now),
        }
    }

    /// Runs a container: its device, its published ports and its stack.
    fn run_container(&mut self, index: usize, now: Instant) {
        let Some(slot) = &mut self.containers[index] else { return };
        let Some(owner) = &mut self.budgets[slot.budget] else { return };
        self.cpu.start();
        let (pool, scratch) = (&mut self.pool, &mut self.scratch[..]);
        let input_left = slot.take_input(&mut owner.budget, &mut TurnCtx { now, pool, scratch });
        // Before the stack's turn: one ACK then acknowledges what was passed and opens the window again.
        let passes_left = self.run_siblings(index, now);
        let Some(slot) = &mut self.containers[index] else { return };
        let Some(owner) = &mut self.budgets[slot.budget] else { return };
        let (pool, scratch) = (&mut self.pool, &mut self.scratch[..]);
        let outcome = slot.turn(&mut owner.budget, &mut TurnCtx { now, pool, scratch });
        let more = input_left || passes_left || outcome == TurnOutcome::MoreWork;
        self.after_turn(index, more, now);
        if outcome == TurnOutcome::DeviceGone {
            self.on_device_gone(index, now);
        }
    }

    /// Runs the stack of a woken container, without its device and accepts, which the next turn serves.
    fn run_woken(&mut self, index: usize, now: Instant) {
        self.cpu.start();
        // It may have been woken for data of a sibling, or for a connection of one.
        let passes_left = self.run_siblings(index, now);
        let Some(slot) = &mut self.containers[index] else { return };
        let Some(owner) = &mut self.budgets[slot.budget] else { return };
        let (pool, scratch) = (&mut self.pool, &mut self.scratch[..]);
        let more =
            passes_left | slot.stack_turn(&mut owner.budget, &mut TurnCtx { now, pool, scratch });
        // A published port may also have waited for the room: accepts run in the next turn.
        let more = more || slot.has_listeners();
        self.after_turn(index, more, now);
    }

    /// Reports a turn of a container to the schedule.
    fn after_turn(&mut self, index: usize, more: bool, now: Instant) {
        let more = more || self.has_sibling_work(index, now);
        let Some(slot) = &mut self.containers[index] else { return };
        let Some(owner) = &mut self.budgets[slot.budget] else { return };
        // The turn may have charged and released memory.
        self.schedule.poll_budget(slot.budget);
        let used = Used {
            cpu: self.cpu.stop(),
            connects: slot.stack.take_connects(),
            pause_factor: Throttle::of(&owner.budget).pause_factor,
        };
        slot.cpu_time += used.cpu;
        if let Some(until) = self.schedule.ran(index, &used, now) {
            slot.stack.hold_admissions(until);
        }
        self.schedule.finish(index, slot.next_deadline(), more);
    }

    /// Publishes shares of the levels above the budgets, and polls all budgets if memory was released there: what one
    /// budget released may be what a waiter of another budget needs.
    fn check_level(&mut self, now: Instant) {
        self.cpu.forget();
        if !self.levels.refresh(&mut self.view) {
            return;
        }
        let owners = || self.budgets.iter().flatten().map(|owner| &owner.budget);
        let is_above = |level: &Level, budget: &&Budget| {
            budget.parent().is_some_and(|parent| std::ptr::eq(&**parent, level))
        };
        let below = |level: &Level| {
            owners().filter(|budget| is_above(level, budget)).map(Budget::as_child).collect()
        };
        let released = self.levels.on_turn(self.index, &mut self.view, below, now);
        if released || self.wake_requested {
            (0..self.budgets.len()).for_each(|budget| self.schedule.poll_budget(budget));
        }
    }

    /// Notifies the waiters of a budget that now have room.
    fn wake_waiters(&mut self, budget: usize, now: Instant) {
        let Some(owner) = &mut self.budgets[budget] else { return };
        while let Some(key) = owner.budget.poll_wake(now) {
            let key = WakeKey(key);
            let member = usize::from(key.member().0);
            // No container has this member any more.
            let Some(index) = owner.members.get(member).copied().flatten() else { continue };
            if let Some(slot) = &mut self.containers[index] {
                slot.stack.on_wake(key);
                self.schedule.woken(index);
            }
        }
    }

    /// Reports the events of a budget.
    fn send_events(&mut self, budget: usize, now: Instant) {
        let Some(owner) = &mut self.budgets[budget] else { return };
        while let Some(event) = owner.budget.poll_event() {
            let unlogged = owner.log_limit.note(now);
            // A flood of SYNs causes many events: one that no line and no caller shows is not described.
            if unlogged.is_some() || self.event_sink.has_reader() {
                self.event_sink.send(owner.describe(event, &self.containers), unlogged);
            }
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
                let slot = index.and_then(|index| containers[index].as_ref());
                DaemonEvent::FlowRefused { budget, container: slot.map(|slot| slot.name.clone()) }
            }
            Event::HardRefused { .. } => DaemonEvent::HardReached { budget },
        }
    }
}

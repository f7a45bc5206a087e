//! A worker: one thread, its containers and their budgets.
//!
//! One turn of its loop: wait; read the clock once; note what the poll reported; run what is due; then, container by
//! container, device frames, accepts and the stack, each with a bound; then those whom memory came back for; then the
//! controllers' events. What stopped at a bound runs again in the next turn, which does not wait. What a turn costs
//! depends on what happened, not on how many containers there are.

mod control;
mod quiet;
mod rest;
mod seat;

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use std::time::Duration;

use mio::{Events, Poll, Waker};
use skbudget_controller::{Budget, Event, Instant};
use skbudget_stack::tap::SCRATCH_BYTES;
use skbudget_stack::{ChunkPool, Ready, WakeKey};

use crate::clock;
use crate::daemon::DaemonEvent;
use crate::host_level::HostLevel;
use crate::token::{self, Kind};

pub(crate) use control::Command;
use rest::Recent;
use seat::{After, Seat, Shared};

/// Events taken from the poll in one turn.
const EVENTS_PER_TURN: usize = 1024;

/// How often memory that came back may wake waiters before the next wait: each pass runs only whom the one before
/// woke, and what is left over runs in the next turn.
const WAKE_PASSES: usize = 4;

/// One log line of a kind for a budget in this time.
const LOG_EVERY: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(crate) struct Worker {
    index: usize,
    poll: Poll,
    inbox: Receiver<Command>,
    host: Option<Arc<HostLevel>>,
    /// When it last computed the shares, while the host level is flagged.
    shared: Option<Instant>,
    listener: Option<Sender<DaemonEvent>>,
    pool: ChunkPool,
    /// When free chunks may go back to the system, if nothing else happens.
    tend_at: Option<Instant>,
    scratch: Vec<u8>,
    budgets: Vec<Option<BudgetSeat>>,
    seats: Vec<Option<Seat>>,
    /// Whom to run in the next turn, each once.
    active: Vec<u16>,
    /// Budgets that were used since waiters and events were last asked for.
    touched: Vec<usize>,
    recent: Recent,
    deadlines: BTreeSet<(Instant, u16)>,
    /// Some container's frames are captured: files are flushed before each wait.
    captures: bool,
    /// Somebody rang: there are commands, or room came back at the host level.
    called: bool,
    stop: bool,
}

#[derive(Debug)]
struct BudgetSeat {
    name: String,
    budget: Budget,
    /// Seats by member.
    members: Vec<Option<u16>>,
    /// Goes with its last member.
    own: bool,
    /// It is in the worker's list of those.
    touched: bool,
    logged: Option<Instant>,
    unlogged: u64,
}

impl Worker {
    pub(crate) fn new(
        index: usize,
        host: Option<Arc<HostLevel>>,
        inbox: Receiver<Command>,
        listener: Option<Sender<DaemonEvent>>,
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
            listener,
            pool: ChunkPool::new(),
            tend_at: None,
            scratch: vec![0; SCRATCH_BYTES],
            budgets: Vec::new(),
            seats: Vec::new(),
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

    /// Until it is told to stop.
    pub(crate) fn run(mut self) {
        let mut events = Events::with_capacity(EVENTS_PER_TURN);
        while !self.stop {
            if let Err(e) = self.wait(&mut events) {
                log::error!("worker {}: poll: {e}", self.index);
                break;
            }
            let now = clock::now();
            self.called = false;
            for event in &events {
                self.called |= self.on_event(event);
            }
            self.activate_due(now);
            self.pass(now);
            self.wake(now);
            if self.called {
                self.on_commands(now);
            }
            self.tend_at = self.pool.tend(now);
        }
        self.remove_all(clock::now());
    }

    fn wait(&mut self, events: &mut Events) -> io::Result<()> {
        let timeout = if self.active.is_empty() && self.touched.is_empty() {
            if self.captures {
                self.seats.iter_mut().flatten().for_each(|seat| seat.tap.flush_capture());
            }
            let due = self.deadlines.first().map(|(at, _)| *at).into_iter();
            due.chain(self.tend_at).min().map(|at| at.since(clock::now()))
        } else {
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

    /// True when there are commands.
    fn on_event(&mut self, event: &mio::event::Event) -> bool {
        let token = event.token();
        let kind = token::kind(token);
        if kind == Kind::Waker {
            return true;
        }
        let index = token::seat(token);
        let Some(seat) = self.seats.get_mut(usize::from(index)).and_then(Option::as_mut) else {
            return false;
        };
        match kind {
            Kind::Device => seat.on_device_event(),
            Kind::Listener(which) => seat.on_listener_event(which),
            Kind::Flow => {
                // The flow of a late event is over.
                let Some(flow) = seat.host.flow(token) else { return false };
                // A hang-up or an error is found out by the next read or write.
                let ended = event.is_error() || event.is_read_closed() && event.is_write_closed();
                let ready = Ready {
                    readable: event.is_readable() || event.is_read_closed() || ended,
                    writable: event.is_writable() || event.is_write_closed() || ended,
                };
                seat.stack.on_host_ready(flow, ready);
                if event.is_error() {
                    seat.stack.on_host_broken(flow);
                }
            }
            Kind::Waker => {}
        }
        self.activate(index);
        false
    }

    fn activate(&mut self, index: u16) {
        if let Some(seat) = &mut self.seats[usize::from(index)]
            && !seat.active
        {
            seat.active = true;
            self.active.push(index);
        }
    }

    fn activate_due(&mut self, now: Instant) {
        while let Some(&(at, index)) = self.deadlines.first() {
            if at > now {
                break;
            }
            self.deadlines.pop_first();
            if let Some(seat) = &mut self.seats[usize::from(index)] {
                seat.deadline = None;
            }
            self.activate(index);
        }
    }

    /// Runs every active container once. CPU time is read at the seams only.
    fn pass(&mut self, now: Instant) {
        let mut cpu = clock::thread_cpu_ns();
        for index in std::mem::take(&mut self.active) {
            let Some(seat) = &mut self.seats[usize::from(index)] else { continue };
            let Some(owner) = &mut self.budgets[seat.budget] else { continue };
            seat.active = false;
            if seat.rests(now) {
                self.reschedule(index);
                continue;
            }
            if !std::mem::replace(&mut owner.touched, true) {
                self.touched.push(seat.budget);
            }
            let (pool, scratch) = (&mut self.pool, &mut self.scratch[..]);
            let after = seat.turn(&mut owner.budget, &mut Shared { now, pool, scratch });
            let before = std::mem::replace(&mut cpu, clock::thread_cpu_ns());
            let took = cpu.saturating_sub(before);
            seat.cpu_ns += took;
            self.recent.ran(index, now);
            seat.hold_admissions(&self.recent, index, now);
            if owner.budget.under_pressure() {
                let ran_until = now + Duration::from_nanos(took);
                seat.rest_until = self.recent.rest(index, took, now).map(|rest| ran_until + rest);
            }
            self.reschedule(index);
            match after {
                After::Idle => {}
                After::Again => self.activate(index),
                After::Gone => self.on_gone(index, now),
            }
        }
    }

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

    /// Whom memory came back for runs now, not in the next turn (pressure model B9).
    fn wake(&mut self, now: Instant) {
        if let Some(host) = &self.host {
            let owners = self.budgets.iter().flatten();
            let usage = || owners.map(|owner| owner.budget.as_child()).collect();
            // Memory given back by one budget may be what another one waits for.
            if host.on_turn(self.index, &mut self.shared, usage, now) || self.called {
                self.touched = (0..self.budgets.len()).collect();
            }
        }
        let touched = std::mem::take(&mut self.touched);
        let mut left_over = true;
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
            // Who could not be woken in this turn is asked for in the next one, which then does not wait.
            owner.touched = left_over;
            if left_over {
                self.touched.push(index);
            }
            while let Some(event) = owner.budget.poll_event() {
                owner.log(event, now);
            }
        }
    }

    /// Tells the waiters of a budget whose need fits now; their seats.
    fn wake_waiters(&mut self, budget: usize, now: Instant) -> Vec<u16> {
        let mut woken = Vec::new();
        let Some(owner) = &mut self.budgets[budget] else { return woken };
        while let Some(key) = owner.budget.poll_wake(now) {
            let key = WakeKey(key);
            let member = usize::from(key.member().0);
            let Some(index) = owner.members.get(member).copied().flatten() else { continue };
            if let Some(seat) = &mut self.seats[usize::from(index)] {
                seat.stack.on_wake(key);
                woken.push(index);
            }
        }
        woken
    }

    fn run_woken(&mut self, index: u16, now: Instant) {
        let Some(seat) = &mut self.seats[usize::from(index)] else { return };
        let Some(owner) = &mut self.budgets[seat.budget] else { return };
        let before = clock::thread_cpu_ns();
        let (pool, scratch) = (&mut self.pool, &mut self.scratch[..]);
        let again = seat.stack_turn(&mut owner.budget, &mut Shared { now, pool, scratch });
        seat.cpu_ns += clock::thread_cpu_ns().saturating_sub(before);
        seat.hold_admissions(&self.recent, index, now);
        self.reschedule(index);
        // A listener may have waited for the room, too.
        if again || self.seats[usize::from(index)].as_ref().is_some_and(Seat::has_listeners) {
            self.activate(index);
        }
    }

    fn on_gone(&mut self, index: u16, now: Instant) {
        if let Some(seat) = self.remove_seat(index, now) {
            let name = seat.name;
            log::info!("container {name}: its device is gone");
            self.tell(DaemonEvent::ContainerEnded { name });
        }
    }

    fn tell(&self, event: DaemonEvent) {
        if let Some(listener) = &self.listener {
            // Nobody listens any more: not the worker's concern.
            let _ = listener.send(event);
        }
    }
}

impl BudgetSeat {
    /// At most one line in `LOG_EVERY`, with what was left out before it.
    fn log(&mut self, event: Event, now: Instant) {
        if self.logged.is_some_and(|at| now.since(at) < LOG_EVERY) {
            self.unlogged += 1;
            return;
        }
        self.logged = Some(now);
        let left_out = std::mem::take(&mut self.unlogged);
        let name = &self.name;
        match event {
            Event::PressureEnter { .. } => {
                log::info!("budget {name}: under pressure (+{left_out})");
            }
            Event::PressureLeave { after_ms, .. } => {
                log::info!("budget {name}: pressure over after {after_ms} ms (+{left_out})");
            }
            Event::AdmissionDenied { member, .. } => {
                log::warn!(
                    "budget {name}: no room for a new flow of member {} (+{left_out})",
                    member.0
                );
            }
            Event::HardRefused { .. } => {
                log::info!("budget {name}: at its hard limit (+{left_out})");
            }
        }
    }
}

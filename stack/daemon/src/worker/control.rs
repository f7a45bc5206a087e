//! What other threads ask of a worker.

use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread;

use skbudget_controller::{Budget, BudgetConfig, Counter, Instant, Limits};
use skbudget_stack::{Container, FlowInfo, Tap, Undelivered};

use super::{BudgetSeat, Seat, Shared, Worker};
use crate::daemon::{BudgetId, BudgetRef, ContainerSpec, DaemonError};
use crate::host::HostSockets;
use crate::listener::Backlog;
use crate::stats::{self, Categories, ContainerReport, Meter};

#[derive(Debug)]
pub(crate) enum Command {
    AddBudget { name: String, config: BudgetConfig, reply: Sender<Result<BudgetId, DaemonError>> },
    AddContainer { spec: Box<ContainerSpec>, reply: Sender<Result<(), DaemonError>> },
    Has { name: String, reply: Sender<bool> },
    Remove { name: String, reply: Sender<Result<(), DaemonError>> },
    SetLimits { name: String, limits: Limits, reply: Sender<Result<(), DaemonError>> },
    Flows { name: String, reply: Sender<Result<Vec<FlowInfo>, DaemonError>> },
    Undelivered { name: String, reply: Sender<Result<Undelivered, DaemonError>> },
    Stats { meminfo: bool, reply: Sender<Report> },
    Stop,
}

/// One worker's part of the stats.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) containers: Vec<ContainerReport>,
    pub(crate) budgets: Vec<Meter>,
    pub(crate) platform_bytes: u64,
    pub(crate) pool_bytes: u64,
}

impl Worker {
    /// An answer nobody waits for any more is dropped.
    pub(super) fn on_commands(&mut self, now: Instant) {
        while let Ok(command) = self.inbox.try_recv() {
            match command {
                Command::AddBudget { name, config, reply } => {
                    let made = self.add_budget(name, config, false);
                    let worker = self.index;
                    let _ = reply.send(made.map(|index| BudgetId { worker, index }));
                }
                Command::AddContainer { spec, reply } => {
                    let _ = reply.send(self.add_container(*spec, now));
                }
                Command::Has { name, reply } => {
                    let _ = reply.send(self.find(&name).is_ok());
                }
                Command::Remove { name, reply } => {
                    match self.find(&name).map(|index| self.remove_seat(index, now)) {
                        Ok(left) => close_aside(left.map(|seat| seat.tap), reply),
                        Err(e) => drop(reply.send(Err(e))),
                    }
                }
                Command::SetLimits { name, limits, reply } => {
                    let _ = reply.send(self.set_limits(&name, limits, now));
                }
                Command::Flows { name, reply } => {
                    let _ = reply.send(self.flows(&name));
                }
                Command::Undelivered { name, reply } => {
                    let _ = reply.send(self.undelivered(&name));
                }
                Command::Stats { meminfo, reply } => {
                    let _ = reply.send(self.report(meminfo, now));
                }
                Command::Stop => self.stop = true,
            }
        }
    }

    pub(super) fn remove_all(&mut self, now: Instant) {
        for index in 0..self.seats.len() {
            self.remove_seat(index as u16, now);
        }
    }

    /// Resets its flows and gives everything back. What is left of it, if it was there: its name, and its device, which
    /// closes with it.
    pub(super) fn remove_seat(&mut self, index: u16, now: Instant) -> Option<Seat> {
        let mut seat = self.seats[usize::from(index)].take()?;
        seat.unregister(self.poll.registry());
        if let Some(at) = seat.deadline {
            self.deadlines.remove(&(at, index));
        }
        self.active.retain(|active| *active != index);
        let place = &mut self.budgets[seat.budget];
        if let Some(owner) = place {
            let (pool, scratch) = (&mut self.pool, &mut self.scratch[..]);
            seat.abort(&mut owner.budget, &mut Shared { now, pool, scratch });
            let member = seat.stack.member();
            owner.budget.remove_member(member, now);
            owner.members[usize::from(member.0)] = None;
            if !std::mem::replace(&mut owner.touched, true) {
                self.touched.push(seat.budget);
            }
            if owner.own {
                *place = None;
            }
        }
        Some(seat)
    }

    fn add_budget(
        &mut self,
        name: String,
        config: BudgetConfig,
        own: bool,
    ) -> Result<usize, DaemonError> {
        let level = self.host.as_ref().map(|host| Arc::clone(&host.level));
        let budget = Budget::new(config, level).map_err(DaemonError::Limits)?;
        let seat = BudgetSeat {
            name,
            budget,
            members: Vec::new(),
            own,
            touched: false,
            logged: None,
            unlogged: 0,
        };
        Ok(place(&mut self.budgets, seat))
    }

    fn add_container(&mut self, spec: ContainerSpec, now: Instant) -> Result<(), DaemonError> {
        let ContainerSpec { name, tap, config, budget, publish, outbound_addr } = spec;
        let (at, own) = match budget {
            BudgetRef::Own(config) => (self.add_budget(name.clone(), config, true)?, true),
            BudgetRef::Shared(id) => (id.index, false),
        };
        let registry = self.poll.registry().try_clone()?;
        let owner = self.budgets.get_mut(at).and_then(Option::as_mut);
        let owner = owner.ok_or(DaemonError::NoSuchBudget)?;
        let dev_bytes = config.dev_queue_bytes;
        let Ok(member) = owner.budget.add_member(dev_bytes) else {
            if own {
                self.budgets[at] = None;
            }
            return Err(DaemonError::NoRoom { dev_bytes });
        };
        let (ports, backlog) = (publish.len(), Backlog::fit(owner.budget.limits(), publish.len()));
        let backlog_bytes = backlog.bytes() * ports as u64;
        if ports > 0 && owner.budget.charge_listen(member, backlog_bytes, now).is_err() {
            owner.budget.remove_member(member, now);
            if own {
                self.budgets[at] = None;
            }
            return Err(DaemonError::NoRoomForPorts { ports, backlog_bytes });
        }
        let members = &mut owner.members;
        let slot = usize::from(member.0);
        members.resize(members.len().max(slot + 1), None);

        let stack = Container::new(config, member);
        let free = self.seats.iter().position(Option::is_none).unwrap_or(self.seats.len());
        let index = free as u16;
        members[slot] = Some(index);
        self.captures |= tap.has_capture();
        let host = HostSockets::new(registry, index, outbound_addr);
        let seat = Seat::new(name, at, stack, host, tap);
        place(&mut self.seats, seat);
        let registered = match &mut self.seats[free] {
            Some(seat) => seat.register(self.poll.registry(), index, publish, backlog),
            None => Ok(()),
        };
        if let Err(e) = registered {
            self.remove_seat(index, now);
            return Err(e.into());
        }
        self.activate(index);
        Ok(())
    }

    fn set_limits(&mut self, name: &str, limits: Limits, now: Instant) -> Result<(), DaemonError> {
        let index = self.find(name)?;
        let seat = self.seats[usize::from(index)].as_ref();
        let owner = seat.and_then(|seat| self.budgets[seat.budget].as_mut());
        let owner = owner.ok_or(DaemonError::NoSuchBudget)?;
        owner.budget.set_limits(limits, now);
        self.activate(index);
        Ok(())
    }

    fn flows(&self, name: &str) -> Result<Vec<FlowInfo>, DaemonError> {
        let index = self.find(name)?;
        let seat = self.seats[usize::from(index)].as_ref();
        Ok(seat.map(|seat| seat.stack.flows()).unwrap_or_default())
    }

    fn undelivered(&mut self, name: &str) -> Result<Undelivered, DaemonError> {
        let index = self.find(name)?;
        let seat = self.seats[usize::from(index)].as_mut();
        Ok(seat.map(Seat::undelivered).unwrap_or_default())
    }

    fn find(&self, name: &str) -> Result<u16, DaemonError> {
        let named = |seat: &Option<Seat>| seat.as_ref().is_some_and(|seat| seat.name == name);
        let at = self.seats.iter().position(named);
        at.map(|at| at as u16).ok_or_else(|| DaemonError::NoSuchContainer(name.to_owned()))
    }

    fn report(&mut self, meminfo: bool, now: Instant) -> Report {
        let mut held = vec![None; self.seats.len()];
        for (held, seat) in held.iter_mut().zip(&self.seats).filter(|_| meminfo) {
            let Some(seat) = seat else { continue };
            let (bytes, above) = seat.host.queued();
            *held = Some(bytes);
            if let Some(owner) = &mut self.budgets[seat.budget] {
                owner.budget.count(seat.stack.member(), Counter::HostMemExcess, above);
            }
        }
        let owners = || self.budgets.iter().flatten();
        let seats = self.seats.iter().zip(held);
        let report = |(seat, host_meminfo_bytes): (&Option<Seat>, Option<u64>)| {
            let seat = seat.as_ref()?;
            let owner = self.budgets[seat.budget].as_ref()?;
            let member = owner.budget.member_stats(seat.stack.member());
            let stack = seat.stack.stats();
            Some(ContainerReport {
                name: seat.name.clone(),
                meter: owner.budget.meter_stats(now).into(),
                budget: owner.name.clone(),
                flows: stack.flows,
                flows_total: stack.flows_total,
                categories: Categories::from(&member),
                bytes_from_guest: stack.bytes_from_guest,
                bytes_to_guest: stack.bytes_to_guest,
                frames_from_guest: stack.frames_from_guest,
                frames_to_guest: stack.frames_to_guest,
                host_meminfo_bytes,
                host_sockets: seat.host.open() as u64,
                cpu_ns: seat.cpu_ns,
                turns: seat.turns,
                counters: stats::counters(&member, &stack, seat.tap.counters()),
            })
        };
        Report {
            containers: seats.filter_map(report).collect(),
            budgets: owners().map(|owner| owner.budget.meter_stats(now).into()).collect(),
            platform_bytes: self.scratch.len() as u64,
            pool_bytes: self.pool.slack_bytes(),
        }
    }
}

/// The kernel waits until nobody can be looking at a device before it is gone (`unregister_netdevice_many`), tens of
/// milliseconds in which the thread that closes it does nothing else: not the one that the neighbours wait for. The
/// answer comes when the device is gone.
fn close_aside(tap: Option<Tap>, reply: Sender<Result<(), DaemonError>>) {
    let done = reply.clone();
    let close = move || {
        drop(tap);
        let _ = reply.send(Ok(()));
    };
    if thread::Builder::new().name("skb-close".to_owned()).spawn(close).is_err() {
        // No thread to be had: it was closed here.
        let _ = done.send(Ok(()));
    }
}

/// Into the first free place; its number.
fn place<T>(places: &mut Vec<Option<T>>, value: T) -> usize {
    let free = places.iter().position(Option::is_none).unwrap_or(places.len());
    if free == places.len() {
        places.push(Some(value));
    } else {
        places[free] = Some(value);
    }
    free
}

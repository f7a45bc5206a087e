//! Commands from other threads.

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread;

use skbudget_controller::{Budget, BudgetConfig, Counter, Instant, Level, Limits};
use skbudget_stack::{Container, FlowInfo, Tap, Undelivered};

use super::log_limit::LogLimit;
use super::{BudgetSlot, ContainerSlot, LOG_EVERY, TurnCtx, Worker};
use crate::host::HostSockets;
use crate::listener::Backlog;
use crate::stats::{self, Categories, ContainerReport, Meter};
use crate::types::{BudgetId, BudgetRef, ContainerSpec, DaemonError, Ended, Ports, Publish};

/// Commands executed in one turn: many callers must not delay the containers.
const COMMANDS_PER_TURN: usize = 16;

/// One command; the worker sends the result to `reply`.
#[derive(Debug)]
pub(crate) enum Command {
    /// Creates a budget that containers can share.
    AddBudget { name: String, config: BudgetConfig, reply: Sender<Result<BudgetId, DaemonError>> },
    /// Creates a container, with a budget if it has its own.
    AddContainer { spec: Box<ContainerSpec>, reply: Sender<Result<(), DaemonError>> },
    /// Whether a container of that name runs here.
    Has { name: String, reply: Sender<bool> },
    /// Resets the container's flows and closes its device.
    Remove { name: String, reply: Sender<Result<(), DaemonError>> },
    /// Changes the limits of the container's budget.
    SetLimits { name: String, limits: Limits, reply: Sender<Result<(), DaemonError>> },
    /// Changes limits and guarantee of the container's budget.
    SetBudget {
        name: String,
        limits: Limits,
        min_bytes: u64,
        reply: Sender<Result<(), DaemonError>>,
    },
    /// Moves the container's budget below another level.
    SetParent { name: String, level: Option<Arc<Level>>, reply: Sender<Result<(), DaemonError>> },
    /// Publishes more ports of the container.
    Publish { name: String, listeners: Ports<TcpListener>, reply: Sender<Result<(), DaemonError>> },
    /// Closes published ports, by their addresses on the host.
    Unpublish { name: String, ports: Vec<SocketAddr>, reply: Sender<Result<(), DaemonError>> },
    /// Lists the container's flows.
    Flows { name: String, reply: Sender<Result<Vec<FlowInfo>, DaemonError>> },
    /// Counts the bytes acknowledged to the guest and not yet delivered.
    Undelivered { name: String, reply: Sender<Result<Undelivered, DaemonError>> },
    /// Returns what is known of a container that ended by itself.
    Ended { name: String, reply: Sender<Option<Ended>> },
    /// Collects the stats; `meminfo` also reads SO_MEMINFO of each host socket.
    Stats { meminfo: bool, reply: Sender<Report> },
    /// Ends the loop.
    Stop,
}

/// One worker's part of the stats; `platform_bytes` and `pool_bytes` are charged to no container.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) containers: Vec<ContainerReport>,
    pub(crate) budgets: Vec<Meter>,
    pub(crate) platform_bytes: u64,
    pub(crate) pool_bytes: u64,
}

impl Worker {
    /// Executes pending commands, at most [`COMMANDS_PER_TURN`]. True when it stopped there and more may be pending. A
    /// reply is dropped when its receiver is gone.
    pub(super) fn on_commands(&mut self, now: Instant) -> bool {
        for _ in 0..COMMANDS_PER_TURN {
            let Ok(command) = self.inbox.try_recv() else { return false };
            match command {
                Command::AddBudget { name, config, reply } => {
                    let made = self.add_budget(name, config, None, false);
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
                    match self.find(&name).map(|index| self.remove_container(index, now)) {
                        // The reply is sent when the device is closed.
                        Ok(left) => close_aside(left.map(|slot| slot.tap), reply),
                        Err(e) => {
                            self.forget_ended(&name);
                            drop(reply.send(Err(e)));
                        }
                    }
                }
                Command::SetLimits { name, limits, reply } => {
                    let _ = reply.send(self.set_limits(&name, limits, now));
                }
                Command::SetBudget { name, limits, min_bytes, reply } => {
                    let _ = reply.send(self.set_budget(&name, limits, min_bytes, now));
                }
                Command::SetParent { name, level, reply } => {
                    let _ = reply.send(self.set_parent(&name, level, now));
                }
                Command::Publish { name, listeners, reply } => {
                    let _ = reply.send(self.publish(&name, listeners, now));
                }
                Command::Unpublish { name, ports, reply } => {
                    let _ = reply.send(self.unpublish(&name, &ports, now));
                }
                Command::Flows { name, reply } => {
                    let _ = reply.send(self.flows(&name));
                }
                Command::Undelivered { name, reply } => {
                    let _ = reply.send(self.undelivered(&name));
                }
                Command::Ended { name, reply } => {
                    let _ = reply.send(self.ended(&name));
                }
                Command::Stats { meminfo, reply } => {
                    let _ = reply.send(self.report(meminfo, now));
                }
                Command::Stop => self.stop = true,
            }
        }
        true
    }

    /// Removes every container, before the thread ends.
    pub(super) fn remove_all(&mut self, now: Instant) {
        for index in 0..self.containers.len() {
            self.remove_container(index, now);
        }
    }

    /// Resets the container's flows and uncharges all that it holds. Returns the slot, with the name and the device;
    /// the device closes when the caller drops it. `None`: there is no such container.
    pub(super) fn remove_container(&mut self, index: usize, now: Instant) -> Option<ContainerSlot> {
        self.abort_container(index, now);
        let slot = self.containers[index].take()?;
        // The device may be closed later, on another thread: without this its events would reach a later container of
        // the same index.
        slot.unregister(self.poll.registry());
        self.schedule.remove_container(index);
        let place = &mut self.budgets[slot.budget];
        if let Some(owner) = place {
            // The reset above sent frames and released memory, so the member is removed after it.
            let member = slot.stack.member();
            owner.budget.remove_member(member, now);
            owner.members[usize::from(member.0)] = None;
            // What was released may be room for another member's waiters.
            self.schedule.poll_budget(slot.budget);
            // The budget has no other member.
            if owner.own {
                *place = None;
            }
        }
        Some(slot)
    }

    /// Resets the container's flows.
    pub(super) fn abort_container(&mut self, index: usize, now: Instant) {
        let Some(slot) = &mut self.containers[index] else { return };
        let Some(owner) = &mut self.budgets[slot.budget] else { return };
        let (pool, scratch) = (&mut self.pool, &mut self.scratch[..]);
        slot.abort(&mut owner.budget, &mut TurnCtx { now, pool, scratch });
    }

    /// Creates a budget below the level of a group, or of the host. `own`: it is removed with its container.
    fn add_budget(
        &mut self,
        name: String,
        config: BudgetConfig,
        group: Option<&str>,
        own: bool,
    ) -> Result<usize, DaemonError> {
        let level = self.levels.above(group)?;
        let budget = Budget::new(config, level).map_err(DaemonError::Limits)?;
        let slot = BudgetSlot {
            name,
            budget,
            members: Vec::new(),
            own,
            log_limit: LogLimit::every(LOG_EVERY),
        };
        Ok(place(&mut self.budgets, slot))
    }

    /// Creates a container. After an error it is charged nothing.
    fn add_container(&mut self, spec: ContainerSpec, now: Instant) -> Result<(), DaemonError> {
        let ContainerSpec { name, tap, config, budget, publish, outbound_addr } = spec;
        self.forget_ended(&name);
        // Needs a descriptor and may fail: before a budget of its own would be left over.
        let registry = self.poll.registry().try_clone()?;
        let (at, own) = match budget {
            BudgetRef::Own(config) => (self.add_budget(name.clone(), config, None, true)?, true),
            BudgetRef::InGroup(group, config) => {
                (self.add_budget(name.clone(), config, Some(&group), true)?, true)
            }
            BudgetRef::Shared(id) => (id.index, false),
        };
        let owner = self.budgets.get_mut(at).and_then(Option::as_mut);
        let owner = owner.ok_or(DaemonError::NoSuchBudget)?;
        // Charged first: the device can hold frames from the moment it is watched.
        let dev_bytes = config.dev_queue_bytes;
        let Ok(member) = owner.budget.add_member(dev_bytes) else {
            if own {
                self.budgets[at] = None;
            }
            return Err(DaemonError::NoRoom { dev_bytes });
        };
        let (listeners, datagrams) = Publish::split(publish);
        let ports = listeners.len();
        let backlog = Backlog::fit(owner.budget.limits(), ports);
        // Backlogs are charged whole before the ports listen: the kernel receives into them on its own (H6).
        let backlog_bytes = backlog.bytes() * ports as u64;
        if ports > 0 && owner.budget.charge_listen(member, backlog_bytes, now).is_err() {
            owner.budget.remove_member(member, now);
            if own {
                self.budgets[at] = None;
            }
            return Err(DaemonError::NoRoomForPorts { ports, backlog_bytes });
        }
        let members = &mut owner.members;
        let member_index = usize::from(member.0);
        members.resize(members.len().max(member_index + 1), None);

        let name_servers = config.name_servers.clone();
        let stack = Container::new(config, member);
        let index =
            self.containers.iter().position(Option::is_none).unwrap_or(self.containers.len());
        members[member_index] = Some(index);
        self.captures |= tap.has_capture();
        // The index in the tokens of its events.
        let token_index = index as u16;
        let host = HostSockets::new(registry, token_index, outbound_addr, name_servers);
        let slot = ContainerSlot::new(name, at, stack, host, tap);
        place(&mut self.containers, slot);
        let registered = match &mut self.containers[index] {
            Some(slot) => slot.register(self.poll.registry(), token_index, listeners, backlog),
            None => Ok(()),
        };
        if let Err(e) = registered {
            // `remove_container` also undoes the charges above.
            self.remove_container(index, now);
            return Err(e.into());
        }
        for (socket, guest_port) in datagrams {
            if let Err(e) = self.publish_datagrams(index, socket, guest_port, now) {
                self.remove_container(index, now);
                return Err(e);
            }
        }
        // The device may hold frames that arrived before it was watched.
        self.schedule.add_container(index);
        Ok(())
    }

    /// Charges a published UDP port and gives its socket to the container.
    fn publish_datagrams(
        &mut self,
        index: usize,
        socket: UdpSocket,
        guest_port: u16,
        now: Instant,
    ) -> Result<(), DaemonError> {
        let failed = DaemonError::UdpPort { guest_port };
        let Some(slot) = &mut self.containers[index] else { return Err(failed) };
        let Some(owner) = &mut self.budgets[slot.budget] else { return Err(failed) };
        let (pool, scratch) = (&mut self.pool, &mut self.scratch[..]);
        let mut turn = TurnCtx { now, pool, scratch };
        match slot.publish_datagrams(&mut owner.budget, &mut turn, socket, guest_port)? {
            true => Ok(()),
            false => Err(failed),
        }
    }

    fn set_limits(&mut self, name: &str, limits: Limits, now: Instant) -> Result<(), DaemonError> {
        let index = self.find(name)?;
        self.budget_of(index)?.set_limits(limits, now);
        // After its turn the budget is polled: higher limits may have room for waiters.
        self.schedule.activate(index);
        Ok(())
    }

    /// Every flow of the container.
    fn flows(&self, name: &str) -> Result<Vec<FlowInfo>, DaemonError> {
        let index = self.find(name)?;
        let slot = self.containers[index].as_ref();
        Ok(slot.map(|slot| slot.stack.flows()).unwrap_or_default())
    }

    /// Bytes acknowledged to the guest that would be lost if the container were removed now.
    fn undelivered(&mut self, name: &str) -> Result<Undelivered, DaemonError> {
        let index = self.find(name)?;
        let slot = self.containers[index].as_mut();
        Ok(slot.map(ContainerSlot::undelivered).unwrap_or_default())
    }

    /// The index of the container with that name.
    pub(super) fn find(&self, name: &str) -> Result<usize, DaemonError> {
        let named =
            |slot: &Option<ContainerSlot>| slot.as_ref().is_some_and(|slot| slot.name == name);
        let at = self.containers.iter().position(named);
        at.ok_or_else(|| DaemonError::NoSuchContainer(name.to_owned()))
    }

    /// Collects the stats of all containers. `meminfo`: one system call for each host socket.
    fn report(&mut self, meminfo: bool, now: Instant) -> Report {
        let mut held = vec![None; self.containers.len()];
        for (held, slot) in held.iter_mut().zip(&self.containers).filter(|_| meminfo) {
            let Some(slot) = slot else { continue };
            let (bytes, above) = slot.host.queued();
            *held = Some(bytes);
            // A socket that holds more than its charge breaks the accounting: the counter shows it.
            if let Some(owner) = &mut self.budgets[slot.budget] {
                owner.budget.count(slot.stack.member(), Counter::HostMemExcess, above);
            }
        }
        let owners = || self.budgets.iter().flatten();
        let containers = held.into_iter().enumerate();
        let report = |(index, held)| self.report_of(index, held, now);
        Report {
            containers: containers.filter_map(report).collect(),
            budgets: owners().map(|owner| owner.budget.meter_stats(now).into()).collect(),
            platform_bytes: self.scratch.len() as u64,
            pool_bytes: self.pool.slack_bytes(),
        }
    }

    /// The stats of one container. `host_meminfo_bytes`: what the kernel holds in its host sockets, if queried.
    pub(super) fn report_of(
        &self,
        index: usize,
        host_meminfo_bytes: Option<u64>,
        now: Instant,
    ) -> Option<ContainerReport> {
        let slot = self.containers[index].as_ref()?;
        let owner = self.budgets[slot.budget].as_ref()?;
        let member = owner.budget.member_stats(slot.stack.member());
        let stack = slot.stack.stats();
        Some(ContainerReport {
            name: slot.name.clone(),
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
            host_sockets: slot.host.open() as u64,
            udp_mappings: stack.mappings,
            cpu_ns: slot.cpu_time.as_nanos() as u64,
            turns: slot.turns,
            counters: stats::counters(&member, &stack, slot.tap.counters()),
        })
    }
}

/// Closes a removed container's device on a thread of its own, and replies when the device is gone. The kernel waits in
/// `unregister_netdevice_many` until no reader uses the device any more: tens of milliseconds in which the worker would
/// serve no other container.
fn close_aside(tap: Option<Tap>, reply: Sender<Result<(), DaemonError>>) {
    let done = reply.clone();
    let close = move || {
        drop(tap);
        let _ = reply.send(Ok(()));
    };
    if thread::Builder::new().name("skb-close".to_owned()).spawn(close).is_err() {
        // The thread could not start: the closure was dropped, and with it the device was closed on this thread.
        let _ = done.send(Ok(()));
    }
}

/// Stores the value in the first free place. Returns its index.
fn place<T>(places: &mut Vec<Option<T>>, value: T) -> usize {
    let free = places.iter().position(Option::is_none).unwrap_or(places.len());
    if free == places.len() {
        places.push(Some(value));
    } else {
        places[free] = Some(value);
    }
    free
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{self, Receiver};

    use super::*;
    use crate::events::EventSink;

    /// A worker that does not run, its commands, and its waker.
    fn worker() -> (Worker, Sender<Command>, Arc<mio::Waker>) {
        let (commands, inbox) = mpsc::channel();
        let (worker, waker) = Worker::new(0, Arc::default(), inbox, EventSink::new(None)).unwrap();
        (worker, commands, waker)
    }

    fn queue(commands: &Sender<Command>, n: usize) -> Vec<Receiver<bool>> {
        let send = |_| {
            let (reply, answer) = mpsc::channel();
            commands.send(Command::Has { name: "none".to_owned(), reply }).unwrap();
            answer
        };
        (0..n).map(send).collect()
    }

    #[test]
    fn a_turn_executes_a_bounded_number_of_commands() {
        let (mut worker, commands, _waker) = worker();
        let answers = queue(&commands, 2 * COMMANDS_PER_TURN + 1);
        let answered = || answers.iter().filter(|answer| answer.try_recv() == Ok(false)).count();
        for _ in 0..2 {
            assert!(worker.on_commands(Instant(0)), "one command remains");
            assert_eq!(answered(), COMMANDS_PER_TURN);
        }
        assert!(!worker.on_commands(Instant(0)));
        assert_eq!(answered(), 1);
    }

    #[test]
    fn commands_beyond_the_bound_are_executed_without_another_wake_up() {
        let (worker, commands, waker) = worker();
        let answers = queue(&commands, 10 * COMMANDS_PER_TURN);
        waker.wake().unwrap();
        let thread = thread::spawn(move || worker.run());
        assert!(answers.iter().all(|answer| answer.recv() == Ok(false)));
        commands.send(Command::Stop).unwrap();
        waker.wake().unwrap();
        thread.join().unwrap();
    }
}

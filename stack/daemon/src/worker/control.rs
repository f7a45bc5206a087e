//! Commands from other threads.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread;

use skbudget_controller::{BudgetConfig, Instant, Level, Limits};
use skbudget_stack::tap::CaptureWriter;
use skbudget_stack::{Tap, Undelivered};

use super::report::Report;
use super::{ContainerSlot, TurnCtx, Worker};
use crate::flows::{Cursor, FlowPart};
use crate::types::{BudgetId, ContainerSpec, DaemonError, Ended, HostPorts, Publish};

/// Commands executed in one turn: many callers must not delay the containers.
const COMMANDS_PER_TURN: usize = 16;

/// What a budget changes to, all or nothing.
#[derive(Debug)]
pub(crate) struct BudgetChange {
    pub(crate) limits: Limits,
    pub(crate) min_bytes: u64,
    /// `None`: it stays where it is. The level (`None`: none), and the group that the container then sees.
    pub(crate) parent: Option<(Option<Arc<Level>>, String)>,
}

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
    /// Changes limits, guarantee and place of the container's budget.
    SetBudget { name: String, change: BudgetChange, reply: Sender<Result<(), DaemonError>> },
    /// Moves the container's budget below another level.
    SetParent {
        name: String,
        level: Option<Arc<Level>>,
        /// The container sees the others of this group.
        group: String,
        reply: Sender<Result<(), DaemonError>>,
    },
    /// Changes the name servers of the container's forwarder; `None`: those of the host.
    SetNameServers {
        name: String,
        servers: Option<Vec<SocketAddr>>,
        reply: Sender<Result<(), DaemonError>>,
    },
    /// Publishes more ports of the container.
    Publish { name: String, publish: Vec<Publish>, reply: Sender<Result<(), DaemonError>> },
    /// Closes published ports, by their addresses on the host.
    Unpublish { name: String, ports: HostPorts, reply: Sender<Result<(), DaemonError>> },
    /// Lists a part of the container's flows.
    Flows { name: String, from: Cursor, reply: Sender<Result<FlowPart, DaemonError>> },
    /// Counts the bytes acknowledged to the guest and not yet delivered.
    Undelivered { name: String, reply: Sender<Result<Undelivered, DaemonError>> },
    /// Returns what is known of a container that ended by itself.
    Ended { name: String, reply: Sender<Option<Ended>> },
    /// Collects the stats; `meminfo` also reads SO_MEMINFO of each host socket.
    Stats { meminfo: bool, reply: Sender<Report> },
    /// Writes every frame of the container to the capture, too.
    Capture { name: String, capture: Box<CaptureWriter>, reply: Sender<Result<(), DaemonError>> },
    /// Ends the loop.
    Stop,
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
                Command::SetBudget { name, change, reply } => {
                    let _ = reply.send(self.set_budget(&name, change, now));
                }
                Command::SetParent { name, level, group, reply } => {
                    let _ = reply.send(self.set_parent(&name, level, &group, now));
                }
                Command::SetNameServers { name, servers, reply } => {
                    let _ = reply.send(self.set_name_servers(&name, servers));
                }
                Command::Publish { name, publish, reply } => {
                    let _ = reply.send(self.publish(&name, publish, now));
                }
                Command::Unpublish { name, ports, reply } => {
                    let _ = reply.send(self.unpublish(&name, &ports, now));
                }
                Command::Flows { name, from, reply } => {
                    let _ = reply.send(self.flows(&name, from, now));
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
                Command::Capture { name, capture, reply } => {
                    let _ = reply.send(self.capture(&name, *capture));
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
        // Before the index is free: the ends of its flows name it.
        self.remove_sibling(index, now);
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

    fn set_limits(&mut self, name: &str, limits: Limits, now: Instant) -> Result<(), DaemonError> {
        let index = self.find(name)?;
        self.budget_of(index)?.set_limits(limits, now);
        // After its turn the budget is polled: higher limits may have room for waiters.
        self.schedule.activate(index);
        Ok(())
    }

    /// Bytes acknowledged to the guest that would be lost if the container were removed now.
    fn undelivered(&mut self, name: &str) -> Result<Undelivered, DaemonError> {
        let index = self.find(name)?;
        let slot = self.containers[index].as_mut();
        Ok(slot.map(ContainerSlot::undelivered).unwrap_or_default())
    }

    /// Starts a capture of the container's frames.
    fn capture(&mut self, name: &str, capture: CaptureWriter) -> Result<(), DaemonError> {
        let index = self.find(name)?;
        if let Some(slot) = &mut self.containers[index] {
            slot.tap.add_capture(capture);
            self.captures = true;
        }
        Ok(())
    }

    /// The index of the container with that name.
    pub(super) fn find(&self, name: &str) -> Result<usize, DaemonError> {
        let named =
            |slot: &Option<ContainerSlot>| slot.as_ref().is_some_and(|slot| slot.name == name);
        let at = self.containers.iter().position(named);
        at.ok_or_else(|| DaemonError::NoSuchContainer(name.to_owned()))
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

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{self, Receiver};

    use super::*;
    use crate::events::EventSink;

    /// A worker that does not run, its commands, and its waker.
    fn worker() -> (Worker, Sender<Command>, Arc<mio::Waker>) {
        let (commands, inbox) = mpsc::channel();
        let (worker, waker) =
            Worker::new(0, Arc::default(), inbox, EventSink::new(None), None).unwrap();
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

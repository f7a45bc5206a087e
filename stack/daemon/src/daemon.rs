//! The daemon as a library: containers and budgets on worker threads, controlled by messages.
//!
//! A container runs on one worker, and its budget is on the same one: containers that share a budget share the worker.
//! Workers share nothing but the levels above the budgets.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use mio::Waker;
use skbudget_controller::{BudgetConfig, Level, LevelConfig, Limits, PAGE_SIZE};
use skbudget_stack::tap::CaptureWriter;
use skbudget_stack::{FlowInfo, Undelivered};

use crate::events::EventSink;
use crate::flows::{Cursor, FlowPart};
use crate::levels::Levels;
use crate::resolv_conf::HostServers;
use crate::stats::{ContainerReport, GroupReport, Meter, SCHEMA, Stats};
use crate::types::{
    BudgetId, BudgetRef, ContainerSpec, DaemonError, DaemonEvent, Ended, GROUP_DEFAULT,
    GroupConfig, HostPorts, Publish,
};
use crate::worker::{self, BudgetChange, Command};
use crate::{clock, host, resolv_conf};

/// Configuration of a daemon.
#[derive(Debug, Clone, Default)]
pub struct DaemonConfig {
    /// Worker threads; 0 means one.
    pub workers: usize,
    /// A meter over all budgets.
    pub host: Option<LevelConfig>,
    /// Meters over some budgets. The parent of a group is before it.
    pub groups: Vec<GroupConfig>,
    /// Every container sees all others of its worker, whatever its group.
    pub all_see_all: bool,
    /// Receives what happens to containers and budgets. Events that find the channel full are counted in a
    /// [`DaemonEvent::Lost`].
    pub events: Option<SyncSender<DaemonEvent>>,
    /// Name servers of the host, where another process reads /etc/resolv.conf. `None`: this one reads it.
    pub host_servers: Option<HostServers>,
}

/// A running daemon. Dropping it shuts the daemon down.
#[derive(Debug)]
pub struct Daemon {
    workers: Vec<WorkerHandle>,
    levels: Arc<Levels>,
    /// Name and worker of each container. A name is in use while it is listed here.
    names: Mutex<Vec<(String, usize)>>,
    /// Worker of each group: its containers reach each other there.
    groups: Mutex<BTreeMap<String, usize>>,
}

/// How other threads reach a worker: commands, and the waker that makes it read them.
#[derive(Debug)]
struct WorkerHandle {
    commands: Sender<Command>,
    waker: Arc<Waker>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// A container that was added. Dropping the handle leaves the container running.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerHandle {
    name: String,
}

impl ContainerHandle {
    /// The name by which the daemon knows the container.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Daemon {
    /// Starts the workers.
    pub fn new(config: DaemonConfig) -> Result<Self, DaemonError> {
        // Before any worker runs: growing it later would stall them all.
        host::grow_descriptor_table()?;
        let levels = Arc::new(Levels::new(config.host, config.groups)?);
        let workers = (0..config.workers.max(1))
            .map(|index| {
                let (events, servers) = (config.events.clone(), config.host_servers.clone());
                let see_all = config.all_see_all;
                WorkerHandle::start(index, Arc::clone(&levels), events, servers, see_all)
            })
            .collect::<io::Result<_>>()?;
        Ok(Self { workers, levels, names: Mutex::default(), groups: Mutex::default() })
    }

    /// Creates a budget for several containers. It exists until the daemon ends.
    pub fn add_budget(
        &self,
        name: impl Into<String>,
        config: BudgetConfig,
    ) -> Result<BudgetId, DaemonError> {
        let worker = self.least_loaded();
        let name = name.into();
        self.request(worker, |reply| Command::AddBudget { name, config, reply })?
    }

    /// Adds a container to the worker of its budget or its group, or to the least loaded one.
    ///
    /// What DHCP gives the guest follows from its name and the host's resolv.conf, unless the spec has it.
    pub fn add_container(&self, mut spec: ContainerSpec) -> Result<ContainerHandle, DaemonError> {
        let ContainerSpec { name, config, .. } = &mut spec;
        config.host_name.get_or_insert_with(|| host_name(name));
        if config.search.is_empty() {
            config.search = resolv_conf::search_of_host().to_vec();
        }
        let worker = match &spec.budget {
            BudgetRef::Shared(id) => id.worker,
            BudgetRef::InGroup(group, _) => self.worker_of_group(group),
            BudgetRef::Own(_) => self.least_loaded(),
        };
        let name = spec.name.clone();
        {
            // Holds the lock over the query, so that two callers cannot both take the name.
            let mut names = self.names();
            if let Some(at) = names.iter().position(|(taken, _)| *taken == name) {
                let there = names[at].1;
                // The worker forgets a container that ended by itself: its name is free again.
                if self.request(there, |reply| Command::Has { name: name.clone(), reply })? {
                    return Err(DaemonError::NameInUse(name));
                }
                names.remove(at);
            }
            names.push((name.clone(), worker));
        }
        let added = self
            .request(worker, |reply| Command::AddContainer { spec: Box::new(spec), reply })
            .and_then(|result| result);
        if added.is_err() {
            self.names().retain(|(taken, _)| *taken != name);
        }
        added.map(|()| ContainerHandle { name })
    }

    /// Resets the container's flows and removes it: the bytes that `undelivered` counts are lost. Returns when its
    /// device is gone.
    pub fn remove(&self, name: &str) -> Result<(), DaemonError> {
        let answer = {
            let mut names = self.names();
            let at = names.iter().position(|(taken, _)| taken == name);
            let at = at.ok_or_else(|| DaemonError::NoSuchContainer(name.to_owned()))?;
            // The name is free before the device is gone. So it is unlisted here, first: unlisted afterwards, a
            // container that took the name meanwhile would lose its entry.
            let (name, worker) = names.remove(at);
            self.send(worker, |reply| Command::Remove { name, reply })?
        };
        answer.recv().map_err(|_| DaemonError::Stopped)?
    }

    /// Changes the limits of the container's budget, which may be shared.
    pub fn set_limits(&self, name: &str, limits: Limits) -> Result<(), DaemonError> {
        self.request_of(name, |reply| Command::SetLimits { name: name.to_owned(), limits, reply })?
    }

    /// Changes limits and guarantee of the container's budget, which may be shared: both or neither.
    pub fn set_budget(
        &self,
        name: &str,
        limits: Limits,
        min_bytes: u64,
    ) -> Result<(), DaemonError> {
        self.change_budget(name, BudgetChange { limits, min_bytes, parent: None })
    }

    /// As [`Self::set_budget`], and moves the budget with its charge to a group, or out of all groups (`None`): all or
    /// nothing.
    pub fn set_budget_and_group(
        &self,
        name: &str,
        limits: Limits,
        min_bytes: u64,
        group: Option<&str>,
    ) -> Result<(), DaemonError> {
        let seen = group.unwrap_or(GROUP_DEFAULT).to_owned();
        let parent = Some((self.levels.above(group)?, seen));
        self.change_budget(name, BudgetChange { limits, min_bytes, parent })
    }

    fn change_budget(&self, name: &str, change: BudgetChange) -> Result<(), DaemonError> {
        self.request_of(name, |reply| Command::SetBudget { name: name.to_owned(), change, reply })?
    }

    /// Changes the name servers of the container's DNS forwarder; `None`: those of the host.
    pub fn set_name_servers(
        &self,
        name: &str,
        servers: Option<Vec<SocketAddr>>,
    ) -> Result<(), DaemonError> {
        let name_of = name.to_owned();
        self.request_of(name, |reply| Command::SetNameServers { name: name_of, servers, reply })?
    }

    /// Publishes more ports of the container, all or none.
    pub fn publish(&self, name: &str, publish: Vec<Publish>) -> Result<(), DaemonError> {
        let name_of = name.to_owned();
        self.request_of(name, |reply| Command::Publish { name: name_of, publish, reply })?
    }

    /// Closes published ports, by their addresses on the host, all or none. Open connections stay open.
    pub fn unpublish(&self, name: &str, ports: HostPorts) -> Result<(), DaemonError> {
        let name_of = name.to_owned();
        self.request_of(name, |reply| Command::Unpublish { name: name_of, ports, reply })?
    }

    /// Whether a container of that name runs now.
    pub fn has(&self, name: &str) -> Result<bool, DaemonError> {
        let found = self.request_of(name, |reply| Command::Has { name: name.to_owned(), reply });
        match found {
            Err(DaemonError::NoSuchContainer(_)) => Ok(false),
            found => found,
        }
    }

    /// Every flow of the container.
    pub fn flows(&self, name: &str) -> Result<Vec<FlowInfo>, DaemonError> {
        let (mut flows, mut from) = (Vec::new(), Cursor::START);
        // The mappings follow the flows, and are not part of the answer.
        while let Cursor::Flows(_) = from {
            let part = self.flow_part(name, from)?;
            flows.extend(part.flows);
            from = part.next.unwrap_or(Cursor::Mappings(0));
        }
        Ok(flows)
    }

    /// The next part of the container's flows and mappings.
    pub(crate) fn flow_part(&self, name: &str, from: Cursor) -> Result<FlowPart, DaemonError> {
        self.request_of(name, |reply| Command::Flows { name: name.to_owned(), from, reply })?
    }

    /// Writes every frame of the container from now on to the capture, until that has ended.
    pub fn capture(&self, name: &str, capture: CaptureWriter) -> Result<(), DaemonError> {
        let (name_of, capture) = (name.to_owned(), Box::new(capture));
        self.request_of(name, |reply| Command::Capture { name: name_of, capture, reply })?
    }

    /// Bytes acknowledged to the container that would be lost if it were removed now.
    pub fn undelivered(&self, name: &str) -> Result<Undelivered, DaemonError> {
        self.request_of(name, |reply| Command::Undelivered { name: name.to_owned(), reply })?
    }

    /// What is known of a container that ended by itself. `None`: it has not ended, or many others ended after it.
    pub fn ended(&self, name: &str) -> Result<Option<Ended>, DaemonError> {
        self.request_of(name, |reply| Command::Ended { name: name.to_owned(), reply })
    }

    /// The state of everything now. With `meminfo` the kernel is queried for what each host socket holds, too.
    pub fn stats(&self, meminfo: bool) -> Result<Stats, DaemonError> {
        let mut containers: Vec<ContainerReport> = Vec::new();
        let mut budgets = Vec::new();
        let (mut platform_bytes, mut pool_bytes) = (0, 0);
        for worker in 0..self.workers.len() {
            let report = self.request(worker, |reply| Command::Stats { meminfo, reply })?;
            containers.extend(report.containers);
            budgets.extend(report.budgets);
            platform_bytes += report.platform_bytes;
            pool_bytes += report.pool_bytes;
        }
        containers.sort_by(|a, b| a.name.cmp(&b.name));
        let time_ns = clock::now().as_nanos();
        let host = host_meter(self.levels.host().as_ref(), &budgets);
        let groups = self.groups();
        Ok(Stats { schema: SCHEMA, time_ns, host, groups, containers, platform_bytes, pool_bytes })
    }

    /// Every group with its meter, sorted by name.
    pub fn groups(&self) -> Vec<GroupReport> {
        let report = |(group, meter): (GroupConfig, Meter)| {
            let GroupConfig { name, parent, weight, .. } = group;
            GroupReport { name, parent, weight, meter }
        };
        let mut groups: Vec<_> = self.levels.groups().into_iter().map(report).collect();
        groups.sort_by(|a, b| a.name.cmp(&b.name));
        groups
    }

    /// Adds a group. Its parent, if any, must exist.
    pub fn add_group(&self, group: GroupConfig) -> Result<(), DaemonError> {
        self.levels.add(group)
    }

    /// Removes a group without containers and groups in it.
    pub fn remove_group(&self, name: &str) -> Result<(), DaemonError> {
        self.levels.remove(name)
    }

    /// Changes the limits of a group, or of the host (`None`).
    pub fn set_level(&self, group: Option<&str>, limits: LevelConfig) -> Result<(), DaemonError> {
        let level = self.levels.above(group)?.ok_or(DaemonError::NoSuchBudget)?;
        // A guarantee that is granted at the same time may still exceed the limit: charges then refuse it.
        let (min, hard) = (level.as_child().min, limits.hard);
        if min > hard {
            let (min_bytes, hard_bytes) = (min * PAGE_SIZE, hard * PAGE_SIZE);
            return Err(DaemonError::GuaranteesAboveHard { min_bytes, hard_bytes });
        }
        level.set_limits(limits).map_err(DaemonError::Limits)?;
        // Higher limits may have room for waiters of any worker.
        self.levels.wake(None);
        Ok(())
    }

    /// Moves a container, with its charge, to a group, or out of all groups (`None`).
    pub fn set_group(&self, name: &str, group: Option<&str>) -> Result<(), DaemonError> {
        let level = self.levels.above(group)?;
        let name_of = name.to_owned();
        self.request_of(name, |reply| Command::SetParent {
            name: name_of,
            level,
            group: group.unwrap_or(GROUP_DEFAULT).to_owned(),
            reply,
        })?
    }

    /// Returns when every worker has executed a command. An error when one has failed.
    pub fn check(&self) -> Result<(), DaemonError> {
        // The command of an empty name, which no container has, is the cheapest one.
        let one =
            |worker| self.request(worker, |reply| Command::Has { name: String::new(), reply });
        (0..self.workers.len()).try_for_each(|worker| one(worker).map(drop))
    }

    /// Ends every container and every worker. An error when a worker had failed.
    pub fn shutdown(self) -> Result<(), DaemonError> {
        self.stop()
    }

    /// As [`Self::shutdown`]; requests fail afterwards.
    pub fn stop(&self) -> Result<(), DaemonError> {
        // A worker that has failed takes no command; its join below returns the error.
        for worker in &self.workers {
            let _ = worker.commands.send(Command::Stop);
            let _ = worker.waker.wake();
        }
        let take = |worker: &WorkerHandle| {
            worker.thread.lock().unwrap_or_else(PoisonError::into_inner).take()
        };
        let threads: Vec<_> = self.workers.iter().filter_map(take).collect();
        let failed = threads.into_iter().filter_map(|thread| thread.join().err()).count();
        if failed > 0 { Err(DaemonError::Stopped) } else { Ok(()) }
    }

    /// The worker of the group's containers; for the first of them the least loaded one.
    fn worker_of_group(&self, group: &str) -> usize {
        let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        // Stays the same when the group is empty for a while. There are as many entries as groups, at most.
        *groups.entry(group.to_owned()).or_insert_with(|| self.least_loaded())
    }

    /// The worker with the fewest containers.
    fn least_loaded(&self) -> usize {
        let names = self.names();
        let load = |worker: &usize| names.iter().filter(|(_, at)| at == worker).count();
        (0..self.workers.len()).min_by_key(load).unwrap_or(0)
    }

    fn names(&self) -> std::sync::MutexGuard<'_, Vec<(String, usize)>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a command to the container's worker and waits for the reply.
    fn request_of<T>(
        &self,
        name: &str,
        command: impl FnOnce(Sender<T>) -> Command,
    ) -> Result<T, DaemonError> {
        let at = self.names().iter().find(|(taken, _)| taken == name).map(|(_, worker)| *worker);
        let worker = at.ok_or_else(|| DaemonError::NoSuchContainer(name.to_owned()))?;
        self.request(worker, command)
    }

    /// Sends a command to a worker and waits for the reply.
    fn request<T>(
        &self,
        worker: usize,
        command: impl FnOnce(Sender<T>) -> Command,
    ) -> Result<T, DaemonError> {
        self.send(worker, command)?.recv().map_err(|_| DaemonError::Stopped)
    }

    /// Sends a command without waiting. The receiver returned gets the reply.
    fn send<T>(
        &self,
        worker: usize,
        command: impl FnOnce(Sender<T>) -> Command,
    ) -> Result<Receiver<T>, DaemonError> {
        let (reply, answer) = mpsc::channel();
        let worker = self.workers.get(worker).ok_or(DaemonError::NoSuchBudget)?;
        worker.commands.send(command(reply)).map_err(|_| DaemonError::Stopped)?;
        // The worker may block in its poll.
        worker.waker.wake()?;
        Ok(answer)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.stop();
    }
}

impl WorkerHandle {
    fn start(
        index: usize,
        levels: Arc<Levels>,
        events: Option<SyncSender<DaemonEvent>>,
        host_servers: Option<HostServers>,
        all_see_all: bool,
    ) -> io::Result<Self> {
        let (commands, inbox) = mpsc::channel();
        let sink = EventSink::new(events);
        let (mut worker, waker) = worker::Worker::new(index, levels, inbox, sink, host_servers)?;
        worker.set_isolation(all_see_all);
        let name = format!("skb-worker-{index}");
        let thread = thread::Builder::new().name(name).spawn(move || worker.run())?;
        Ok(Self { commands, waker, thread: Mutex::new(Some(thread)) })
    }
}

/// The meter above all budgets. Without such a level: the sum of the budgets, and no limits.
fn host_meter(host: Option<&Arc<Level>>, budgets: &[Meter]) -> Meter {
    let limits = host.map_or(Meter::NONE, |host| host.stats().into());
    let usage_bytes = match host {
        Some(_) => limits.usage_bytes,
        None => budgets.iter().map(|m| m.usage_bytes).sum(),
    };
    let min_bytes = budgets.iter().map(|m| m.min_bytes).sum();
    Meter { usage_bytes, min_bytes, ..limits }
}

/// The name that DHCP gives a container: its own, with what no host name may have replaced (RFC 1123 section 2.1).
fn host_name(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' }).collect()
}

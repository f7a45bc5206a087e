//! Real traffic over real sockets: the clients inside a namespace, and the servers on the host's loopback.
//!
//! Each measured stream has blocking sockets and its own thread, so that the clock is read right where the bytes
//! arrive. The hundreds of connections of the hog are non-blocking and share one thread. Every byte is checked against
//! the pattern of its stream, as in virtual time.

pub(crate) mod bulk;
mod flood;
mod fresh;
mod guest;
pub(crate) mod pace;
pub(crate) mod probe;
pub(crate) mod raw_tcp;
pub(crate) mod serve;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use self::pace::Clock;
use crate::measure::result::ProbePhase;
use crate::measure::{Meter, PhaseBytes, ProbeRecorder};
use crate::scenario::plan::{Fill, FloodKind, Phase, ProbeSpec};

/// One load with the address of its server.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) enum AssignedLoad {
    Up {
        to: SocketAddr,
    },
    Down {
        to: SocketAddr,
    },
    Probe {
        to: SocketAddr,
        spec: ProbeSpec,
    },
    Stuff {
        to: SocketAddr,
        fill: Fill,
    },
    Hoard {
        to: SocketAddr,
        fill: Fill,
    },
    /// Sent through a packet socket on the device of the namespace.
    Flood {
        to: SocketAddr,
        kind: FloodKind,
        connections: u32,
        per_second: u32,
        net: FloodNet,
    },
}

/// Source address and next hop of a flood.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct FloodNet {
    pub own_ip: Ipv4Addr,
    pub peer_mac: [u8; 6],
}

/// The instructions to an agent, one line of JSON on its standard input. All times but `epoch_ns` count from it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct AgentSpec {
    /// Namespace to enter; `None`: stay in the present one.
    pub netns: Option<PathBuf>,
    /// Start of the run on the monotonic clock.
    pub epoch_ns: u64,
    pub window_ns: u64,
    pub step_ns: u64,
    pub grace_ns: u64,
    pub phases: Vec<Phase>,
    pub from_ns: u64,
    pub until_ns: u64,
    pub loads: Vec<AssignedLoad>,
}

impl AgentSpec {
    fn end_ns(&self) -> u64 {
        self.phases.last().map_or(0, |p| p.end_ns) + self.grace_ns
    }
}

/// The counts of a meter.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct MeterReport {
    /// Bytes and longest gap of each phase.
    pub phases: Vec<(u64, u64)>,
    pub windows: Vec<u32>,
    /// By phase.
    pub steps: Vec<Vec<u32>>,
    pub total: u64,
    pub corrupt: u64,
}

impl From<&Meter> for MeterReport {
    fn from(m: &Meter) -> Self {
        let pair = |p: &PhaseBytes| (p.bytes, p.stall_ns);
        Self {
            phases: m.phases().iter().map(pair).collect(),
            windows: m.windows().to_vec(),
            steps: m.steps().to_vec(),
            total: m.total(),
            corrupt: m.corrupt(),
        }
    }
}

/// The report of an agent, one line of JSON on its standard output.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct AgentReport {
    pub down: MeterReport,
    /// One per phase, if the load contains a probe.
    pub probe: Option<Vec<ProbePhase>>,
    pub connected: u64,
    /// Connections that ended unexpectedly.
    pub broken: u64,
    pub corrupt: u64,
    /// Counters of the guest's kernel; zeros are omitted.
    pub guest_counters: BTreeMap<String, u64>,
}

/// State shared by the threads of one process.
#[derive(Debug)]
pub(crate) struct Shared {
    pub clock: Clock,
    pub stop: AtomicBool,
    pub connected: AtomicU64,
    pub broken: AtomicU64,
    pub corrupt: AtomicU64,
}

impl Shared {
    pub(crate) fn new(epoch_ns: u64) -> Arc<Self> {
        Arc::new(Self {
            clock: Clock { epoch_ns },
            stop: AtomicBool::new(false),
            connected: AtomicU64::new(0),
            broken: AtomicU64::new(0),
            corrupt: AtomicU64::new(0),
        })
    }
    pub(crate) fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
    pub(crate) fn end(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }
    fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
    /// Counts a broken connection, unless the run has ended: then all of them break.
    pub(crate) fn note_broken(&self) {
        if !self.stopped() {
            Self::count(&self.broken);
        }
    }
    pub(crate) fn note_corrupt(&self) {
        Self::count(&self.corrupt);
    }
    pub(crate) fn note_connected(&self) {
        Self::count(&self.connected);
    }
}

/// Interval at which a blocked thread checks the stop flag.
pub(crate) const STOP_CHECK_EVERY: Duration = Duration::from_millis(50);

/// Locks a mutex, even after a panic of another thread: the counts so far must not be lost.
pub(crate) fn locked<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Opens and closes the phases of the meters and the probe at their times; returns after the last phase is closed. If
/// the run stops early, closes everything that is open.
pub(crate) fn keep_time(
    shared: &Shared,
    phases: &[Phase],
    grace_ns: u64,
    meters: &[Arc<Mutex<Meter>>],
    probe: Option<&probe::ProbeClient>,
) {
    // The second field orders marks at one time: end of a phase, start of the next, then the end of a grace time.
    let mut marks: Vec<(u64, u8, usize)> = Vec::new();
    for (i, p) in phases.iter().enumerate() {
        marks.push((p.end_ns, 0, i));
        marks.push((p.start_ns, 1, i));
        marks.push((p.end_ns + grace_ns, 2, i));
    }
    marks.sort_unstable();
    for (at, what, i) in marks {
        if !shared.clock.sleep_until(at, &shared.stop) {
            // Stopped early: the open phase ends now, and phases that never started are closed empty.
            let now = shared.clock.now();
            meters.iter().for_each(|m| locked(m).stop(now));
            if let Some(client) = probe {
                (0..phases.len()).for_each(|i| client.close(i, now));
            }
            return;
        }
        match what {
            // The planned time, not the clock's: a late wake-up must not lengthen a phase.
            0 => meters.iter().for_each(|m| locked(m).end(at)),
            1 => meters.iter().for_each(|m| locked(m).begin(at)),
            _ => {
                if let Some(client) = probe {
                    // After the grace time: responses that arrive later count as missing.
                    client.close(i, shared.clock.now());
                }
            }
        }
    }
}

/// Runs the loads in the given namespace, until their end or that of `shared`.
pub(crate) fn run_agent(agent: &AgentSpec, shared: &Shared) -> Result<AgentReport, String> {
    // Without a namespace, as in tests, run here.
    let Some(path) = &agent.netns else { return Ok(run_loads(agent, shared)) };
    let netns =
        skbudget::attach::open_netns(path).map_err(|e| format!("open {}: {e}", path.display()))?;
    let fd = std::os::fd::AsFd::as_fd(&netns);
    skbudget::attach::run_in(fd, || run_loads(agent, shared)).map_err(|e| e.to_string())
}

fn run_loads(agent: &AgentSpec, shared: &Shared) -> AgentReport {
    let meter = Meter::new(agent.window_ns, agent.step_ns, agent.end_ns());
    let down = Arc::new(Mutex::new(meter));
    let spec = agent.loads.iter().find_map(|l| match l {
        AssignedLoad::Probe { spec, .. } => Some(*spec),
        AssignedLoad::Up { .. }
        | AssignedLoad::Down { .. }
        | AssignedLoad::Stuff { .. }
        | AssignedLoad::Hoard { .. }
        | AssignedLoad::Flood { .. } => None,
    });
    let client = spec.map(|spec| {
        let log = ProbeRecorder::new(&agent.phases, spec.deadline_ns);
        probe::ProbeClient::new(spec, log, agent.end_ns())
    });
    thread::scope(|scope| {
        // A thread inherits the namespace of the thread that creates it.
        for load in &agent.loads {
            let (down, client) = (&down, &client);
            scope.spawn(move || {
                // Stopped before the load started.
                if !shared.clock.sleep_until(agent.from_ns, &shared.stop) {
                    return;
                }
                match *load {
                    AssignedLoad::Up { to } => bulk::send(to, shared),
                    AssignedLoad::Down { to } => bulk::receive(to, shared, down),
                    AssignedLoad::Probe { to, spec } => {
                        if let Some(client) = client {
                            let run = if spec.fresh { fresh::run } else { probe::run };
                            run(to, shared, client);
                        }
                    }
                    AssignedLoad::Stuff { to, fill } => bulk::stuff(to, fill, shared),
                    AssignedLoad::Hoard { to, fill } => bulk::hoard(to, fill, shared),
                    AssignedLoad::Flood { .. } => flood::run(load, agent.until_ns, shared),
                }
            });
        }
        // A hog leaves before the end of the run and measures nothing; the others keep the phases.
        let early = agent.until_ns < agent.end_ns();
        if early {
            shared.clock.sleep_until(agent.until_ns, &shared.stop);
        } else {
            let meters = [Arc::clone(&down)];
            keep_time(shared, &agent.phases, agent.grace_ns, &meters, client.as_ref());
        }
        // Ends the load threads, which the scope then joins.
        shared.end();
    });
    let read = |c: &AtomicU64| c.load(Ordering::Relaxed);
    let down = locked(&down);
    AgentReport {
        down: MeterReport::from(&*down),
        probe: client.as_ref().map(probe::ProbeClient::summaries),
        connected: read(&shared.connected),
        broken: read(&shared.broken),
        corrupt: read(&shared.corrupt),
        guest_counters: guest::counters(),
    }
}

#[cfg(test)]
mod tests;

//! The tap target: an embedded daemon, real network namespaces and TAPs, the kernel's own TCP in the containers.
//!
//! ```text
//!  agent process ── netns ── kernel TCP ── tap0 ══ daemon (this process) ── loopback ── servers (this process)
//! ```
//! One agent a container, a child of this process that enters the container's namespace: it ends when its standard
//! input does, so none outlives us. Everything has a deadline.

pub(super) mod agent;
mod collect;

use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use skbudget::attach::{self, GuestNet};
use skbudget::{BudgetRef, ContainerSpec, Daemon, DaemonConfig};
use skbudget_controller::{BudgetConfig, Limits};
use skbudget_stack::ContainerConfig;
use skbudget_stack::sim::Rng;

use self::agent::Agent;
pub(crate) use self::agent::{SUBCOMMAND, main as agent_main};
use self::collect::Samples;
use super::{Control, Target};
use crate::exit::Failure;
use crate::gate::Thresholds;
use crate::measure::Meter;
use crate::plan::{ArmPlan, BudgetPlan, ContainerPlan, Isolation, Load, Plan, Role};
use crate::result::ArmResult;
use crate::traffic::serve::Servers;
use crate::traffic::{Assigned, FloodNet, MeterReport, Orders, Report, Shared, keep_time, locked};

#[derive(Debug, Clone, Copy)]
pub struct TapTarget;

/// From now to the start of the run: agents start and enter their namespaces.
pub(super) const START_IN: Duration = Duration::from_millis(500);
/// Of the kernel beside a flood.
const FLOOD_KERNEL_IP: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 99);
/// After the end of the run an agent that has not answered is ended.
pub(super) const ANSWER_IN: Duration = Duration::from_secs(5);

impl Target for TapTarget {
    fn name(&self) -> &'static str {
        "tap"
    }
    fn thresholds(&self, _plan: &Plan) -> Thresholds {
        Thresholds::wall()
    }
    /// Two runs at once would measure each other.
    fn parallel(&self) -> bool {
        false
    }
    /// Servers keep their ends to the victims' rate.
    fn has_link_rate(&self) -> bool {
        true
    }

    fn run_arm(
        &self,
        plan: &Plan,
        arm: &ArmPlan,
        control: Control<'_>,
    ) -> Result<ArmResult, Failure> {
        carries(plan)?;
        check_privileges()?;
        raise_nofile()?;
        let mut stage = Stage::set(plan, arm)?;
        let samples = stage.play(plan, control)?;
        let reports = stage.reports()?;
        collect::arm_result(&stage, plan, arm, &samples, &reports)
    }
}

/// One container on the stage.
#[derive(Debug)]
struct Actor {
    plan: ContainerPlan,
    up: Arc<Mutex<Meter>>,
    up_report: Option<MeterReport>,
    agent: Agent,
    /// The daemon's last words about it, if it left before the end.
    last: Option<skbudget::stats::ContainerReport>,
    _netns: OwnedFd,
}

#[derive(Debug)]
struct Stage {
    // Agents go first, then the daemon, then the servers.
    actors: Vec<Actor>,
    daemon: Daemon,
    servers: Servers,
    shared: Arc<Shared>,
}

impl Stage {
    fn set(plan: &Plan, arm: &ArmPlan) -> Result<Self, Failure> {
        let epoch_ns = skbudget::clock::now().as_nanos() + START_IN.as_nanos() as u64;
        let shared = Shared::new(epoch_ns);
        let servers = Servers::new(Arc::clone(&shared));
        let daemon = Daemon::new(DaemonConfig::default()).map_err(|e| Failure::io("daemon", e))?;
        let mut stage = Self { actors: Vec::new(), daemon, servers, shared };
        let pool = match arm.isolation {
            Isolation::Container | Isolation::Off => None,
            Isolation::Shared => {
                let pool = BudgetPlan { hard_bytes: plan.pool_bytes(), ..BudgetPlan::default() };
                let config = budget(&pool, plan, arm)?;
                let id = stage.daemon.add_budget("pool", config);
                Some(id.map_err(|e| Failure::io("budget", e))?)
            }
        };
        for (i, c) in plan.containers.iter().enumerate() {
            let budget = match pool {
                Some(id) => BudgetRef::Shared(id),
                None => BudgetRef::Own(budget(&c.budget, plan, arm)?),
            };
            stage.add(plan, c, i as u64, budget)?;
        }
        Ok(stage)
    }

    fn add(
        &mut self,
        plan: &Plan,
        c: &ContainerPlan,
        index: u64,
        budget: BudgetRef,
    ) -> Result<(), Failure> {
        let name = &c.name;
        let mut rng = Rng::fork(plan.seed, 1000 + index);
        let secret = [rng.next_u64(), rng.next_u64()];
        let link = plan.link;
        let config =
            ContainerConfig::new(link.mtu, link.offload, Some(c.budget.hard_bytes), secret);
        let netns = attach::create_netns().map_err(|e| Failure::io(name, e))?;
        let mut guest = GuestNet::from(&config);
        let net = FloodNet { own_ip: config.guest_ip, peer_mac: config.our_mac };
        if c.loads.iter().any(|l| matches!(l, Load::Flood { .. })) {
            // The address is the flood's; the kernel, which would reset what it does not know, has another.
            guest.ip = FLOOD_KERNEL_IP;
        }
        let tap = attach::tap_into(netns.as_fd(), &guest).map_err(|e| Failure::io(name, e))?;
        let spec = ContainerSpec {
            name: name.clone(),
            tap,
            config,
            budget,
            publish: Vec::new(),
            outbound_addr: None,
        };
        self.daemon.add_container(spec).map_err(|e| Failure::io(name, e))?;
        let up = Arc::new(Mutex::new(Meter::new(plan.window_ns, plan.end_ns())));
        let loads = c
            .loads
            .iter()
            .map(|load| self.serve(load, c, net, &up))
            .collect::<std::io::Result<Vec<_>>>()
            .map_err(|e| Failure::io("server", e))?;
        let (from_ns, until_ns) = match (c.active.first(), c.leaves_ns) {
            (Some(span), Some(leaves)) => (span.from_ns, leaves),
            (_, _) => (0, u64::MAX),
        };
        let orders = Orders {
            netns: None,
            epoch_ns: self.shared.clock.epoch_ns,
            window_ns: plan.window_ns,
            grace_ns: plan.grace_ns,
            phases: plan.phases.clone(),
            from_ns,
            until_ns,
            loads,
        };
        let agent = Agent::start(netns.as_fd(), orders).map_err(|e| Failure::io(name, e))?;
        let (plan, up_report) = (c.clone(), None);
        self.actors.push(Actor { plan, up, up_report, agent, last: None, _netns: netns });
        Ok(())
    }

    /// Puts the server of a load on the loopback; the container reaches it at its gateway's address.
    fn serve(
        &mut self,
        load: &Load,
        c: &ContainerPlan,
        net: FloodNet,
        up: &Arc<Mutex<Meter>>,
    ) -> std::io::Result<Assigned> {
        let at = |port: u16| SocketAddr::from((Ipv4Addr::new(10, 0, 2, 2), port));
        let servers = &mut self.servers;
        Ok(match *load {
            Load::Up { reads_bits_per_second, .. } => {
                Assigned::Up { to: at(servers.sink(reads_bits_per_second, Arc::clone(up))?) }
            }
            Load::Down { .. } => Assigned::Down { to: at(servers.pusher(c.bits_per_second)?) },
            Load::Probe(spec) => {
                let port = servers.responder(spec.request_bytes, spec.response_bytes)?;
                Assigned::Probe { to: at(port), spec }
            }
            Load::Stuff(fill) if fill.reads_bits_per_second.is_none() => {
                Assigned::Stuff { to: at(servers.never_reads()?), fill }
            }
            Load::Hoard(fill) => Assigned::Hoard { to: at(servers.pushers(fill.bytes)?), fill },
            Load::Flood { kind, connections, per_second } => {
                let to = at(servers.never_reads()?);
                Assigned::Flood { to, kind, connections, per_second, net }
            }
            Load::Stuff(_) | Load::Orphans { .. } | Load::Accept { .. } | Load::Incast { .. } => {
                let what = format!("the load '{}' is for the virtual target only", load.word());
                return Err(std::io::Error::other(what));
            }
        })
    }

    /// The run itself: samples at every window, the hog's end in between.
    fn play(&mut self, plan: &Plan, control: Control<'_>) -> Result<Samples, Failure> {
        let mut samples = Samples::default();
        let shared = Arc::clone(&self.shared);
        let meters: Vec<_> = self.actors.iter().map(|a| Arc::clone(&a.up)).collect();
        let hog_ends = plan.containers.iter().find_map(|c| c.leaves_ns).unwrap_or(u64::MAX);
        thread::scope(|scope| {
            scope.spawn(|| keep_time(&shared, &plan.phases, plan.grace_ns, &meters, None));
            let mut outcome = Ok(());
            for i in 0..=plan.end_ns().div_ceil(plan.window_ns) {
                let at = i * plan.window_ns;
                while shared.clock.now() < at && !control.stop.load(Ordering::Relaxed) {
                    let left = Duration::from_nanos(at - shared.clock.now().min(at));
                    thread::sleep(left.min(Duration::from_millis(20)));
                }
                outcome = self.look(&mut samples, at == hog_ends);
                if control.stop.load(Ordering::Relaxed) {
                    outcome = Err(Failure::Interrupted);
                }
                if outcome.is_err() {
                    break;
                }
            }
            if outcome.is_err() {
                shared.end();
            }
            outcome
        })?;
        for actor in &mut self.actors {
            actor.up_report = Some(MeterReport::from(&*locked(&actor.up)));
        }
        Ok(samples)
    }

    fn look(&mut self, samples: &mut Samples, hog_leaves: bool) -> Result<(), Failure> {
        let stats = self.daemon.stats(false).map_err(|e| Failure::io("daemon", e))?;
        if hog_leaves {
            for actor in self.actors.iter_mut().filter(|a| a.plan.role == Role::Hog) {
                actor.last = stats.containers.iter().find(|c| c.name == actor.plan.name).cloned();
                self.daemon.remove(&actor.plan.name).map_err(|e| Failure::io("daemon", e))?;
            }
        }
        samples.add(stats);
        Ok(())
    }

    fn reports(&mut self) -> Result<Vec<Report>, Failure> {
        let answer = |a: &mut Actor| {
            a.agent.answer(ANSWER_IN).map_err(|e| Failure::Io(format!("{}: {e}", a.plan.name)))
        };
        self.actors.iter_mut().map(answer).collect()
    }
}

fn budget(b: &BudgetPlan, plan: &Plan, arm: &ArmPlan) -> Result<BudgetConfig, Failure> {
    let limits = match arm.isolation {
        Isolation::Off => Limits::NONE,
        Isolation::Shared | Isolation::Container => {
            Limits::from_bytes(b.hard_bytes, b.soft_bytes, b.low_bytes).map_err(|e| {
                Failure::Usage(format!("a hard limit of {} bytes: {e}", b.hard_bytes))
            })?
        }
    };
    Ok(BudgetConfig {
        rules: arm.rules.rules(),
        limits,
        sock: plan.sock_limits(),
        min_bytes: 0,
        weight: 100,
    })
}

/// Refuses what only the virtual target has, before anything is set up.
pub(super) fn carries(plan: &Plan) -> Result<(), Failure> {
    for c in &plan.containers {
        let one_life = c.joins_ns == 0 && c.active.len() == 1;
        let odd = c.loads.iter().find(|l| match l {
            Load::Up { connections, .. } | Load::Down { connections } => *connections > 1,
            Load::Stuff(fill) => fill.reads_bits_per_second.is_some(),
            Load::Orphans { .. } | Load::Accept { .. } | Load::Incast { .. } => true,
            Load::Probe(_) | Load::Hoard(_) | Load::Flood { .. } => false,
        });
        let what = match (odd, one_life) {
            (Some(load), _) => format!("its load '{}'", load.word()),
            (None, false) => "its coming and going".to_owned(),
            (None, true) => continue,
        };
        let (name, scenario) = (&c.name, &plan.scenario);
        let text = format!("{scenario}: {name}: {what} is for the virtual target only");
        return Err(Failure::Usage(text));
    }
    if plan.host.is_some() {
        let text = format!("{}: a limit above all is for the virtual target only", plan.scenario);
        return Err(Failure::Usage(text));
    }
    Ok(())
}

/// Says what is missing before anything is set up.
fn check_privileges() -> Result<(), Failure> {
    if !nix::unistd::geteuid().is_root() {
        let what = "target tap makes network namespaces: run it as root, or use --target virtual";
        return Err(Failure::Unavailable(what.to_owned()));
    }
    let open = std::fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun");
    match open {
        Ok(_) => Ok(()),
        Err(e) => Err(Failure::Unavailable(format!("target tap needs /dev/net/tun: {e}"))),
    }
}

/// Each of the hog's connections is two descriptors of this process.
pub(super) fn raise_nofile() -> Result<(), Failure> {
    let (soft, hard) =
        getrlimit(Resource::RLIMIT_NOFILE).map_err(|e| Failure::io("RLIMIT_NOFILE", e))?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
            .map_err(|e| Failure::io("RLIMIT_NOFILE", e))?;
    }
    Ok(())
}

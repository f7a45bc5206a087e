//! The tap target: an embedded daemon, real network namespaces and TAPs, the kernel's own TCP in the containers.
//!
//! ```text
//!  agent process ── netns ── kernel TCP ── tap0 ══ daemon (this process) ── loopback ── servers (this process)
//! ```
//! One agent per container: a child of this process that enters the container's namespace. It exits when its standard
//! input closes, so none outlives this process. Everything has a deadline.

mod collect;

use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::sync::Arc;

use nix::ifaddrs::{InterfaceAddress, getifaddrs};
use nix::net::if_::InterfaceFlags;
use skbudget::attach::{self, GuestNet};
use skbudget::stats::ContainerReport;
use skbudget::{BudgetRef, ContainerSpec, Daemon, DaemonConfig};
use skbudget_controller::{BudgetConfig, Limits};
use skbudget_sim::Rng;
use skbudget_stack::ContainerConfig;

use self::collect::DaemonSamples;
use super::wall::{self, WallContainer, check_loads};
use super::{Control, Target, WALL_STEP_NS};
use crate::exit::Failure;
use crate::judge::gate::Thresholds;
use crate::measure::result::ArmResult;
use crate::scenario::plan::{ArmPlan, BudgetPlan, ContainerPlan, Isolation, Plan, Role};
use crate::traffic::serve::Servers;
use crate::traffic::{FloodNet, Shared};

#[derive(Debug, Clone, Copy)]
pub(super) struct TapTarget;

/// Address at which a container reaches the servers.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// Address of the guest's kernel in a container with a flood.
const FLOOD_KERNEL_IP: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 99);

impl Target for TapTarget {
    fn name(&self) -> &'static str {
        "tap"
    }
    fn recovery_step_ns(&self, plan: &Plan) -> u64 {
        plan.recovery_step_ns(WALL_STEP_NS)
    }
    fn thresholds(&self, plan: &Plan) -> Thresholds {
        Thresholds::wall(self.recovery_step_ns(plan))
    }
    /// Two runs at once would compete for CPU and so measure each other.
    fn parallel(&self) -> bool {
        false
    }

    fn check(&self, plan: &Plan) -> Result<(), Failure> {
        check_loads(plan)?;
        check_machine()
    }

    fn run_arm(
        &self,
        plan: &Plan,
        arm: &ArmPlan,
        control: Control<'_>,
    ) -> Result<ArmResult, Failure> {
        let mut testbed = TapTestbed::build(plan, arm)?;
        let (samples, ended_ns) = testbed.run_timeline(plan, control)?;
        let containers = testbed.containers.iter_mut().map(|t| &mut t.base);
        let reports = wall::reports(containers, ended_ns.is_some())?;
        let result = collect::arm_result(&testbed, plan, arm, &samples, &reports, ended_ns)?;
        Ok(result.stopped(ended_ns, plan.window_ns))
    }
}

/// A container of the run.
#[derive(Debug)]
struct TapContainer {
    base: WallContainer,
    /// The daemon's last report about it, if it left before the end.
    last: Option<ContainerReport>,
}

/// Everything that exists during one arm.
#[derive(Debug)]
struct TapTestbed {
    // Drop order: the agents, then the daemon, then the servers.
    containers: Vec<TapContainer>,
    daemon: Daemon,
    servers: Servers,
    shared: Arc<Shared>,
}

impl TapTestbed {
    fn build(plan: &Plan, arm: &ArmPlan) -> Result<Self, Failure> {
        let shared = wall::prepare()?;
        let servers = Servers::new(Arc::clone(&shared));
        let daemon = Daemon::new(DaemonConfig::default()).map_err(|e| Failure::io("daemon", e))?;
        let mut testbed = Self { containers: Vec::new(), daemon, servers, shared };
        let pool = match arm.isolation {
            Isolation::Container | Isolation::Off => None,
            Isolation::Shared => {
                // The pool has the total memory of the other arm.
                let pool = BudgetPlan { hard_bytes: plan.pool_bytes(), ..BudgetPlan::default() };
                let config = budget(&pool, plan, arm)?;
                let id = testbed.daemon.add_budget("pool", config);
                Some(id.map_err(|e| Failure::io("budget", e))?)
            }
        };
        for (i, c) in plan.containers.iter().enumerate() {
            let budget = match pool {
                Some(id) => BudgetRef::Shared(id),
                None => BudgetRef::Own(budget(&c.budget, plan, arm)?),
            };
            testbed.add(plan, c, i as u64, budget)?;
        }
        Ok(testbed)
    }

    /// Creates a container: namespace, TAP, servers, agent.
    fn add(
        &mut self,
        plan: &Plan,
        c: &ContainerPlan,
        index: u64,
        budget: BudgetRef,
    ) -> Result<(), Failure> {
        let name = &c.name;
        // The same stream as on the virtual target.
        let mut rng = Rng::fork(plan.seed, 1000 + index);
        let secret = [rng.next_u64(), rng.next_u64()];
        let link = plan.link;
        let config =
            ContainerConfig::new(link.mtu, link.offload, Some(c.budget.hard_bytes), secret);
        let netns = attach::create_netns().map_err(|e| Failure::io(name, e))?;
        let mut guest = GuestNet::from(&config);
        let net = FloodNet { own_ip: config.guest_ip, peer_mac: config.our_mac };
        // A flood sends with the container's address, past the kernel.
        if c.floods() {
            // The flood uses the container's address. The kernel has another, because it would reset the flood's
            // connections, which it does not know.
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
        let up = wall::meter(plan);
        // The servers are on the loopback; the container reaches them at its gateway's address.
        let loads = wall::serve(&mut self.servers, c, GATEWAY, Some(net), &up)
            .map_err(|e| Failure::io("server", e))?;
        let base = WallContainer::start(plan, c, &self.shared, netns, loads, up)?;
        self.containers.push(TapContainer { base, last: None });
        Ok(())
    }

    /// Runs the phases: samples at every window, and removes the hogs at their end. Returns the time at which the run
    /// was stopped, if it was.
    fn run_timeline(
        &mut self,
        plan: &Plan,
        control: Control<'_>,
    ) -> Result<(DaemonSamples, Option<u64>), Failure> {
        let mut samples = DaemonSamples::default();
        let shared = Arc::clone(&self.shared);
        let meters: Vec<_> = self.containers.iter().map(|a| a.base.up()).collect();
        let hog_ends = plan.containers.iter().find_map(|c| c.leaves_ns).unwrap_or(u64::MAX);
        let sample = |at| self.sample(&mut samples, at == hog_ends);
        let ended_ns = wall::run_timeline(plan, &shared, &meters, control, sample)?;
        Ok((samples, ended_ns))
    }

    /// Takes a sample; at their end, removes the hogs.
    fn sample(&mut self, samples: &mut DaemonSamples, hog_leaves: bool) -> Result<(), Failure> {
        let stats = self.daemon.stats(false).map_err(|e| Failure::io("daemon", e))?;
        if hog_leaves {
            let hogs = self.containers.iter_mut().filter(|a| a.base.plan.role == Role::Hog);
            for TapContainer { base, last } in hogs {
                let name = &base.plan.name;
                // Save the report first: the daemon forgets a removed container.
                *last = stats.containers.iter().find(|c| c.name == *name).cloned();
                self.daemon.remove(name).map_err(|e| Failure::io("daemon", e))?;
            }
        }
        samples.add(stats);
        Ok(())
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

/// Checks the privileges and the loopback; the error names what is missing.
fn check_machine() -> Result<(), Failure> {
    if !nix::unistd::geteuid().is_root() {
        let what =
            "target tap creates network namespaces: run loadgen as root, or use --target virtual";
        return Err(Failure::Unavailable(what.to_owned()));
    }
    let open = std::fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun");
    open.map_err(|e| Failure::Unavailable(format!("target tap needs /dev/net/tun: {e}")))?;
    // The servers listen on the loopback. In a new namespace it is down, and no connection would open.
    let is_up =
        |i: InterfaceAddress| i.interface_name == "lo" && i.flags.contains(InterfaceFlags::IFF_UP);
    if !getifaddrs().is_ok_and(|mut all| all.any(is_up)) {
        let what = "target tap reaches its servers over the loopback, which is down here: \
                    ip link set lo up";
        return Err(Failure::Unavailable(what.to_owned()));
    }
    Ok(())
}

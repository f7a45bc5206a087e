//! The tap target: an embedded daemon, real network namespaces and TAPs, the kernel's own TCP in the containers.

use std::net::Ipv4Addr;
use std::os::fd::BorrowedFd;

use skbudget::attach::{self, GuestNet};
use skbudget::stats::Stats;
use skbudget::{BudgetId, BudgetRef, ContainerSpec, Daemon, DaemonConfig};
use skbudget_controller::{BudgetConfig, Limits};
use skbudget_sim::Rng;
use skbudget_stack::ContainerConfig;

use super::attached::{self, Attached, Relay, check_machine};
use super::wall::check_loads;
use super::{Control, Target, WALL_STEP_NS};
use crate::exit::Failure;
use crate::judge::gate::Thresholds;
use crate::measure::result::ArmResult;
use crate::scenario::plan::{ArmPlan, BudgetPlan, ContainerPlan, Isolation, Plan};
use crate::traffic::FloodNet;

#[derive(Debug, Clone, Copy)]
pub(super) struct TapTarget;

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
        check_machine(self.name())
    }

    fn run_arm(
        &self,
        plan: &Plan,
        arm: &ArmPlan,
        control: Control<'_>,
    ) -> Result<ArmResult, Failure> {
        attached::run_arm(plan, arm, control, || Embedded::start(plan, arm))
    }
}

/// A daemon in this process.
#[derive(Debug)]
struct Embedded<'a> {
    plan: &'a Plan,
    arm: &'a ArmPlan,
    daemon: Daemon,
    /// The budget of all containers, in an arm that has one.
    pool: Option<BudgetId>,
}

impl<'a> Embedded<'a> {
    fn start(plan: &'a Plan, arm: &'a ArmPlan) -> Result<Self, Failure> {
        let daemon = Daemon::new(DaemonConfig::default()).map_err(|e| Failure::io("daemon", e))?;
        let pool = match arm.isolation {
            Isolation::Container | Isolation::Off => None,
            Isolation::Shared => {
                // The pool has the total memory of the other arm.
                let pool = BudgetPlan { hard_bytes: plan.pool_bytes(), ..BudgetPlan::default() };
                let id = daemon.add_budget("pool", budget(&pool, plan, arm)?);
                Some(id.map_err(|e| Failure::io("budget", e))?)
            }
        };
        Ok(Self { plan, arm, daemon, pool })
    }
}

impl Relay for Embedded<'_> {
    fn attach(
        &mut self,
        c: &ContainerPlan,
        index: u64,
        netns: BorrowedFd<'_>,
    ) -> Result<Attached, Failure> {
        let (name, link) = (&c.name, self.plan.link);
        let budget = match self.pool {
            Some(id) => BudgetRef::Shared(id),
            None => BudgetRef::Own(budget(&c.budget, self.plan, self.arm)?),
        };
        // The same stream as on the virtual target.
        let mut rng = Rng::fork(self.plan.seed, 1000 + index);
        let secret = [rng.next_u64(), rng.next_u64()];
        let config =
            ContainerConfig::new(link.mtu, link.offload, Some(c.budget.hard_bytes), secret);
        let mut guest = GuestNet::from(&config);
        let net = FloodNet { own_ip: config.guest_ip, peer_mac: config.our_mac };
        // A flood sends with the container's address, past the kernel.
        if c.floods() {
            // The flood uses the container's address. The kernel has another, because it would reset the flood's
            // connections, which it does not know.
            guest.ip = FLOOD_KERNEL_IP;
        }
        let tap = attach::tap_into(netns, &guest).map_err(|e| Failure::io(name, e))?;
        let spec = ContainerSpec {
            name: name.clone(),
            tap,
            config,
            budget,
            publish: Vec::new(),
            outbound_addr: None,
        };
        self.daemon.add_container(spec).map_err(|e| Failure::io(name, e))?;
        Ok(Attached { gateway: guest.gateway, flood: Some(net) })
    }

    fn detach(&mut self, name: &str) -> Result<(), Failure> {
        self.daemon.remove(name).map_err(|e| Failure::io("daemon", e))
    }
    fn stats(&mut self) -> Result<Stats, Failure> {
        self.daemon.stats(false).map_err(|e| Failure::io("daemon", e))
    }
    fn close(self) -> Result<(), Failure> {
        self.daemon.shutdown().map_err(|e| Failure::io("daemon", e))
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

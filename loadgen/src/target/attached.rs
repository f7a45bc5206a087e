//! The common part of the targets with a stack of this project: containers attached to a relay, which is a daemon in
//! this process or another one.
//!
//! ```text
//!  agent process ── netns ── kernel TCP ── tap0 ══ relay ── loopback ── servers (this process)
//! ```
//! One agent per container: a child of this process that enters the container's namespace. It exits when its standard
//! input closes, so none outlives this process. Everything has a deadline.

mod collect;

use std::fmt;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use nix::ifaddrs::{InterfaceAddress, getifaddrs};
use nix::net::if_::InterfaceFlags;
use skbudget::attach;
use skbudget::stats::{ContainerReport, Stats};

use self::collect::DaemonSamples;
use super::Control;
use super::wall::{self, WallContainer};
use crate::exit::Failure;
use crate::measure::result::ArmResult;
use crate::scenario::plan::{ArmPlan, ContainerPlan, Plan, Role};
use crate::traffic::serve::Servers;
use crate::traffic::{FloodNet, Shared};

/// Connects containers to a stack. What it attached is detached on drop.
pub(super) trait Relay: fmt::Debug {
    /// Attaches the namespace of a container. `index`: its place in the plan.
    fn attach(
        &mut self,
        c: &ContainerPlan,
        index: u64,
        netns: BorrowedFd<'_>,
    ) -> Result<Attached, Failure>;
    /// Removes a container before the end of the arm.
    fn detach(&mut self, name: &str) -> Result<(), Failure>;
    /// The state of the containers, by their names in the plan.
    fn stats(&mut self) -> Result<Stats, Failure>;
    /// Detaches all containers; an error if one remains.
    fn close(self) -> Result<(), Failure>;
}

/// How a container reaches the servers.
#[derive(Debug)]
pub(super) struct Attached {
    /// Address that leads to the loopback of this process.
    pub gateway: Ipv4Addr,
    /// Addresses of handcrafted segments, where the relay supports them.
    pub flood: Option<FloodNet>,
}

/// Runs one arm on a relay to its end, or until `control` stops it.
pub(super) fn run_arm<R: Relay>(
    plan: &Plan,
    arm: &ArmPlan,
    control: Control<'_>,
    relay: impl FnOnce() -> Result<R, Failure>,
) -> Result<ArmResult, Failure> {
    let mut testbed = Testbed::build(plan, relay)?;
    let (samples, ended_ns) = testbed.run_timeline(plan, control)?;
    let containers = testbed.containers.iter_mut().map(|t| &mut t.base);
    let reports = wall::reports(containers, ended_ns.is_some())?;
    let known = &testbed.containers;
    let result = collect::arm_result(known, plan, arm, &samples, &reports, ended_ns)?;
    testbed.close()?;
    Ok(result.stopped(ended_ns, plan.window_ns))
}

/// A container of the run.
#[derive(Debug)]
struct AttachedContainer {
    base: WallContainer,
    /// The relay's last report about it, if it left before the end.
    last: Option<ContainerReport>,
}

/// Everything that exists during one arm.
#[derive(Debug)]
struct Testbed<R> {
    // Drop order: the agents, then the relay, then the servers.
    containers: Vec<AttachedContainer>,
    relay: R,
    servers: Servers,
    shared: Arc<Shared>,
}

impl<R: Relay> Testbed<R> {
    fn build(plan: &Plan, relay: impl FnOnce() -> Result<R, Failure>) -> Result<Self, Failure> {
        let shared = wall::prepare()?;
        let servers = Servers::new(Arc::clone(&shared));
        let mut testbed = Self { containers: Vec::new(), relay: relay()?, servers, shared };
        for (i, c) in plan.containers.iter().enumerate() {
            testbed.add(plan, c, i as u64)?;
        }
        Ok(testbed)
    }

    /// Creates a container: namespace, device, servers, agent.
    fn add(&mut self, plan: &Plan, c: &ContainerPlan, index: u64) -> Result<(), Failure> {
        let netns = attach::create_netns().map_err(|e| Failure::io(&c.name, e))?;
        let Attached { gateway, flood } = self.relay.attach(c, index, netns.as_fd())?;
        let up = wall::meter(plan);
        // The servers are on the loopback; the container reaches them at its gateway's address.
        let loads = wall::serve(&mut self.servers, c, gateway, flood, &up)
            .map_err(|e| Failure::io("server", e))?;
        let base = WallContainer::start(plan, c, &self.shared, netns, loads, up)?;
        self.containers.push(AttachedContainer { base, last: None });
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
        let stats = self.relay.stats()?;
        if hog_leaves {
            let hogs = self.containers.iter_mut().filter(|a| a.base.plan.role == Role::Hog);
            for AttachedContainer { base, last } in hogs {
                let name = &base.plan.name;
                // Save the report first: the relay forgets a removed container.
                *last = stats.containers.iter().find(|c| c.name == *name).cloned();
                self.relay.detach(name)?;
            }
        }
        samples.add(stats);
        Ok(())
    }

    /// Ends the agents, then detaches their containers.
    fn close(self) -> Result<(), Failure> {
        let Self { containers, relay, servers, shared } = self;
        drop(containers);
        let closed = relay.close();
        drop((servers, shared));
        closed
    }
}

/// Checks the privileges and the loopback; the error names what is missing.
pub(super) fn check_machine(target: &str) -> Result<(), Failure> {
    if !nix::unistd::geteuid().is_root() {
        let what = format!(
            "target {target} creates network namespaces: run loadgen as root, or use --target virtual"
        );
        return Err(Failure::Unavailable(what));
    }
    let open = std::fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun");
    open.map_err(|e| Failure::Unavailable(format!("target {target} needs /dev/net/tun: {e}")))?;
    // The servers listen on the loopback. In a new namespace it is down, and no connection would open.
    let is_up =
        |i: InterfaceAddress| i.interface_name == "lo" && i.flags.contains(InterfaceFlags::IFF_UP);
    if !getifaddrs().is_ok_and(|mut all| all.any(is_up)) {
        let what = format!(
            "target {target} reaches its servers over the loopback, which is down here: ip link set lo up"
        );
        return Err(Failure::Unavailable(what));
    }
    Ok(())
}

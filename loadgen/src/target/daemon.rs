//! The daemon target: containers of a daemon that runs already (`skbudget serve`), controlled over its socket.
//!
//! Each container of the plan is a new network namespace that this process attaches and detaches, with a name of its
//! own. Only this process holds the namespaces: when it is killed, the kernel removes them with their devices, and the
//! daemon forgets the containers by itself.
//!
//! A daemon has no budget that several containers share. The arm with a shared budget therefore runs in this process,
//! as on the tap target: it proves that the load starves, and it starves no container of the daemon.

mod process;

use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::PathBuf;

use skbudget::cli::{Isolation as ContainerIsolation, OnOff, RuleSet as ContainerRules, Triple};
use skbudget::client::remote::{Remote, RemoteError};
use skbudget::settings::ContainerOptions;
use skbudget::stats::Stats;
use skbudget::{attach, units::Bytes};

use super::attached::{self, Attached, Relay, check_machine};
use super::tap::TapTarget;
use super::wall::check_loads;
use super::{Control, Target, WALL_STEP_NS};
use crate::exit::Failure;
use crate::judge::gate::Thresholds;
use crate::measure::result::ArmResult;
use crate::scenario::plan::{ArmPlan, ContainerPlan, Isolation, Plan, RuleSet};

/// A daemon by its control socket.
#[derive(Debug, Clone)]
pub(super) struct DaemonTarget {
    remote: Remote,
}

impl DaemonTarget {
    /// `None`: the socket of the environment, or the default.
    pub(super) fn new(socket: Option<PathBuf>) -> Self {
        Self { remote: Remote::new(socket) }
    }
}

impl Target for DaemonTarget {
    fn name(&self) -> &'static str {
        "daemon"
    }
    fn recovery_step_ns(&self, plan: &Plan) -> u64 {
        plan.recovery_step_ns(WALL_STEP_NS)
    }
    fn thresholds(&self, plan: &Plan) -> Thresholds {
        Thresholds::wall(self.recovery_step_ns(plan))
    }
    fn parallel(&self) -> bool {
        false
    }
    /// The load has the scheduling policy of the daemon: with a higher one it would take the cores that the daemon
    /// needs.
    fn real_time(&self) -> bool {
        self.remote.pid().is_some_and(process::is_real_time)
    }

    fn check(&self, plan: &Plan) -> Result<(), Failure> {
        check_loads(plan)?;
        if let Some(c) = plan.containers.iter().find(|c| c.floods()) {
            let what = "load 'flood' is supported on the targets virtual and tap only";
            return Err(Failure::Usage(format!("{}: {}: {what}", plan.scenario, c.name)));
        }
        check_machine(self.name())?;
        self.remote.stats().map_err(|e| unavailable(&e))?;
        match self.remote.pid() {
            Some(pid) => process::check_network(pid),
            None => Ok(()),
        }
    }

    fn run_arm(
        &self,
        plan: &Plan,
        arm: &ArmPlan,
        control: Control<'_>,
    ) -> Result<ArmResult, Failure> {
        if arm.isolation == Isolation::Shared {
            return TapTarget.run_arm(plan, arm, control);
        }
        let relay = || Ok(Attachments::new(self.remote.clone(), plan, arm));
        attached::run_arm(plan, arm, control, relay)
    }
}

/// The containers of this process in the daemon.
#[derive(Debug)]
struct Attachments<'a> {
    remote: Remote,
    plan: &'a Plan,
    arm: &'a ArmPlan,
    /// Start of all their names. Another loadgen has another process id.
    prefix: String,
    /// Names in the plan.
    attached: Vec<String>,
}

impl<'a> Attachments<'a> {
    fn new(remote: Remote, plan: &'a Plan, arm: &'a ArmPlan) -> Self {
        let prefix = format!("loadgen-{}-", std::process::id());
        Self { remote, plan, arm, prefix, attached: Vec::new() }
    }

    fn name(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// Detaches everything; the first error if one remains.
    fn detach_all(&mut self) -> Result<(), RemoteError> {
        let names = std::mem::take(&mut self.attached);
        let detach = |name: &String| match self.remote.detach(&self.name(name)) {
            // The agent's end may have ended the namespace already, and the daemon has noticed that.
            Err(RemoteError::Refused { code, .. }) if code == "no_such_container" => Ok(()),
            detached => detached,
        };
        // All of them, whatever happens to the first.
        let detached: Vec<_> = names.iter().map(detach).collect();
        detached.into_iter().collect()
    }
}

impl Relay for Attachments<'_> {
    fn attach(
        &mut self,
        c: &ContainerPlan,
        _index: u64,
        netns: BorrowedFd<'_>,
    ) -> Result<Attached, Failure> {
        // A path of the daemon, which opens it before this returns. No name of the namespace could be left behind.
        let path = PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), netns.as_raw_fd()));
        let name = self.name(&c.name);
        let options = options(c, self.plan, self.arm);
        self.remote.attach(&name, &path, options).map_err(|e| not_attached(&name, &e))?;
        self.attached.push(c.name.clone());
        // The daemon chooses the container's addresses.
        let gateway = attach::run_in(netns, process::default_gateway);
        let gateway = gateway.map_err(|e| Failure::io(&name, e))?.map_err(|e| {
            Failure::io(format!("{name}: the default route that the daemon made"), e)
        })?;
        // Handcrafted segments need to know the daemon's hardware address.
        Ok(Attached { gateway, flood: None })
    }

    fn detach(&mut self, name: &str) -> Result<(), Failure> {
        self.attached.retain(|attached| attached != name);
        self.remote.detach(&self.name(name)).map_err(|e| Failure::io("daemon", e))
    }

    fn stats(&mut self) -> Result<Stats, Failure> {
        let mut stats = self.remote.stats().map_err(|e| Failure::io("daemon", e))?;
        // The containers of others are none of this run.
        stats.containers.retain(|c| c.name.starts_with(&self.prefix));
        for c in &mut stats.containers {
            for name in [&mut c.name, &mut c.budget] {
                if let Some(own) = name.strip_prefix(&self.prefix) {
                    *name = own.to_owned();
                }
            }
        }
        Ok(stats)
    }

    fn close(mut self) -> Result<(), Failure> {
        self.detach_all().map_err(|e| Failure::io("daemon: detach", e))
    }
}

impl Drop for Attachments<'_> {
    fn drop(&mut self) {
        // After an error, or a stop: the error that led here is the one to report. A container that cannot be detached
        // ends with its namespace.
        let _ = self.detach_all();
    }
}

/// The options of a container. Those that a template of the daemon's config could change are given too.
fn options(c: &ContainerPlan, plan: &Plan, arm: &ArmPlan) -> ContainerOptions {
    let limited = arm.isolation != Isolation::Off;
    let size = |bytes: u64| limited.then_some(Bytes(bytes));
    let sock = plan.sock_limits();
    ContainerOptions {
        hard: size(c.budget.hard_bytes),
        soft: c.budget.soft_bytes.and_then(size),
        low: c.budget.low_bytes.and_then(size),
        isolation: Some(if limited {
            ContainerIsolation::Container
        } else {
            ContainerIsolation::Off
        }),
        rules: Some(match arm.rules {
            RuleSet::Linux => ContainerRules::Linux,
            RuleSet::Strict => ContainerRules::Strict,
        }),
        mtu: Some(plan.link.mtu),
        offload: Some(if plan.link.offload { OnOff::On } else { OnOff::Off }),
        // The servers are on the loopback.
        no_host_loopback: Some(false),
        tcp_rmem: Some(Triple(sock.rmem)),
        tcp_wmem: Some(Triple(sock.wmem)),
        publish: Some(Vec::new()),
        ..ContainerOptions::default()
    }
}

/// A daemon that refuses what every daemon of this version has, or gives an answer that none of them gives.
fn unavailable(error: &RemoteError) -> Failure {
    Failure::Unavailable(match error {
        RemoteError::Refused { code, .. }
            if ["no_such_path", "unknown_key"].contains(&code.as_str()) =>
        {
            format!(
                "{error}: the daemon is older than this loadgen: restart it with the skbudget of the same build"
            )
        }
        RemoteError::Answer(_) => {
            format!(
                "{error}: the daemon is of another version: restart it with the skbudget of the same build"
            )
        }
        RemoteError::Unreachable(_) | RemoteError::Refused { .. } => {
            format!("target daemon: {error}")
        }
    })
}

/// The daemon refused a container: the state of the daemon or of the machine, not the run, is the reason.
fn not_attached(name: &str, error: &RemoteError) -> Failure {
    let advice = match error {
        RemoteError::Refused { code, .. } => match code.as_str() {
            "name_in_use" => Some(format!("skbudget detach {name}")),
            "no_such_netns" | "cannot_open" => Some(
                "the daemon must see the processes of loadgen in its own /proc: run both in one process namespace"
                    .to_owned(),
            ),
            _ => None,
        },
        RemoteError::Unreachable(_) | RemoteError::Answer(_) => None,
    };
    match advice {
        Some(advice) => Failure::Unavailable(format!("{name}: {error}: {advice}")),
        None => match unavailable(error) {
            Failure::Unavailable(why) => Failure::Unavailable(format!("{name}: {why}")),
            other => other,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(code: &str) -> RemoteError {
        let (code, message) = (code.to_owned(), "refused".to_owned());
        RemoteError::Refused { status: 409, code, message }
    }

    #[test]
    fn a_refusal_names_the_container_and_what_helps() {
        for (code, expected) in [
            ("name_in_use", "skbudget detach loadgen-7-hog"),
            ("no_such_netns", "process namespace"),
            ("unknown_key", "older than this loadgen"),
            ("no_room", "loadgen-7-hog: target daemon: refused"),
        ] {
            let failure = not_attached("loadgen-7-hog", &refusal(code));
            assert!(
                matches!(&failure, Failure::Unavailable(why) if why.contains(expected)),
                "{failure}"
            );
        }
    }

    #[test]
    fn an_older_daemon_is_named_as_such() {
        for error in [refusal("no_such_path"), RemoteError::Answer("missing field `turns`".into())]
        {
            let failure = unavailable(&error);
            assert!(failure.to_string().contains("of the same build"), "{failure}");
        }
        let gone = unavailable(&RemoteError::Unreachable("/x: no daemon".into()));
        assert_eq!(gone.to_string(), "target daemon: /x: no daemon");
    }
}

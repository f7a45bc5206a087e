//! `skbudget run`: one container, one command, and nothing left of either afterwards.

mod capture;
mod init;
mod lookup;
mod output;
mod sandbox;
mod signals;
mod stats_file;
mod wire;

use std::ffi::{OsStr, OsString};
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitCode};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{Pid, geteuid};
use skbudget_stack::Tap;

use crate::attach::GuestNet;
use crate::config::RunConfig;
use crate::daemon::{BudgetRef, ContainerSpec, Daemon, DaemonConfig, DaemonError, Publish};
use crate::exit::{FAILURE, Failure};
use crate::{clock, logger, names, sys};
use sandbox::Orders;
use signals::{Caught, Signals, hand_on};
use wire::{Report, Wire};

/// Our own binary, also when it was replaced on disk meanwhile.
const EXE: &str = "/proc/self/exe";

/// First argument of the two inner processes: not for people, hence no subcommands.
const SANDBOX_ARG: &str = "__sandbox";
const INIT_ARG: &str = "__init";

/// After the command ended, how long what it sent last may take without any progress, and how often that is looked at.
const DRAIN_STALL: Duration = Duration::from_secs(1);
const DRAIN_STEP: Duration = Duration::from_millis(2);

/// When this process is one of the inner ones of a run, carries it out.
pub fn inner_main() -> Option<ExitCode> {
    let mut args = std::env::args_os().skip(1);
    let role = args.next().filter(|role| role == SANDBOX_ARG || role == INIT_ARG)?;
    if logger::join(&args.next().unwrap_or_default()).is_err() {
        return Some(ExitCode::from(FAILURE));
    }
    let code = inner(&role, args);
    logger::finish();
    Some(code)
}

fn inner(role: &OsStr, mut args: impl Iterator<Item = OsString>) -> ExitCode {
    let mut given = || -> io::Result<(Wire, Orders)> {
        let bad = || io::Error::new(io::ErrorKind::InvalidInput, "not to be called by hand");
        let text = |arg: Option<OsString>| arg.and_then(|arg| arg.into_string().ok());
        let fd = text(args.next()).and_then(|fd| fd.parse().ok()).ok_or_else(bad)?;
        let fd = sys::inherited_fd(fd)?;
        let orders = text(args.next()).ok_or_else(bad)?;
        Ok((Wire::from_fd(fd), serde_json::from_str(&orders)?))
    };
    let (wire, orders) = match given() {
        Ok(given) => given,
        Err(e) => {
            logger::report(format!("{}: {e}", role.display()));
            return ExitCode::from(FAILURE);
        }
    };
    let command: Vec<OsString> = args.collect();
    match (role == SANDBOX_ARG, command.is_empty()) {
        (_, true) => ExitCode::from(FAILURE),
        (true, false) => sandbox::main(&wire, &orders, &command),
        (false, false) => init::main(&wire, &orders, &command),
    }
}

/// Random numbers for a stack's secret.
pub fn secret() -> Result<[u64; 2], Failure> {
    let random = || sys::random_u64().map_err(|e| Failure::set_up(format!("getrandom: {e}")));
    Ok([random()?, random()?])
}

/// Carries it out; the exit code is the command's.
pub fn run(config: RunConfig) -> Result<u8, Failure> {
    let program = lookup::find(
        &config.command[0],
        &std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into()),
    )?;
    let signals = Signals::block().map_err(|e| Failure::set_up(format!("signals: {e}")))?;
    let held = names::hold(&config.name)
        .map_err(|e| Failure::set_up(format!("--name {}: {e}", config.name)))?;
    let Some(_name) = held else {
        return Err(Failure::set_up(format!(
            "--name {}: in use by another skbudget of this user: end that one or choose another name",
            config.name
        )));
    };
    let mut output = output::Output::open(&config)?;
    let publish = bind_all(&config)?;
    check_tun()?;
    let nofile = raise_nofile()?;

    let daemon = Daemon::new(DaemonConfig::default()).map_err(|e| set_up_failure(&e))?;
    let mut guest = GuestNet::from(&config.container);
    guest.ipv6.iter_mut().for_each(|net| net.required = config.needs_ipv6);
    let orders = Orders { guest, program, nofile };
    let mut sandbox = Sandbox::start(&orders, &config.command)?;
    let result = with_sandbox(&daemon, &signals, &mut sandbox, config, publish, &mut output);
    let stopped = daemon.shutdown();
    output.end();
    sandbox.end();
    let code = result?;
    stopped.map_err(|e| Failure::other(e.to_string()))?;
    Ok(code)
}

fn with_sandbox(
    daemon: &Daemon,
    signals: &Signals,
    sandbox: &mut Sandbox,
    config: RunConfig,
    publish: Vec<Publish>,
    output: &mut output::Output,
) -> Result<u8, Failure> {
    let mut tap = sandbox.wait_ready(signals)?;
    output.capture(&mut tap)?;
    let name = config.name.clone();
    let spec = ContainerSpec {
        name: config.name,
        tap,
        config: config.container,
        budget: BudgetRef::Own(config.budget),
        publish,
        outbound_addr: config.outbound_addr,
    };
    daemon.add_container(spec).map_err(|e| set_up_failure(&e))?;
    sandbox.wire.go().map_err(|e| Failure::set_up(format!("sandbox: {e}")))?;
    let code = sandbox.wait_exited(signals)?;
    drain(daemon, signals, &name).map_err(|e| Failure::other(e.to_string()))?;
    if output.wants_stats() {
        output.settle();
        let stats = daemon.stats(true).map_err(|e| Failure::other(e.to_string()))?;
        output.write_stats(&stats);
    }
    Ok(code)
}

/// The parent's view of the sandbox process.
#[derive(Debug)]
struct Sandbox {
    process: Child,
    wire: Wire,
}

impl Sandbox {
    /// From the main thread: the kernel kills the child when the thread that made it ends.
    fn start(orders: &Orders, command: &[OsString]) -> Result<Self, Failure> {
        let start = || -> io::Result<Self> {
            let (wire, theirs) = Wire::pair()?;
            let fd = theirs.as_fd().as_raw_fd();
            let mut process = Command::new(EXE);
            let (log_fd, log) = logger::handover();
            process.arg0("skbudget").arg(SANDBOX_ARG).arg(log).arg(fd.to_string());
            process.arg(serde_json::to_string(orders)?).args(command);
            let mask = signals::blocked();
            let fds = log_fd.into_iter().chain([fd]).collect();
            sys::prepare_child(&mut process, fds, mask, Some(orders.nofile));
            Ok(Self { process: process.spawn()?, wire })
        };
        start().map_err(|e| Failure::set_up(format!("start the sandbox process: {e}")))
    }

    fn wait_ready(&mut self, signals: &Signals) -> Result<Tap, Failure> {
        match self.wait_report(signals)? {
            (Report::Ready, Some(fd)) => {
                Tap::from_fd(fd).map_err(|e| Failure::set_up(format!("the device: {e}")))
            }
            (Report::Failed { step, errno, message }, _) => {
                Err(Failure::set_up(format!("{step}: {message}{}", advice(&step, errno))))
            }
            (report, _) => Err(Failure::set_up(format!("sandbox: unexpected {report:?}"))),
        }
    }

    fn wait_exited(&mut self, signals: &Signals) -> Result<u8, Failure> {
        match self.wait_report(signals)? {
            (Report::Exited { code }, _) => Ok(code),
            (report, _) => Err(Failure::other(format!("sandbox: unexpected {report:?}"))),
        }
    }

    /// Hands signals on until the sandbox says something.
    fn wait_report(
        &mut self,
        signals: &Signals,
    ) -> Result<(Report, Option<std::os::fd::OwnedFd>), Failure> {
        let lost = |e: io::Error| Failure::other(format!("sandbox: {e}"));
        let pid = Pid::from_raw(self.process.id().cast_signed());
        loop {
            let mut fds = [
                PollFd::new(signals.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.wire.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(lost(errno.into())),
            }
            let spoke = fds[1].any().unwrap_or(false);
            while let Some(caught) = signals.next().map_err(lost)? {
                match caught {
                    Caught::Forward(signal) => hand_on(pid, signal),
                    Caught::Child | Caught::FromTerminal(_) => {}
                }
            }
            if spoke {
                let report = self.wire.read_report().map_err(lost)?;
                return report.ok_or_else(|| Failure::other("the sandbox process was killed"));
            }
        }
    }

    /// Its network goes with it.
    fn end(self) {
        let Self { mut process, wire } = self;
        drop(wire);
        // It may be waiting for a command that does not end, after a failure of ours.
        let _ = process.kill();
        let _ = process.wait();
    }
}

/// Waits until what the command sent before it ended has been taken to the host: its sockets are closed, so every flow
/// comes to an end as soon as its data is out. A host that does not read holds it up for `DRAIN_STALL` at most; so does
/// a signal.
fn drain(daemon: &Daemon, signals: &Signals, name: &str) -> Result<(), DaemonError> {
    let mut last = Vec::new();
    let mut since = clock::now();
    loop {
        let pending = daemon.unsaid(name)?;
        let now = clock::now();
        let progress: Vec<_> =
            pending.iter().map(|flow| (flow.id, flow.bytes_from_guest, flow.rmem)).collect();
        if progress != last {
            (last, since) = (progress, now);
        }
        let interrupted = loop {
            match signals.next()? {
                None => break false,
                Some(Caught::Child) => {}
                Some(_) => break true,
            }
        };
        if pending.is_empty() {
            return Ok(());
        }
        if interrupted || now.since(since) >= DRAIN_STALL {
            let n = pending.len();
            log::warn!("{n} flows are reset whose last bytes the host did not take");
            pending.iter().for_each(|flow| log::info!("reset: {flow:?}"));
            return Ok(());
        }
        std::thread::sleep(DRAIN_STEP);
    }
}

fn bind_all(config: &RunConfig) -> Result<Vec<Publish>, Failure> {
    let bind = |port: &crate::cli::PublishArg| {
        Publish::bind(port.host, port.guest_port)
            .map_err(|e| Failure::set_up(format!("--publish {}: {e}", port.host)))
    };
    config.publish.iter().map(bind).collect()
}

/// Before anything is brought up, and where the message can be the whole truth.
fn check_tun() -> Result<(), Failure> {
    let opened = OpenOptions::new().read(true).write(true).open("/dev/net/tun");
    let Err(e) = opened else { return Ok(()) };
    let what_to_do = match e.raw_os_error() {
        Some(libc::EACCES | libc::EPERM) if !geteuid().is_root() => {
            "not root, and the node is not readable and writable for this user: run as root, or have root grant \
             access to the node (chmod 0666 /dev/net/tun, or a udev rule)"
        }
        Some(libc::ENOENT | libc::ENODEV) => {
            "the kernel has no tun device here: load the module (modprobe tun), or make the node available in this \
             container (--device /dev/net/tun)"
        }
        _ => "access to the node is needed (in a container: --device /dev/net/tun)",
    };
    Err(Failure::set_up(format!("/dev/net/tun: {e}: {what_to_do}")))
}

fn advice(step: &str, errno: Option<i32>) -> &'static str {
    match (step, errno) {
        ("new user namespace", _) => {
            ": not root, and this user may not make user namespaces: run as root, or have root allow them \
             (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, \
             kernel.apparmor_restrict_unprivileged_userns)"
        }
        (_, Some(libc::EPERM)) => ": root or a user namespace with CAP_NET_ADMIN is needed",
        _ => "",
    }
}

/// Every flow is a descriptor. The limits of before are the command's.
fn raise_nofile() -> Result<(u64, u64), Failure> {
    let limits = || {
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
        Ok((soft, hard))
    };
    limits().map_err(|e: Errno| Failure::set_up(format!("RLIMIT_NOFILE: {e}")))
}

/// Limits the budget refuses are a mistake of the caller, the rest of the machine's.
fn set_up_failure(error: &DaemonError) -> Failure {
    match error {
        DaemonError::Limits(_) | DaemonError::NoRoom { .. } => Failure::usage(error.to_string()),
        _ => Failure::set_up(error.to_string()),
    }
}

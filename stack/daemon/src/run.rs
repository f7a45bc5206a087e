//! `skbudget run`: one container, one command, and nothing left of either afterwards.

mod arbiter;
mod capture;
mod command;
mod drain;
mod forward;
mod init;
mod injection;
mod lookup;
mod mounts;
mod output;
mod port;
mod relay;
mod ring;
mod roles;
mod sandbox;
mod signals;
mod stats_file;
mod terminal;
mod users;
mod wire;

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::process::Child;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::geteuid;

use crate::attach::GuestNet;
use crate::config::RunConfig;
use crate::daemon::Publish;
use crate::exit::{FAILURE, Failure, SIGNAL_BASE};
use crate::{names, sys};
use forward::{Forwarder, Waited};
use port::Port;
use relay::Relay;
use ring::Tampered;
pub use roles::inner_main;
use sandbox::Orders;
use signals::Signals;
use terminal::Terminal;
use wire::{Order, Report, Wire};

/// After a signal that asks for the end, how long the relay may take to stop.
const INTERRUPT_WAIT: Duration = Duration::from_secs(5);

/// Random numbers for a stack's secret.
pub fn secret() -> Result<[u64; 2], Failure> {
    let random = || sys::random_u64().map_err(|e| Failure::set_up(format!("getrandom: {e}")));
    Ok([random()?, random()?])
}

/// Carries it out; the exit code is the command's. `options`: the command line up to the command, and `secret`: the
/// stack's, both as the configuration was made of.
pub fn run(config: RunConfig, secret: [u64; 2], options: &[OsString]) -> Result<u8, Failure> {
    let program = lookup::find(
        &config.command[0],
        &std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into()),
    )?;
    let signals = Signals::block().map_err(|e| Failure::set_up(format!("signals: {e}")))?;
    // Dropped last: the terminal is handed back when the container is gone.
    let mut forwarder = Forwarder::new(signals, Terminal::open());
    let held = names::take(config.name.as_deref())?;
    let mut output = output::Output::open(&config)?;
    let publish = bind_all(&config)?;
    check_tun()?;
    let nofile = raise_nofile()?;

    let mut guest = GuestNet::from(&config.container);
    guest.ipv6.iter_mut().for_each(|net| net.required = config.needs_ipv6);
    let orders = Orders {
        guest,
        program,
        nofile,
        root: geteuid().is_root(),
        added: config.added_caps,
        privileged: config.privileged,
        listen: command::listens(),
    };
    let relay = start_relay(options, publish, &mut output)?;
    let mut sandbox = match Sandbox::start(&orders, &config.command, &mut forwarder) {
        Ok(sandbox) => sandbox,
        Err(failure) => {
            relay.end();
            return Err(failure);
        }
    };
    let begin = |tap| relay.begin(&tap, held.name(), secret);
    let result = carry_out(&mut forwarder, &mut sandbox, &relay, begin, &mut output);
    relay.end();
    sandbox.end();
    result
}

/// With everything that it may have of the host's.
fn start_relay(
    options: &[OsString],
    publish: Vec<Publish>,
    output: &mut output::Output,
) -> Result<Relay, Failure> {
    let relay = Relay::start(options)?;
    publish.iter().try_for_each(|publish| relay.publish(publish))?;
    if let Some((path, file)) = output.pcap.take() {
        relay.capture(path.into_os_string(), &file)?;
    }
    Ok(relay)
}

fn carry_out(
    forwarder: &mut Forwarder,
    sandbox: &mut Sandbox,
    relay: &Relay,
    begin: impl FnOnce(OwnedFd) -> Result<(), Failure>,
    output: &mut output::Output,
) -> Result<u8, Failure> {
    begin(sandbox.wait_ready(forwarder, relay)?)?;
    relay.started()?;
    sandbox.wire.send(&Order::Go, &[]).map_err(|e| Failure::set_up(format!("sandbox: {e}")))?;
    let (code, tampered) = sandbox.wait_exited(forwarder, relay)?;
    let lost = drain(forwarder, relay)?;
    if !lost.is_nothing() {
        log::warn!("{lost}");
    }
    if output.wants_stats() {
        match relay.stats(tampered) {
            Ok(stats) => output.write_stats(stats),
            Err(e) => log::warn!("--stats-file: {e}: the stats are not written"),
        }
    }
    Ok(if code == 0 && !lost.is_nothing() { FAILURE } else { code })
}

/// Until the relay has delivered what the command sent. A signal that asks for the end ends that as well.
fn drain(forwarder: &mut Forwarder, relay: &Relay) -> Result<drain::Lost, Failure> {
    let failed = |e: io::Error| Failure::other(format!("wait for the relay: {e}"));
    relay.begin_drain()?;
    let signals = forwarder.command_ended();
    let mut timeout = PollTimeout::NONE;
    loop {
        let mut fds = [
            PollFd::new(relay.as_fd(), PollFlags::POLLIN),
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, timeout) {
            Ok(0) => return Err(Failure::other("the relay process does not answer")),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(failed(errno.into())),
        }
        if fds[0].any().unwrap_or(false) {
            return relay.drained();
        }
        if signals.interrupted().map_err(failed)? && timeout == PollTimeout::NONE {
            relay.interrupt()?;
            timeout = PollTimeout::try_from(INTERRUPT_WAIT).unwrap_or(PollTimeout::MAX);
        }
    }
}

/// Readable when one of them is.
fn either(one: BorrowedFd<'_>, other: BorrowedFd<'_>) -> nix::Result<Epoll> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(one, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
    epoll.add(other, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
    Ok(epoll)
}

/// The parent's view of the sandbox process.
#[derive(Debug)]
struct Sandbox {
    process: Child,
    wire: Wire,
}

impl Sandbox {
    /// From the main thread: the kernel kills the child when the thread that made it ends.
    fn start(
        orders: &Orders,
        command: &[OsString],
        forwarder: &mut Forwarder,
    ) -> Result<Self, Failure> {
        let mut start = || -> io::Result<Self> {
            let (wire, theirs) = Wire::pair()?;
            let (apart, sandboxs) = Port::pair()?;
            let (inside, inits) = Port::pair()?;
            let fds = [theirs.as_fd(), sandboxs.as_fd(), inits.as_fd()].map(|fd| fd.as_raw_fd());
            let (mut process, fds) = roles::process(roles::SANDBOX, &fds);
            process.arg(serde_json::to_string(orders)?).args(command);
            let mask = signals::blocked();
            sys::prepare_child(&mut process, fds, mask, Some(orders.nofile));
            let process = process.spawn()?;
            forwarder.connect(process.id(), inside, apart);
            Ok(Self { process, wire })
        };
        start().map_err(|e| Failure::set_up(format!("start the sandbox process: {e}")))
    }

    fn wait_ready(&mut self, forwarder: &mut Forwarder, relay: &Relay) -> Result<OwnedFd, Failure> {
        loop {
            let (report, fds) = self.wait_report(forwarder, relay, false)?;
            match (report, fds.into_iter().next()) {
                (Report::MapUsers, _) => self.map_users()?,
                (Report::Ready, Some(tap)) => return Ok(tap),
                (Report::Failed { step, errno, message }, _) => {
                    let advice = advice(&step, errno);
                    return Err(Failure::set_up(format!("{step}: {message}{advice}")));
                }
                (report, _) => {
                    return Err(Failure::set_up(format!("sandbox: unexpected {report:?}")));
                }
            }
        }
    }

    /// Only from here, where the privileges for it are.
    fn map_users(&self) -> Result<(), Failure> {
        let order = match users::map_all(self.process.id()) {
            Ok(()) => Order::Mapped,
            Err(e) => {
                log::info!("only one user exists in the container: {e}");
                Order::MapOne
            }
        };
        self.wire.send(&order, &[]).map_err(|e| Failure::set_up(format!("sandbox: {e}")))
    }

    fn wait_exited(
        &mut self,
        forwarder: &mut Forwarder,
        relay: &Relay,
    ) -> Result<(u8, Tampered), Failure> {
        match self.wait_report(forwarder, relay, true)? {
            (Report::Exited { code, tampered }, _) => Ok((code, tampered)),
            (report, _) => Err(Failure::other(format!("sandbox: unexpected {report:?}"))),
        }
    }

    /// Forwards signals until the sandbox reports something; the relay has nothing to report unasked. `started`: there
    /// is a command to forward them to.
    fn wait_report(
        &mut self,
        forwarder: &mut Forwarder,
        relay: &Relay,
        started: bool,
    ) -> Result<(Report, Vec<OwnedFd>), Failure> {
        let lost = |e: io::Error| Failure::other(format!("sandbox: {e}"));
        let either = either(self.wire.as_fd(), relay.as_fd()).map_err(|e| lost(e.into()))?;
        match forwarder.wait(either.0.as_fd(), started).map_err(lost)? {
            Waited::Readable if relay.has_spoken() => Err(relay.spoke_unasked()),
            Waited::Readable => {
                let report = self.wire.receive().map_err(lost)?;
                report.ok_or_else(|| Failure::other("the sandbox process was killed"))
            }
            Waited::Interrupted(number) => Err(Failure {
                code: SIGNAL_BASE + number,
                message: format!("ended by signal {number} before the command was started"),
            }),
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
        ("new user namespace" | "new user namespace for the command", _) => {
            ": user namespaces are needed, unless root runs a command without --cap-add: have root allow them \
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

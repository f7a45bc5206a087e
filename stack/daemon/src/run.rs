//! `skbudget run`: one container with one command. Nothing of either remains at the end.

mod arbiter;
mod capture;
mod command;
mod control_channel;
mod drain;
mod forward;
mod inherited;
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
mod servers;
mod signals;
mod stats_file;
mod terminal;
mod users;

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::Child;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::geteuid;

use crate::attach::GuestNet;
use crate::cli::{Protocol, PublishArg};
use crate::config::RunConfig;
use crate::exit::{FAILURE, Failure, SIGNAL_BASE};
use crate::types::Publish;
use crate::{names, resolv_conf, sys};
use control_channel::{ControlChannel, Instruction, SandboxReport};
use forward::{Forwarder, Waited};
use port::Port;
use relay::Relay;
use ring::Tampered;
pub use roles::inner_main;
use sandbox::SandboxSpec;
use signals::Signals;
use terminal::Terminal;

/// Time for the relay to stop after a signal that ends the run.
const INTERRUPT_WAIT: Duration = Duration::from_secs(5);

/// Two random numbers, for the stack's hashes.
pub fn secret() -> Result<[u64; 2], Failure> {
    let random = || sys::random_u64().map_err(|e| Failure::set_up(format!("getrandom: {e}")));
    Ok([random()?, random()?])
}

/// Runs the command and returns its exit code. `options`: the command line up to the command; `secret`: the stack's.
/// `config` is made of both, and the relay makes its own of them.
pub fn run(config: RunConfig, secret: [u64; 2], options: &[OsString]) -> Result<u8, Failure> {
    let program = lookup::find(
        &config.command[0],
        &std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into()),
    )?;
    let signals = Signals::block().map_err(|e| Failure::set_up(format!("signals: {e}")))?;
    // Dropped last: the terminal returns to the caller's process group when the container is gone.
    let mut forwarder = Forwarder::new(signals, Terminal::open());
    // All that can fail for a reason of the caller comes before the first child process: the message is then exact.
    let held = names::take(config.name.as_deref())?;
    let mut output = output::Output::open(&config)?;
    let publish = bind_all(&config)?;
    check_tun()?;
    let nofile = raise_nofile()?;

    let mut guest = GuestNet::from(&config.settings.container);
    guest.ipv6.iter_mut().for_each(|net| net.required = config.settings.needs_ipv6);
    let spec = SandboxSpec {
        guest,
        program,
        nofile,
        root: geteuid().is_root(),
        added: config.added_caps,
        privileged: config.privileged,
        listen: command::listens(),
        ignored: sys::ignored_at_start(),
        resolv_conf: resolv_conf::for_container(
            &resolv_conf::read(Path::new(resolv_conf::PATH)).unwrap_or_default(),
            &config.settings.container,
        ),
    };
    let mut relay = start_relay(&config, options, publish, &mut output)?;
    let start = || Sandbox::start(&spec, &config.command, &mut forwarder);
    let mut sandbox = match inherited::hand_on(true, start) {
        Ok(sandbox) => sandbox,
        Err(failure) => {
            relay.end();
            return Err(failure);
        }
    };
    let start_container =
        |relay: &Relay, tap: OwnedFd| relay.start_container(&tap, held.name(), secret);
    let result = carry_out(&mut forwarder, &mut sandbox, &mut relay, start_container, &mut output);
    // The relay before the sandbox: it resets the remaining flows while the container's network still exists.
    relay.end();
    sandbox.end();
    result
}

/// Starts the relay and hands over all of the host that it may use: the published ports and the capture file.
fn start_relay(
    config: &RunConfig,
    options: &[OsString],
    publish: Vec<Publish>,
    output: &mut output::Output,
) -> Result<Relay, Failure> {
    let mut relay = Relay::start(config.sandbox, options)?;
    if config.settings.container.name_servers.is_none() {
        relay.hand_over_servers()?;
    }
    publish.iter().try_for_each(|publish| relay.publish(publish))?;
    if let Some((path, file)) = output.pcap.take() {
        relay.capture(path.into_os_string(), &file)?;
    }
    Ok(relay)
}

/// Runs the command in a container that is set up. The exit code is the command's, or that of a failure after it.
fn carry_out(
    forwarder: &mut Forwarder,
    sandbox: &mut Sandbox,
    relay: &mut Relay,
    start_container: impl FnOnce(&Relay, OwnedFd) -> Result<(), Failure>,
    output: &mut output::Output,
) -> Result<u8, Failure> {
    // The relay serves the device before the command starts, so that no frame of the command is lost.
    start_container(relay, sandbox.wait_ready(forwarder, relay)?)?;
    relay.started()?;
    sandbox
        .channel
        .send(&Instruction::StartCommand, &[])
        .map_err(|e| Failure::set_up(format!("sandbox: {e}")))?;
    let (code, tampered) = sandbox.wait_exited(forwarder, relay)?;
    // The command has ended, but its kernel may still hold data that it wrote.
    let lost = drain(forwarder, relay)?;
    if !lost.is_nothing() {
        tracing::warn!("{lost}");
    }
    if output.wants_stats() {
        match relay.stats(tampered) {
            Ok(stats) => output.write_stats(stats),
            Err(e) => tracing::warn!("--stats-file: {e}: the stats are not written"),
        }
    }
    // A run that lost data of the command fails, even if the command succeeded.
    Ok(if code == 0 && !lost.is_nothing() { FAILURE } else { code })
}

/// Waits until the relay has delivered what the command sent. A signal that ends the run ends the wait as well.
fn drain(forwarder: &mut Forwarder, relay: &mut Relay) -> Result<drain::Lost, Failure> {
    let failed = |e: io::Error| Failure::other(format!("wait for the relay: {e}"));
    relay.start_drain()?;
    // From here on signals are for this process.
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
        // Only the first signal interrupts; after it the timeout bounds the wait.
        if signals.interrupted().map_err(failed)? && timeout == PollTimeout::NONE {
            relay.interrupt()?;
            timeout = PollTimeout::try_from(INTERRUPT_WAIT).unwrap_or(PollTimeout::MAX);
        }
    }
}

/// A descriptor that is readable when one of the two is.
fn either(one: BorrowedFd<'_>, other: BorrowedFd<'_>) -> nix::Result<Epoll> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(one, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
    epoll.add(other, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
    Ok(epoll)
}

/// The sandbox process, as its parent uses it.
#[derive(Debug)]
struct Sandbox {
    process: Child,
    channel: ControlChannel,
}

impl Sandbox {
    /// Starts the sandbox. Must run on the main thread: the kernel kills the child when the thread that started it
    /// ends.
    fn start(
        spec: &SandboxSpec,
        command: &[OsString],
        forwarder: &mut Forwarder,
    ) -> Result<Self, Failure> {
        let mut start = || -> io::Result<Self> {
            let (channel, theirs) = ControlChannel::pair()?;
            let (apart, sandboxs) = Port::pair()?;
            let (inside, inits) = Port::pair()?;
            let fds = [theirs.as_fd(), sandboxs.as_fd(), inits.as_fd()].map(|fd| fd.as_raw_fd());
            let (mut process, fds) = roles::process(roles::SANDBOX, &fds);
            process.arg(serde_json::to_string(spec)?).args(command);
            let mask = signals::blocked();
            sys::prepare_child(&mut process, fds, mask, Some(spec.nofile));
            let process = process.spawn()?;
            forwarder.connect(process.id(), inside, apart);
            Ok(Self { process, channel })
        };
        start().map_err(|e| Failure::set_up(format!("start the sandbox process: {e}")))
    }

    /// Waits until the sandbox has set up the container. Returns its device.
    fn wait_ready(&mut self, forwarder: &mut Forwarder, relay: &Relay) -> Result<OwnedFd, Failure> {
        loop {
            let (report, fds) = self.wait_report(forwarder, relay, false)?;
            match (report, fds.into_iter().next()) {
                (SandboxReport::MapUsers, _) => self.map_users()?,
                (SandboxReport::Ready, Some(tap)) => return Ok(tap),
                (SandboxReport::Failed { step, errno, message }, _) => {
                    let advice = advice(&step, errno);
                    return Err(Failure::set_up(format!("{step}: {message}{advice}")));
                }
                (report, _) => {
                    return Err(Failure::set_up(format!("sandbox: unexpected {report:?}")));
                }
            }
        }
    }

    /// Maps the ids of the sandbox's user namespace. Done here because this process has the privileges for it.
    fn map_users(&self) -> Result<(), Failure> {
        let order = match users::map_all(self.process.id()) {
            Ok(()) => Instruction::UsersMapped,
            Err(e) => {
                tracing::info!("only one user id is mapped in the container: {e}");
                Instruction::MapOneUser
            }
        };
        self.channel.send(&order, &[]).map_err(|e| Failure::set_up(format!("sandbox: {e}")))
    }

    /// Waits until the command has ended. Returns its exit code and what it changed on the device.
    fn wait_exited(
        &mut self,
        forwarder: &mut Forwarder,
        relay: &Relay,
    ) -> Result<(u8, Tampered), Failure> {
        match self.wait_report(forwarder, relay, true)? {
            (SandboxReport::Exited { code, tampered }, _) => Ok((code, tampered)),
            (report, _) => Err(Failure::other(format!("sandbox: unexpected {report:?}"))),
        }
    }

    /// Forwards signals until the sandbox reports. The relay sends nothing without a request: if it does, it has
    /// failed. `started`: there is a command that gets the signals.
    fn wait_report(
        &mut self,
        forwarder: &mut Forwarder,
        relay: &Relay,
        started: bool,
    ) -> Result<(SandboxReport, Vec<OwnedFd>), Failure> {
        let lost = |e: io::Error| Failure::other(format!("sandbox: {e}"));
        let either = either(self.channel.as_fd(), relay.as_fd()).map_err(|e| lost(e.into()))?;
        match forwarder.wait(either.0.as_fd(), started).map_err(lost)? {
            Waited::Readable if relay.has_spoken() => Err(relay.spoke_unasked()),
            Waited::Readable => {
                let report = self.channel.receive().map_err(lost)?;
                report.ok_or_else(|| Failure::other("the sandbox process was killed"))
            }
            Waited::Interrupted(number) => Err(Failure {
                code: SIGNAL_BASE + number,
                message: format!("ended by signal {number} before the command was started"),
            }),
        }
    }

    /// Ends the sandbox, and the container's network with it.
    fn end(self) {
        let Self { mut process, channel } = self;
        // A sandbox that is set up takes this as the end of the run.
        drop(channel);
        // After a failure of this process the command may still run, and the sandbox would wait for it.
        let _ = process.kill();
        let _ = process.wait();
    }
}

/// Binds the published ports.
fn bind_all(config: &RunConfig) -> Result<Vec<Publish>, Failure> {
    let bind = |port: &PublishArg| {
        let bind = match port.protocol {
            Protocol::Tcp => Publish::bind,
            Protocol::Udp => Publish::bind_udp,
        };
        bind(port.host, port.guest_port)
            .map_err(|e| Failure::set_up(format!("--publish {}: {e}", port.host)))
    };
    config.settings.publish.iter().map(bind).collect()
}

/// Checks access to the TUN device before anything is set up, while the cause of a failure is certain.
pub(crate) fn check_tun() -> Result<(), Failure> {
    let opened = OpenOptions::new().read(true).write(true).open("/dev/net/tun");
    let Err(e) = opened else { return Ok(()) };
    let what_to_do = match e.raw_os_error() {
        Some(libc::EACCES | libc::EPERM) if !geteuid().is_root() => {
            "not root, and this user cannot read and write the device node: run as root, or let root grant access \
             (chmod 0666 /dev/net/tun, or a udev rule)"
        }
        Some(libc::ENOENT | libc::ENODEV) => {
            "the kernel has no tun device here: load the module (modprobe tun), or make the node available in this \
             container (--device /dev/net/tun)"
        }
        _ => "access to the node is needed (in a container: --device /dev/net/tun)",
    };
    Err(Failure::set_up(format!("/dev/net/tun: {e}: {what_to_do}")))
}

/// What the user can do about a failed step; may be empty.
fn advice(step: &str, errno: Option<i32>) -> &'static str {
    match (step, errno) {
        ("new user namespace" | "new user namespace for the command", _) => {
            ": user namespaces are needed, except by root without --cap-add: root can enable them \
             (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, \
             kernel.apparmor_restrict_unprivileged_userns)"
        }
        (_, Some(libc::EPERM)) => ": root or a user namespace with CAP_NET_ADMIN is needed",
        _ => "",
    }
}

/// Raises the limit of open files to the hard limit, because every flow needs a descriptor. Returns the limits of
/// before, which the command gets.
pub(crate) fn raise_nofile() -> Result<(u64, u64), Failure> {
    let limits = || {
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
        Ok((soft, hard))
    };
    limits().map_err(|e: Errno| Failure::set_up(format!("RLIMIT_NOFILE: {e}")))
}

//! The parent of the daemon: the process that the user started. It keeps the privileges, the control socket and the
//! devices, and exchanges no byte with a container or a client.
//!
//! ```text
//! skbudget serve ──── orders, devices, sockets ───▶ relay: API, workers, connections
//!   privileges  ◀── requests of a closed list ────  no privileges, no files
//! ```
//! When the relay ends without an order, a new one gets the devices and serves the containers again. Their connections
//! are lost, and nothing else is.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::SigSet;
use nix::sys::signal::Signal::{SIGHUP, SIGINT, SIGTERM};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::config::ServeConfig;
use super::orders::{Order, Report};
use super::privileged::{Keeper, Request};
use super::socket::ControlSocket;
use super::state::StateDir;
use crate::channel::ControlChannel;
use crate::cli::OnOff;
use crate::exit::Failure;
use crate::resolv_conf::{PATH, Watch};
use crate::systemd::Notifier;
use crate::{roles, sys};

/// Interval between two checks of the host's name servers.
const CHECK_EVERY: Duration = Duration::from_secs(1);

/// Time for the relay to end beyond that for the delivery: requests under way, and the devices.
const END_WAIT: Duration = Duration::from_secs(90);

/// Relays that may end without an order within `DEATHS_WITHIN`. After one more the daemon ends: something is wrong that
/// a new relay does not mend.
const DEATHS_MAX: usize = 10;
const DEATHS_WITHIN: Duration = Duration::from_secs(60);

/// What every relay of the daemon gets.
#[derive(Debug)]
pub(super) struct Setup<'a> {
    /// The options of the command line, which the relay parses itself.
    pub(super) options: &'a [OsString],
    pub(super) sandbox: OnOff,
    pub(super) workers: usize,
    /// The config: its path, and its text, which was checked.
    pub(super) config: Option<(PathBuf, String)>,
    /// How long the end of the daemon waits for data to be delivered.
    pub(super) drain: Duration,
    /// The supervisor of the daemon.
    pub(super) notifier: Notifier,
    /// For people: what the daemon does.
    pub(super) status: String,
}

/// How a relay ended.
#[derive(Debug)]
enum End {
    /// After an order, or because it cannot do its work.
    Done(Result<(), Failure>),
    /// Without an order.
    Died(ExitStatus),
}

/// Blocks the signals for the daemon, and returns a descriptor to read them from.
pub(super) fn signals() -> nix::Result<SignalFd> {
    let set = SigSet::from_iter([SIGINT, SIGTERM, SIGHUP]);
    set.thread_block()?;
    SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
}

/// Runs relays until a signal ends the daemon.
pub(super) fn run(
    mut setup: Setup<'_>,
    socket: &ControlSocket,
    signals: &SignalFd,
    state: StateDir,
) -> Result<u8, Failure> {
    let mut keeper = Keeper::new(state);
    let (mut deaths, mut restarts): (Vec<Instant>, u64) = (Vec::new(), 0);
    loop {
        let mut relay = Relay::start(&setup)
            .map_err(|e| Failure::other(format!("start the relay process: {e}")))?;
        let begun = relay.begin(&setup, restarts, &keeper, socket);
        // A relay that ended meanwhile reported the reason, which is read below.
        if let Err(e) = begun {
            tracing::info!("relay: {e}");
        }
        let status = match relay.watch(&mut setup, signals, &mut keeper, restarts == 0) {
            Ok(End::Done(result)) => return result.map(|()| 0),
            Ok(End::Died(status)) => status,
            Err(e) => return Err(Failure::other(format!("serve: {e}"))),
        };
        let how = describe(status);
        keeper.start_again();
        deaths.retain(|at| at.elapsed() < DEATHS_WITHIN);
        if deaths.len() >= DEATHS_MAX {
            return Err(Failure::other(format!("the relay process ended {how}, again and again")));
        }
        deaths.push(Instant::now());
        restarts += 1;
        let containers = keeper.len();
        tracing::error!(
            "the relay process ended {how}: a new one serves the {containers} containers"
        );
    }
}

/// How a process ended that was not ordered to.
fn describe(status: ExitStatus) -> String {
    match status.signal() {
        // The handler that names the call could not run.
        Some(libc::SIGSYS) => "by a forbidden system call (SIGSYS)".to_owned(),
        Some(signal) => format!("by signal {signal}"),
        None => format!("with code {}", status.code().unwrap_or_default()),
    }
}

/// The relay process, as the parent uses it.
#[derive(Debug)]
struct Relay {
    process: Child,
    orders: ControlChannel,
    requests: ControlChannel,
    servers: Watch,
    /// What the relay reported as the reason of its end.
    failure: Option<Failure>,
    /// When it is killed, after the order to end.
    until: Option<Instant>,
    /// When it was last ordered to show that it works, and whether it has not done so since.
    checked: Instant,
    awaited: bool,
}

impl Relay {
    /// Starts the process.
    fn start(setup: &Setup<'_>) -> io::Result<Self> {
        let (orders, theirs) = ControlChannel::pair()?;
        let (requests, asks) = ControlChannel::pair()?;
        let fds = [theirs.as_fd().as_raw_fd(), asks.as_fd().as_raw_fd()];
        let (mut process, fds) = roles::process(super::RELAY, &fds);
        process.arg(if setup.sandbox == OnOff::On { "on" } else { "off" });
        // `/` keeps no folder of the caller's in use.
        process.args(setup.options).current_dir("/");
        process.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        sys::prepare_apart(&mut process);
        sys::prepare_child(&mut process, fds, SigSet::all(), None);
        let process = process.spawn()?;
        let servers = Watch::new(Path::new(PATH));
        Ok(Self {
            process,
            orders,
            requests,
            servers,
            failure: None,
            until: None,
            checked: Instant::now(),
            awaited: false,
        })
    }

    /// Hands over the config and the control socket. The relay requests the containers.
    fn begin(
        &mut self,
        setup: &Setup<'_>,
        restarts: u64,
        keeper: &Keeper,
        socket: &ControlSocket,
    ) -> io::Result<()> {
        let (workers, levels) = (setup.workers, keeper.levels());
        self.send_with_config(&Order::Start { workers, restarts, levels }, setup)?;
        self.hand_over_servers()?;
        self.orders.send(&Order::Serve, &[socket.listener()?.as_fd()])
    }

    /// Sends an order with the text of the config, if there is one.
    fn send_with_config(&self, order: &Order, setup: &Setup<'_>) -> io::Result<()> {
        let config = setup.config.as_ref().map(|(_, text)| in_memory(text)).transpose()?;
        let fds: Vec<BorrowedFd<'_>> = config.iter().map(AsFd::as_fd).collect();
        self.orders.send(order, &fds)
    }

    /// Reads the config again, and orders the relay to apply what has changed. A file with an error changes nothing.
    fn reload(&self, setup: &mut Setup<'_>) {
        let Some((path, text)) = &mut setup.config else {
            tracing::warn!(
                "SIGHUP: the daemon was started without --config, so there is no file to read"
            );
            return;
        };
        // A pipe would be empty by now, and an empty file is a valid config.
        if !fs::metadata(&*path).is_ok_and(|meta| meta.is_file()) {
            tracing::error!("{}: no regular file: nothing is changed", path.display());
            return;
        }
        match ServeConfig::load(path) {
            Ok((config, new)) => (*text, setup.drain) = (new, config.drain),
            Err(e) => {
                tracing::error!("{e}: nothing is changed");
                return;
            }
        }
        // Fails when the relay has ended: the next one starts with the new text.
        if let Err(e) = self.send_with_config(&Order::Reload, setup) {
            tracing::info!("relay: {e}");
        }
    }

    /// Hands over the host's name servers if they have changed.
    fn hand_over_servers(&mut self) -> io::Result<()> {
        match self.servers.changed() {
            Some(servers) => self.orders.send(&Order::NameServers { servers }, &[]),
            None => Ok(()),
        }
    }

    /// Carries out the relay's requests until it ends. `first`: no relay has served before, so a failure of this one is
    /// that of the daemon.
    fn watch(
        &mut self,
        setup: &mut Setup<'_>,
        signals: &SignalFd,
        keeper: &mut Keeper,
        first: bool,
    ) -> io::Result<End> {
        let mut serving = false;
        loop {
            let every = setup.notifier.interval().unwrap_or(CHECK_EVERY).min(CHECK_EVERY);
            let [signalled, reported, requested] = self.wait(signals, every)?;
            while signalled && let Some(signal) = signals.read_signal()? {
                match (signal.ssi_signo == SIGHUP as u32, self.until) {
                    (false, _) => {
                        setup.notifier.stopping();
                        self.end(setup.drain);
                    }
                    (true, None) => {
                        setup.notifier.reloading();
                        self.reload(setup);
                        setup.notifier.ready(&setup.status);
                    }
                    // The daemon ends.
                    (true, Some(_)) => {}
                }
            }
            if requested {
                self.carry_out(keeper)?;
            }
            // The relay has this channel until its end.
            if reported && !self.read_report(setup, &mut serving)? {
                break;
            }
            if self.until.is_some_and(|until| Instant::now() >= until) {
                tracing::error!("the relay process does not end: it is killed");
                self.process.kill()?;
            }
            // No other order may arrive during the delivery: it would interrupt it.
            if self.until.is_none() {
                let _ = self.hand_over_servers();
                if serving {
                    self.check(&setup.notifier);
                }
            }
        }
        // The error that was the end may have been before a report.
        while self.read_report(setup, &mut serving)? {}
        let status = self.process.wait()?;
        let ordered = self.until.is_some();
        Ok(match self.failure.take() {
            Some(failure) if first && !serving || ordered => End::Done(Err(failure)),
            Some(failure) => {
                tracing::error!("relay: {}", failure.message);
                End::Died(status)
            }
            None if ordered && status.success() => End::Done(Ok(())),
            None if ordered => {
                End::Done(Err(Failure::other(format!("the relay ended {}", describe(status)))))
            }
            None => End::Died(status),
        })
    }

    /// Waits for a signal, a report or a request; which of them there are. Returns after `every` in any case.
    fn wait(&self, signals: &SignalFd, every: Duration) -> io::Result<[bool; 3]> {
        let mut fds = [signals.as_fd(), self.orders.as_fd(), self.requests.as_fd()]
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        let timeout = PollTimeout::try_from(every).unwrap_or(PollTimeout::MAX);
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        Ok(fds.map(|fd| fd.any().unwrap_or(false)))
    }

    /// Orders the end: the first time with the delivery of what was sent, then without.
    fn end(&mut self, drain: Duration) {
        let order = if self.until.is_none() { Order::Stop } else { Order::Interrupt };
        self.until.get_or_insert_with(|| Instant::now() + drain + END_WAIT);
        // A relay that has ended needs no order.
        let _ = self.orders.send(&order, &[]);
    }

    /// Carries out one request, if there is one. What is none ends the relay: it is not the program that it was.
    fn carry_out(&mut self, keeper: &mut Keeper) -> io::Result<()> {
        let (request, fds) = match self.requests.receive::<Request>() {
            Ok(Some(request)) => request,
            Ok(None) => return Ok(()),
            Err(e) => {
                tracing::error!("the relay process sent no request: {e}");
                return self.process.kill();
            }
        };
        let (reply, fd) = keeper.carry_out(request, fds.into_iter().next());
        let fds: Vec<BorrowedFd<'_>> = fd.iter().map(AsFd::as_fd).collect();
        // Fails when the relay has ended.
        let _ = self.requests.send(&reply, &fds);
        Ok(())
    }

    /// Orders the relay to show that it works, as often as the supervisor expects it of the daemon.
    fn check(&mut self, notifier: &Notifier) {
        let due = notifier.interval().is_some_and(|every| self.checked.elapsed() >= every);
        // A relay that does not answer gets no other order of this kind: the supervisor ends the daemon.
        if due && !self.awaited {
            self.checked = Instant::now();
            self.awaited = self.orders.send(&Order::Check, &[]).is_ok();
        }
    }

    /// Reads one report, if there is one. False: the relay has ended.
    fn read_report(&mut self, setup: &Setup<'_>, serving: &mut bool) -> io::Result<bool> {
        match self.orders.receive::<Report>()? {
            Some((Report::Serving, _)) => {
                *serving = true;
                setup.notifier.ready(&setup.status);
            }
            Some((Report::Alive, _)) => {
                self.awaited = false;
                setup.notifier.alive();
            }
            Some((Report::Failed { code, message }, _)) => {
                self.failure = Some(Failure { code, message });
            }
            None => return Ok(false),
        }
        Ok(true)
    }
}

impl Drop for Relay {
    /// No relay outlives its parent's use of it.
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A file in memory with that text, to be read from its start.
fn in_memory(text: &str) -> io::Result<File> {
    let mut file = File::from(memfd_create("skbudget-config", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(text.as_bytes())?;
    file.rewind()?;
    Ok(file)
}

//! The relay: the process that talks to the container and to the network, and so the one that may be taken over.
//!
//! ```text
//! skbudget run ── relay      frames, connections: no privileges, no files but those it was given
//!             └── sandbox ── process 1 ── the command
//! ```
//! `skbudget` itself opens files, binds ports and makes namespaces, and hands over descriptors. Whatever the relay
//! answers is one of a closed list of values; no path or address goes back.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::process::{Child, ExitCode, Stdio};
use std::time::Duration;

use clap::Parser;
use nix::sys::prctl::{set_dumpable, set_pdeathsig};
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Uid, geteuid, setgroups, setresgid, setresuid};
use serde::{Deserialize, Serialize};
use skbudget_stack::Tap;

use super::output::Recording;
use super::ring::Tampered;
use super::wire::Wire;
use super::{drain, roles, signals};
use crate::attach::{AttachError, Step};
use crate::cli::{Cli, Command};
use crate::config::RunConfig;
use crate::daemon::{BudgetRef, ContainerSpec, Daemon, DaemonConfig, DaemonError, Publish};
use crate::exit::{FAILURE, Failure};
use crate::{caps, sys};

/// Users that systemd hands out for a time (DynamicUser=): nobody else is one of them.
const TRANSIENT_UID_FIRST: u32 = 61_184;
const TRANSIENT_UIDS: u64 = 4336;

/// How long it may take to end.
const END_WAIT: Duration = Duration::from_secs(5);

/// What the relay is asked for.
#[derive(Debug, Serialize, Deserialize)]
enum Task {
    /// With a listener: it leads to this port.
    Publish { guest_port: u16 },
    /// With a file: frames are recorded there. The path is for messages.
    Capture { path: OsString },
    /// With the device: serve the container.
    Start { name: String, secret: [u64; 2] },
    /// The command ended: deliver what it sent.
    Drain,
    /// Stop delivering.
    Interrupt,
    /// Report the stats, with what the sandbox found.
    Stats { tampered: Tampered },
}

/// What it answers.
#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    Started,
    Drained(drain::Lost),
    Stats(String),
    Failed { code: u8, message: String },
}

/// The relay as `skbudget` sees it.
#[derive(Debug)]
pub(super) struct Relay {
    process: Child,
    wire: Wire,
}

impl Relay {
    /// `options`: those of the command line, which the relay reads for itself.
    pub(super) fn start(options: &[OsString]) -> Result<Self, Failure> {
        let start = || -> io::Result<Self> {
            let (wire, theirs) = Wire::pair()?;
            let fd = theirs.as_fd().as_raw_fd();
            let (mut process, fds) = roles::process(roles::RELAY, &[fd]);
            process.args(options).args(["--", "-"]).current_dir("/");
            process.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            sys::prepare_apart(&mut process);
            sys::prepare_child(&mut process, fds, signals::blocked(), None);
            Ok(Self { process: process.spawn()?, wire })
        };
        start().map_err(|e| Failure::set_up(format!("start the relay process: {e}")))
    }

    pub(super) fn publish(&self, publish: &Publish) -> Result<(), Failure> {
        let task = Task::Publish { guest_port: publish.guest_port };
        self.hand_over(&task, &[publish.listener.as_fd()])
    }

    pub(super) fn capture(&self, path: OsString, file: &File) -> Result<(), Failure> {
        self.hand_over(&Task::Capture { path }, &[file.as_fd()])
    }

    pub(super) fn begin(&self, tap: &OwnedFd, name: &str, secret: [u64; 2]) -> Result<(), Failure> {
        self.hand_over(&Task::Start { name: name.to_owned(), secret }, &[tap.as_fd()])
    }

    pub(super) fn begin_drain(&self) -> Result<(), Failure> {
        self.hand_over(&Task::Drain, &[])
    }

    pub(super) fn interrupt(&self) -> Result<(), Failure> {
        self.hand_over(&Task::Interrupt, &[])
    }

    fn hand_over(&self, task: &Task, fds: &[BorrowedFd<'_>]) -> Result<(), Failure> {
        // One that has ended left its reason.
        self.wire.send(task, fds).map_err(|_| self.spoke_unasked())
    }

    /// The answer to the last request; waits for it.
    fn answer(&self) -> Result<Answer, Failure> {
        match self.wire.receive() {
            Ok(Some((Answer::Failed { code, message }, _))) => {
                Err(Failure { code: code.max(FAILURE), message })
            }
            Ok(Some((answer, _))) => Ok(answer),
            Ok(None) => Err(gone()),
            Err(e) => Err(Failure::other(format!("the relay process: {e}"))),
        }
    }

    pub(super) fn started(&self) -> Result<(), Failure> {
        match self.answer()? {
            Answer::Started => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    pub(super) fn drained(&self) -> Result<drain::Lost, Failure> {
        match self.answer()? {
            Answer::Drained(lost) => Ok(lost),
            other => Err(unexpected(&other)),
        }
    }

    /// As JSON.
    pub(super) fn stats(&self, tampered: Tampered) -> Result<String, Failure> {
        self.hand_over(&Task::Stats { tampered }, &[])?;
        match self.answer()? {
            Answer::Stats(text) => Ok(text),
            other => Err(unexpected(&other)),
        }
    }

    pub(super) fn has_spoken(&self) -> bool {
        self.wire.has_message()
    }

    /// Why the run fails when there is something to be read though nothing was asked for.
    pub(super) fn spoke_unasked(&self) -> Failure {
        match self.answer() {
            Ok(other) => unexpected(&other),
            Err(failure) => failure,
        }
    }

    /// It ends what it has begun and then itself; one that does not is killed.
    pub(super) fn end(self) {
        let Self { mut process, wire } = self;
        if !wire.finish(END_WAIT) {
            let _ = process.kill();
        }
        let _ = process.wait();
    }
}

impl AsFd for Relay {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wire.as_fd()
    }
}

fn gone() -> Failure {
    Failure::other("the relay process ended: the container has no network any more")
}

fn unexpected(answer: &Answer) -> Failure {
    Failure::other(format!("the relay process: unexpected answer {answer:?}"))
}

/// The process itself. `options`: the command line.
pub(super) fn main(wire: &Wire, options: Vec<OsString>) -> ExitCode {
    let result = confine(wire).map_err(|e| Failure::set_up(format!("relay: {e}")));
    match result.and_then(|()| serve(wire, options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { code, message }) => {
            // Without a reader nobody wants to know.
            let _ = wire.send(&Answer::Failed { code, message }, &[]);
            ExitCode::from(FAILURE)
        }
    }
}

/// Gives up everything but what ordinary sockets need, before anything from outside is looked at.
fn confine(wire: &Wire) -> Result<(), AttachError> {
    caps::forbid_all().step("limit the capabilities")?;
    if geteuid().is_root() {
        become_transient().step("become an ordinary user")?;
    }
    caps::drop_all().step("drop the capabilities")?;
    set_dumpable(false).step("prctl")?;
    // Becoming another user cleared it.
    set_pdeathsig(Signal::SIGKILL).step("prctl")?;
    if wire.is_over() {
        return Err(io::Error::from(io::ErrorKind::BrokenPipe)).step("start");
    }
    Ok(())
}

/// Root without capabilities would still own root's files. Where no other user exists it stays as it is.
fn become_transient() -> io::Result<()> {
    let id = TRANSIENT_UID_FIRST + (sys::random_u64()? % TRANSIENT_UIDS) as u32;
    let (uid, gid) = (Uid::from_raw(id), Gid::from_raw(id));
    let changed = setgroups(&[])
        .and_then(|()| setresgid(gid, gid, gid))
        .and_then(|()| setresuid(uid, uid, uid));
    if let Err(errno) = changed {
        log::info!("the relay stays user 0: {errno}");
    }
    Ok(())
}

fn serve(wire: &Wire, options: Vec<OsString>) -> Result<(), Failure> {
    let line = [OsString::from("skbudget")].into_iter().chain(options);
    let Command::Run(args) =
        Cli::try_parse_from(line).map_err(|e| Failure::usage(e.to_string()))?.command;
    let (mut publish, mut capture) = (Vec::new(), None);
    let (name, secret, device) = loop {
        let (task, fds) = next(wire)?;
        match (task, fds.into_iter().next()) {
            (Task::Publish { guest_port }, Some(fd)) => {
                publish.push(Publish { listener: TcpListener::from(fd), guest_port });
            }
            (Task::Capture { path }, Some(fd)) => capture = Some((path, File::from(fd))),
            (Task::Start { name, secret }, Some(fd)) => break (name, secret, fd),
            (task, _) => return Err(Failure::other(format!("unexpected {task:?}"))),
        }
    };
    let config = RunConfig::new(*args, secret)?;
    let mut tap = Tap::from_fd(device).map_err(|e| Failure::set_up(format!("the device: {e}")))?;
    let recording = Recording::start(capture, &mut tap)?;
    let daemon = Daemon::new(DaemonConfig::default()).map_err(|e| set_up_failure(&e))?;
    let spec = ContainerSpec {
        name: name.clone(),
        tap,
        config: config.container,
        budget: BudgetRef::Own(config.budget),
        publish,
        outbound_addr: config.outbound_addr,
    };
    daemon.add_container(spec).map_err(|e| set_up_failure(&e))?;
    answer(wire, &Answer::Started)?;
    let result = until_over(wire, &daemon, &name, &recording);
    let stopped = daemon.shutdown().map_err(|e| Failure::other(e.to_string()));
    recording.end();
    result.and(stopped)
}

/// Until `skbudget` is gone, or wants no more.
fn until_over(
    wire: &Wire,
    daemon: &Daemon,
    name: &str,
    recording: &Recording,
) -> Result<(), Failure> {
    let failed = |e: DaemonError| Failure::other(e.to_string());
    loop {
        let Some((task, _)) = receive(wire)? else { return Ok(()) };
        match task {
            Task::Drain => {
                let interrupted = || Ok(wire.has_message());
                let lost = drain::drain(daemon, name, interrupted).map_err(failed)?;
                answer(wire, &Answer::Drained(lost))?;
            }
            Task::Stats { tampered } => {
                // So that they count the frames that the capture lost.
                recording.settle();
                let mut stats = daemon.stats(true).map_err(failed)?;
                for container in &mut stats.containers {
                    let Tampered { times, bytes } = tampered;
                    container.counters.insert("RingTampered".to_owned(), times);
                    container.counters.insert("RingTamperedBytes".to_owned(), bytes);
                }
                let text = serde_json::to_string_pretty(&stats);
                answer(wire, &Answer::Stats(text.map_err(|e| Failure::other(e.to_string()))?))?;
            }
            // It came after the last byte was delivered.
            Task::Interrupt => {}
            other => return Err(Failure::other(format!("unexpected {other:?}"))),
        }
    }
}

fn next(wire: &Wire) -> Result<(Task, Vec<OwnedFd>), Failure> {
    receive(wire)?.ok_or_else(|| Failure::other("ended before it began"))
}

fn receive(wire: &Wire) -> Result<Option<(Task, Vec<OwnedFd>)>, Failure> {
    wire.receive().map_err(|e| Failure::other(format!("relay: {e}")))
}

fn answer(wire: &Wire, answer: &Answer) -> Result<(), Failure> {
    wire.send(answer, &[]).map_err(|e| Failure::other(format!("relay: {e}")))
}

/// Limits the budget refuses are a mistake of the caller, the rest of the machine's.
fn set_up_failure(error: &DaemonError) -> Failure {
    match error {
        DaemonError::Limits(_)
        | DaemonError::NoRoom { .. }
        | DaemonError::NoRoomForPorts { .. } => Failure::usage(error.to_string()),
        _ => Failure::set_up(error.to_string()),
    }
}

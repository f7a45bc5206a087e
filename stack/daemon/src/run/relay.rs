//! The relay: the process that exchanges data with the container and with the network. An attacker that breaks a parser
//! gets this process, so it has no privileges.
//!
//! ```text
//! skbudget run ── relay      frames, connections: no privileges, no files but those it was given
//!             └── sandbox ── process 1 ── the command
//! ```
//! `skbudget` itself opens files, binds ports, makes namespaces, and hands over descriptors. The relay's answers are
//! values of one enum, which contain no path and no address.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::process::{Child, ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use serde::{Deserialize, Serialize};
use skbudget_stack::Tap;

use super::control_channel::ControlChannel;
use super::output::Recording;
use super::ring::Tampered;
use super::servers::ServerWatch;
use super::{drain, roles, signals};
use crate::attach::{AttachError, Step};
use crate::cli::{Cli, Command, OnOff};
use crate::config::RunConfig;
use crate::daemon::{Daemon, DaemonConfig};
use crate::exit::{FAILURE, Failure};
use crate::resolv_conf::{HostServers, search_of_host};
use crate::types::{BudgetRef, ContainerSpec, DaemonError, Publish, PublishSocket};
use crate::{confine, sys};

/// Time for the relay to end by itself.
const END_WAIT: Duration = Duration::from_secs(5);

/// A request to the relay.
#[derive(Debug, Serialize, Deserialize)]
enum Task {
    /// With a listener, or a UDP socket: forward it to this port of the guest.
    Publish { guest_port: u16, udp: bool },
    /// Use these name servers of the host from now on.
    NameServers { servers: Vec<SocketAddr> },
    /// With a file: capture frames to it. The path is for messages.
    Capture { path: OsString },
    /// With the device: serve the container.
    Start { name: String, secret: [u64; 2] },
    /// The command has ended: deliver what it sent.
    Drain,
    /// Stop delivering.
    Interrupt,
    /// Report the stats, with the changes that the sandbox found on the device.
    Stats { tampered: Tampered },
}

/// The relay's answer.
#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    /// The container is served.
    Started,
    /// Nothing more will be delivered; this is lost.
    Drained(drain::Lost),
    /// The stats, as JSON.
    Stats(String),
    /// The relay ends for this reason.
    Failed { code: u8, message: String },
}

/// The relay process, as `skbudget` uses it.
#[derive(Debug)]
pub(super) struct Relay {
    process: Child,
    channel: Arc<ControlChannel>,
    servers: Option<ServerWatch>,
}

impl Relay {
    /// Starts the process, in a sandbox or not. `options`: the options of the command line, which the relay parses
    /// itself.
    pub(super) fn start(sandbox: OnOff, options: &[OsString]) -> Result<Self, Failure> {
        let start = || -> io::Result<Self> {
            let (channel, theirs) = ControlChannel::pair()?;
            let fd = theirs.as_fd().as_raw_fd();
            let (mut process, fds) = roles::process(roles::RELAY, &[fd]);
            // The parser needs a command; the relay runs none. `/` keeps no folder of the caller's in use.
            // Apart from the options: it applies before the relay parses anything.
            process.arg(if sandbox == OnOff::On { "on" } else { "off" });
            process.args(options).args(["--", "-"]).current_dir("/");
            process.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            sys::prepare_apart(&mut process);
            sys::prepare_child(&mut process, fds, signals::blocked(), None);
            Ok(Self { process: process.spawn()?, channel: Arc::new(channel), servers: None })
        };
        start().map_err(|e| Failure::set_up(format!("start the relay process: {e}")))
    }

    /// Hands over the host's name servers, and each change of them until the command has ended.
    pub(super) fn hand_over_servers(&mut self) -> Result<(), Failure> {
        let channel = Arc::clone(&self.channel);
        let hand_over = move |servers| channel.send(&Task::NameServers { servers }, &[]);
        let watch = ServerWatch::start(hand_over);
        self.servers =
            Some(watch.map_err(|e| Failure::set_up(format!("hand over the name servers: {e}")))?);
        Ok(())
    }

    /// Hands over a published port.
    pub(super) fn publish(&self, publish: &Publish) -> Result<(), Failure> {
        let guest_port = publish.guest_port;
        match &publish.socket {
            PublishSocket::Tcp(listener) => {
                self.hand_over(&Task::Publish { guest_port, udp: false }, &[listener.as_fd()])
            }
            PublishSocket::Udp(socket) => {
                self.hand_over(&Task::Publish { guest_port, udp: true }, &[socket.as_fd()])
            }
        }
    }

    /// Hands over the capture file.
    pub(super) fn capture(&self, path: OsString, file: &File) -> Result<(), Failure> {
        self.hand_over(&Task::Capture { path }, &[file.as_fd()])
    }

    /// Hands over the device; `started` waits for the answer.
    pub(super) fn start_container(
        &self,
        tap: &OwnedFd,
        name: &str,
        secret: [u64; 2],
    ) -> Result<(), Failure> {
        self.hand_over(&Task::Start { name: name.to_owned(), secret }, &[tap.as_fd()])
    }

    /// Requests the delivery of what the command sent; `drained` waits for the answer.
    pub(super) fn start_drain(&mut self) -> Result<(), Failure> {
        // Any later message would interrupt the delivery.
        self.servers = None;
        self.hand_over(&Task::Drain, &[])
    }

    /// Ends the delivery early.
    pub(super) fn interrupt(&self) -> Result<(), Failure> {
        self.hand_over(&Task::Interrupt, &[])
    }

    fn hand_over(&self, task: &Task, fds: &[BorrowedFd<'_>]) -> Result<(), Failure> {
        // A relay that has ended sent the reason before.
        self.channel.send(task, fds).map_err(|_| self.spoke_unasked())
    }

    /// Waits for the answer to the last request.
    fn answer(&self) -> Result<Answer, Failure> {
        match self.channel.receive() {
            Ok(Some((Answer::Failed { code, message }, _))) => {
                Err(Failure { code: code.max(FAILURE), message })
            }
            Ok(Some((answer, _))) => Ok(answer),
            Ok(None) => Err(gone()),
            Err(e) => Err(Failure::other(format!("the relay process: {e}"))),
        }
    }

    /// Waits until the relay serves the container.
    pub(super) fn started(&self) -> Result<(), Failure> {
        match self.answer()? {
            Answer::Started => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// Waits for the end of the delivery. Returns what is lost.
    pub(super) fn drained(&self) -> Result<drain::Lost, Failure> {
        match self.answer()? {
            Answer::Drained(lost) => Ok(lost),
            other => Err(unexpected(&other)),
        }
    }

    /// Requests the stats. Returns them as JSON.
    pub(super) fn stats(&self, tampered: Tampered) -> Result<String, Failure> {
        self.hand_over(&Task::Stats { tampered }, &[])?;
        match self.answer()? {
            Answer::Stats(text) => Ok(text),
            other => Err(unexpected(&other)),
        }
    }

    /// Whether a message of the relay is pending, or the relay has ended.
    pub(super) fn has_spoken(&self) -> bool {
        self.channel.has_message()
    }

    /// The reason for a failed run, when the relay sent something without a request.
    pub(super) fn spoke_unasked(&self) -> Failure {
        match self.answer() {
            Ok(other) => unexpected(&other),
            Err(failure) => failure,
        }
    }

    /// Waits until the relay has finished its work and ended. Kills it after `END_WAIT`.
    pub(super) fn end(self) {
        let Self { mut process, channel, servers } = self;
        drop(servers);
        if !channel.finish(END_WAIT) {
            let _ = process.kill();
        }
        let _ = process.wait();
    }
}

impl AsFd for Relay {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}

/// The relay has ended without a reason. A system call that the sandbox forbids ends it with a message.
fn gone() -> Failure {
    Failure::other("the relay process ended: the container has lost its network")
}

fn unexpected(answer: &Answer) -> Failure {
    Failure::other(format!("the relay process: unexpected answer {answer:?}"))
}

/// The relay process itself. `sandbox`: whether it is in one; `options`: the options of the command line.
pub(super) fn main(channel: &ControlChannel, sandbox: OnOff, options: Vec<OsString>) -> ExitCode {
    let confined = confine(channel, sandbox).map_err(|e| Failure::set_up(format!("relay: {e}")));
    match confined.and_then(|()| serve(channel, options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { code, message }) => {
            // Fails only when `skbudget` is gone, and with it the reader.
            let _ = channel.send(&Answer::Failed { code, message }, &[]);
            ExitCode::from(FAILURE)
        }
    }
}

/// Gives up all that the relay does not need. This precedes the first byte read from outside.
fn confine(channel: &ControlChannel, sandbox: OnOff) -> Result<(), AttachError> {
    // While it can be read.
    search_of_host();
    confine::drop_privileges()?;
    // The parent may have ended before that bound this process to it.
    if channel.is_over() {
        return Err(io::Error::from(io::ErrorKind::BrokenPipe)).step("start");
    }
    confine::sandbox(sandbox)
}

/// Receives the container's resources, serves it, and handles requests until `skbudget` ends.
fn serve(channel: &ControlChannel, options: Vec<OsString>) -> Result<(), Failure> {
    let line = [OsString::from("skbudget")].into_iter().chain(options);
    let cli = Cli::try_parse_from(line).map_err(|e| Failure::usage(e.to_string()))?;
    let Command::Run(args) = cli.command else {
        return Err(Failure::other("the relay serves `run` only"));
    };
    // Ports and the capture file arrive in any order, the device last.
    let (mut publish, mut capture, servers) = (Vec::new(), None, HostServers::default());
    let (name, secret, device) = loop {
        let (task, fds) = next(channel)?;
        match (task, fds.into_iter().next()) {
            (Task::Publish { guest_port, udp }, Some(fd)) => {
                let socket = match udp {
                    true => PublishSocket::Udp(UdpSocket::from(fd)),
                    false => PublishSocket::Tcp(TcpListener::from(fd)),
                };
                publish.push(Publish { socket, guest_port });
            }
            (Task::NameServers { servers: new }, None) => servers.set(new),
            (Task::Capture { path }, Some(fd)) => capture = Some((path, File::from(fd))),
            (Task::Start { name, secret }, Some(fd)) => break (name, secret, fd),
            (task, _) => return Err(Failure::other(format!("unexpected {task:?}"))),
        }
    };
    // After the confinement: the parsers run without privileges.
    let config = RunConfig::new(*args, secret)?;
    let mut tap = Tap::from_fd(device).map_err(|e| Failure::set_up(format!("the device: {e}")))?;
    let recording = Recording::start(capture, &mut tap)?;
    let host_servers = Some(servers.clone());
    let daemon = Daemon::new(DaemonConfig { host_servers, ..DaemonConfig::default() })
        .map_err(|e| set_up_failure(&e))?;
    let spec = ContainerSpec {
        name: name.clone(),
        tap,
        config: config.settings.container,
        budget: BudgetRef::Own(config.settings.budget),
        publish,
        outbound_addr: config.settings.outbound_addr,
    };
    daemon.add_container(spec).map_err(|e| set_up_failure(&e))?;
    answer(channel, &Answer::Started)?;
    let result = until_over(channel, &daemon, &name, &recording, &servers);
    // The last frames are written by the shutdown, so the capture ends after it.
    let stopped = daemon.shutdown().map_err(|e| Failure::other(e.to_string()));
    recording.end();
    result.and(stopped)
}

/// Handles requests until `skbudget` closes its end.
fn until_over(
    channel: &ControlChannel,
    daemon: &Daemon,
    name: &str,
    recording: &Recording,
    servers: &HostServers,
) -> Result<(), Failure> {
    let failed = |e: DaemonError| Failure::other(e.to_string());
    loop {
        let Some((task, _)) = receive(channel)? else { return Ok(()) };
        match task {
            Task::NameServers { servers: new } => servers.set(new),
            Task::Drain => {
                // Any message interrupts the delivery: it is read below afterwards.
                let interrupted = || Ok(channel.has_message());
                let lost = drain::drain(daemon, name, interrupted).map_err(failed)?;
                answer(channel, &Answer::Drained(lost))?;
            }
            Task::Stats { tampered } => {
                // The stats then count the frames that the capture lost.
                recording.settle();
                let mut stats = daemon.stats(true).map_err(failed)?;
                if stats.containers.is_empty() {
                    // The command deleted the device.
                    let last = daemon.ended(name).map_err(failed)?;
                    stats.containers.extend(last.map(|ended| ended.report));
                }
                for container in &mut stats.containers {
                    let Tampered { times, bytes } = tampered;
                    container.counters.insert("RingTampered".into(), times);
                    container.counters.insert("RingTamperedBytes".into(), bytes);
                }
                let text = serde_json::to_string_pretty(&stats);
                answer(channel, &Answer::Stats(text.map_err(|e| Failure::other(e.to_string()))?))?;
            }
            // Arrived after the last byte was delivered.
            Task::Interrupt => {}
            other => return Err(Failure::other(format!("unexpected {other:?}"))),
        }
    }
}

/// The next request; its absence is an error.
fn next(channel: &ControlChannel) -> Result<(Task, Vec<OwnedFd>), Failure> {
    receive(channel)?
        .ok_or_else(|| Failure::other("skbudget ended before the container was started"))
}

/// The next request; `None`: `skbudget` has closed its end.
fn receive(channel: &ControlChannel) -> Result<Option<(Task, Vec<OwnedFd>)>, Failure> {
    channel.receive().map_err(|e| Failure::other(format!("relay: {e}")))
}

fn answer(channel: &ControlChannel, answer: &Answer) -> Result<(), Failure> {
    channel.send(answer, &[]).map_err(|e| Failure::other(format!("relay: {e}")))
}

/// The exit code of a failed set-up: limits that the budget refuses are a mistake of the caller, the others are not.
fn set_up_failure(error: &DaemonError) -> Failure {
    match error {
        DaemonError::Limits(_)
        | DaemonError::NoRoom { .. }
        | DaemonError::NoRoomForPorts { .. } => Failure::usage(error.to_string()),
        _ => Failure::set_up(error.to_string()),
    }
}

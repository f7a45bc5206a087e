//! `skbudget serve`: the daemon for many containers, controlled over a socket.
//!
//! ```text
//! client ── control socket ── skb-api (HTTP) ── skb-request (Control) ── commands ──▶ skb-worker-N ── containers
//!                                                    ▲                                     │
//!                                                    └──────────── skb-events ◀── events ──┘
//! ```
//! No request runs on a worker's thread, except for the commands that it sends, which a worker executes in bounded
//! number each turn.

mod capture;
mod config;
mod control;
mod events;
mod http;
#[cfg(test)]
mod http_tests;
mod metrics;
mod patience;
mod privileged;
mod query;
mod routes;
mod socket;
mod subnet;
mod target;

use std::fs;
use std::io;
use std::num::NonZero;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::thread;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::SigSet;
use nix::sys::signal::Signal::{SIGHUP, SIGINT, SIGTERM};
use nix::sys::signalfd::{SfdFlags, SignalFd, siginfo};
use nix::unistd::geteuid;

use crate::api::socket_path;
use crate::cli::ServeArgs;
use crate::daemon::{Daemon, DaemonConfig};
use crate::exit::{CANNOT_SET_UP, Failure};
use crate::run;
use crate::types::DaemonEvent;
use config::ServeConfig;
use control::Control;
use http::Server;
use privileged::Privileged;
use socket::ControlSocket;

/// Events of the workers that wait for the thread that reads them. Beyond it they are counted, and all containers are
/// checked instead.
const EVENTS_MAX: usize = 4096;

/// Runs the daemon until a signal ends it, or checks its configuration.
pub fn serve(args: ServeArgs) -> Result<u8, Failure> {
    // There is no single container that could not be set up: that code is for `run`.
    run_daemon(args).map_err(|Failure { code, message }| match code {
        CANNOT_SET_UP => Failure::other(message),
        code => Failure { code, message },
    })
}

/// As [`serve`], with the exit codes of `run`.
fn run_daemon(args: ServeArgs) -> Result<u8, Failure> {
    let config =
        args.config.as_deref().map_or_else(|| Ok(ServeConfig::default()), ServeConfig::load)?;
    if args.check {
        return check(&args, &config);
    }
    let path = socket_path(args.socket.clone().or_else(|| config.socket.clone()));
    if !geteuid().is_root() {
        return Err(Failure::set_up("serve: root is needed, to make devices in containers"));
    }
    config.subnet.check_routes().map_err(|e| Failure::usage(format!("serve: {e}")))?;
    // Before the first thread: it inherits the mask, and the signals are for this one.
    let signals = signals().map_err(|e| Failure::set_up(format!("signals: {e}")))?;
    run::check_tun()?;
    run::raise_nofile()?;
    let socket = ControlSocket::bind(&path)?;
    let listener = socket.listener();
    // From here on clients can connect, and wait until the daemon serves them.
    let (events, happened) = mpsc::sync_channel(EVENTS_MAX);
    // The config keeps its own values: they are compared when the file is read again.
    let workers = args.workers.map(|workers| workers as usize).or(config.workers);
    let workers =
        workers.unwrap_or_else(|| thread::available_parallelism().map_or(1, NonZero::get));
    let daemon = DaemonConfig {
        workers,
        host: config.host,
        groups: config.groups.clone(),
        events: Some(events),
        host_servers: None,
    };
    let failed = |e: &dyn std::fmt::Display| Failure::set_up(format!("serve: {e}"));
    let daemon = Daemon::new(daemon).map_err(|e| failed(&e))?;
    let containers = config.containers.clone();
    let control = Arc::new(Control::new(daemon, config, Privileged::Here));
    let reader = read_events(Arc::clone(&control), happened).map_err(|e| failed(&e))?;
    containers.into_iter().for_each(|request| control.attach_configured(request));
    // After the containers of the config: a client finds all of them.
    let server = listener.and_then(|listener| Server::start(listener, Arc::clone(&control)));
    let server = server.map_err(|e| failed(&e))?;
    log::info!("serving on {}, {workers} workers", socket.path().display());
    let reload = || reload(&control, args.config.as_deref());
    wait(&signals, reload).map_err(|e| failed(&e))?;
    log::info!("ending");
    control.events.close();
    control.captures.end_all();
    server.stop();
    let undelivered =
        control.drain(|| signals.read_signal().is_ok_and(|signal| signal.is_some_and(ends)));
    if undelivered > 0 {
        log::warn!("{undelivered} bytes that containers sent were not delivered");
    }
    end(control, reader)
}

/// Prints that the configuration is valid.
fn check(args: &ServeArgs, config: &ServeConfig) -> Result<u8, Failure> {
    let path = args.config.as_deref().map(|path| path.display().to_string()).unwrap_or_default();
    let ServeConfig { groups, templates, containers, .. } = config;
    let [groups, templates, containers] = [groups.len(), templates.len(), containers.len()];
    let line =
        format!("{path}: valid: {containers} containers, {templates} templates, {groups} groups\n");
    crate::stdout::print(&line)?;
    Ok(0)
}

/// Blocks the signals for the daemon, and returns a descriptor to read them from.
fn signals() -> nix::Result<SignalFd> {
    let set = SigSet::from_iter([SIGINT, SIGTERM, SIGHUP]);
    set.thread_block()?;
    SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
}

/// Waits for a signal that ends the daemon. The other one reads the config again.
fn wait(signals: &SignalFd, mut reload: impl FnMut()) -> io::Result<()> {
    loop {
        let mut fds = [PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) => match signals.read_signal()? {
                Some(signal) if ends(signal) => return Ok(()),
                Some(_) => reload(),
                None => {}
            },
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Whether the signal ends the daemon.
fn ends(signal: siginfo) -> bool {
    signal.ssi_signo != SIGHUP as u32
}

/// Reads the config again. A file with an error changes nothing.
fn reload(control: &Control, path: Option<&Path>) {
    let Some(path) = path else {
        log::warn!("SIGHUP: the daemon was started without --config, so there is no file to read");
        return;
    };
    let shown = path.display();
    // A pipe would be empty by now, and an empty file is a valid config.
    if !fs::metadata(path).is_ok_and(|meta| meta.is_file()) {
        log::error!("{shown}: no regular file: nothing is changed");
        return;
    }
    match ServeConfig::load(path) {
        Ok(config) => control.reload(config).log(&shown.to_string()),
        Err(e) => log::error!("{e}: nothing is changed"),
    }
}

/// Reads the workers' events on a thread of its own, until the workers end.
fn read_events(
    control: Arc<Control>,
    happened: Receiver<DaemonEvent>,
) -> io::Result<thread::JoinHandle<()>> {
    let read = move || {
        for event in happened {
            match &event {
                DaemonEvent::ContainerEnded { name } => control.ended(name),
                // The end of a container may be among them.
                DaemonEvent::Lost { .. } => control.forget_ended(),
                // The workers write these to the log.
                DaemonEvent::PressureStarted { .. }
                | DaemonEvent::PressureEnded { .. }
                | DaemonEvent::FlowRefused { .. }
                | DaemonEvent::HardReached { .. } => {}
            }
            // Afterwards: a client that reacts to an end finds the name free.
            control.events.add_worker_event(&event);
        }
    };
    thread::Builder::new().name("skb-events".to_owned()).spawn(read)
}

/// Ends the workers, and with them the thread that reads their events.
fn end(control: Arc<Control>, reader: thread::JoinHandle<()>) -> Result<u8, Failure> {
    // Drops the workers' ends of the channel, so the reader ends.
    let stopped = control.shutdown();
    drop(control);
    let _ = reader.join();
    stopped.map(|()| 0).map_err(|e| Failure::other(e.to_string()))
}

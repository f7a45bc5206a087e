//! The relay of the daemon: the process that serves clients and containers. An attacker that breaks a parser gets this
//! process, so it has no privileges (see [`crate::confine`]); its parent has them.
//!
//! ```text
//! client ── control socket ── skb-api (HTTP) ── skb-request (Control) ── commands ──▶ skb-worker-N ── containers
//!                                                    ▲                                     │
//!                                                    └──────────── skb-events ◀── events ──┘
//! ```
//! No request runs on a worker's thread, except for the commands that it sends, which a worker executes in bounded
//! number each turn.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::process::ExitCode;
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};
use std::thread;

use clap::Parser;
use skbudget_stack::Tap;

use super::config::ServeConfig;
use super::control::Control;
use super::http::Server;
use super::orders::{Order, Report};
use super::privileged::{Privileged, Record};
use crate::channel::ControlChannel;
use crate::cli::{Cli, Command, OnOff, ServeArgs};
use crate::confine;
use crate::daemon::{Daemon, DaemonConfig};
use crate::exit::{FAILURE, Failure};
use crate::resolv_conf::{HostServers, search_of_host};
use crate::types::DaemonEvent;

/// Events of the workers that wait for the thread that reads them. Beyond it they are counted, and all containers are
/// checked instead.
const EVENTS_MAX: usize = 4096;

/// The process. `options`: the options of the command line.
pub(super) fn main(
    orders: ControlChannel,
    requests: ControlChannel,
    sandbox: OnOff,
    options: Vec<OsString>,
) -> ExitCode {
    // While it can be read.
    search_of_host();
    let confined = confine::drop_privileges().and_then(|()| confine::sandbox(sandbox));
    let confined = confined.map_err(|e| failed(&e));
    // The parent may have ended before the confinement bound this process to it.
    if orders.is_over() {
        return ExitCode::from(FAILURE);
    }
    match confined.and_then(|()| serve(&orders, requests, options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { code, message }) => {
            // Fails only when the parent is gone, and with it the reader.
            let _ = orders.send(&Report::Failed { code, message }, &[]);
            ExitCode::from(FAILURE)
        }
    }
}

/// Gets all that the daemon serves from the parent, and serves it until the parent orders the end.
fn serve(
    orders: &ControlChannel,
    requests: ControlChannel,
    options: Vec<OsString>,
) -> Result<(), Failure> {
    let args = arguments(options)?;
    let (Order::Start { workers, restarts, levels }, fds) = next(orders)? else {
        return Err(Failure::other("relay: the first order is not to start"));
    };
    let config = read_config(&args, fds.into_iter().next())?;
    let servers = HostServers::default();
    let (events, happened) = mpsc::sync_channel(EVENTS_MAX);
    let daemon = DaemonConfig {
        workers,
        host: config.host,
        groups: config.groups.clone(),
        all_see_all: config.all_see_all,
        events: Some(events),
        host_servers: Some(servers.clone()),
    };
    let daemon = Daemon::new(daemon).map_err(|e| failed(&e))?;
    let privileged = Privileged::Parent(Mutex::new(requests));
    let control = Arc::new(Control::new(daemon, config, privileged, restarts));
    let reader = read_events(Arc::clone(&control), happened).map_err(|e| failed(&e))?;
    // Before the containers, which are charged to them.
    for (name, limits) in levels {
        if let Err(e) = control.set_level(&name, limits) {
            tracing::warn!("limits of {name}: those of the config are in force: {e}");
        }
    }
    let listener = control_socket(orders, &servers)?;
    let again = restore(&control)?;
    // An order ends the wait for what is still in use.
    control.attach_again(again, || orders.has_message());
    if restarts == 0 {
        control.follow_config();
    }
    // After the containers of the config: a client finds all of them.
    let server = Server::start(listener, Arc::clone(&control)).map_err(|e| failed(&e))?;
    orders.send(&Report::Serving, &[]).map_err(|e| failed(&e))?;
    until_stop(orders, &servers, &control, |text| reload(&control, &args, text))?;
    tracing::info!("ending");
    control.events.close();
    control.captures.end_all();
    server.stop();
    // Any order ends the delivery.
    let undelivered = control.drain(|| orders.has_message());
    if undelivered > 0 {
        tracing::warn!("{undelivered} bytes that containers sent were not delivered");
    }
    end(control, reader)
}

/// Parses the options of the command line.
fn arguments(options: Vec<OsString>) -> Result<ServeArgs, Failure> {
    let line = [OsString::from("skbudget")].into_iter().chain(options);
    let cli = Cli::try_parse_from(line).map_err(|e| Failure::usage(e.to_string()))?;
    match cli.command {
        Command::Serve(args) => Ok(args),
        _ => Err(Failure::other("the relay of the daemon serves `serve` only")),
    }
}

/// The config, of a text that the parent has read.
fn read_config(args: &ServeArgs, text: Option<OwnedFd>) -> Result<ServeConfig, Failure> {
    let (Some(path), Some(fd)) = (&args.config, text) else { return Ok(ServeConfig::default()) };
    let mut text = String::new();
    File::from(fd).read_to_string(&mut text).map_err(|e| failed(&e))?;
    ServeConfig::parse(&path.display().to_string(), &text)
}

/// Waits for the order to serve clients. Returns the control socket.
fn control_socket(orders: &ControlChannel, servers: &HostServers) -> Result<UnixListener, Failure> {
    loop {
        let (order, fds) = next(orders)?;
        match (order, fds.into_iter().next()) {
            (Order::Serve, Some(socket)) => return Ok(UnixListener::from(socket)),
            (Order::NameServers { servers: new }, _) => servers.set(new),
            (Order::Stop | Order::Interrupt, _) => {
                return Err(Failure::other("ended at the start"));
            }
            (order, _) => return Err(Failure::other(format!("relay: unexpected {order:?}"))),
        }
    }
}

/// Serves the containers of an earlier relay again. Returns those of the last daemon.
fn restore(control: &Control) -> Result<Vec<(String, Record)>, Failure> {
    let mut again = Vec::new();
    while let Some((name, record, device)) =
        control.privileged.next_container().map_err(|e| failed(&e))?
    {
        match device {
            Some(device) => restore_one(control, &name, record, device),
            None => again.push((name, record)),
        }
    }
    Ok(again)
}

/// Serves one container again. One that cannot be served loses its device.
fn restore_one(control: &Control, name: &str, record: Record, device: OwnedFd) {
    let restored = Tap::from_fd(device)
        .map_err(|e| e.to_string())
        .and_then(|tap| control.restore(name, record, tap).map(drop).map_err(|e| e.body.message));
    match restored {
        Ok(()) => tracing::info!(container = %name, "served again"),
        Err(e) => {
            tracing::error!(container = %name, "not served again: {e}");
            // Otherwise its kernel would send to a device that no process reads.
            control.privileged.forget(name);
        }
    }
}

/// Waits for the order to end. `reload` gets the text of a config that was read again.
fn until_stop(
    orders: &ControlChannel,
    servers: &HostServers,
    control: &Control,
    reload: impl Fn(Option<OwnedFd>),
) -> Result<(), Failure> {
    loop {
        let (order, fds) = next(orders)?;
        match order {
            Order::NameServers { servers: new } => servers.set(new),
            Order::Reload => reload(fds.into_iter().next()),
            // Without an answer the supervisor of the daemon acts.
            Order::Check if control.responds() => {
                orders.send(&Report::Alive, &[]).map_err(|e| failed(&e))?;
            }
            Order::Check => {}
            Order::Stop | Order::Interrupt => return Ok(()),
            order => return Err(Failure::other(format!("relay: unexpected {order:?}"))),
        }
    }
}

/// Applies what has changed in the config. The parent has checked it.
fn reload(control: &Control, args: &ServeArgs, text: Option<OwnedFd>) {
    let path = args.config.as_deref().map(|path| path.display().to_string()).unwrap_or_default();
    match read_config(args, text) {
        Ok(config) => control.reload(config).log(&path),
        Err(e) => tracing::error!("{e}: nothing is changed"),
    }
}

/// The next order.
fn next(orders: &ControlChannel) -> Result<(Order, Vec<OwnedFd>), Failure> {
    let order = orders.receive().map_err(|e| failed(&e))?;
    order.ok_or_else(|| Failure::other("relay: the daemon's parent process ended"))
}

fn failed(error: &dyn std::fmt::Display) -> Failure {
    Failure::other(format!("serve: {error}"))
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
fn end(control: Arc<Control>, reader: thread::JoinHandle<()>) -> Result<(), Failure> {
    // Drops the workers' ends of the channel, so the reader ends.
    let stopped = control.shutdown();
    drop(control);
    let _ = reader.join();
    stopped.map_err(|e| Failure::other(e.to_string()))
}

//! `skbudget serve`: the daemon for many containers, controlled over a socket. Two processes: `parent` keeps the
//! privileges, `relay` serves clients and containers.

mod capture;
mod config;
mod control;
#[cfg(test)]
mod dist_tests;
mod events;
mod http;
#[cfg(test)]
mod http_tests;
mod metrics;
mod orders;
mod parent;
mod patience;
mod privileged;
mod query;
mod relay;
mod routes;
mod socket;
mod state;
mod subnet;
mod target;

use std::ffi::OsString;
use std::io;
use std::num::NonZero;
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::thread;

use crate::api::socket_path;
use crate::channel::ControlChannel;
use crate::cli::{OnOff, ServeArgs};
use crate::confine;
use crate::exit::{CANNOT_SET_UP, Failure};
use crate::roles::{by_hand, enter, text};
use crate::run;
use crate::systemd::Notifier;
use config::ServeConfig;
use privileged::HELPER;
use socket::ControlSocket;
use state::StateDir;

/// Role of the relay, as the first argument of an inner process.
const RELAY: &str = "__serve_relay";

/// Runs the role of this process if it is an inner one of the daemon.
pub fn inner_main() -> Option<ExitCode> {
    enter(&[RELAY, HELPER], inner)
}

fn inner(
    role: &str,
    fds: Vec<OwnedFd>,
    args: &mut dyn Iterator<Item = OsString>,
) -> io::Result<ExitCode> {
    let mut channels = fds.into_iter().map(ControlChannel::from_fd);
    let mut channel = || channels.next().ok_or_else(by_hand);
    let orders = channel()?;
    if role == HELPER {
        return Ok(privileged::helper_main(&orders));
    }
    let requests = channel()?;
    let sandbox = if text(args)? == "off" { OnOff::Off } else { OnOff::On };
    Ok(relay::main(orders, requests, sandbox, args.collect()))
}

/// Runs the daemon until a signal ends it, or checks its configuration. `options`: the command line.
pub fn serve(args: ServeArgs, options: &[OsString]) -> Result<u8, Failure> {
    // There is no single container that could not be set up: that code is for `run`.
    run_daemon(args, options).map_err(|Failure { code, message }| match code {
        CANNOT_SET_UP => Failure::other(message),
        code => Failure { code, message },
    })
}

/// As [`serve`], with the exit codes of `run`.
fn run_daemon(args: ServeArgs, options: &[OsString]) -> Result<u8, Failure> {
    let (config, text) = match args.config.clone() {
        Some(path) => {
            let (config, text) = ServeConfig::load(&path)?;
            (config, Some((path, text)))
        }
        None => (ServeConfig::default(), None),
    };
    if args.check {
        return check(&args, &config);
    }
    let path = socket_path(args.socket.or(config.socket));
    let group = args.socket_group.as_deref().map(socket::group).transpose()?;
    config.subnet.check_routes().map_err(|e| Failure::usage(format!("serve: {e}")))?;
    // Before the first thread: it inherits the mask, and the signals are for this one.
    let signals = parent::signals().map_err(|e| Failure::set_up(format!("signals: {e}")))?;
    run::check_tun()?;
    run::raise_nofile()?;
    // Before the filter of this process, which allows no more sockets of that kind.
    let notifier = Notifier::from_environment();
    confine::sandbox_parent(args.sandbox).map_err(|e| Failure::other(format!("serve: {e}")))?;
    // From here on clients can connect, and wait until the daemon serves them.
    let socket = ControlSocket::bind(&path, group)?;
    // Beside the socket: daemons with sockets in other directories are others.
    let beside = || path.with_file_name("state");
    let state = StateDir::open(&args.state_dir.or(config.state_dir).unwrap_or_else(beside))?;
    let workers = args.workers.map(|workers| workers as usize).or(config.workers);
    let cores = || thread::available_parallelism().map_or(1, NonZero::get);
    let workers = workers.unwrap_or_else(cores);
    let status = format!("serving on {}, {workers} workers", path.display());
    tracing::info!("{status}");
    let setup = parent::Setup {
        options,
        sandbox: args.sandbox,
        workers,
        config: text,
        drain: config.drain,
        notifier,
        status,
    };
    parent::run(setup, &socket, &signals, state)
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

//! What a service exchanges with systemd, without its library: sd_notify(3), sd_watchdog_enabled(3), sd_listen_fds(3).
//! Without systemd, none of the variables is set and nothing happens.
//!
//! | variable | use |
//! |---|---|
//! | `NOTIFY_SOCKET` | a datagram socket for the states `READY=1`, `RELOADING=1`, `STOPPING=1`, `WATCHDOG=1` |
//! | `WATCHDOG_USEC`, `WATCHDOG_PID` | the supervisor ends a service that shows no sign of life for this time |
//! | `LISTEN_FDS`, `LISTEN_PID` | descriptors from 3 on are sockets that the supervisor has bound |
//!
//! The variables stay set: other processes of the program compare the process ids in them with their own.

use std::env;
use std::io;
use std::os::fd::RawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener};
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::socket::sockopt::{AcceptConn, SockType};
use nix::sys::socket::{self, getsockopt};

use crate::exit::Failure;
use crate::{clock, sys};

/// The first descriptor that systemd passes.
const LISTEN_FDS_START: RawFd = 3;

/// Sends the state of the service to the supervisor that started it.
#[derive(Debug, Default)]
pub(crate) struct Notifier {
    /// `None`: no supervisor waits for messages.
    to: Option<UnixDatagram>,
    /// How often the supervisor expects a sign of life.
    watchdog: Option<Duration>,
}

impl Notifier {
    /// The supervisor that the environment names.
    ///
    /// A name that cannot be used is reported, and the service runs without a supervisor that is notified.
    pub(crate) fn from_environment() -> Self {
        let Some(name) = env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else {
            return Self::default();
        };
        let open = || {
            // A name that starts with @ is an abstract one.
            let address = match name.as_bytes() {
                [b'@', rest @ ..] => SocketAddr::from_abstract_name(rest)?,
                _ => SocketAddr::from_pathname(&name)?,
            };
            let socket = UnixDatagram::unbound()?;
            socket.connect_addr(&address)?;
            // A supervisor that does not read must not delay the containers.
            socket.set_nonblocking(true)?;
            Ok::<_, io::Error>(socket)
        };
        match open() {
            Ok(to) => Self { to: Some(to), watchdog: watchdog() },
            Err(e) => {
                tracing::warn!("NOTIFY_SOCKET {}: {e}: no state is reported", name.display());
                Self::default()
            }
        }
    }

    /// The service serves; `status` is one line for people.
    pub(crate) fn ready(&self, status: &str) {
        self.send(&format!("READY=1\nSTATUS={status}"));
    }

    /// The service reads its config again; `ready` follows.
    pub(crate) fn reloading(&self) {
        // The time tells this reload from an earlier one.
        let micros = clock::now().as_nanos() / 1000;
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={micros}"));
    }

    /// The service ends.
    pub(crate) fn stopping(&self) {
        self.send("STOPPING=1");
    }

    /// A sign of life.
    pub(crate) fn alive(&self) {
        self.send("WATCHDOG=1");
    }

    /// Interval of the signs of life, half of the expected one; `None`: none is expected.
    pub(crate) fn interval(&self) -> Option<Duration> {
        self.watchdog.map(|expected| expected / 2)
    }

    /// Sends assignments, one a line. A state that is lost is not repeated.
    fn send(&self, state: &str) {
        let Some(socket) = &self.to else { return };
        if let Err(e) = socket.send(state.as_bytes()) {
            tracing::debug!("NOTIFY_SOCKET: {e}");
        }
    }
}

/// The interval that the supervisor expects of this process.
fn watchdog() -> Option<Duration> {
    let number = |name| env::var(name).ok()?.parse::<u64>().ok();
    let is_ours = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
    let micros = number("WATCHDOG_USEC").filter(|micros| *micros > 0 && is_ours)?;
    Some(Duration::from_micros(micros))
}

/// The listener that the supervisor passed, with its path. Call it once, before any other descriptor is taken over.
///
/// # Errors
/// When the descriptors are not one listening stream socket with a path.
pub(crate) fn listener() -> Result<Option<(UnixListener, PathBuf)>, Failure> {
    let number = |name| env::var(name).ok()?.parse::<u64>().ok();
    // Set for another process: that one started this one, and has forgotten to remove the variables.
    if number("LISTEN_PID") != Some(u64::from(std::process::id())) {
        return Ok(None);
    }
    let failed = |what: String| Failure::other(format!("LISTEN_FDS: {what}"));
    match number("LISTEN_FDS") {
        None | Some(0) => Ok(None),
        Some(1) => {
            let inherited = sys::inherited().map_err(|e| failed(e.to_string()))?;
            // One that this process has opened itself is closed on exec, and not in the list.
            if !inherited.contains(&LISTEN_FDS_START) {
                return Err(failed(format!("descriptor {LISTEN_FDS_START} was not passed")));
            }
            let fd = sys::inherited_fd(LISTEN_FDS_START).map_err(|e| failed(e.to_string()))?;
            let listens = getsockopt(&fd, AcceptConn).unwrap_or(false)
                && getsockopt(&fd, SockType) == Ok(socket::SockType::Stream);
            let listener = UnixListener::from(fd);
            let address = listener.local_addr().ok();
            let path = address.and_then(|address| Some(address.as_pathname()?.to_owned()));
            match path.filter(|_| listens) {
                Some(path) => Ok(Some((listener, path))),
                None => {
                    let what = "the descriptor is no listening stream socket with a path";
                    Err(failed(format!("{what}: ListenStream=/path is allowed")))
                }
            }
        }
        Some(n) => Err(failed(format!("{n} descriptors were passed; one is allowed"))),
    }
}

//! A daemon that another process runs, as the commands and other programs of this project control it.

use std::fmt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::sys::socket::{getsockopt, sockopt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::http::Connection;
use crate::api::{AttachRequest, ErrorBody, LimitsRequest, socket_path};
use crate::exit::{FAILURE, Failure, USAGE};
use crate::settings::ContainerOptions;
use crate::stats::{SCHEMA, Stats};
use crate::units::Bytes;

/// A daemon, by its control socket. Each request is a connection of its own.
#[derive(Debug, Clone)]
pub struct Remote {
    socket: PathBuf,
}

/// Why a request to a daemon failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RemoteError {
    /// There is no daemon, the caller may not control it, or it does not answer.
    Unreachable(String),
    /// The daemon refused the request.
    Refused {
        /// Status code of HTTP.
        status: u16,
        /// For programs: a word that does not change. Empty when the answer has none.
        code: String,
        /// For people: one sentence.
        message: String,
    },
    /// The answer is not one of a daemon of this version.
    Answer(String),
}

impl fmt::Display for RemoteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(message) | Self::Refused { message, .. } | Self::Answer(message) => {
                f.write_str(message)
            }
        }
    }
}

impl std::error::Error for RemoteError {}

impl From<RemoteError> for Failure {
    /// A request that is wrong is a wrong command line.
    fn from(error: RemoteError) -> Self {
        let wrong = matches!(error, RemoteError::Refused { status: 400, .. });
        Self { code: if wrong { USAGE } else { FAILURE }, message: error.to_string() }
    }
}

impl Remote {
    /// The daemon on this socket: the given path, or that of the environment, or the default.
    pub fn new(socket: Option<PathBuf>) -> Self {
        Self { socket: socket_path(socket) }
    }

    /// Path of its socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Process id of the daemon. `None`: it is in a process namespace that this process does not see.
    pub fn pid(&self) -> Option<u32> {
        // The kernel records the process that listens, for as long as the socket exists.
        let stream = UnixStream::connect(&self.socket).ok()?;
        let peer = getsockopt(&stream, sockopt::PeerCredentials).ok()?;
        // 0: a process that has no number in the process namespace of this one.
        u32::try_from(peer.pid()).ok().filter(|pid| *pid > 0)
    }

    /// The state of everything.
    pub fn stats(&self) -> Result<Stats, RemoteError> {
        let answer: Value = self.send("GET", "/v1/stats", None::<&()>)?;
        // Before the fields: an error about the schema explains a missing field.
        if answer["schema"] != SCHEMA {
            return Err(RemoteError::Answer(format!("the daemon's stats are not {SCHEMA}")));
        }
        parse(answer)
    }

    /// Attaches the network namespace at an absolute path, which is a path of the daemon.
    pub fn attach(
        &self,
        name: &str,
        netns: &Path,
        options: ContainerOptions,
    ) -> Result<(), RemoteError> {
        // The group is that of a template of the daemon's config, or none.
        let (name, netns) = (Some(name.to_owned()), Some(netns.to_owned()));
        let request = AttachRequest { name, netns, options, ..AttachRequest::default() };
        self.send::<Value>("POST", "/v1/containers", Some(&request)).map(drop)
    }

    /// Changes the hard limit of a container; soft and low follow from it where they were not given.
    pub fn set_hard(&self, name: &str, bytes: u64) -> Result<(), RemoteError> {
        let request = LimitsRequest { hard: Some(Some(Bytes(bytes))), ..LimitsRequest::default() };
        let path = format!("/v1/containers/{name}");
        self.send::<Value>("PATCH", &path, Some(&request)).map(drop)
    }

    /// Removes a container. Returns when its device is gone. `name`: as it was attached.
    pub fn detach(&self, name: &str) -> Result<(), RemoteError> {
        self.send::<Value>("DELETE", &format!("/v1/containers/{name}"), None::<&()>).map(drop)
    }

    /// Sends one request and returns the daemon's answer.
    pub(super) fn send<T: DeserializeOwned>(
        &self,
        method: &str,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, RemoteError> {
        // An absent body is an empty one, which no request with a body accepts.
        let body = body.map(serde_json::to_vec).transpose();
        let body = body.map_err(|e| RemoteError::Answer(e.to_string()))?.unwrap_or_default();
        let unreachable = |failure: Failure| RemoteError::Unreachable(failure.message);
        let connection = Connection::open(&self.socket).map_err(unreachable)?;
        let (status, answer) = connection.request(method, path, body).map_err(unreachable)?;
        match serde_json::from_slice::<Value>(&answer) {
            Ok(answer) if (200..300).contains(&status) => parse(answer),
            Ok(answer) => Err(refused(status, answer)),
            // A status without JSON is that of another program.
            Err(e) => Err(RemoteError::Answer(format!(
                "{}: not the socket of a skbudget daemon: {e}",
                self.socket.display()
            ))),
        }
    }
}

/// The daemon's answer as a value of that type.
pub(super) fn parse<T: DeserializeOwned>(answer: Value) -> Result<T, RemoteError> {
    serde_json::from_value(answer)
        .map_err(|e| RemoteError::Answer(format!("the daemon's answer: {e}")))
}

/// The error that the daemon reports.
pub(super) fn refused(status: u16, answer: Value) -> RemoteError {
    let (code, message) = match serde_json::from_value::<ErrorBody>(answer) {
        Ok(body) => (body.code, body.message),
        // Another program's error: the status is all that is known.
        Err(_) => (String::new(), format!("the daemon answered with status {status}")),
    };
    RemoteError::Refused { status, code, message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_keeps_its_code_and_only_a_wrong_request_is_a_wrong_command_line() {
        let body = serde_json::json!({"code": "name_in_use", "message": "in use", "key": "name"});
        let error = refused(409, body.clone());
        assert!(matches!(&error, RemoteError::Refused { code, .. } if code == "name_in_use"));
        assert_eq!(Failure::from(error), Failure { code: FAILURE, message: "in use".to_owned() });
        assert_eq!(Failure::from(refused(400, body)).code, USAGE);
        assert_eq!(refused(500, Value::Null).to_string(), "the daemon answered with status 500");
    }

    #[test]
    fn without_a_daemon_the_path_is_named() {
        let remote = Remote::new(Some("/nowhere/skbudget.sock".into()));
        let error = remote.stats().unwrap_err();
        assert!(matches!(error, RemoteError::Unreachable(_)));
        assert!(error.to_string().starts_with("/nowhere/skbudget.sock: no daemon"), "{error}");
        assert_eq!(remote.pid(), None);
    }
}

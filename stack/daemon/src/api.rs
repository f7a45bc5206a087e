//! The control API's requests and answers, as the daemon and its clients exchange them: JSON over HTTP/1.1.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use serde::{Deserialize, Deserializer, Serialize};

use crate::cli::PublishArg;
use crate::settings::ContainerOptions;
use crate::units::Bytes;

/// Control socket of a daemon that runs as root.
pub(crate) const SOCKET_DEFAULT: &str = "/run/skbudget/skbudget.sock";

/// Environment variable with the path of the control socket.
const SOCKET_VARIABLE: &str = "SKBUDGET_SOCKET";

/// The control socket: the given path, or that of the environment, or the default of this user.
pub(crate) fn socket_path(given: Option<PathBuf>) -> PathBuf {
    let of_environment = || std::env::var_os(SOCKET_VARIABLE).filter(|path| !path.is_empty());
    given.or_else(|| of_environment().map(PathBuf::from)).unwrap_or_else(default_path)
}

/// The default for root, or in the folder that a login makes for its user.
fn default_path() -> PathBuf {
    let user = nix::unistd::geteuid();
    if user.is_root() {
        return SOCKET_DEFAULT.into();
    }
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let folder = runtime.filter(|path| path.is_absolute());
    folder.unwrap_or_else(|| format!("/run/user/{user}").into()).join("skbudget/skbudget.sock")
}

/// A container to be attached: `POST /v1/containers`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct AttachRequest {
    /// Unique among the containers of the daemon.
    pub(crate) name: Option<String>,
    /// A process in the container. Either this or `netns` is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) pid: Option<u32>,
    /// Absolute path of the container's network namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) netns: Option<PathBuf>,
    /// Name of the device in the container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ifname: Option<String>,
    /// Its IPv4 address, one of the daemon's subnet; the IPv6 address has the same number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) address: Option<Ipv4Addr>,
    /// The group of its budget.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) group: Option<String>,
    /// Those that are not given are those of a template, or the defaults.
    #[serde(flatten)]
    pub(crate) options: ContainerOptions,
}

/// Keys of an attach request beside the options.
pub(crate) const ATTACH_KEYS: [&str; 6] = ["name", "pid", "netns", "ifname", "address", "group"];

/// A container as the daemon lists it: `GET /v1/containers`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ContainerInfo {
    pub(crate) name: String,
    /// As attached.
    pub(crate) pid: Option<u32>,
    /// As attached.
    pub(crate) netns: Option<PathBuf>,
    /// Name of its device.
    pub(crate) ifname: String,
    /// The container's own addresses.
    pub(crate) ip: Ipv4Addr,
    pub(crate) ipv6: Option<Ipv6Addr>,
    pub(crate) group: Option<String>,
    /// `None`: no limit.
    pub(crate) hard_bytes: Option<u64>,
    /// Ports of the host that forward to it.
    pub(crate) publish: Vec<PublishArg>,
}

/// `GET /v1/containers`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ContainerList {
    /// Sorted by name.
    pub(crate) containers: Vec<ContainerInfo>,
}

/// Ports to open or close: `POST` and `DELETE /v1/containers/{name}/ports`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct PortsRequest {
    /// All of them, or none.
    pub(crate) publish: Vec<PublishArg>,
}

/// Limits to change: `PATCH /v1/containers/{name}`. The outer `None`: unchanged. The inner one: the default again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct LimitsRequest {
    /// No charge exceeds it.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "some")]
    pub(crate) hard: Option<Option<Bytes>>,
    /// Pressure starts above it.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "some")]
    pub(crate) soft: Option<Option<Bytes>>,
    /// Pressure ends below it.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "some")]
    pub(crate) low: Option<Option<Bytes>>,
    /// The guaranteed part.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "some")]
    pub(crate) min: Option<Option<Bytes>>,
    /// The group to move to; null: out of all groups.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "some")]
    pub(crate) group: Option<Option<String>>,
}

/// Keys of a limits request.
pub(crate) const LIMIT_KEYS: [&str; 5] = ["hard", "soft", "low", "min", "group"];

/// A key that is there: null is a value.
fn some<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    from: D,
) -> Result<Option<Option<T>>, D::Error> {
    Option::<T>::deserialize(from).map(Some)
}

/// Limits of a group, or of the host: `PATCH /v1/groups/{name}`. Those that are not given follow from `hard`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct LevelRequest {
    /// Always needed.
    pub(crate) hard: Option<Bytes>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) soft: Option<Bytes>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) low: Option<Bytes>,
}

/// Keys of a level request.
pub(crate) const LEVEL_KEYS: [&str; 3] = ["hard", "soft", "low"];

/// Keys of the query of a capture: `GET /v1/containers/{name}/capture`.
pub(crate) const CAPTURE_KEYS: [&str; 4] = ["filter", "max_bytes", "seconds", "snaplen"];

/// The body of every answer that is not a success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ErrorBody {
    /// For programs: a word that does not change.
    pub(crate) code: String,
    /// For people: one sentence.
    pub(crate) message: String,
    /// The key of the request that is wrong.
    pub(crate) key: Option<String>,
}

/// An answer that is not a success.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ApiError {
    /// Status code of HTTP.
    pub(crate) status: u16,
    pub(crate) body: ErrorBody,
}

impl ApiError {
    pub(crate) fn new(status: u16, code: &str, message: impl Into<String>) -> Self {
        Self {
            status,
            body: ErrorBody { code: code.to_owned(), message: message.into(), key: None },
        }
    }

    /// The request is wrong.
    pub(crate) fn invalid(code: &str, message: impl Into<String>) -> Self {
        Self::new(400, code, message)
    }

    /// The request does not fit the state of the daemon.
    pub(crate) fn conflict(code: &str, message: impl Into<String>) -> Self {
        Self::new(409, code, message)
    }

    #[must_use]
    pub(crate) fn key(mut self, key: impl Into<String>) -> Self {
        self.body.key = Some(key.into());
        self
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.body.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_unchanged_or_the_default_or_a_size() {
        let limits: LimitsRequest =
            serde_json::from_str(r#"{"hard": "1MiB", "soft": null}"#).unwrap();
        assert_eq!(limits.hard, Some(Some(Bytes(1 << 20))));
        assert_eq!((limits.soft, limits.low), (Some(None), None));
        let json = serde_json::to_string(&limits).unwrap();
        assert_eq!(json, r#"{"hard":1048576,"soft":null}"#);
    }
}

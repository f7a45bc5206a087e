//! Errors of the daemon as answers of the API.

use crate::api::ApiError;
use crate::attach::{self, AttachError};
use crate::settings::Invalid;
use crate::types::DaemonError;
use crate::units::Size;

/// A value that is refused, whatever the state is.
pub(super) fn bad_value(key: &str, message: String) -> ApiError {
    ApiError::invalid("bad_value", message).key(key)
}

/// There is none, or it has ended.
pub(super) fn no_such_container(name: &str) -> ApiError {
    ApiError::new(404, "no_such_container", format!("no container is named {name:?}"))
}

/// An option with a value that is refused.
pub(super) fn refused(invalid: &Invalid) -> ApiError {
    bad_value(&invalid.key(), invalid.message())
}

/// The device could not be made. Nothing of it remains.
pub(super) fn not_attached(ifname: &str, error: &AttachError) -> ApiError {
    let errno = error.source.raw_os_error();
    match (error.step.as_ref(), errno) {
        (attach::MOVE, Some(libc::EEXIST)) => {
            let message =
                format!("ifname {ifname}: the network namespace has a device of that name");
            ApiError::conflict("ifname_in_use", message).key("ifname")
        }
        (attach::DEFAULT_ROUTE, Some(libc::EEXIST)) => {
            let message = "the network namespace has a default route: it is connected already";
            ApiError::conflict("has_default_route", message).key("netns")
        }
        _ => ApiError::new(500, "cannot_attach", error.to_string()),
    }
}

/// The daemon refused a request.
pub(super) fn failed(error: &DaemonError) -> ApiError {
    let message = error.to_string();
    match error {
        DaemonError::NoSuchContainer(name) => no_such_container(name),
        DaemonError::NameInUse(_) => ApiError::conflict("name_in_use", message).key("name"),
        DaemonError::Limits(_) => ApiError::conflict("limits", message),
        DaemonError::NoRoom { dev_bytes } => {
            let message = format!(
                "no room for the device queue of {}: the host's limit is used up",
                Size(*dev_bytes)
            );
            ApiError::conflict("no_room", message).key("hard")
        }
        DaemonError::NoRoomForPorts { .. } | DaemonError::UdpPort { .. } => {
            ApiError::conflict("no_room", message).key("publish")
        }
        DaemonError::NoRoomInGroup => ApiError::conflict("no_room", message).key("group"),
        DaemonError::GroupInUse(_) => ApiError::conflict("group_in_use", message).key("group"),
        DaemonError::GuaranteesAboveHard { .. } => {
            ApiError::conflict("limits", message).key("hard")
        }
        DaemonError::NoSuchGroup(_) => ApiError::new(404, "no_such_group", message).key("group"),
        DaemonError::NoSuchPort(_) => ApiError::new(404, "no_such_port", message).key("publish"),
        DaemonError::NoSuchBudget | DaemonError::Io(_) => ApiError::new(500, "internal", message),
        DaemonError::Stopped => ApiError::new(503, "stopped", message),
    }
}

//! Starts captures.

use std::time::Duration;

use skbudget_stack::tap::CaptureHead;

use super::{Control, failed};
use crate::api::{ApiError, ContainerInfo};
use crate::capture::{CAPTURES_MAX, CaptureSpec};
use crate::clock;
use crate::serve::capture::{Blocks, CaptureRequest};

impl Control {
    /// Starts a capture of a container's frames.
    pub(in crate::serve) fn capture(
        &self,
        name: &str,
        request: CaptureRequest,
    ) -> Result<Blocks, ApiError> {
        let CaptureRequest { filter, max_bytes, seconds, snaplen } = request;
        let ContainerInfo { ifname, ip, ipv6, .. } = self.one(name)?;
        let ipv6 = ipv6.map(|ip| format!(", {ip}")).unwrap_or_default();
        let head = CaptureHead {
            ifname,
            comment: format!("container {name}, {ip}{ipv6}"),
            filter: filter.as_ref().map(ToString::to_string).unwrap_or_default(),
            snaplen,
            epoch_offset_ns: clock::epoch_offset_ns(),
        };
        // The slot is taken before the worker is involved, and is free again if that fails.
        let spec = CaptureSpec { head, filter, bytes_max: max_bytes };
        let Some((writer, stream)) = self.captures.start(spec) else {
            let message =
                format!("{CAPTURES_MAX} captures are under way, the most that one daemon makes");
            return Err(ApiError::new(429, "too_many_captures", message));
        };
        self.daemon.capture(name, writer).map_err(|e| failed(&e))?;
        Ok(Blocks::new(stream, seconds.map(Duration::from_secs)))
    }
}

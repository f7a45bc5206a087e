//! A daemon that starts again attaches the containers of the last one that still exist.

use std::time::{Duration, Instant};

use super::Control;
use super::join::Joining;
use crate::api::{ApiError, AttachRequest};
use crate::serve::privileged::Record;

/// How long the kernel may take to remove the devices and close the ports of a daemon that was killed, and the interval
/// of the attempts.
const BUSY_WAIT: Duration = Duration::from_secs(30);
const BUSY_STEP: Duration = Duration::from_millis(50);

/// Most keys that are left out of a request for one container.
const LEFT_OUT_MAX: usize = 8;

impl Control {
    /// Attaches the containers of the last daemon that still exist. `hurried`: what is still in use is not waited for
    /// any more.
    pub(in crate::serve) fn attach_again(
        &self,
        records: Vec<(String, Record)>,
        hurried: impl Fn() -> bool,
    ) {
        let until = Instant::now() + BUSY_WAIT;
        let mut pending = records;
        loop {
            let late = hurried() || Instant::now() >= until;
            pending.retain(|(name, record)| self.attach_one_again(name, record, late));
            if pending.is_empty() {
                return;
            }
            std::thread::sleep(BUSY_STEP);
        }
    }

    /// Attaches one container again. True: what it needs is still in use, and it is tried again unless `late`.
    fn attach_one_again(&self, name: &str, record: &Record, late: bool) -> bool {
        let mut request = record.request.clone();
        for _ in 0..LEFT_OUT_MAX {
            let joining = Joining {
                filled: request.clone(),
                origin: record.origin.clone(),
                mac: Some(record.mac),
                expected: Some(record.netns),
            };
            let Err(e) = self.join(joining) else {
                tracing::info!(container = %name, "attached again");
                return false;
            };
            if is_gone(&e) {
                tracing::warn!(container = %name, "gone: {e}");
                self.privileged.forget(name);
                return false;
            }
            if !late && is_busy(&e) {
                return true;
            }
            if !self.leave_out(&mut request, &e) {
                tracing::error!(container = %name, "not attached again: {e}");
                return false;
            }
            tracing::warn!(container = %name, "attached again without its {}: {e}", key(&e));
        }
        false
    }

    /// Removes what this daemon refuses of a request that the last one granted: its config may be another one. False
    /// when the container cannot be attached without it.
    fn leave_out(&self, request: &mut AttachRequest, error: &ApiError) -> bool {
        let options = &mut request.options;
        match key(error) {
            "min" => options.min.take().is_some(),
            "weight" => options.weight.take().is_some(),
            "address" => request.address.take().is_some(),
            "group" => {
                let Some(old) = request.group.take() else { return false };
                let name = request.name.clone();
                let of_template =
                    self.config().filled(AttachRequest { name, ..AttachRequest::default() });
                request.group = of_template.group.filter(|group| *group != old);
                true
            }
            "publish" => {
                let Some(ports) = options.publish.take() else { return false };
                let before = ports.len();
                // Those that are free; the sockets are closed at once.
                let free = ports.into_iter().filter(|port| self.privileged.bind(port).is_ok());
                let free: Vec<_> = free.collect();
                let fewer = free.len() < before;
                options.publish = fewer.then_some(free);
                true
            }
            _ => false,
        }
    }
}

/// The key that an error names.
fn key(error: &ApiError) -> &str {
    error.body.key.as_deref().unwrap_or_default()
}

/// The namespace does not exist any more, or another one has its place.
fn is_gone(error: &ApiError) -> bool {
    ["no_such_process", "no_such_netns", "not_a_netns", "another_netns"]
        .contains(&error.body.code.as_str())
}

/// What the last daemon had is not free yet.
fn is_busy(error: &ApiError) -> bool {
    ["ifname_in_use", "has_default_route", "port_in_use"].contains(&error.body.code.as_str())
}

//! Limits that change while containers run: of a container, of a group, of the host.

use serde_json::json;
use skbudget_controller::Limits;

use super::{Control, Entry, failed, no_such_container, refused};
use crate::api::{ApiError, ContainerInfo, LevelRequest, LimitsRequest};
use crate::cli::Isolation;
use crate::serve::config::HOST;
use crate::settings::{ContainerOptions, Invalid, Scope, limits_of_options, ordered};
use crate::stats::GroupReport;
use crate::units::Bytes;

impl Control {
    /// Changes limits and group of a container, all or none.
    pub(in crate::serve) fn set(
        &self,
        name: &str,
        request: LimitsRequest,
    ) -> Result<ContainerInfo, ApiError> {
        let mut containers = self.containers();
        let entry = containers.get_mut(name).ok_or_else(|| no_such_container(name))?;
        let LimitsRequest { hard, soft, low, min, group } = request;
        let group = group.unwrap_or_else(|| entry.group.clone());
        self.check_group(group.as_deref())?;
        // What is not given keeps its value, or follows from the others as it did at attach.
        let options = ContainerOptions {
            hard: hard.unwrap_or(entry.options.hard),
            soft: soft.unwrap_or(entry.options.soft),
            low: low.unwrap_or(entry.options.low),
            min: min.unwrap_or(entry.options.min),
            ..entry.options.clone()
        };
        let limited = self.config().scope(group.as_deref()) == Scope::Daemon { limited: true };
        if options.min.is_some() && !limited {
            let message = "min acts only below a limit of the host or of a group";
            return Err(ApiError::conflict("no_limit_above", message).key("min"));
        }
        // Before anything changes.
        let limits = entry.limits(&options).map_err(|e| refused(&e))?;
        let min_bytes = options.min.map_or(0, |Bytes(min)| min);
        let changed = if group == entry.group {
            self.daemon.set_budget(name, limits, min_bytes)
        } else {
            // In one step: a smaller guarantee may be what fits the new group.
            self.daemon.set_budget_and_group(name, limits, min_bytes, group.as_deref())
        };
        changed.map_err(|e| failed(&e))?;
        (entry.settings.budget.limits, entry.settings.budget.min_bytes) = (limits, min_bytes);
        (entry.options, entry.group) = (options, group);
        self.privileged.record(name, entry.record(name));
        self.events.add("limits_changed", json!({ "container": name }));
        Ok(entry.info(name))
    }

    /// Every group with its meter.
    pub(in crate::serve) fn groups(&self) -> Vec<GroupReport> {
        self.daemon.groups()
    }

    /// Changes the limits of a group, or of the host. Those that are not given follow from `hard`.
    pub(in crate::serve) fn set_level(
        &self,
        name: &str,
        request: LevelRequest,
    ) -> Result<Option<GroupReport>, ApiError> {
        let (config, group) = (self.config(), (name != HOST).then_some(name));
        let exists = match group {
            Some(group) => config.has_group(group),
            None => config.host.is_some(),
        };
        if !exists {
            let message = match group {
                Some(group) => config.no_group(group),
                None => "the host has no limit: set hard in [host] of the config".to_owned(),
            };
            return Err(ApiError::new(404, "no_such_group", message));
        }
        let hard = request.hard.ok_or_else(|| {
            let message = "hard: missing: soft and low follow from it";
            ApiError::invalid("missing_key", message).key("hard")
        })?;
        let limits = ordered(hard, request.soft, request.low).map_err(|e| refused(&e))?;
        self.daemon.set_level(group, limits.into()).map_err(|e| failed(&e))?;
        self.privileged.record_level(name, Some(request));
        self.events.add("limits_changed", json!({ "group": name }));
        Ok(self.daemon.groups().into_iter().find(|report| Some(report.name.as_str()) == group))
    }
}

impl Entry {
    /// The limits that follow from the options for this container, which runs.
    fn limits(&self, options: &ContainerOptions) -> Result<Limits, Invalid> {
        let given = options.hard.or(options.soft).or(options.low);
        if options.isolation == Some(Isolation::Off) {
            return match given {
                Some(_) => {
                    Err(Invalid::new("hard", ": the container has no limits (isolation off)"))
                }
                None => Ok(Limits::NONE),
            };
        }
        // The device queue keeps its length, and its charge, as long as the device exists.
        let config = &self.settings.container;
        let least = config.dev_queue_bytes + config.list_and_flow_bytes();
        limits_of_options(options, least).map(|(_, limits)| limits)
    }
}

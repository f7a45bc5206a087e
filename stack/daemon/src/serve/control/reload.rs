//! The config is read again while containers run: what changed in the file is applied, and nothing else. A value that a
//! client has changed since stays, unless the file has a new one for it.
//!
//! Each container keeps what it was attached with, and the same filled by the template that matched then. The new file
//! fills the request once more; the keys that are different are the change. They are applied by the methods that serve
//! clients, so a reload refuses what a client would be refused, with the same reason.
//!
//! | in the file | when it changes |
//! |---|---|
//! | limits of the host and of groups, groups, templates, `drain` | at once |
//! | limits, guarantee, group, ports and name servers of a container | at once |
//! | other keys of a container | when it is attached again |
//! | other keys of `[daemon]`, a `[host]` that is added or removed | when the daemon starts again |
//!
//! What is refused keeps its old value in the config in force. It is a change again the next time.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};
use skbudget_controller::LevelConfig;

use super::{Control, Origin};
use crate::api::{ApiError, AttachRequest, LimitsRequest};
use crate::cli::PublishArg;
use crate::serve::config::{HOST, ServeConfig};
use crate::settings::ContainerSettings;
use crate::types::{DaemonError, GroupConfig};
use crate::units::Bytes;

/// Options that change while their container runs.
const LIVE: [&str; 6] = ["hard", "soft", "low", "min", "publish", "dns"];

/// Longest wait until the workers have let go of a removed group, and the interval of the checks.
const GROUP_WAIT: Duration = Duration::from_secs(1);
const GROUP_STEP: Duration = Duration::from_millis(5);

/// What reading the config again did.
#[derive(Debug, Default)]
pub(in crate::serve) struct Reloaded {
    /// Applied.
    changed: Vec<String>,
    /// Not applied, each with the reason, and what it needs.
    refused: Vec<String>,
}

/// Which limits of levels change: guarantees below them must fit before and after each step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Raise,
    Lower,
}

impl Reloaded {
    /// Logs everything that needs attention, and what was done.
    pub(in crate::serve) fn log(&self, path: &str) {
        self.log_lines(path);
        let Self { changed, refused } = self;
        tracing::info!("{path}: read again: {} changes, {} refused", changed.len(), refused.len());
    }

    /// Logs each change, and with a warning each that was refused.
    pub(super) fn log_lines(&self, path: &str) {
        for line in &self.changed {
            tracing::info!("{path}: {line}");
        }
        for line in &self.refused {
            tracing::warn!("{path}: {line}");
        }
    }

    /// Records what became of one change. True when it is applied.
    fn note(&mut self, subject: &str, done: &str, result: Result<(), String>) -> bool {
        let applied = result.is_ok();
        match result {
            Ok(()) => self.changed.push(format!("{subject}: {done}")),
            Err(why) => self.refused.push(format!("{subject}: not {done}: {why}")),
        }
        applied
    }
}

impl Control {
    /// Applies what is different in a config that was read again.
    pub(in crate::serve) fn reload(&self, new: ServeConfig) -> Reloaded {
        let old = self.config();
        let mut report = Reloaded::default();
        // A level needs room for the guarantees below it at every step. So levels grow first, then containers change,
        // then levels shrink; groups are added before the first container and removed after the last one.
        //
        // Becomes what is in force: what cannot be applied keeps its old value, so the next time it is tried again.
        let mut config = new;
        name_restarts(&old, &mut config, &mut report);
        self.place_groups(&old, &mut config, &mut report);
        self.change_levels(Step::Raise, &old, &mut config, &mut report);
        self.replace_config(&config);
        self.follow(&config, &mut report);
        self.change_levels(Step::Lower, &old, &mut config, &mut report);
        self.remove_groups(&old, &mut config, &mut report);
        self.replace_config(&config);
        let (changed, refused) = (report.changed.len(), report.refused.len());
        self.events.add("reloaded", json!({ "changed": changed, "refused": refused }));
        report
    }

    /// Brings the containers to what the config in force has, at the start: the last daemon may have had another one.
    pub(in crate::serve) fn follow_config(&self) {
        let mut report = Reloaded::default();
        self.follow(&self.config(), &mut report);
        report.log_lines("config");
    }

    /// Puts a config in force, for requests from now on.
    /// Detaches, changes and attaches containers as the config in force has them.
    pub(super) fn follow(&self, config: &ServeConfig, report: &mut Reloaded) {
        self.detach_removed(config, report);
        self.change_containers(config, report);
        self.attach_added(config, report);
    }

    fn replace_config(&self, config: &ServeConfig) {
        *self.config.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(config.clone());
    }

    /// Adds groups, and moves those that nothing is in.
    fn place_groups(&self, old: &ServeConfig, config: &mut ServeConfig, report: &mut Reloaded) {
        let mut placed: Vec<GroupConfig> = Vec::new();
        for group in std::mem::take(&mut config.groups) {
            let what = format!("group {}", group.name);
            let before = old.groups.iter().find(|other| other.name == group.name);
            let is_same = |other: &GroupConfig| {
                (&other.parent, other.weight) == (&group.parent, group.weight)
            };
            // Only its limits can differ, which are changed afterwards.
            if before.is_some_and(is_same) {
                placed.push(group);
                continue;
            }
            // A level has one parent and one weight for all its time: another one takes its place.
            let removed = before.map_or(Ok(()), |_| self.daemon.remove_group(&group.name));
            if removed.is_err() {
                let why = "parent and weight change when nothing is in the group".to_owned();
                report.note(&what, "moved", Err(why));
                // It stays where it is, with the limits of the file.
                placed.extend(
                    before.cloned().map(|kept| GroupConfig { limits: group.limits, ..kept }),
                );
                continue;
            }
            let added = self.daemon.add_group(group.clone()).map_err(|e| e.to_string());
            if report.note(&what, "added", added) {
                placed.push(group);
            }
        }
        config.groups = placed;
    }

    /// Changes the limits of the host and of groups.
    fn change_levels(
        &self,
        step: Step,
        old: &ServeConfig,
        config: &mut ServeConfig,
        report: &mut Reloaded,
    ) {
        let mut change = |group: Option<&str>, before: LevelConfig, limits: &mut LevelConfig| {
            let raises = limits.hard >= before.hard;
            if *limits == before || raises != (step == Step::Raise) {
                return;
            }
            let set = self.daemon.set_level(group, *limits).map_err(|e| e.to_string());
            let name = group.unwrap_or(HOST);
            match report.note(&format!("limits of {name}"), "changed", set) {
                true => self.privileged.record_level(name, None),
                false => *limits = before,
            }
        };
        if let (Some(before), Some(limits)) = (old.host, &mut config.host) {
            change(None, before, limits);
        }
        for group in &mut config.groups {
            // A group that was added or placed again has its limits already.
            let before = old.groups.iter().find(|other| {
                other.name == group.name
                    && (&other.parent, other.weight) == (&group.parent, group.weight)
            });
            if let Some(before) = before {
                change(Some(&group.name), before.limits, &mut group.limits);
            }
        }
    }

    /// Removes groups that are not in the file any more, children first. One in use stays.
    fn remove_groups(&self, old: &ServeConfig, config: &mut ServeConfig, report: &mut Reloaded) {
        let until = Instant::now() + GROUP_WAIT;
        let is_removed = |group: &&GroupConfig| !config.has_group(&group.name);
        let removed: Vec<_> = old.groups.iter().rev().filter(is_removed).collect();
        for group in removed {
            let is_used =
                self.containers().values().any(|entry| entry.group.as_ref() == Some(&group.name));
            let removed = loop {
                match self.daemon.remove_group(&group.name) {
                    // Workers let go of a group in it that was removed just now in their next turn.
                    Err(DaemonError::GroupInUse(_)) if !is_used && Instant::now() < until => {
                        std::thread::sleep(GROUP_STEP);
                    }
                    removed => break removed,
                }
            };
            let why = |e: DaemonError| format!("{e}: it stays until the config is read again");
            if report.note(&format!("group {}", group.name), "removed", removed.map_err(why)) {
                continue;
            }
            // Its containers stay valid, and the next time its removal is tried again.
            config.groups.push(group.clone());
        }
    }

    /// Detaches the containers that the file had and has no more.
    fn detach_removed(&self, config: &ServeConfig, report: &mut Reloaded) {
        let is_removed = |name: &str, origin: &Origin| {
            origin.configured && config.containers.iter().all(|c| c.name.as_deref() != Some(name))
        };
        let containers = self.containers();
        // The names first: `detach` takes the lock itself.
        let removed: Vec<String> = containers
            .iter()
            .filter(|(name, entry)| is_removed(name, &entry.origin))
            .map(|(name, _)| name.clone())
            .collect();
        drop(containers);
        for name in removed {
            let done = self.detach(&name).map_err(|e| e.to_string());
            report.note(&format!("container {name}"), "detached", done);
        }
    }

    /// Attaches the containers that the file has now. Those that were not there at the start are tried again.
    fn attach_added(&self, config: &ServeConfig, report: &mut Reloaded) {
        for request in &config.containers {
            let name = request.name.clone().unwrap_or_default();
            if self.containers().contains_key(&name) {
                continue;
            }
            let done =
                self.join(self.joining(request.clone(), true)).map(drop).map_err(|e| e.to_string());
            report.note(&format!("container {name}"), "attached", done);
        }
    }

    /// Changes the containers that were attached before.
    fn change_containers(&self, config: &ServeConfig, report: &mut Reloaded) {
        let of_file: BTreeMap<&str, &AttachRequest> =
            config.containers.iter().filter_map(|c| Some((c.name.as_deref()?, c))).collect();
        let mut changes: Vec<(String, Origin, Origin)> = Vec::new();
        // A template may fill containers of clients, too: so all are compared, not only those of the file.
        for (name, entry) in self.containers().iter() {
            let before = entry.origin.clone();
            let request = match of_file.get(name.as_str()) {
                Some(request) if before.configured => (*request).clone(),
                _ => before.request.clone(),
            };
            let filled = config.filled(request.clone());
            if filled != before.filled {
                changes.push((
                    name.clone(),
                    before,
                    Origin { request, filled, configured: entry.origin.configured },
                ));
            }
        }
        // Guarantees that become smaller make room for those that grow.
        let min = |origin: &Origin| origin.filled.options.min.map_or(0, |Bytes(min)| min);
        changes.sort_by_key(|(_, before, after)| min(after) > min(before));
        for (name, before, after) in changes {
            self.change_container(&name, before, after, report);
        }
    }

    /// Applies what is different for one container.
    fn change_container(&self, name: &str, before: Origin, after: Origin, report: &mut Reloaded) {
        let what = format!("container {name}");
        // Grows by each part that is applied: a part that is refused is different the next time, too.
        let mut in_force = before.filled.clone();
        let (old, new) = (&before.filled.options, &after.filled.options);
        // Limits and group in one request: they are changed together or not at all.
        let limits = limits_of(&before.filled, &after.filled);
        if limits != LimitsRequest::default() {
            let done = self.set(name, limits).map(drop).map_err(|e| e.to_string());
            if report.note(&format!("{what}: limits"), "changed", done) {
                let options = &mut in_force.options;
                (options.hard, options.soft, options.low) = (new.hard, new.soft, new.low);
                (options.min, in_force.group) = (new.min, after.filled.group.clone());
            }
        }
        if old.publish != new.publish {
            let done = self.change_ports(name, ports(&before.filled), ports(&after.filled));
            if report.note(&format!("{what}: publish"), "changed", done.map_err(|e| e.to_string()))
            {
                in_force.options.publish.clone_from(&new.publish);
            }
        }
        if old.dns != new.dns {
            let done = self.change_name_servers(name, &after.filled);
            if report.note(&format!("{what}: dns"), "changed", done.map_err(|e| e.to_string())) {
                in_force.options.dns.clone_from(&new.dns);
            }
        }
        let fixed = fixed_keys(&before.filled, &after.filled);
        if !fixed.is_empty() {
            let why = "takes effect when the container is attached again".to_owned();
            report.note(&format!("{what}: {}", fixed.join(", ")), "changed", Err(why));
        }
        if let Some(entry) = self.containers().get_mut(name) {
            entry.origin = Origin { filled: in_force, ..after };
            self.privileged.record(name, entry.record(name));
        }
    }

    /// Closes the ports that the file has no more, then opens those that it has now.
    fn change_ports(
        &self,
        name: &str,
        before: Vec<PublishArg>,
        after: Vec<PublishArg>,
    ) -> Result<(), ApiError> {
        // A client may have closed or opened some of them meanwhile.
        let open = self.one(name)?.publish;
        let is_closing = |port: &PublishArg| !after.contains(port) && open.contains(port);
        let closing: Vec<_> = before.iter().filter(|port| is_closing(port)).copied().collect();
        let is_opening = |port: &PublishArg| !before.contains(port) && !open.contains(port);
        let opening: Vec<_> = after.iter().filter(|port| is_opening(port)).copied().collect();
        // Closed first: a port may lead to another port of the container now.
        if !closing.is_empty() {
            self.unpublish(name, &closing)?;
        }
        if !opening.is_empty() {
            self.publish(name, &opening)?;
        }
        Ok(())
    }

    /// Changes the name servers of a container.
    fn change_name_servers(&self, name: &str, to: &AttachRequest) -> Result<(), ApiError> {
        let mut containers = self.containers();
        let entry = containers.get_mut(name).ok_or_else(|| super::no_such_container(name))?;
        let scope = self.config().scope(entry.group.as_deref());
        let options = &to.options;
        // Checked with the file already; this converts them.
        let settings = ContainerSettings::new(options, scope, super::secret()?);
        let servers = settings.map_err(|e| super::refused(&e))?.container.name_servers;
        let set = self.daemon.set_name_servers(name, servers.clone());
        set.map_err(|e| super::failed(&e))?;
        entry.options.dns.clone_from(&options.dns);
        entry.settings.container.name_servers = servers;
        Ok(())
    }
}

/// Names what changes only when the daemon starts again, and keeps its old value in force.
fn name_restarts(old: &ServeConfig, config: &mut ServeConfig, report: &mut Reloaded) {
    // One line for each of them: the file may be right, and only the signal the wrong way to apply it.
    let why = || Err("takes effect when the daemon starts again".to_owned());
    if config.workers != old.workers {
        report.note("[daemon] workers", "changed", why());
        config.workers = old.workers;
    }
    if config.socket != old.socket {
        report.note("[daemon] socket", "changed", why());
        config.socket.clone_from(&old.socket);
    }
    if config.state_dir != old.state_dir {
        report.note("[daemon] state_dir", "changed", why());
        config.state_dir.clone_from(&old.state_dir);
    }
    if config.subnet != old.subnet {
        report.note("[daemon] subnet", "changed", why());
        config.subnet = old.subnet;
    }
    if config.all_see_all != old.all_see_all {
        report.note("[daemon] isolation", "changed", why());
        config.all_see_all = old.all_see_all;
    }
    // Every budget and every group has its place below it.
    if config.host.is_some() != old.host.is_some() {
        let done = if old.host.is_some() { "removed" } else { "added" };
        report.note("[host]", done, why());
        config.host = old.host;
    }
    if config.drain != old.drain {
        report.note("[daemon] drain", "changed", Ok(()));
    }
}

/// The limits that are different in the second request, and the group.
fn limits_of(before: &AttachRequest, after: &AttachRequest) -> LimitsRequest {
    let (old, new) = (&before.options, &after.options);
    LimitsRequest {
        hard: (old.hard != new.hard).then_some(new.hard),
        soft: (old.soft != new.soft).then_some(new.soft),
        low: (old.low != new.low).then_some(new.low),
        min: (old.min != new.min).then_some(new.min),
        group: (before.group != after.group).then(|| after.group.clone()),
    }
}

/// The published ports one by one.
fn ports(of: &AttachRequest) -> Vec<PublishArg> {
    of.options.publish.iter().flatten().flat_map(|port| port.each()).collect()
}

/// Keys that are different and do not change while the container runs.
fn fixed_keys(before: &AttachRequest, after: &AttachRequest) -> Vec<String> {
    let object = |request: &AttachRequest| match serde_json::to_value(request) {
        Ok(Value::Object(object)) => object,
        _ => Map::new(),
    };
    let (old, new) = (object(before), object(after));
    let keys = old.keys().chain(new.keys().filter(|key| !old.contains_key(*key)));
    let is_fixed = |key: &&String| {
        old.get(*key) != new.get(*key) && *key != "group" && !LIVE.contains(&key.as_str())
    };
    keys.filter(is_fixed).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_need_a_new_device_are_named_and_live_ones_are_not() {
        let request = |json: &str| serde_json::from_str::<AttachRequest>(json).unwrap();
        let before = request(r#"{"name": "a", "netns": "/a", "mtu": 1500, "hard": "8MiB"}"#);
        let after = request(
            r#"{"name": "a", "netns": "/b", "ipv6": "off", "hard": "9MiB", "dns": ["192.0.2.1"], "group": "g"}"#,
        );
        assert_eq!(fixed_keys(&before, &after), ["mtu", "netns", "ipv6"]);
        assert_eq!(fixed_keys(&before, &before), Vec::<String>::new());
        let limits = limits_of(&before, &after);
        assert_eq!(limits.group, Some(Some("g".to_owned())));
        assert!(limits.hard.is_some() && limits.soft.is_none() && limits.min.is_none());
    }
}

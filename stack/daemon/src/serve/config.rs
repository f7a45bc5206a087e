//! The daemon's configuration file. Every error names file, line and key, and what is allowed.

mod source;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use skbudget_controller::LevelConfig;

use super::subnet::Subnet;
use crate::api::{ATTACH_KEYS, AttachRequest};
use crate::cli::parse_name;
use crate::exit::Failure;
use crate::keys;
use crate::levels::GROUPS_MAX;
use crate::settings::{
    ContainerOptions, ContainerSettings, OPTION_KEYS, Scope, WEIGHT_DEFAULT, WEIGHT_MAX, ordered,
};
use crate::types::GroupConfig;
use crate::units::Bytes;
use source::{Place, Source};

/// Maximum size of the file, bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Maximum number of containers and of templates in the file.
const ENTRIES_MAX: usize = 4096;

/// The name by which clients change the limits of the host: no group can have it.
pub(crate) const HOST: &str = "host";

/// Most levels above a container.
const LEVELS_MAX: usize = 3;

/// Tables of the file.
const TABLES: [&str; 5] = ["daemon", "host", "group", "template", "container"];

/// Longest time that the end of the daemon may wait for data to be delivered.
const DRAIN_DEFAULT: Duration = Duration::from_secs(5);
const DRAIN_MAX_SECONDS: u64 = 3600;

/// Most worker threads.
const WORKERS_MAX: usize = 1024;

/// The checked configuration of the daemon.
#[derive(Debug, Clone)]
pub(crate) struct ServeConfig {
    /// `None`: one for each core.
    pub(crate) workers: Option<usize>,
    /// `None`: that of the environment, or the default.
    pub(crate) socket: Option<PathBuf>,
    /// Where the next daemon finds the containers; `None`: beside the socket.
    pub(crate) state_dir: Option<PathBuf>,
    /// How long the end of the daemon waits for data to be delivered.
    pub(crate) drain: Duration,
    /// The network of all containers.
    pub(crate) subnet: Subnet,
    /// Groups do not isolate their containers from each other.
    pub(crate) all_see_all: bool,
    /// Limits of all containers together.
    pub(crate) host: Option<LevelConfig>,
    /// Parents before children.
    pub(crate) groups: Vec<GroupConfig>,
    /// In the order of the file.
    pub(crate) templates: Vec<Template>,
    /// Attached at the start.
    pub(crate) containers: Vec<AttachRequest>,
}

/// Options for the containers with a name that matches.
#[derive(Debug, Clone)]
pub(crate) struct Template {
    /// A name, or the start of one followed by `*`.
    pub(crate) pattern: String,
    pub(crate) group: Option<String>,
    pub(crate) options: ContainerOptions,
}

impl Default for ServeConfig {
    fn default() -> Self {
        Self {
            workers: None,
            socket: None,
            state_dir: None,
            drain: DRAIN_DEFAULT,
            subnet: Subnet::default(),
            all_see_all: false,
            host: None,
            groups: Vec::new(),
            templates: Vec::new(),
            containers: Vec::new(),
        }
    }
}

/// `[daemon]` of the file.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct DaemonTable {
    workers: Option<usize>,
    socket: Option<PathBuf>,
    state_dir: Option<PathBuf>,
    drain: Option<u64>,
    subnet: Option<String>,
    subnet6: Option<String>,
    isolation: Option<String>,
}

/// `[host]` of the file.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct HostTable {
    hard: Option<Bytes>,
    soft: Option<Bytes>,
    low: Option<Bytes>,
}

/// One `[[group]]` of the file.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct GroupTable {
    name: Option<String>,
    parent: Option<String>,
    hard: Option<Bytes>,
    soft: Option<Bytes>,
    low: Option<Bytes>,
    weight: Option<u32>,
}

/// One `[[template]]` of the file.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct TemplateTable {
    #[serde(rename = "match")]
    pattern: Option<String>,
    group: Option<String>,
    #[serde(flatten)]
    options: ContainerOptions,
}

impl ServeConfig {
    /// Reads and checks the file. Returns its text, too.
    pub(crate) fn load(path: &Path) -> Result<(Self, String), Failure> {
        let failed = |e| Failure::usage(format!("{}: {e}", path.display()));
        let mut text = String::new();
        // Bounded: the path may be that of an endless device.
        let read = File::open(path)
            .and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text));
        read.map_err(|e| failed(e.to_string()))?;
        if text.len() as u64 > FILE_BYTES_MAX {
            return Err(failed(format!("larger than {FILE_BYTES_MAX} bytes")));
        }
        Self::parse(&path.display().to_string(), &text).map(|config| (config, text))
    }

    /// Checks a text. `origin`: its file in messages.
    pub(crate) fn parse(origin: &str, text: &str) -> Result<Self, Failure> {
        let source = Source::parse(origin, text)?;
        source.check_tables(&TABLES)?;
        // In this order: containers need templates, and both need to know whether the host has a limit.
        let mut config = Self::default();
        config.read_daemon(&source)?;
        config.read_host(&source)?;
        for at in 0..source.entries("group", GROUPS_MAX)? {
            let group = config.group(&source, at)?;
            config.groups.push(group);
        }
        for at in 0..source.entries("template", ENTRIES_MAX)? {
            let template = config.template(&source, at)?;
            config.templates.push(template);
        }
        for at in 0..source.entries("container", ENTRIES_MAX)? {
            let container = config.container(&source, at)?;
            config.containers.push(container);
        }
        Ok(config)
    }

    /// A request, with the group and the options of the first template that matches its name where it gives none.
    pub(crate) fn filled(&self, mut request: AttachRequest) -> AttachRequest {
        let name = request.name.as_deref().unwrap_or_default();
        if let Some(template) = self.templates.iter().find(|t| matches(&t.pattern, name)) {
            request.group = request.group.or_else(|| template.group.clone());
            request.options = request.options.or(&template.options);
        }
        request
    }

    /// What is above a container of that group.
    pub(crate) fn scope(&self, group: Option<&str>) -> Scope {
        // A group always has a limit.
        Scope::Daemon { limited: self.host.is_some() || group.is_some() }
    }

    /// Whether there is a group of that name.
    pub(crate) fn has_group(&self, name: &str) -> bool {
        self.groups.iter().any(|group| group.name == name)
    }

    /// An error for a group that does not exist.
    pub(crate) fn no_group(&self, name: &str) -> String {
        let names: Vec<&str> = self.groups.iter().map(|group| group.name.as_str()).collect();
        let known = if names.is_empty() {
            "; the config has none".to_owned()
        } else {
            keys::hint(name, &names)
        };
        format!("group {name:?}: no such group{known}")
    }

    /// Reads and checks `[daemon]`.
    fn read_daemon(&mut self, source: &Source<'_>) -> Result<(), Failure> {
        let allowed = ["workers", "socket", "state_dir", "drain", "subnet", "subnet6", "isolation"];
        let table: DaemonTable = source.table("daemon", &allowed)?;
        let wrong = |key, message: String| Err(source.wrong(Place::new("daemon", key), &message));
        if table.workers.is_some_and(|n| !(1..=WORKERS_MAX).contains(&n)) {
            return wrong("workers", format!("workers: 1 to {WORKERS_MAX} are allowed"));
        }
        if table.socket.as_ref().is_some_and(|path| !path.is_absolute()) {
            return wrong("socket", "socket: an absolute path is needed".to_owned());
        }
        if table.state_dir.as_ref().is_some_and(|path| !path.is_absolute()) {
            return wrong("state_dir", "state_dir: an absolute path is needed".to_owned());
        }
        if table.drain.is_some_and(|seconds| seconds > DRAIN_MAX_SECONDS) {
            return wrong(
                "drain",
                format!("drain: at most {DRAIN_MAX_SECONDS} seconds are allowed"),
            );
        }
        if let Some(text) = &table.subnet
            && let Err(e) = self.subnet.set_v4(text)
        {
            return wrong("subnet", format!("subnet {e}"));
        }
        if let Some(text) = &table.subnet6
            && let Err(e) = self.subnet.set_v6(text)
        {
            return wrong("subnet6", format!("subnet6 {e}"));
        }
        self.all_see_all = match table.isolation.as_deref() {
            None | Some("group") => false,
            Some("none") => true,
            Some(other) => {
                let message = format!("isolation {other:?}: group or none is allowed");
                return wrong("isolation", message);
            }
        };
        (self.workers, self.socket) = (table.workers, table.socket);
        self.state_dir = table.state_dir;
        self.drain = table.drain.map_or(DRAIN_DEFAULT, Duration::from_secs);
        Ok(())
    }

    /// Reads and checks `[host]`.
    fn read_host(&mut self, source: &Source<'_>) -> Result<(), Failure> {
        let table: HostTable = source.table("host", &["hard", "soft", "low"])?;
        let Some(hard) = table.hard else {
            return match [("soft", table.soft), ("low", table.low)].iter().find(|k| k.1.is_some()) {
                Some((key, _)) => {
                    Err(source
                        .wrong(Place::new("host", key), &format!("{key}: needs hard beside it")))
                }
                None => Ok(()),
            };
        };
        let limits = ordered(hard, table.soft, table.low)
            .map_err(|e| source.wrong(Place::new("host", &e.key()), &e.message()))?;
        self.host = Some(limits.into());
        Ok(())
    }

    /// Reads and checks one group, which may be in one of those before it.
    fn group(&self, source: &Source<'_>, at: usize) -> Result<GroupConfig, Failure> {
        let allowed = ["name", "parent", "hard", "soft", "low", "weight"];
        let table: GroupTable = source.entry("group", at, &allowed)?;
        let wrong =
            |key: &str, message: &str| source.wrong(Place::new("group", key).at(at), message);
        let name = table.name.ok_or_else(|| wrong("", "name: missing"))?;
        parse_name(&name).map_err(|e| wrong("name", &format!("name: {e}")))?;
        if name == HOST || self.has_group(&name) {
            return Err(wrong("name", &format!("name: {name:?} is in use")));
        }
        let levels = usize::from(self.host.is_some()) + 1 + self.depth(table.parent.as_deref());
        match &table.parent {
            Some(parent) if !self.has_group(parent) => {
                return Err(wrong(
                    "parent",
                    &format!("parent {parent:?}: must be a group before this one"),
                ));
            }
            _ if levels > LEVELS_MAX => {
                let message = format!(
                    "parent: at most {LEVELS_MAX} levels are allowed, that of [host] included"
                );
                return Err(wrong("parent", &message));
            }
            _ => {}
        }
        let hard = table.hard.ok_or_else(|| wrong("", "hard: missing"))?;
        let limits =
            ordered(hard, table.soft, table.low).map_err(|e| wrong(&e.key(), &e.message()))?.into();
        let weight = table.weight.unwrap_or(WEIGHT_DEFAULT);
        if !(1..=WEIGHT_MAX).contains(&weight) {
            return Err(wrong("weight", &format!("weight {weight} is not in 1..={WEIGHT_MAX}")));
        }
        Ok(GroupConfig { name, parent: table.parent, limits, weight })
    }

    /// Number of levels from that group up to the outermost.
    fn depth(&self, group: Option<&str>) -> usize {
        let Some(group) = self.groups.iter().find(|other| Some(other.name.as_str()) == group)
        else {
            return 0;
        };
        // Each parent is before its child in the list, so this ends.
        1 + self.depth(group.parent.as_deref())
    }

    /// Reads and checks one template.
    fn template(&self, source: &Source<'_>, at: usize) -> Result<Template, Failure> {
        let allowed: Vec<&str> = ["match", "group"].into_iter().chain(OPTION_KEYS).collect();
        let table: TemplateTable = source.entry("template", at, &allowed)?;
        let wrong =
            |key: &str, message: &str| source.wrong(Place::new("template", key).at(at), message);
        let pattern = table.pattern.ok_or_else(|| wrong("", "match: missing"))?;
        let name = pattern.strip_suffix('*').unwrap_or(&pattern);
        // An empty start matches every name.
        if !(name.is_empty() && pattern == "*") {
            parse_name(name).map_err(|e| {
                wrong("match", &format!("match: a name, or its start followed by '*': {e}"))
            })?;
        }
        // Ports of the host belong to one container.
        if table.options.publish.is_some() && pattern.ends_with('*') {
            return Err(wrong("publish", "publish: needs a template of a single name"));
        }
        let group = table.group;
        if let Some(group) = group.as_ref().filter(|group| !self.has_group(group)) {
            return Err(wrong("group", &self.no_group(group)));
        }
        ContainerSettings::new(&table.options, self.scope(group.as_deref()), [0; 2])
            .map_err(|e| wrong(&e.key(), &e.message()))?;
        Ok(Template { pattern, group, options: table.options })
    }

    /// Reads and checks one container, with the template that applies to it.
    fn container(&self, source: &Source<'_>, at: usize) -> Result<AttachRequest, Failure> {
        let allowed: Vec<&str> = ATTACH_KEYS.into_iter().chain(OPTION_KEYS).collect();
        let allowed: Vec<&str> = allowed.into_iter().filter(|key| *key != "pid").collect();
        let request: AttachRequest = source.entry("container", at, &allowed)?;
        let wrong =
            |key: &str, message: &str| source.wrong(Place::new("container", key).at(at), message);
        let name = request.name.as_deref().ok_or_else(|| wrong("", "name: missing"))?;
        parse_name(name).map_err(|e| wrong("name", &format!("name: {e}")))?;
        if self.containers.iter().any(|other| other.name.as_deref() == Some(name)) {
            return Err(wrong("name", &format!("name: a container is named {name:?} already")));
        }
        let netns = request.netns.as_ref().ok_or_else(|| wrong("", "netns: missing"))?;
        if !netns.is_absolute() {
            return Err(wrong("netns", "netns: an absolute path is needed"));
        }
        if let Some(address) = request.address {
            self.subnet.number(address).map_err(|e| wrong("address", &e))?;
            if self.containers.iter().any(|other| other.address == Some(address)) {
                return Err(wrong("address", &format!("address {address}: in use above")));
            }
        }
        if let Some(ifname) = &request.ifname {
            super::target::check_ifname(ifname).map_err(|e| wrong("ifname", &e.body.message))?;
        }
        let filled = self.filled(request.clone());
        if let Some(group) = filled.group.as_ref().filter(|group| !self.has_group(group)) {
            return Err(wrong("group", &self.no_group(group)));
        }
        ContainerSettings::new(&filled.options, self.scope(filled.group.as_deref()), [0; 2])
            .map_err(|e| wrong(&e.key(), &e.message()))?;
        Ok(request)
    }
}

/// Whether a name matches a template's pattern.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => name == pattern,
    }
}

//! The kernel's limit on TCP buffers: `memory.kmem.tcp` of cgroup v1, the only one that can be set for a single group.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use crate::exit::Failure;

const ROOT: &str = "/sys/fs/cgroup/memory";
const LIMIT: &str = "memory.kmem.tcp.limit_in_bytes";
/// Accounting starts with the first limit that is set; this one is too large to take effect.
const NONE: u64 = 1 << 50;

/// Checks for the controller; the error names what is missing.
pub(super) fn check() -> Result<(), Failure> {
    if Path::new(ROOT).join("cgroup.procs").exists() && first_limit().is_some() {
        return Ok(());
    }
    let what = format!(
        "target kernel needs cgroup v1 with {LIMIT} under {ROOT}: not in this kernel, or not mounted there"
    );
    Err(Failure::Unavailable(what))
}

/// Path of a limit file. On some kernels the root group has none; then search its child groups.
fn first_limit() -> Option<PathBuf> {
    let own = Path::new(ROOT).join(LIMIT);
    if own.exists() {
        return Some(own);
    }
    let groups = fs::read_dir(ROOT).ok()?.filter_map(Result::ok);
    groups.map(|g| g.path().join(LIMIT)).find(|p| p.exists())
}

/// A cgroup, removed on drop.
#[derive(Debug)]
pub(super) struct Cgroup(PathBuf);

/// The cgroups of a run, below a common parent.
#[derive(Debug)]
pub(super) struct Cgroups {
    pool: Cgroup,
}

impl Cgroups {
    /// Creates the parent; `limit` applies to all together.
    pub(super) fn make(limit: Option<u64>) -> Result<Self, Failure> {
        let path = Path::new(ROOT).join(format!("loadgen-{}", std::process::id()));
        Ok(Self { pool: Cgroup::make(path, limit)? })
    }
    pub(super) fn add(&self, name: &str, limit: Option<u64>) -> Result<Cgroup, Failure> {
        Cgroup::make(self.pool.0.join(name), limit)
    }
    pub(super) fn pool(&self) -> &Cgroup {
        &self.pool
    }
}

impl Cgroup {
    fn make(path: PathBuf, limit: Option<u64>) -> Result<Self, Failure> {
        fs::create_dir(&path).map_err(|e| Failure::io(path.display(), e))?;
        let group = Self(path);
        // Also without a limit: only the write starts the accounting.
        group.write(LIMIT, limit.unwrap_or(NONE))?;
        Ok(group)
    }

    fn write(&self, file: &str, value: u64) -> Result<(), Failure> {
        let path = self.0.join(file);
        fs::write(&path, value.to_string()).map_err(|e| Failure::io(path.display(), e))
    }
    fn read(&self, file: &str) -> u64 {
        // A file that cannot be read counts as 0: one sample is missing, and the run continues.
        let text = fs::read_to_string(self.0.join(file)).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    }

    pub(super) fn enter(&self, pid: u32) -> Result<(), Failure> {
        self.write("cgroup.procs", pid.into())
    }
    pub(super) fn usage_bytes(&self) -> u64 {
        self.read("memory.kmem.tcp.usage_in_bytes")
    }
    pub(super) fn max_usage_bytes(&self) -> u64 {
        self.read("memory.kmem.tcp.max_usage_in_bytes")
    }
    pub(super) fn failcnt(&self) -> u64 {
        self.read("memory.kmem.tcp.failcnt")
    }
}

impl Drop for Cgroup {
    /// Retries: the processes of the group may take a moment to exit.
    fn drop(&mut self) {
        for _ in 0..100 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

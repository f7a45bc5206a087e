//! `skbudget serve` as a process of its own, and what the kernel reports of it.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use skbudget::attach;
use skbudget::client::remote::{Remote, RemoteError};
use skbudget::settings::ContainerOptions;

/// A running daemon in a network namespace of its own. It ends with this value.
#[derive(Debug)]
pub(crate) struct Serve {
    child: Child,
    pub(crate) remote: Remote,
    folder: PathBuf,
    /// The namespace of the daemon and of the servers that it reaches.
    pub(crate) netns: OwnedFd,
}

impl Serve {
    pub(crate) fn start(workers: usize) -> io::Result<Self> {
        let netns = attach::create_netns().map_err(io::Error::other)?;
        let folder = std::env::temp_dir().join(format!("skbudget-bench-{}", std::process::id()));
        let socket = folder.join("socket");
        let mut command = Command::new(built()?);
        command.args(["serve", "--workers", &workers.to_string(), "--socket"]).arg(&socket);
        command.stdin(Stdio::null());
        // The child has the network namespace of the thread that creates it.
        let child =
            attach::run_in(netns.as_fd(), || command.spawn()).map_err(io::Error::other)??;
        let mut serve = Self { child, remote: Remote::new(Some(socket)), folder, netns };
        // The socket exists before the daemon serves it.
        while serve.remote.stats().is_err() {
            if let Some(status) = serve.child.try_wait()? {
                return Err(io::Error::other(format!("skbudget serve: {status}")));
            }
            sleep(Duration::from_millis(5));
        }
        Ok(serve)
    }

    /// Attaches a namespace of this process.
    pub(crate) fn attach(
        &self,
        name: &str,
        netns: &OwnedFd,
        options: ContainerOptions,
    ) -> Result<(), RemoteError> {
        // A namespace without a name: it ends with this process, and its device too.
        let path = format!("/proc/{}/fd/{}", std::process::id(), netns.as_raw_fd());
        self.remote.attach(name, Path::new(&path), options)
    }

    /// The daemon's processes: the one that was started, and its children.
    fn processes(&self) -> Vec<u32> {
        let own = self.child.id();
        let tasks = fs::read_dir(format!("/proc/{own}/task")).into_iter().flatten().flatten();
        // A child is listed with the thread that created it.
        let children = tasks.map(|task| fs::read_to_string(task.path().join("children")));
        let mut all = vec![own];
        for list in children.flatten() {
            all.extend(list.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
        }
        all
    }

    /// CPU time so far.
    pub(crate) fn cpu(&self) -> Duration {
        let of = |pid: &u32| cpu_of(Path::new(&format!("/proc/{pid}/stat")));
        self.processes().iter().map(of).sum()
    }

    /// Resident memory, bytes.
    pub(crate) fn rss(&self) -> u64 {
        let of = |pid: &u32| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
            let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
            kib.unwrap_or(0) << 10
        };
        self.processes().iter().map(of).sum()
    }

    /// Open descriptors.
    pub(crate) fn descriptors(&self) -> usize {
        let of = |pid: &u32| fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
        self.processes().iter().map(of).sum()
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// User and system time in a `stat` file of a process or a thread (proc(5), fields 14 and 15).
pub(crate) fn cpu_of(stat: &Path) -> Duration {
    /// Length of the kernel's clock tick for user space (USER_HZ).
    const TICK: Duration = Duration::from_millis(10);
    let text = fs::read_to_string(stat).unwrap_or_default();
    // The second field is the name, which may contain spaces and parentheses.
    let fields = text.rsplit_once(')').map_or("", |(_, fields)| fields);
    let times = fields.split_whitespace().skip(14 - 3).take(2);
    TICK * times.filter_map(|ticks| ticks.parse::<u32>().ok()).sum()
}

/// Builds the skbudget of this source tree: `cargo bench` builds benches, not other packages' binaries.
fn built() -> io::Result<PathBuf> {
    if let Some(cargo) = std::env::var_os("CARGO") {
        let status = Command::new(cargo).args(["build", "--release", "-p", "skbudget"]).status()?;
        if !status.success() {
            return Err(io::Error::other("skbudget does not build"));
        }
    }
    // target/release/deps/daemon-0123 -> target/release/skbudget
    let exe = std::env::current_exe()?;
    let folder = exe.ancestors().nth(2).unwrap_or(&exe);
    Ok(folder.join("skbudget"))
}

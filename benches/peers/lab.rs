//! Namespaces and processes that are removed at the end, however the bench ends short of SIGKILL.

use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;

/// Interval of polls for an event.
const POLL: Duration = Duration::from_millis(20);
/// Default congestion control of every namespace here. It does not pace, and every kernel has it.
pub(crate) const UNPACED: &str = "reno";
pub(crate) const CONGESTION_CONTROL_KEY: &str = "net.ipv4.tcp_congestion_control";
/// Time that a process has to end after SIGTERM.
const END_PATIENCE: Duration = Duration::from_secs(3);

static STOP: AtomicBool = AtomicBool::new(false);

/// Fails after Ctrl-C: everything unwinds, and the namespaces are removed.
pub(crate) fn check_stop() -> Result<(), String> {
    if STOP.load(Ordering::Relaxed) { Err("interrupted".to_owned()) } else { Ok(()) }
}

/// The private host namespace, and the prefix of all names.
#[derive(Debug)]
pub(crate) struct Lab {
    pub(crate) host: Netns,
    /// Address of the host's uplink: some peers copy its default route.
    pub(crate) gateway: &'static str,
    tag: String,
}

impl Lab {
    pub(crate) fn new() -> Result<Self, String> {
        // Blocked here and in every thread, awaited in one; children start with no signal blocked.
        let mut signals = SigSet::empty();
        signals.add(Signal::SIGINT);
        signals.add(Signal::SIGTERM);
        signals.thread_block().map_err(|e| format!("signals: {e}"))?;
        std::thread::spawn(move || {
            let _ = signals.wait();
            STOP.store(true, Ordering::Relaxed);
        });

        // The process id keeps namespaces of concurrent runs apart.
        let tag = format!("skb{}", std::process::id());
        let host = Netns::new(format!("{tag}h"))?;
        let lab = Self { host, gateway: "10.99.0.1", tag };
        lab.host.ip("link add up0 type veth peer name up1")?;
        lab.host.ip("link set up1 up")?;
        lab.host.ip("addr add 10.99.0.2/24 dev up0")?;
        lab.host.ip("link set up0 up")?;
        lab.host.ip(&format!("route add default via {}", lab.gateway))?;
        Ok(lab)
    }

    /// Creates a namespace for one container.
    pub(crate) fn container(&self) -> Result<Netns, String> {
        Netns::new(format!("{}c", self.tag))
    }

    /// Starts a server or a network program in the host namespace.
    pub(crate) fn in_host<S: AsRef<OsStr>>(
        &self,
        program: impl AsRef<OsStr>,
        args: &[S],
    ) -> Result<Process, String> {
        let mut line = self.host.exec();
        line.push(program.as_ref().to_owned());
        line.extend(args.iter().map(|arg| arg.as_ref().to_owned()));
        Process::spawn(&line)
    }
}

/// A network namespace with a name.
#[derive(Debug)]
pub(crate) struct Netns(pub(crate) String);

impl Netns {
    fn new(name: String) -> Result<Self, String> {
        ip(&format!("netns add {name}"))?;
        let netns = Self(name);
        netns.ip("link set lo up")?;
        // Before the first socket: a socket created under BBR stays paced, whatever is set later.
        let args = format!("netns exec {} sysctl -qw {CONGESTION_CONTROL_KEY}={UNPACED}", netns.0);
        ip(&args)?;
        Ok(netns)
    }

    /// Runs an `ip` command inside.
    pub(crate) fn ip(&self, args: &str) -> Result<String, String> {
        ip(&format!("-n {} {args}", self.0))
    }

    /// Prefix of a command that runs inside.
    pub(crate) fn exec(&self) -> Vec<OsString> {
        ["ip", "netns", "exec", &self.0].map(OsString::from).to_vec()
    }

    /// Waits until another program has configured an address.
    pub(crate) fn await_address(&self) -> Result<(), String> {
        let began = Instant::now();
        while self.ip("-4 -o addr show scope global")?.is_empty() {
            check_stop()?;
            if began.elapsed() > Duration::from_secs(10) {
                return Err(format!("{} never got an address", self.0));
            }
            std::thread::sleep(POLL);
        }
        // The address appears a moment before the other end is ready.
        std::thread::sleep(Duration::from_millis(300));
        Ok(())
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        if let Err(e) = ip(&format!("netns del {}", self.0)) {
            eprintln!("peers: {e}");
        }
    }
}

fn ip(args: &str) -> Result<String, String> {
    let output = Command::new("ip").args(args.split_whitespace()).stdin(Stdio::null()).output();
    let output = output.map_err(|e| format!("ip: {e}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(format!("ip {args}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}

/// A child that does not outlive its owner; its stdout is kept.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    output: Option<std::thread::JoinHandle<String>>,
}

impl Process {
    pub(crate) fn spawn(line: &[OsString]) -> Result<Self, String> {
        let mut command = Command::new(&line[0]);
        command.args(&line[1..]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().map_err(|e| format!("{}: {e}", line[0].display()))?;
        let output = child.stdout.take().map(|mut pipe| {
            // Reads while the child runs: a full pipe would block it.
            std::thread::spawn(move || {
                let mut text = String::new();
                let _ = pipe.read_to_string(&mut text);
                text
            })
        });
        Ok(Self { child, output })
    }

    /// The child's stdout, once it has ended by itself.
    pub(crate) fn finish(mut self, patience: Duration) -> Result<String, String> {
        let began = Instant::now();
        while began.elapsed() < patience {
            // An early return drops the child, which ends it.
            check_stop()?;
            if let Some(status) = self.child.try_wait().map_err(|e| format!("wait: {e}"))? {
                let said = self.output.take().and_then(|reader| reader.join().ok());
                let said = said.unwrap_or_default();
                return if status.success() { Ok(said) } else { Err(format!("{status}: {said}")) };
            }
            std::thread::sleep(POLL);
        }
        Err(format!("not done after {patience:?}"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let pid = Pid::from_raw(self.child.id().cast_signed());
        let began = Instant::now();
        let mut told = false;
        // A child that was waited for gets no signal: its number may belong to another process by now.
        while let Ok(None) = self.child.try_wait() {
            if !std::mem::replace(&mut told, true) {
                // SIGTERM first, so that programs remove their devices; SIGKILL after the patience.
                let _ = kill(pid, Signal::SIGTERM);
            }
            if began.elapsed() > END_PATIENCE {
                let _ = self.child.kill();
                let _ = self.child.wait();
                return;
            }
            std::thread::sleep(POLL);
        }
    }
}

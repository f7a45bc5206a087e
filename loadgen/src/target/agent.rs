//! A load process inside a container's network namespace.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use crate::traffic::{AgentReport, AgentSpec, Shared, run_agent};

/// The hidden subcommand of `loadgen`.
pub(crate) const SUBCOMMAND: &str = "__agent";

/// The parent's end of an agent process.
#[derive(Debug)]
pub(super) struct Agent {
    child: Child,
    /// The agent exits when this pipe closes.
    stdin: Option<ChildStdin>,
    answer: Receiver<io::Result<String>>,
}

impl Agent {
    /// Starts the agent in a namespace that this process holds open.
    pub(super) fn start(netns: BorrowedFd<'_>, spec: AgentSpec) -> io::Result<Self> {
        // The child opens the descriptor of this process, which stays open while the caller holds the namespace.
        let path = format!("/proc/{}/fd/{}", std::process::id(), netns.as_raw_fd());
        let spec = AgentSpec { netns: Some(PathBuf::from(path)), ..spec };
        // This very binary, even if its file was replaced meanwhile.
        let mut child = Command::new("/proc/self/exe")
            .arg(SUBCOMMAND)
            // Both pipes carry one line of JSON; standard error is that of the parent.
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // The terminal sends Ctrl-C and a hangup to its whole process group; the agent must end only when this
            // process tells it.
            .process_group(0)
            .spawn()?;
        let mut stdin = child.stdin.take();
        if let Some(pipe) = &mut stdin {
            // The specification is one line. The pipe stays open: its end makes the agent exit.
            let mut line = serde_json::to_string(&spec)?;
            line.push('\n');
            pipe.write_all(line.as_bytes())?;
        }
        let (sender, answer) = mpsc::channel();
        if let Some(mut stdout) = child.stdout.take() {
            // A thread reads the report, so that `answer` can time out.
            thread::spawn(move || {
                let mut text = String::new();
                let read = stdout.read_to_string(&mut text).map(|_| text);
                let _ = sender.send(read);
            });
        }
        Ok(Self { child, stdin, answer })
    }

    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Asks the agent to end the run now and to report.
    pub(super) fn stop(&mut self) {
        if let Some(pipe) = &mut self.stdin {
            // Ignore errors: if the agent has exited, `answer` returns the error.
            let _ = pipe.write_all(STOP.as_bytes());
        }
    }

    /// Returns the agent's report; an error if none arrives in time.
    pub(super) fn answer(&mut self, within: Duration) -> Result<AgentReport, String> {
        let text = match self.answer.recv_timeout(within) {
            Ok(text) => text.map_err(|e| e.to_string())?,
            Err(_) => return Err("the agent did not answer".to_owned()),
        };
        // The report is the last line; anything before it is ignored.
        let line = text.lines().last().unwrap_or_default();
        serde_json::from_str(line).map_err(|e| format!("the agent's answer: {e}"))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // The closed pipe asks the agent to exit; the kill ends one that hangs.
        drop(self.stdin.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The line that ends the run early.
const STOP: &str = "stop\n";

/// Main function of the agent: its specification arrives on standard input, the report is written to standard output.
pub(crate) fn main() -> Result<(), String> {
    let mut line = String::new();
    let mut stdin = BufReader::new(io::stdin());
    stdin.read_line(&mut line).map_err(|e| e.to_string())?;
    let spec: AgentSpec =
        serde_json::from_str(&line).map_err(|e| format!("the specification of the agent: {e}"))?;
    let shared = Shared::new(spec.epoch_ns);
    let stopped = Arc::clone(&shared);
    thread::spawn(move || {
        let mut word = String::new();
        while stdin.read_line(&mut word).is_ok_and(|n| n > 0) {
            if word == STOP {
                stopped.end();
            }
            word.clear();
        }
        // The end of standard input means that the parent has exited.
        std::process::exit(1);
    });
    let report = run_agent(&spec, &shared)?;
    let text = serde_json::to_string(&report).map_err(|e| e.to_string())?;
    writeln!(io::stdout(), "{text}").map_err(|e| e.to_string())
}

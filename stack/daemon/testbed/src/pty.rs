//! A terminal with a session, operated as a user would.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, poll};
use nix::pty::openpty;

/// Ends a test that hangs.
const PATIENCE: Duration = Duration::from_secs(30);

/// A session with its leader, on a terminal of its own.
#[derive(Debug)]
pub struct Session {
    master: Option<File>,
    reader: Option<JoinHandle<()>>,
    gone: Arc<AtomicBool>,
    slave: OwnedFd,
    leader: Child,
    shown: Arc<Mutex<String>>,
    /// Length of the output that was expected already.
    seen: usize,
}

impl Session {
    /// Runs a program as the leader of a new session on a new terminal.
    pub fn start(args: &[&str], env: &[(&str, &str)]) -> Self {
        let pty = openpty(None, None).unwrap();
        // If the session inherited this end, the terminal would never hang up.
        fcntl(&pty.master, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).unwrap();
        let clone = || pty.slave.try_clone().unwrap();
        let mut command = Command::new("setsid");
        command.arg("-c").args(args).envs(env.iter().copied());
        let leader = command.stdin(clone()).stdout(clone()).stderr(clone()).spawn().unwrap();
        let master = File::from(pty.master);
        let shown = Arc::<Mutex<String>>::default();
        let (mut from, to) = (master.try_clone().unwrap(), Arc::clone(&shown));
        let gone = Arc::<AtomicBool>::default();
        let stop = Arc::clone(&gone);
        let reader = thread::spawn(move || {
            let mut buf = [0; 4096];
            while !stop.load(Ordering::Relaxed) {
                let mut fds = [PollFd::new(from.as_fd(), PollFlags::POLLIN)];
                if poll(&mut fds, 20u8).unwrap() == 0 {
                    continue;
                }
                // An error means that no process has the terminal open.
                let Ok(n @ 1..) = from.read(&mut buf) else { break };
                to.lock().unwrap().push_str(&String::from_utf8_lossy(&buf[..n]));
            }
        });
        let reader = Some(reader);
        Self { master: Some(master), reader, gone, slave: pty.slave, leader, shown, seen: 0 }
    }

    /// Types a text.
    pub fn type_in(&mut self, text: &str) {
        self.master.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
    }

    /// Waits for a text in the output after the one expected before.
    #[track_caller]
    pub fn expect(&mut self, text: &str) {
        let began = Instant::now();
        loop {
            {
                let shown = self.shown.lock().unwrap();
                if let Some(at) = shown[self.seen..].find(text) {
                    self.seen += at + text.len();
                    return;
                }
                assert!(began.elapsed() < PATIENCE, "no {text:?} in {:?}", &shown[self.seen..]);
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// All that the terminal has shown.
    pub fn shown(&self) -> String {
        self.shown.lock().unwrap().clone()
    }

    /// Runs another program on the terminal, outside of the session.
    pub fn beside(&self, program: &str, args: &[&str]) {
        let mut command = Command::new(program);
        let status = command.args(args).stdin(self.slave.try_clone().unwrap()).status();
        assert!(status.unwrap().success());
    }

    /// Hangs the terminal up, as closing its window does.
    pub fn hang_up(&mut self) {
        self.gone.store(true, Ordering::Relaxed);
        self.reader.take().into_iter().for_each(|reader| reader.join().unwrap());
        self.master = None;
    }

    /// Waits for the end of the session's leader.
    pub fn wait(&mut self) -> ExitStatus {
        self.leader.wait().unwrap()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.hang_up();
        let _ = self.leader.kill();
        let _ = self.leader.wait();
    }
}

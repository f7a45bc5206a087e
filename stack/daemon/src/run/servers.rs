//! Hands the host's name servers to the relay, which may not read /etc/resolv.conf: at the start, and when they change.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::resolv_conf::{PATH, Watch};

/// Interval between two checks of the file, as of the C library's resolver in practice: a new network takes longer.
const CHECK_EVERY: Duration = Duration::from_secs(1);

/// The thread that checks the file, until this value is dropped.
#[derive(Debug)]
pub(super) struct ServerWatch {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl ServerWatch {
    /// Calls `hand_over` with the servers now and, on a thread of its own, with those of every change. The thread ends
    /// when a call fails: the relay is gone.
    pub(super) fn start(
        mut hand_over: impl FnMut(Vec<SocketAddr>) -> io::Result<()> + Send + 'static,
    ) -> io::Result<Self> {
        let mut watch = Watch::new(Path::new(PATH));
        // Before the device: the first question of the command finds them.
        if let Some(servers) = watch.changed() {
            hand_over(servers)?;
        }
        let (stop, stopped) = mpsc::channel();
        let check = move || {
            while stopped.recv_timeout(CHECK_EVERY) == Err(RecvTimeoutError::Timeout) {
                if watch.changed().is_some_and(|servers| hand_over(servers).is_err()) {
                    return;
                }
            }
        };
        let thread = thread::Builder::new().name("skb-resolv".to_owned()).spawn(check)?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for ServerWatch {
    /// After it no more servers are handed over.
    fn drop(&mut self) {
        // Ends the wait of the thread at once.
        drop(self.stop.take());
        // It has sent what it may have been sending.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

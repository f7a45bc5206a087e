//! Guards the queue of the device, where the command may configure its network. The queue is charged by its length: a
//! longer one, or longer frames, would hold uncharged memory (K10). So both are set back whenever the command raises
//! them. A shorter queue harms only the command.
//!
//! The kernel reports every change of a device on a netlink socket of its network namespace. The command may also
//! rename the device or move it to another namespace: the descriptor still leads to it.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns};
use serde::{Deserialize, Serialize};
use skbudget_stack::Tap;

use crate::attach::{self, GuestNet};
use crate::netlink::{Link, Netlink};
use crate::units::Size;

/// Minimum interval between two checks: a command that changes its device all the time costs a bounded share of a core.
const PAUSE: Duration = Duration::from_millis(1);

/// Maximum bytes in one place of the queue: a packet that the other kernel is to segment (GSO).
const FRAME_BYTES: u64 = 64 << 10;

/// The changes found so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Tampered {
    /// Number of changes set back.
    pub(super) times: u64,
    /// The most that the queue could hold before one was set back, bytes.
    pub(super) bytes: u64,
}

/// The watching thread, as its process uses it.
#[derive(Debug, Default)]
pub(super) struct Ring {
    found: Arc<Mutex<Tampered>>,
}

impl Ring {
    /// Watches the device, which must be in the network namespace of the calling thread.
    pub(super) fn watch(tap: Tap, guest: &GuestNet) -> io::Result<Self> {
        let ring = Self::default();
        let watch = Watch {
            tap,
            netns: id_of(&attach::current_netns().map_err(|e| e.source)?.into())?,
            events: Netlink::of_links()?,
            most: Link { mtu: guest.mtu.into(), txqueuelen: guest.txqueuelen },
            found: Arc::clone(&ring.found),
        };
        thread::Builder::new().name("skb-ring".to_owned()).spawn(move || watch.run())?;
        Ok(ring)
    }

    /// The changes found so far.
    pub(super) fn tampered(&self) -> Tampered {
        *locked(&self.found)
    }
}

fn locked(found: &Mutex<Tampered>) -> MutexGuard<'_, Tampered> {
    found.lock().unwrap_or_else(PoisonError::into_inner)
}

/// State of the thread.
#[derive(Debug)]
struct Watch {
    tap: Tap,
    /// Inode of the namespace of the thread, and of the device as far as is known.
    netns: u64,
    /// Reports changes of devices in that namespace.
    events: Netlink,
    /// The settings that are charged.
    most: Link,
    found: Arc<Mutex<Tampered>>,
}

impl Watch {
    /// Runs until the device is gone.
    fn run(mut self) {
        loop {
            match self.look() {
                Ok(()) => {}
                // The device is deleted (EBADFD).
                Err(e) if e.raw_os_error() == Some(Errno::EBADFD as i32) => return,
                // The device was renamed or moved between two steps; an event of that follows.
                Err(e) => log::debug!("the device's ring: {e}"),
            }
            // Events of the pause are drained together.
            thread::sleep(PAUSE);
            let mut fds = [PollFd::new(self.events.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => self.events.drain(),
                Err(errno) => {
                    return log::warn!(
                        "changes of the device queue are no longer detected: {errno}"
                    );
                }
            }
        }
    }

    /// Checks the device, and sets back what exceeds the charge.
    fn look(&mut self) -> io::Result<()> {
        // The name belongs to the namespace, so the namespace comes first.
        self.follow()?;
        let name = self.tap.device_name()?;
        let mut netlink = Netlink::open()?;
        let (index, now) = netlink.link(&name)?;
        if now.txqueuelen <= self.most.txqueuelen && now.mtu <= self.most.mtu {
            return Ok(());
        }
        // A smaller setting stays: only what was raised is set back.
        let mtu = now.mtu.min(self.most.mtu);
        netlink.set_queue(index, mtu, now.txqueuelen.min(self.most.txqueuelen))?;
        // The length alone counts: each place can hold a GSO packet, whatever the MTU.
        let bytes = u64::from(now.txqueuelen) * FRAME_BYTES;
        {
            let mut found = locked(&self.found);
            found.times += 1;
            found.bytes = found.bytes.max(bytes);
        }
        log::warn!(
            "{name}: the command set the queue to {} packets and the MTU to {}: restored; until then the kernel could \
             hold {} of frames",
            now.txqueuelen,
            now.mtu,
            Size(bytes)
        );
        Ok(())
    }

    /// Enters the namespace of the device if it has moved.
    fn follow(&mut self) -> io::Result<()> {
        let netns = match self.tap.device_netns() {
            // Before Linux 5.2 the descriptor has no such query: only the first namespace is watched.
            Err(e) if e.raw_os_error() == Some(Errno::EINVAL as i32) => return Ok(()),
            other => std::fs::File::from(other?),
        };
        let id = id_of(&netns)?;
        if id != self.netns {
            setns(netns.as_fd(), CloneFlags::CLONE_NEWNET)?;
            self.events = Netlink::of_links()?;
            self.netns = id;
        }
        Ok(())
    }
}

/// Identifies a namespace by its inode number.
fn id_of(netns: &std::fs::File) -> io::Result<u64> {
    Ok(netns.metadata()?.ino())
}

//! The device's ring, where the command may configure its network. Frames in the ring are charged by its length; a
//! longer one, or longer frames, would be memory that nobody pays for. So both are set back whenever they are raised.
//! A shorter ring harms only the command itself.
//!
//! The kernel reports every change of a device on a netlink socket of its network namespace. The device may also be
//! renamed, or moved on into another namespace: the descriptor knows where it is.

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

/// From one look to the next at least: a command that changes its device all the time costs a bounded share of a core.
const PAUSE: Duration = Duration::from_millis(1);

/// What one place of the ring can hold: a packet that the other kernel is to cut.
const FRAME_BYTES: u64 = 64 << 10;

/// What was found so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Tampered {
    /// How often something was set back.
    pub(super) times: u64,
    /// The most that the ring could hold meanwhile.
    pub(super) bytes: u64,
}

/// The thread that watches, as its process sees it.
#[derive(Debug, Default)]
pub(super) struct Ring {
    found: Arc<Mutex<Tampered>>,
}

impl Ring {
    /// Watches the device, which is in the network namespace of this thread.
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

    pub(super) fn tampered(&self) -> Tampered {
        *locked(&self.found)
    }
}

fn locked(found: &Mutex<Tampered>) -> MutexGuard<'_, Tampered> {
    found.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug)]
struct Watch {
    tap: Tap,
    /// Where the thread is, and the device as far as it knows.
    netns: u64,
    events: Netlink,
    most: Link,
    found: Arc<Mutex<Tampered>>,
}

impl Watch {
    /// Until the device is gone.
    fn run(mut self) {
        loop {
            match self.look() {
                Ok(()) => {}
                Err(e) if e.raw_os_error() == Some(Errno::EBADFD as i32) => return,
                // Renamed or moved between two steps: there is an event of that.
                Err(e) => log::debug!("the device's ring: {e}"),
            }
            thread::sleep(PAUSE);
            let mut fds = [PollFd::new(self.events.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => self.events.drain(),
                Err(errno) => return log::warn!("the device's ring is not watched: {errno}"),
            }
        }
    }

    fn look(&mut self) -> io::Result<()> {
        self.follow()?;
        let name = self.tap.device_name()?;
        let mut netlink = Netlink::open()?;
        let (index, now) = netlink.link(&name)?;
        if now.txqueuelen <= self.most.txqueuelen && now.mtu <= self.most.mtu {
            return Ok(());
        }
        let mtu = now.mtu.min(self.most.mtu);
        netlink.set_queue(index, mtu, now.txqueuelen.min(self.most.txqueuelen))?;
        let bytes = u64::from(now.txqueuelen) * FRAME_BYTES;
        {
            let mut found = locked(&self.found);
            found.times += 1;
            found.bytes = found.bytes.max(bytes);
        }
        log::warn!(
            "{name}: the command set its queue to {} packets, MTU {}: set back; meanwhile the kernel could hold {} of \
             frames",
            now.txqueuelen,
            now.mtu,
            Size(bytes)
        );
        Ok(())
    }

    /// To where the device is.
    fn follow(&mut self) -> io::Result<()> {
        let netns = match self.tap.device_netns() {
            // Not before Linux 5.2: there only the first namespace is watched.
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

/// Which namespace it is.
fn id_of(netns: &std::fs::File) -> io::Result<u64> {
    Ok(netns.metadata()?.ino())
}

//! Guards the queue of the device, where the command may configure its network. The queue is charged by its length: a
//! longer one, or longer frames, would hold uncharged memory (K10). So both are set back whenever the command raises
//! them. A shorter queue harms only the command.
//!
//! The kernel reports every change of a device on a netlink socket of its network namespace. The command may also
//! rename the device or move it to another namespace: the descriptor still leads to it.

use std::fs::File;
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

/// Attempts to follow the device without a pause: a command that moves it all the time must not win by its speed.
/// A move takes the kernel longer than an attempt takes here.
const FOLLOWS_MAX: usize = 16;

/// After a failed check: interval to the next one if no event arrives before, milliseconds.
const RETRY_MS: u8 = 100;

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
            let timeout = match self.look() {
                Ok(true) => PollTimeout::NONE,
                // The device moves all the time: it may be in another namespace, and no event of that arrives here.
                Ok(false) => PollTimeout::ZERO,
                // The device is deleted (EBADFD).
                Err(e) if e.raw_os_error() == Some(Errno::EBADFD as i32) => return,
                // The device was renamed or moved between two steps, of which an event follows; or the kernel is short
                // of memory, of which none does.
                Err(e) => {
                    tracing::debug!("the device's ring: {e}");
                    PollTimeout::from(RETRY_MS)
                }
            };
            // Events of the pause are drained together.
            thread::sleep(PAUSE);
            let mut fds = [PollFd::new(self.events.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, timeout) {
                Ok(_) | Err(Errno::EINTR) => self.events.drain(),
                Err(errno) => {
                    return tracing::warn!(
                        "changes of the device queue are no longer detected: {errno}"
                    );
                }
            }
        }
    }

    /// Checks the device, and sets back what exceeds the charge. False: the device could not be followed, check again.
    fn look(&mut self) -> io::Result<bool> {
        // The name belongs to the namespace, so the namespace comes first.
        if !self.follow()? {
            return Ok(false);
        }
        let name = self.tap.device_name()?;
        let mut netlink = Netlink::open()?;
        let (index, now) = netlink.link(&name)?;
        if now.txqueuelen <= self.most.txqueuelen && now.mtu <= self.most.mtu {
            return Ok(true);
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
        tracing::warn!(
            "{name}: the command set the queue to {} packets and the MTU to {}: restored; until then the kernel could \
             hold {} of frames",
            now.txqueuelen,
            now.mtu,
            Size(bytes)
        );
        Ok(true)
    }

    /// Enters the namespace of the device if it has moved. False: it moves too often to be followed now.
    fn follow(&mut self) -> io::Result<bool> {
        let Self { tap, netns: watched, events, .. } = self;
        let device = || match tap.device_netns() {
            // Before Linux 5.2 the descriptor has no such query: only the first namespace is watched.
            Err(e) if e.raw_os_error() == Some(Errno::EINVAL as i32) => Ok(None),
            other => {
                let netns = File::from(other?);
                Ok(Some((id_of(&netns)?, netns)))
            }
        };
        let enter = |netns: File| {
            setns(netns.as_fd(), CloneFlags::CLONE_NEWNET)?;
            *events = Netlink::of_links()?;
            Ok(())
        };
        settle(watched, device, enter)
    }
}

/// Enters the device's namespace until the device is in the watched one. `device` returns its namespace, `enter`
/// subscribes to the events of one. True: the device was there after the subscription, so an event reports its next
/// move. Without that check, a move before the subscription would leave the thread waiting in a namespace without it.
fn settle<N>(
    watched: &mut u64,
    device: impl Fn() -> io::Result<Option<(u64, N)>>,
    mut enter: impl FnMut(N) -> io::Result<()>,
) -> io::Result<bool> {
    for _ in 0..FOLLOWS_MAX {
        match device()? {
            Some((id, netns)) if id != *watched => {
                enter(netns)?;
                *watched = id;
            }
            _ => return Ok(true),
        }
    }
    Ok(false)
}

/// Identifies a namespace by its inode number.
fn id_of(netns: &File) -> io::Result<u64> {
    Ok(netns.metadata()?.ino())
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// Follows a device that is in the namespaces of `way`, each until the thread has entered another. Returns the
    /// result, the namespace that is watched, and how often one was entered.
    fn follow(way: &[u64], mut watched: u64) -> (bool, u64, usize) {
        let entered = Cell::new(0);
        let at = || way[entered.get().min(way.len() - 1)];
        // The device moves on after its namespace was found and before the subscription.
        let enter = |_| {
            entered.set(entered.get() + 1);
            Ok(())
        };
        let settled = settle(&mut watched, || Ok(Some((at(), ()))), enter).unwrap();
        (settled, watched, entered.get())
    }

    #[test]
    fn a_device_that_moves_on_during_the_subscription_is_followed() {
        assert_eq!(follow(&[1], 1), (true, 1, 0));
        assert_eq!(follow(&[2], 1), (true, 2, 1));
        assert_eq!(follow(&[2, 3], 1), (true, 3, 2));
        assert_eq!(follow(&[2, 1], 1), (true, 1, 2));
    }

    #[test]
    fn a_device_that_never_rests_costs_a_bounded_number_of_attempts() {
        let restless: Vec<u64> = (2..1000).collect();
        let (settled, _, entered) = follow(&restless, 1);
        assert!(!settled && entered == FOLLOWS_MAX, "{entered}");
    }

    #[test]
    fn a_kernel_that_does_not_report_the_namespace_ends_the_search() {
        let nowhere = || Ok(None::<(u64, ())>);
        assert!(settle(&mut 1, nowhere, |()| panic!("nothing to enter")).unwrap());
    }
}

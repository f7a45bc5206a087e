//! What `skbudget run` and its sandbox process say to each other, over a sequenced-packet socket pair.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    self, AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType,
};
use serde::{Deserialize, Serialize};

use crate::sys;

/// Longer than any message.
const MESSAGE_BYTES: usize = 4096;

/// From the sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Report {
    /// The network stands; the device comes with it.
    Ready,
    /// Nothing stands.
    Failed { step: String, errno: Option<i32>, message: String },
    /// The command ended, and everything else in its PID namespace with it; the network still stands.
    Exited { code: u8 },
}

/// To the sandbox: start the command. The end of the run is the end of the socket.
const GO: &[u8] = b"go";

#[derive(Debug)]
pub(super) struct Wire {
    fd: OwnedFd,
}

impl Wire {
    pub(super) fn pair() -> io::Result<(Self, Self)> {
        let (kind, flags) = (SockType::SeqPacket, SockFlag::SOCK_CLOEXEC);
        let (a, b) = socket::socketpair(AddressFamily::Unix, kind, None, flags)?;
        Ok((Self { fd: a }, Self { fd: b }))
    }

    pub(super) fn from_fd(fd: OwnedFd) -> Self {
        Self { fd }
    }

    pub(super) fn report(&self, report: &Report, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let bytes = serde_json::to_vec(report)?;
        let fds = fd.map(|fd| [fd.as_raw_fd()]);
        let control = fds.as_ref().map(|fds| ControlMessage::ScmRights(fds));
        let (parts, flags) = ([IoSlice::new(&bytes)], MsgFlags::MSG_NOSIGNAL);
        socket::sendmsg::<()>(self.fd.as_raw_fd(), &parts, control.as_slice(), flags, None)?;
        Ok(())
    }

    /// The next report; `None` when the sandbox is gone.
    pub(super) fn read_report(&self) -> io::Result<Option<(Report, Option<OwnedFd>)>> {
        let mut bytes = [0; MESSAGE_BYTES];
        let mut space = nix::cmsg_space!([libc::c_int; 1]);
        let (n, fd) = {
            let mut parts = [IoSliceMut::new(&mut bytes)];
            let flags = MsgFlags::MSG_CMSG_CLOEXEC;
            let fd = self.fd.as_raw_fd();
            let message = match socket::recvmsg::<()>(fd, &mut parts, Some(&mut space), flags) {
                // What a peer that was killed leaves behind.
                Err(Errno::ECONNRESET) => return Ok(None),
                other => other?,
            };
            let fds = message.cmsgs()?.find_map(|control| match control {
                ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
                _ => None,
            });
            (message.bytes, fds.map(sys::received_fd))
        };
        if n == 0 {
            return Ok(None);
        }
        Ok(Some((serde_json::from_slice(&bytes[..n])?, fd)))
    }

    pub(super) fn go(&self) -> io::Result<()> {
        socket::send(self.fd.as_raw_fd(), GO, MsgFlags::MSG_NOSIGNAL)?;
        Ok(())
    }

    /// Waits for the word to start; false when the other end is gone.
    pub(super) fn wait_for_go(&self) -> io::Result<bool> {
        let mut bytes = [0; GO.len()];
        loop {
            match socket::recv(self.fd.as_raw_fd(), &mut bytes, MsgFlags::empty()) {
                Ok(n) => return Ok(n == GO.len()),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// The other end was closed, most likely because its process ended.
    pub(super) fn is_over(&self) -> bool {
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        let result = socket::recv(self.fd.as_raw_fd(), &mut [0; 1], flags);
        matches!(result, Ok(0) | Err(Errno::ECONNRESET))
    }
}

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn reports_arrive_with_their_descriptor_and_the_end_is_seen() {
        let (ours, theirs) = Wire::pair().unwrap();
        let null = File::open("/dev/null").unwrap();
        theirs.report(&Report::Ready, Some(null.as_fd())).unwrap();
        theirs.report(&Report::Exited { code: 7 }, None).unwrap();
        let (ready, fd) = ours.read_report().unwrap().unwrap();
        assert_eq!((ready, fd.is_some()), (Report::Ready, true));
        let (exited, fd) = ours.read_report().unwrap().unwrap();
        assert_eq!((exited, fd.is_some()), (Report::Exited { code: 7 }, false));
        assert!(!ours.is_over());
        drop(theirs);
        assert!(ours.is_over());
        assert!(ours.read_report().unwrap().is_none());
    }

    #[test]
    fn go_is_told_from_the_end() {
        let (ours, theirs) = Wire::pair().unwrap();
        ours.go().unwrap();
        drop(ours);
        assert!(theirs.wait_for_go().unwrap());
        assert!(!theirs.wait_for_go().unwrap());
    }
}

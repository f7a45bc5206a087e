//! Messages between the processes of this program, over sequenced-packet socket pairs: one JSON value in each packet,
//! with descriptors if needed.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{self, ControlMessage, ControlMessageOwned, MsgFlags, Shutdown};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{packets, sys};

/// Maximum size of a message, bytes: larger than any, and less than the kernel sends in one packet by default
/// (wmem_default).
const MESSAGE_BYTES: usize = 160 << 10;

/// Maximum number of descriptors in one message.
const FDS_MAX: usize = 4;

/// One end of a channel between two processes.
#[derive(Debug)]
pub(crate) struct ControlChannel {
    fd: OwnedFd,
}

impl ControlChannel {
    pub(crate) fn pair() -> io::Result<(Self, Self)> {
        let (a, b) = packets::pair()?;
        Ok((Self { fd: a }, Self { fd: b }))
    }

    pub(crate) fn from_fd(fd: OwnedFd) -> Self {
        Self { fd }
    }

    /// Sends one message. Blocks while the socket is full.
    pub(crate) fn send<T: Serialize>(&self, message: &T, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let bytes = serde_json::to_vec(message)?;
        if bytes.len() > MESSAGE_BYTES {
            return Err(Errno::EMSGSIZE.into());
        }
        let fds: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let control = (!fds.is_empty()).then_some(ControlMessage::ScmRights(&fds));
        let (parts, flags) = ([IoSlice::new(&bytes)], MsgFlags::MSG_NOSIGNAL);
        loop {
            let fd = self.fd.as_raw_fd();
            match socket::sendmsg::<()>(fd, &parts, control.as_slice(), flags, None) {
                Err(Errno::EINTR) => {}
                other => return other.map(drop).map_err(Into::into),
            }
        }
    }

    /// Receives the next message; `None`: the other end is closed.
    pub(crate) fn receive<T: DeserializeOwned>(&self) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        let mut bytes = vec![0; MESSAGE_BYTES];
        let mut space = nix::cmsg_space!([RawFd; FDS_MAX]);
        let (n, fds) = loop {
            let mut parts = [IoSliceMut::new(&mut bytes)];
            let (fd, flags) = (self.fd.as_raw_fd(), MsgFlags::MSG_CMSG_CLOEXEC);
            let message = match socket::recvmsg::<()>(fd, &mut parts, Some(&mut space), flags) {
                Err(Errno::EINTR) => continue,
                // A peer that was killed with unread messages leaves this error.
                Err(Errno::ECONNRESET) => return Ok(None),
                other => other?,
            };
            // Taken first: an error in the text below then closes them.
            let mut fds = Vec::new();
            for control in message.cmsgs()? {
                if let ControlMessageOwned::ScmRights(received) = control {
                    fds.extend(received.into_iter().map(sys::received_fd));
                }
            }
            break (message.bytes, fds);
        };
        // No message is empty, so this is the end.
        if n == 0 {
            return Ok(None);
        }
        Ok(Some((serde_json::from_slice(&bytes[..n])?, fds)))
    }

    /// Sends nothing more, and waits until the other end is closed. False when it is not closed within `wait`.
    pub(crate) fn finish(&self, wait: Duration) -> bool {
        let _ = socket::shutdown(self.fd.as_raw_fd(), Shutdown::Write);
        let until = Instant::now() + wait;
        while !self.is_over() {
            let left = until.saturating_duration_since(Instant::now());
            // Discards what the other end still sends.
            if self.has_message() {
                let _ = socket::recv(self.fd.as_raw_fd(), &mut [0; 1], MsgFlags::MSG_DONTWAIT);
            }
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            let polled = poll(&mut [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)], timeout);
            if left.is_zero() || polled == Ok(0) {
                return false;
            }
        }
        true
    }

    /// Whether a message is pending, or the other end is closed.
    pub(crate) fn has_message(&self) -> bool {
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        let result = socket::recv(self.fd.as_raw_fd(), &mut [0; 1], flags);
        !matches!(result, Err(Errno::EAGAIN | Errno::EINTR))
    }

    /// Whether the other end is closed, most likely because its process has ended.
    pub(crate) fn is_over(&self) -> bool {
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        let result = socket::recv(self.fd.as_raw_fd(), &mut [0; 1], flags);
        matches!(result, Ok(0) | Err(Errno::ECONNRESET))
    }
}

impl AsFd for ControlChannel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
    enum Message {
        Ready,
        Exited { code: u8 },
    }

    #[test]
    fn messages_arrive_with_their_descriptors_and_the_end_is_seen() {
        let (ours, theirs) = ControlChannel::pair().unwrap();
        let null = File::open("/dev/null").unwrap();
        theirs.send(&Message::Ready, &[null.as_fd(), null.as_fd()]).unwrap();
        let ended = Message::Exited { code: 7 };
        theirs.send(&ended, &[]).unwrap();
        let (ready, fds) = ours.receive::<Message>().unwrap().unwrap();
        assert_eq!((ready, fds.len()), (Message::Ready, 2));
        let (exited, fds) = ours.receive::<Message>().unwrap().unwrap();
        assert_eq!((exited, fds.len()), (ended, 0));
        assert!(!ours.is_over());
        drop(theirs);
        assert!(ours.is_over());
        assert!(ours.receive::<Message>().unwrap().is_none());
    }

    #[test]
    fn what_is_no_message_is_an_error_and_its_descriptors_are_closed() {
        let (ours, theirs) = ControlChannel::pair().unwrap();
        let null = File::open("/dev/null").unwrap();
        theirs.send(&"Start a path", &[null.as_fd()]).unwrap();
        let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
        let before = open();
        assert!(ours.receive::<Message>().is_err());
        assert!(open() <= before);
        theirs.send(&Message::Ready, &[]).unwrap();
        assert_eq!(ours.receive::<Message>().unwrap().unwrap().0, Message::Ready);
    }
}

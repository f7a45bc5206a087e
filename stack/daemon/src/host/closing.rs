//! How a host socket is closed, and what its send queue holds until then.
//!
//! By default close(2) resets the connection, which frees the send queue at once. Only a socket with nothing left to
//! deliver is switched to an orderly close. So whatever ends this process, no send queue outlives it uncharged (K11).

use std::net::TcpStream;
use std::os::fd::AsFd;

use nix::sys::socket::{setsockopt, sockopt};

use crate::sys;

/// close(2) discards the send queue and resets the connection. Sockets accepted from a listener inherit this.
pub(super) fn reset_on_close(socket: &impl AsFd) {
    linger(socket, libc::linger { l_onoff: 1, l_linger: 0 });
}

/// close(2) closes the connection in order, with a FIN.
pub(super) fn deliver_on_close(socket: &impl AsFd) {
    linger(socket, libc::linger { l_onoff: 0, l_linger: 0 });
}

/// Sets SO_LINGER, which the kernel accepts for every TCP socket.
fn linger(socket: &impl AsFd, how: libc::linger) {
    let _ = setsockopt(socket, sockopt::Linger, &how);
}

/// Bytes written that the peer has not acknowledged; a FIN counts as one.
pub(super) fn unacknowledged(stream: &TcpStream) -> u64 {
    let waiting = sys::socket_unacknowledged(stream.as_fd()).unwrap_or(0);
    if waiting == 0 {
        return 0;
    }
    // After a reset the queue is empty, but SIOCOUTQ keeps its last value.
    match sys::socket_queued_bytes(stream.as_fd()) {
        Ok((0, _)) => 0,
        Ok(_) | Err(_) => u64::from(waiting),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use nix::poll::{PollFd, PollFlags, poll};

    use super::*;

    /// A socket that closes with a reset, and its peer.
    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        reset_on_close(&ours);
        (ours, listener.accept().unwrap().0)
    }

    /// Fills the queue until the kernel takes no more.
    fn stuff(ours: &TcpStream) {
        ours.set_nonblocking(true).unwrap();
        while (&mut &*ours).write(&[7; 65_536]).is_ok() {}
    }

    /// Waits until the peer's reset has arrived: a busy kernel processes it after the peer's close(2) has returned.
    fn wait_for_reset(ours: &TcpStream) {
        // POLLERR and POLLHUP are reported without being requested.
        let mut fds = [PollFd::new(ours.as_fd(), PollFlags::empty())];
        assert_eq!(poll(&mut fds, 10_000_u16), Ok(1));
    }

    #[test]
    fn what_the_peer_has_not_room_for_is_unacknowledged_until_it_resets() {
        let (ours, theirs) = pair();
        assert_eq!(unacknowledged(&ours), 0);
        stuff(&ours);
        assert!(unacknowledged(&ours) > 65_536);
        reset_on_close(&theirs);
        drop(theirs);
        wait_for_reset(&ours);
        assert_eq!(unacknowledged(&ours), 0);
    }

    #[test]
    fn a_socket_resets_when_it_is_closed_unless_it_is_told_to_deliver() {
        let (ours, mut theirs) = pair();
        stuff(&ours);
        drop(ours);
        let reset = theirs.read_to_end(&mut Vec::new()).unwrap_err();
        assert_eq!(reset.raw_os_error(), Some(libc::ECONNRESET));

        let (mut ours, mut theirs) = pair();
        ours.write_all(b"all of it").unwrap();
        deliver_on_close(&ours);
        drop(ours);
        let mut heard = Vec::new();
        theirs.read_to_end(&mut heard).unwrap();
        assert_eq!(heard, b"all of it");
    }
}

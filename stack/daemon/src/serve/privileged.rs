//! What the daemon does with privileges: a closed list of requests. Each of them is checked where it is carried out,
//! because the process that sends it exchanges bytes with containers, which may have taken it over.

use std::borrow::Cow;
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};

use serde::{Deserialize, Serialize};
use skbudget_stack::Tap;

use super::target::{self, Netns, NetnsId, Place};
use crate::attach::{self, AttachError, GuestNet};
use crate::cli::{Protocol, PublishArg};
use crate::listener;
use crate::types::{Publish, PublishSocket};

/// Longest queue of a device, packets: that of the largest budget is shorter.
const QUEUE_MAX: u32 = 1 << 16;

/// A request. Its answer is a [`Reply`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Request {
    /// Opens a network namespace. Answer: `Netns`, with the descriptor.
    OpenNetns(Place),
    /// With a network namespace: makes a device in it. Answer: `Done`, with the device.
    MakeDevice { ifname: String, guest: GuestNet },
    /// Binds a port of the host. Answer: `Done`, with the socket.
    Bind { protocol: Protocol, addr: SocketAddr },
}

/// The answer to a request.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Reply {
    /// The descriptor is that of a network namespace.
    Netns { id: NetnsId, is_own: bool },
    /// It is done.
    Done,
    /// It is refused, or the kernel refused a step. Nothing of it remains.
    Refused { step: String, errno: Option<i32>, message: String },
}

/// How the daemon reaches its privileges.
#[derive(Debug)]
pub(super) enum Privileged {
    /// This process has them.
    Here,
}

impl Privileged {
    /// Opens a network namespace.
    pub(super) fn open_netns(&self, place: &Place) -> io::Result<Netns> {
        match self.request(&Request::OpenNetns(place.clone()), None) {
            Ok((Reply::Netns { id, is_own }, Some(fd))) => Ok(Netns::checked(fd, id, is_own)),
            other => Err(unexpected(other.map(|(reply, _)| reply)).source),
        }
    }

    /// Makes a device in the namespace.
    pub(super) fn make_device(
        &self,
        netns: &Netns,
        ifname: &str,
        guest: &GuestNet,
    ) -> Result<Tap, AttachError> {
        let request = Request::MakeDevice { ifname: ifname.to_owned(), guest: guest.clone() };
        let failed = |source| AttachError { step: "the device".into(), source };
        let netns = netns.as_fd().try_clone_to_owned().map_err(failed)?;
        match self.request(&request, Some(netns)) {
            Ok((Reply::Done, Some(device))) => Tap::from_fd(device).map_err(failed),
            other => Err(unexpected(other.map(|(reply, _)| reply))),
        }
    }

    /// Binds one port of the host.
    pub(super) fn bind(&self, port: &PublishArg) -> io::Result<Publish> {
        let PublishArg { host: addr, guest_port, protocol, .. } = *port;
        let socket = match self.request(&Request::Bind { protocol, addr }, None) {
            Ok((Reply::Done, Some(socket))) => socket,
            other => return Err(unexpected(other.map(|(reply, _)| reply)).source),
        };
        let socket = match protocol {
            Protocol::Tcp => PublishSocket::Tcp(TcpListener::from(socket)),
            Protocol::Udp => PublishSocket::Udp(UdpSocket::from(socket)),
        };
        Ok(Publish { socket, guest_port })
    }

    /// Sends a request, with a descriptor if it needs one, and returns the answer.
    fn request(
        &self,
        request: &Request,
        fd: Option<OwnedFd>,
    ) -> io::Result<(Reply, Option<OwnedFd>)> {
        match self {
            Self::Here => Ok(carry_out(request, fd)),
        }
    }
}

/// Checks a request and carries it out.
fn carry_out(request: &Request, fd: Option<OwnedFd>) -> (Reply, Option<OwnedFd>) {
    let done = match request {
        Request::OpenNetns(place) => open_netns(place),
        Request::MakeDevice { ifname, guest } => make_device(fd, ifname, guest),
        Request::Bind { protocol, addr } => bind(*protocol, *addr),
    };
    match done {
        Ok((reply, fd)) => (reply, Some(fd)),
        Err(AttachError { step, source }) => {
            let (errno, message) = (source.raw_os_error(), source.to_string());
            (Reply::Refused { step: step.into_owned(), errno, message }, None)
        }
    }
}

fn open_netns(place: &Place) -> Result<(Reply, OwnedFd), AttachError> {
    let failed = |source| AttachError { step: "open the network namespace".into(), source };
    let netns = match place {
        Place::Path(path) if !path.is_absolute() => {
            Err(failed(refused("an absolute path is needed")))
        }
        place => Netns::open(place).map_err(failed),
    }?;
    let Netns { id, is_own, .. } = netns;
    Ok((Reply::Netns { id, is_own }, netns.into_fd()))
}

fn make_device(
    netns: Option<OwnedFd>,
    ifname: &str,
    guest: &GuestNet,
) -> Result<(Reply, OwnedFd), AttachError> {
    let failed = |source| AttachError { step: "check the request".into(), source };
    let fd = netns.ok_or_else(|| failed(refused("a network namespace is needed")))?;
    let netns = Netns::of_fd(fd).map_err(failed)?;
    if netns.is_own {
        return Err(failed(refused("the network namespace is that of the daemon")));
    }
    target::check_ifname(ifname).map_err(|e| failed(refused(&e.body.message)))?;
    if guest.txqueuelen > QUEUE_MAX {
        return Err(failed(refused("the device queue is too long")));
    }
    let tap = attach::named_tap_into(netns.as_fd(), ifname, guest)?;
    Ok((Reply::Done, tap.as_fd().try_clone_to_owned().map_err(failed)?))
}

fn bind(protocol: Protocol, addr: SocketAddr) -> Result<(Reply, OwnedFd), AttachError> {
    let socket = match protocol {
        Protocol::Tcp => listener::bind(addr).map(OwnedFd::from),
        Protocol::Udp => listener::bind_udp(addr).map(OwnedFd::from),
    };
    let failed = |source| AttachError { step: "bind the port".into(), source };
    Ok((Reply::Done, socket.map_err(failed)?))
}

/// The error for a request that no daemon of this version sends.
fn refused(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, why.to_owned())
}

/// The error of an answer that is not the one that the request has on success.
fn unexpected(answer: io::Result<Reply>) -> AttachError {
    let (step, source) = match answer {
        Ok(Reply::Refused { step, errno: Some(errno), .. }) => {
            (Cow::Owned(step), io::Error::from_raw_os_error(errno))
        }
        Ok(Reply::Refused { step, message, .. }) => (Cow::Owned(step), io::Error::other(message)),
        Ok(reply) => ("privileged request".into(), io::Error::other(format!("{reply:?}"))),
        Err(e) => ("privileged request".into(), e),
    };
    AttachError { step, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest() -> GuestNet {
        GuestNet::from(&skbudget_stack::ContainerConfig::new(1500, true, None, [1, 2]))
    }

    /// The message of a refused request.
    fn refusal(request: &Request, fd: Option<OwnedFd>) -> String {
        match carry_out(request, fd) {
            (Reply::Refused { message, .. }, None) => message,
            other => panic!("{other:?}"),
        }
    }

    fn null() -> OwnedFd {
        std::fs::File::open("/dev/null").unwrap().into()
    }

    #[test]
    fn a_request_that_the_daemon_does_not_send_is_refused() {
        let own = || Netns::open(&Place::Path("/proc/self/ns/net".into())).unwrap().into_fd();
        let device = |ifname: &str, guest| Request::MakeDevice { ifname: ifname.to_owned(), guest };
        assert!(refusal(&device("eth0", guest()), None).contains("namespace is needed"));
        assert!(refusal(&device("eth0", guest()), Some(own())).contains("that of the daemon"));
        assert!(refusal(&device("eth0", guest()), Some(null())).contains("Bad file descriptor"));
        assert!(refusal(&Request::OpenNetns(Place::Path("x".into())), None).contains("absolute"));
    }

    #[test]
    fn a_port_is_bound_once() {
        let at = |addr: SocketAddr| Request::Bind { protocol: Protocol::Tcp, addr };
        let any = "127.0.0.1:0".parse().unwrap();
        let (Reply::Done, Some(fd)) = carry_out(&at(any), None) else { panic!() };
        let addr = TcpListener::from(fd.try_clone().unwrap()).local_addr().unwrap();
        let port = PublishArg { host: addr, guest_port: 80, count: 1, protocol: Protocol::Tcp };
        let in_use = Privileged::Here.bind(&port).unwrap_err();
        assert_eq!(in_use.kind(), io::ErrorKind::AddrInUse);
    }
}

//! What the relay of the daemon cannot do itself: a closed list of requests to its parent.

mod keeper;
mod rootless;

use std::borrow::Cow;
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use skbudget_stack::Tap;

use super::control::Origin;
use super::target::{Netns, NetnsKey, Place};
use crate::api::{AttachRequest, LevelRequest};
use crate::attach::{AttachError, GuestNet};
use crate::channel::ControlChannel;
use crate::cli::{Protocol, PublishArg};
use crate::types::{Publish, PublishSocket};

pub(super) use keeper::Keeper;
pub(super) use rootless::{HELPER, main as helper_main};

/// A request. Its answer is a [`Reply`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Request {
    /// Opens a network namespace. Answer: `Netns`, with the descriptor.
    OpenNetns(Place),
    /// With a network namespace: makes a device in it for that container, and keeps it. Answer: `Done`, with the
    /// device.
    MakeDevice { name: String, ifname: String, guest: Box<GuestNet> },
    /// The container is served, or was changed: a new relay serves it as recorded. Answer: `Done`.
    Record { name: String, record: Box<Record> },
    /// A client has changed the limits of a group, or of the host: a new relay gets them. `None`: they are those of the
    /// config again. Answer: `Done`.
    RecordLevel { name: String, limits: Option<LevelRequest> },
    /// The container is not served any more: the parent closes its device. Answer: `Done`.
    Forget { name: String },
    /// The next container that an earlier relay served, then those of the last daemon. Answer: `Container`, with its
    /// device if it has one, or `Done` after the last.
    NextContainer,
    /// Binds a port of the host. Answer: `Done`, with the socket.
    Bind { protocol: Protocol, addr: SocketAddr },
}

/// All that a new relay needs to serve a container again, besides its device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// As attached, with the changes since and the address that it was given.
    pub(super) request: AttachRequest,
    /// What a changed config is compared with.
    pub(super) origin: Origin,
    pub(super) netns: NetnsKey,
    /// Hardware address of its device.
    pub(super) mac: [u8; 6],
}

/// The answer to a request.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Reply {
    /// The descriptor is that of a network namespace.
    Netns { key: NetnsKey, is_own: bool },
    /// A container to be served again. The descriptor is its device; without one, the last daemon served it.
    Container { name: String, record: Box<Record> },
    /// It is done.
    Done,
    /// It is refused, or the kernel refused a step. Nothing of it remains.
    Refused { step: String, errno: Option<i32>, message: String },
}

/// How requests are sent. One is under way at a time.
#[derive(Debug)]
pub(super) enum Privileged {
    /// Over a channel to the parent.
    Parent(Mutex<ControlChannel>),
    /// In this process: for tests.
    #[cfg(test)]
    Here(Mutex<Keeper>),
}

impl Privileged {
    /// Opens a network namespace.
    pub(super) fn open_netns(&self, place: &Place) -> io::Result<Netns> {
        match self.request(&Request::OpenNetns(place.clone()), None) {
            Ok((Reply::Netns { key, is_own }, Some(fd))) => Ok(Netns::checked(fd, key, is_own)),
            other => Err(unexpected(other.map(|(reply, _)| reply)).source),
        }
    }

    /// Makes a device in the namespace, for the container of that name.
    pub(super) fn make_device(
        &self,
        netns: &Netns,
        name: &str,
        ifname: &str,
        guest: &GuestNet,
    ) -> Result<Tap, AttachError> {
        let (name, ifname, guest) = (name.to_owned(), ifname.to_owned(), Box::new(guest.clone()));
        match self.request(&Request::MakeDevice { name, ifname, guest }, Some(netns.as_fd())) {
            Ok((Reply::Done, Some(device))) => Tap::from_fd(device)
                .map_err(|source| AttachError { step: "the device".into(), source }),
            other => Err(unexpected(other.map(|(reply, _)| reply))),
        }
    }

    /// The next container that an earlier relay served, with its device, or one of the last daemon. `None`: that was
    /// the last one. Each is
    /// requested, because thousands of them do not fit the socket, and to serve one takes requests.
    pub(super) fn next_container(&self) -> io::Result<Option<(String, Record, Option<OwnedFd>)>> {
        match self.request(&Request::NextContainer, None) {
            Ok((Reply::Container { name, record }, device)) => Ok(Some((name, *record, device))),
            Ok((Reply::Done, None)) => Ok(None),
            other => Err(unexpected(other.map(|(reply, _)| reply)).source),
        }
    }

    /// Records how a container is served. A failure costs the container only if this process ends without an order.
    pub(super) fn record(&self, name: &str, record: Record) {
        let request = Request::Record { name: name.to_owned(), record: Box::new(record) };
        if let Err(e) = self.done(&request) {
            tracing::warn!(container = %name, "not recorded: {e}");
        }
    }

    /// Records the limits that a client has given a group, or the host; `None`: it has those of the config.
    pub(super) fn record_level(&self, name: &str, limits: Option<LevelRequest>) {
        let request = Request::RecordLevel { name: name.to_owned(), limits };
        if let Err(e) = self.done(&request) {
            tracing::warn!("limits of {name}: not recorded: {e}");
        }
    }

    /// Lets the parent close its descriptor of the container's device.
    pub(super) fn forget(&self, name: &str) {
        if let Err(e) = self.done(&Request::Forget { name: name.to_owned() }) {
            tracing::warn!(container = %name, "{e}");
        }
    }

    /// Sends a request whose answer is `Done` alone.
    fn done(&self, request: &Request) -> Result<(), AttachError> {
        match self.request(request, None) {
            Ok((Reply::Done, None)) => Ok(()),
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
        fd: Option<BorrowedFd<'_>>,
    ) -> io::Result<(Reply, Option<OwnedFd>)> {
        match self {
            Self::Parent(channel) => {
                let channel = channel.lock().unwrap_or_else(PoisonError::into_inner);
                let fds: Vec<BorrowedFd<'_>> = fd.into_iter().collect();
                channel.send(request, &fds)?;
                let (reply, fds) = channel.receive()?.ok_or(io::ErrorKind::BrokenPipe)?;
                Ok((reply, fds.into_iter().next()))
            }
            #[cfg(test)]
            Self::Here(keeper) => {
                let fd = fd.map(|fd| fd.try_clone_to_owned()).transpose()?;
                let mut keeper = keeper.lock().unwrap_or_else(PoisonError::into_inner);
                Ok(keeper.carry_out(request.clone(), fd))
            }
        }
    }
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

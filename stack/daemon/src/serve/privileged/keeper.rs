//! Carries out the requests, in the parent. Each is checked here: the process that sends it exchanges bytes with
//! containers, which may have taken it over.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};

use nix::unistd::geteuid;

use super::{Record, Reply, Request, rootless};
use crate::api::LevelRequest;
use crate::attach::{self, AttachError, GuestNet};
use crate::cli::{Protocol, parse_name};
use crate::levels::GROUPS_MAX;
use crate::listener;
use crate::serve::state::StateDir;
use crate::serve::target::{self, Netns, Place};

/// Longest queue of a device, packets: that of the largest budget is shorter.
const QUEUE_MAX: u32 = 1 << 16;

/// Most devices that are kept: the relay serves fewer containers.
const DEVICES_MAX: usize = 1 << 15;

/// The devices of the containers, and how each of them is served.
#[derive(Debug, Default)]
pub(in crate::serve) struct Keeper {
    containers: BTreeMap<String, Kept>,
    /// Limits that clients have given groups and the host.
    levels: BTreeMap<String, LevelRequest>,
    /// The containers that the relay has not requested yet.
    waiting: VecDeque<String>,
    /// Where the records are written for the next daemon.
    state: Option<StateDir>,
    /// The containers of the last daemon that the relay has not requested yet.
    again: VecDeque<(String, Record)>,
}

#[derive(Debug)]
struct Kept {
    device: OwnedFd,
    /// `None` until the container is served.
    record: Option<Box<Record>>,
}

/// What an answer carries.
type Done = (Reply, Option<OwnedFd>);

impl Keeper {
    /// With the containers of the last daemon.
    pub(in crate::serve) fn new(state: StateDir) -> Self {
        let mut keeper = Self { state: Some(state), ..Self::default() };
        keeper.load();
        keeper
    }

    /// Reads the records of containers that are not served.
    fn load(&mut self) {
        let loaded = self.state.as_ref().map_or_else(|| Ok(Vec::new()), StateDir::load);
        let records = loaded.unwrap_or_else(|e| {
            tracing::error!("the containers of the last daemon are not attached: {e}");
            Vec::new()
        });
        let is_new = |(name, _): &(String, Record)| !self.containers.contains_key(name);
        self.again = records.into_iter().filter(is_new).collect();
    }

    /// Number of devices.
    pub(in crate::serve) fn len(&self) -> usize {
        self.containers.len()
    }

    /// A new relay requests the containers from the first one on.
    pub(in crate::serve) fn start_again(&mut self) {
        self.containers.retain(|_, kept| kept.record.is_some());
        self.waiting = self.containers.keys().cloned().collect();
        // The last relay may have ended before it attached all of them.
        self.load();
    }

    /// The limits that clients have given groups and the host.
    pub(in crate::serve) fn levels(&self) -> Vec<(String, LevelRequest)> {
        self.levels.iter().map(|(name, limits)| (name.clone(), *limits)).collect()
    }

    /// Checks a request and carries it out.
    pub(in crate::serve) fn carry_out(&mut self, request: Request, fd: Option<OwnedFd>) -> Done {
        let done = match request {
            Request::OpenNetns(place) => open_netns(&place),
            Request::MakeDevice { name, ifname, guest } => {
                self.make_device(fd, name, &ifname, &guest)
            }
            Request::Bind { protocol, addr } => bind(protocol, addr),
            Request::Record { name, record } => self.record(&name, record),
            Request::RecordLevel { name, limits } => self.record_level(name, limits),
            Request::NextContainer => self.next_container(),
            Request::Forget { name } => {
                self.containers.remove(&name);
                if let Some(state) = self.state.as_ref().filter(|_| parse_name(&name).is_ok()) {
                    state.forget(&name);
                }
                Ok((Reply::Done, None))
            }
        };
        done.unwrap_or_else(|AttachError { step, source }| {
            let (errno, message) = (source.raw_os_error(), source.to_string());
            (Reply::Refused { step: step.into_owned(), errno, message }, None)
        })
    }

    fn make_device(
        &mut self,
        netns: Option<OwnedFd>,
        name: String,
        ifname: &str,
        guest: &GuestNet,
    ) -> Result<Done, AttachError> {
        let fd = netns.ok_or_else(|| refused("a network namespace is needed"))?;
        let netns = Netns::of_fd(fd).map_err(unchecked)?;
        if netns.is_own {
            return Err(refused("the network namespace is that of the daemon"));
        }
        parse_name(&name).map_err(|e| refused(&e))?;
        target::check_ifname(ifname).map_err(|e| refused(&e.body.message))?;
        if guest.txqueuelen > QUEUE_MAX {
            return Err(refused("the device queue is too long"));
        }
        if self.containers.len() >= DEVICES_MAX && !self.containers.contains_key(&name) {
            return Err(refused("too many devices"));
        }
        let device = if geteuid().is_root() {
            let tap = attach::named_tap_into(netns.as_fd(), ifname, guest)?;
            tap.as_fd().try_clone_to_owned().map_err(unchecked)?
        } else {
            rootless::tap_into(netns.as_fd(), ifname, guest)?
        };
        let theirs = device.try_clone().map_err(unchecked)?;
        self.containers.insert(name, Kept { device, record: None });
        Ok((Reply::Done, Some(theirs)))
    }

    fn record(&mut self, name: &str, record: Box<Record>) -> Result<Done, AttachError> {
        let kept = self.containers.get_mut(name).ok_or_else(|| refused("no such container"))?;
        if let Some(Err(e)) = self.state.as_ref().map(|state| state.save(name, &record)) {
            tracing::warn!(container = %name, "the next daemon does not attach it: {e}");
        }
        kept.record = Some(record);
        Ok((Reply::Done, None))
    }

    fn next_container(&mut self) -> Result<Done, AttachError> {
        while let Some(name) = self.waiting.pop_front() {
            let Some(Kept { device, record: Some(record) }) = self.containers.get(&name) else {
                continue;
            };
            let device = device.try_clone().map_err(unchecked)?;
            let record = record.clone();
            return Ok((Reply::Container { name, record }, Some(device)));
        }
        Ok(match self.again.pop_front() {
            Some((name, record)) => (Reply::Container { name, record: Box::new(record) }, None),
            None => (Reply::Done, None),
        })
    }

    fn record_level(
        &mut self,
        name: String,
        limits: Option<LevelRequest>,
    ) -> Result<Done, AttachError> {
        let Some(limits) = limits else {
            self.levels.remove(&name);
            return Ok((Reply::Done, None));
        };
        // The host is one more.
        if self.levels.len() > GROUPS_MAX && !self.levels.contains_key(&name) {
            return Err(refused("too many groups"));
        }
        self.levels.insert(name, limits);
        Ok((Reply::Done, None))
    }
}

fn open_netns(place: &Place) -> Result<Done, AttachError> {
    if matches!(place, Place::Path(path) if !path.is_absolute()) {
        return Err(refused("an absolute path is needed"));
    }
    let netns = Netns::open(place).map_err(unchecked)?;
    let (key, is_own) = (netns.key(), netns.is_own);
    Ok((Reply::Netns { key, is_own }, Some(netns.into_fd())))
}

fn bind(protocol: Protocol, addr: SocketAddr) -> Result<Done, AttachError> {
    let socket = match protocol {
        Protocol::Tcp => listener::bind(addr).map(OwnedFd::from),
        Protocol::Udp => listener::bind_udp(addr).map(OwnedFd::from),
    };
    Ok((Reply::Done, Some(socket.map_err(unchecked)?)))
}

/// The kernel refused the request before the device was made.
fn unchecked(source: io::Error) -> AttachError {
    AttachError { step: "request".into(), source }
}

/// The error for a request that no relay of this version sends.
fn refused(why: &str) -> AttachError {
    unchecked(io::Error::new(io::ErrorKind::PermissionDenied, why.to_owned()))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::sync::Mutex;

    use super::super::Privileged;
    use super::*;
    use crate::api::AttachRequest;
    use crate::cli::PublishArg;
    use crate::serve::control::Origin;

    fn guest() -> GuestNet {
        GuestNet::from(&skbudget_stack::ContainerConfig::new(1500, true, None, [1, 2]))
    }

    /// The message of a refused request.
    fn refusal(request: Request, fd: Option<OwnedFd>) -> String {
        match Keeper::default().carry_out(request, fd) {
            (Reply::Refused { message, .. }, None) => message,
            other => panic!("{other:?}"),
        }
    }

    fn null() -> OwnedFd {
        std::fs::File::open("/dev/null").unwrap().into()
    }

    #[test]
    fn a_request_that_no_relay_sends_is_refused() {
        let open = || Netns::open(&Place::Path("/proc/self/ns/net".into())).unwrap();
        let own = || open().into_fd();
        let device = |name: &str, ifname: &str| Request::MakeDevice {
            name: name.to_owned(),
            ifname: ifname.to_owned(),
            guest: Box::new(guest()),
        };
        assert!(refusal(device("a", "eth0"), None).contains("namespace is needed"));
        assert!(refusal(device("a", "eth0"), Some(own())).contains("that of the daemon"));
        assert!(refusal(device("a", "eth0"), Some(null())).contains("Bad file descriptor"));
        assert!(refusal(Request::OpenNetns(Place::Path("x".into())), None).contains("absolute"));
        // Only a container with a device can be recorded.
        let request = AttachRequest::default();
        let (filled, configured) = (request.clone(), false);
        let origin = Origin { configured, request: request.clone(), filled };
        let record = Box::new(Record { request, origin, netns: open().key(), mac: [2; 6] });
        let request = Request::Record { name: "a".to_owned(), record };
        assert!(refusal(request, None).contains("no such container"));
    }

    #[test]
    fn a_port_is_bound_once() {
        let at = |addr: SocketAddr| Request::Bind { protocol: Protocol::Tcp, addr };
        let any = "127.0.0.1:0".parse().unwrap();
        let mut keeper = Keeper::default();
        let (Reply::Done, Some(fd)) = keeper.carry_out(at(any), None) else { panic!() };
        let addr = TcpListener::from(fd.try_clone().unwrap()).local_addr().unwrap();
        let port = PublishArg { host: addr, guest_port: 80, count: 1, protocol: Protocol::Tcp };
        let in_use = Privileged::Here(Mutex::new(keeper)).bind(&port).unwrap_err();
        assert_eq!(in_use.kind(), io::ErrorKind::AddrInUse);
    }
}

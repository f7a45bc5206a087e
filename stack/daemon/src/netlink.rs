//! The rtnetlink requests that a container's network needs. A socket stays in the namespace in which it was opened.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// Bytes of an answer: holds any acknowledgement, which quotes the request.
const ANSWER_BYTES: usize = 8192;

/// Events discarded in one `drain`.
const EVENTS_MAX: usize = 64;

/// RTMGRP_LINK: the group that receives changes of devices.
const LINK_GROUP: u32 = 1;

/// The attributes of a device that are used here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) mtu: u32,
    pub(crate) txqueuelen: u32,
}

/// A rtnetlink socket of one namespace.
#[derive(Debug)]
pub(crate) struct Netlink {
    socket: Socket,
    /// Number of the last request.
    sequence: u32,
}

impl Netlink {
    /// Opens a socket for requests, in the network namespace of the calling thread.
    pub(crate) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Opens a socket that becomes readable when a device of the calling thread's namespace changes.
    pub(crate) fn of_links() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind(&SocketAddr::new(0, LINK_GROUP))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Discards the pending events: only their existence matters. An overflow of the socket counts as an event, too.
    pub(crate) fn drain(&self) {
        let mut event = vec![0; ANSWER_BYTES];
        for _ in 0..EVENTS_MAX {
            match self.socket.recv(&mut &mut event[..], libc::MSG_DONTWAIT) {
                Ok(_) => {}
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(_) => return,
            }
        }
    }

    /// Index and attributes of the device with that name.
    pub(crate) fn link(&mut self, name: &str) -> io::Result<(u32, Link)> {
        let mut link = LinkMessage::default();
        link.attributes = vec![LinkAttribute::IfName(name.to_owned())];
        let answer = self.exchange(RouteNetlinkMessage::GetLink(link), 0)?;
        let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) = answer.payload
        else {
            return Err(failure(answer.payload));
        };
        let mut found = Link { mtu: 0, txqueuelen: 0 };
        for attribute in &link.attributes {
            match attribute {
                LinkAttribute::Mtu(mtu) => found.mtu = *mtu,
                LinkAttribute::TxQueueLen(len) => found.txqueuelen = *len,
                _ => {}
            }
        }
        Ok((link.header.index, found))
    }

    /// Sets the hardware address of device `index`.
    pub(crate) fn set_mac(&mut self, index: u32, mac: [u8; 6]) -> io::Result<()> {
        self.set_link(index, vec![LinkAttribute::Address(mac.to_vec())])
    }

    /// Moves device `index` into the namespace and names it `name` there.
    pub(crate) fn move_device(
        &mut self,
        index: u32,
        name: &str,
        netns: BorrowedFd<'_>,
    ) -> io::Result<()> {
        self.set_link(
            index,
            vec![LinkAttribute::IfName(name.to_owned()), LinkAttribute::NetNsFd(netns.as_raw_fd())],
        )
    }

    /// Creates a pair of devices: `name` here, and `peer` in the namespace.
    pub(crate) fn add_veth(
        &mut self,
        name: &str,
        peer: &str,
        netns: BorrowedFd<'_>,
    ) -> io::Result<()> {
        let mut other = LinkMessage::default();
        other.attributes =
            vec![LinkAttribute::IfName(peer.to_owned()), LinkAttribute::NetNsFd(netns.as_raw_fd())];
        let mut link = LinkMessage::default();
        link.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(other))),
            ]),
        ];
        self.request(RouteNetlinkMessage::NewLink(link), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Sets MTU and queue length of a device, in packets.
    pub(crate) fn set_queue(&mut self, index: u32, mtu: u32, txqueuelen: u32) -> io::Result<()> {
        self.set_link(index, vec![LinkAttribute::Mtu(mtu), LinkAttribute::TxQueueLen(txqueuelen)])
    }

    /// Makes the device send segments of the MTU's size, as on a cable, instead of units of 64 KiB.
    pub(crate) fn single_segments(&mut self, index: u32) -> io::Result<()> {
        self.set_link(index, vec![LinkAttribute::GsoMaxSegs(1)])
    }

    /// Brings the device up.
    pub(crate) fn up(&mut self, index: u32) -> io::Result<()> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.header.flags = LinkFlags::Up;
        link.header.change_mask = LinkFlags::Up;
        self.request(RouteNetlinkMessage::SetLink(link), 0)
    }

    /// Adds an address. An IPv6 address is usable at once: there is no other node on the link, so duplicate address
    /// detection is off.
    pub(crate) fn add_address(&mut self, index: u32, ip: IpAddr, prefix: u8) -> io::Result<()> {
        let mut address = AddressMessage::default();
        address.header.family = ip.into();
        address.header.prefix_len = prefix;
        address.header.index = index;
        address.attributes = vec![AddressAttribute::Local(ip), AddressAttribute::Address(ip)];
        address.attributes.push(match ip {
            IpAddr::V4(ip) => {
                let mask = u32::MAX.checked_shr(prefix.into()).unwrap_or(0);
                AddressAttribute::Broadcast(Ipv4Addr::from_bits(ip.to_bits() | mask))
            }
            IpAddr::V6(_) => AddressAttribute::Flags(AddressFlags::Nodad),
        });
        self.request(RouteNetlinkMessage::NewAddress(address), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Adds the default route of the gateway's address family.
    pub(crate) fn add_default_route(&mut self, index: u32, gateway: IpAddr) -> io::Result<()> {
        let mut route = RouteMessage::default();
        route.header.address_family = gateway.into();
        route.header.table = libc::RT_TABLE_MAIN;
        route.header.protocol = RouteProtocol::Boot;
        route.header.scope = RouteScope::Universe;
        route.header.kind = RouteType::Unicast;
        route.attributes =
            vec![RouteAttribute::Gateway(RouteAddress::from(gateway)), RouteAttribute::Oif(index)];
        self.request(RouteNetlinkMessage::NewRoute(route), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Adds a permanent neighbour entry: the guest never resolves this address.
    pub(crate) fn add_neighbour(&mut self, index: u32, ip: IpAddr, mac: [u8; 6]) -> io::Result<()> {
        let mut neighbour = NeighbourMessage::default();
        neighbour.header.family = ip.into();
        neighbour.header.ifindex = index;
        neighbour.header.state = NeighbourState::Permanent;
        neighbour.header.kind = RouteType::Unicast;
        neighbour.attributes = vec![
            NeighbourAttribute::Destination(NeighbourAddress::from(ip)),
            NeighbourAttribute::LinkLayerAddress(mac.to_vec()),
        ];
        self.request(RouteNetlinkMessage::NewNeighbour(neighbour), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Changes attributes of a device.
    fn set_link(&mut self, index: u32, attributes: Vec<LinkAttribute>) -> io::Result<()> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.attributes = attributes;
        self.request(RouteNetlinkMessage::SetLink(link), 0)
    }

    /// Sends one request and waits for the kernel to acknowledge it.
    fn request(&mut self, request: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        match self.exchange(request, NLM_F_ACK | flags)?.payload {
            NetlinkPayload::Error(e) if e.code.is_none() => Ok(()),
            other => Err(failure(other)),
        }
    }

    /// Sends one request and returns the kernel's answer.
    fn exchange(
        &mut self,
        request: RouteNetlinkMessage,
        flags: u16,
    ) -> io::Result<NetlinkMessage<RouteNetlinkMessage>> {
        self.sequence += 1;
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(request));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;

        // One request at a time: the next message is its answer.
        let mut answer = vec![0; ANSWER_BYTES];
        let n = self.socket.recv(&mut &mut answer[..], 0)?;
        NetlinkMessage::deserialize(&answer[..n])
            .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.to_string()))
    }
}

impl AsFd for Netlink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The error in an answer, or an error for an answer of another kind.
fn failure(answer: NetlinkPayload<RouteNetlinkMessage>) -> io::Error {
    match answer {
        NetlinkPayload::Error(e) => e.to_io(),
        other => io::Error::other(format!("unexpected answer of rtnetlink: {other:?}")),
    }
}

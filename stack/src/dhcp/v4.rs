//! DHCP for IPv4 (RFC 2131, options of RFC 2132).

use std::net::Ipv4Addr;

use skbudget_controller::Instant;
use smoltcp::wire::{
    ArpHardware, DhcpFlags, DhcpMessageType, DhcpOpCode, DhcpPacket, EthernetAddress,
};

use super::{Lease, Leases, Reply, SEARCH_BYTES_MAX, seconds};
use crate::config::ContainerConfig;
use crate::counters::Stat;
use crate::wire::configure::PORTS_V4;
use crate::wire::domains;

const COOKIE: u32 = 0x6382_5363;
/// Bytes before the options.
const HEADER: usize = 240;
/// Shortest message: that of BOOTP, which some clients require (RFC 1542 section 2.1).
const LEN_MIN: usize = 300;
/// Longest message that every client accepts (RFC 2131 section 2): a packet of 576 bytes.
const LEN_MAX: usize = 576 - 28;

const SUBNET_MASK: u8 = 1;
const ROUTER: u8 = 3;
const NAME_SERVER: u8 = 6;
const HOST_NAME: u8 = 12;
const DOMAIN_NAME: u8 = 15;
const INTERFACE_MTU: u8 = 26;
const BROADCAST: u8 = 28;
const REQUESTED_IP: u8 = 50;
const LEASE_TIME: u8 = 51;
const MESSAGE_TYPE: u8 = 53;
const SERVER: u8 = 54;
const MESSAGE: u8 = 56;
const RENEWAL_TIME: u8 = 58;
const REBINDING_TIME: u8 = 59;
const CLIENT_ID: u8 = 61;
const SEARCH: u8 = 119;
const END: u8 = 255;

/// What the server reads of a client's message.
#[derive(Debug)]
struct Request<'a> {
    kind: DhcpMessageType,
    xid: u32,
    secs: u16,
    broadcast: bool,
    /// The address that the client uses already (`ciaddr`).
    client_ip: Ipv4Addr,
    hardware: EthernetAddress,
    requested: Option<Ipv4Addr>,
    server: Option<Ipv4Addr>,
    client_id: Option<&'a [u8]>,
}

/// Answers a message. `Err`: there is no answer, with the counter of the reason.
pub(crate) fn answer(
    config: &ContainerConfig,
    leases: &mut Leases,
    message: &[u8],
    now: Instant,
) -> Result<Reply, Stat> {
    let request = parse(message).ok_or(Stat::DropDhcp)?;
    // A client that chose another server is not refused by this one.
    if request.server.is_some_and(|server| server != config.gateway_ip) {
        return Err(Stat::DropDhcp);
    }
    let (lease, client) = (&mut leases.v4, request.hardware.0);
    match request.kind {
        DhcpMessageType::Discover if lease.is_free_for(client, now) => {
            Ok(grant(config, &request, DhcpMessageType::Offer))
        }
        // Silence: another server may have an address.
        DhcpMessageType::Discover => Err(Stat::DhcpRefused),
        DhcpMessageType::Request => on_request(config, lease, &request, now),
        // RFC 2131 section 4.3.5: options only. The client has an address, and does not request one.
        DhcpMessageType::Inform if request.client_ip == config.guest_ip => {
            Ok(grant(config, &request, DhcpMessageType::Ack))
        }
        DhcpMessageType::Release => {
            Err(if lease.release(client) { Stat::DhcpReleased } else { Stat::DropDhcp })
        }
        DhcpMessageType::Decline => {
            lease.release(client);
            Err(Stat::DhcpDeclined)
        }
        _ => Err(Stat::DropDhcp),
    }
}

/// Section 4.3.2: the address that the client selects, had before, or renews is right or refused.
fn on_request(
    config: &ContainerConfig,
    lease: &mut Lease,
    request: &Request<'_>,
    now: Instant,
) -> Result<Reply, Stat> {
    let renewed = (!request.client_ip.is_unspecified()).then_some(request.client_ip);
    let ip = request.requested.or(renewed).ok_or(Stat::DropDhcp)?;
    let client = request.hardware.0;
    if ip != config.guest_ip || !lease.is_free_for(client, now) {
        return Ok(refuse(config, request));
    }
    lease.grant(client, now);
    Ok(grant(config, request, DhcpMessageType::Ack))
}

fn parse(message: &[u8]) -> Option<Request<'_>> {
    let packet = DhcpPacket::new_checked(message).ok()?;
    let is_ethernet = packet.hardware_type() == ArpHardware::Ethernet && packet.hardware_len() == 6;
    // No relay agent is on this link.
    let is_direct = packet.relay_agent_ip().is_unspecified();
    let hardware = packet.client_hardware_address();
    if packet.opcode() != DhcpOpCode::Request
        || packet.magic_number() != COOKIE
        || !is_ethernet
        || !is_direct
        || !hardware.is_unicast()
    {
        return None;
    }
    // Walked here: smoltcp's iterator borrows the packet, not the message.
    let option = |kind| options(message).find(|(k, _)| *k == kind).map(|(_, data)| data);
    let address = |kind| {
        let octets: [u8; 4] = option(kind)?.try_into().ok()?;
        Some(Ipv4Addr::from(octets))
    };
    let [kind] = option(MESSAGE_TYPE)? else { return None };
    Some(Request {
        kind: DhcpMessageType::from(*kind),
        xid: packet.transaction_id(),
        secs: packet.secs(),
        broadcast: packet.flags().contains(DhcpFlags::BROADCAST),
        client_ip: packet.client_ip(),
        hardware,
        requested: address(REQUESTED_IP),
        server: address(SERVER),
        client_id: option(CLIENT_ID),
    })
}

/// Kind and value of each option, up to the end or to one that is cut short.
fn options(message: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    let mut rest = message.get(HEADER..).unwrap_or_default();
    std::iter::from_fn(move || {
        // Padding has no length.
        while let [0, behind @ ..] = rest {
            rest = behind;
        }
        let [kind, len, behind @ ..] = rest else { return None };
        let (data, behind) = behind.split_at_checked((*len).into())?;
        rest = behind;
        (*kind != END).then_some((*kind, data))
    })
}

/// An offer or an acknowledgement with all options.
fn grant(config: &ContainerConfig, request: &Request<'_>, kind: DhcpMessageType) -> Reply {
    let mut options = Options::new(config, request, kind);
    let informs = request.kind == DhcpMessageType::Inform;
    if !informs {
        options.add(LEASE_TIME, &seconds(1, 1).to_be_bytes());
        options.add(RENEWAL_TIME, &seconds(1, 2).to_be_bytes());
        options.add(REBINDING_TIME, &seconds(7, 8).to_be_bytes());
    }
    let mask = config.netmask();
    options.add(SUBNET_MASK, &mask.octets());
    options.add(BROADCAST, &(config.guest_ip | !mask).octets());
    options.add(ROUTER, &config.gateway_ip.octets());
    options.add(NAME_SERVER, &config.dns_ip.octets());
    options.add(INTERFACE_MTU, &config.mtu.to_be_bytes());
    // The client can do without these: they come last, and those that do not fit are omitted.
    if let Some(name) = &config.host_name {
        options.add(HOST_NAME, name.as_bytes());
    }
    if let Some(domain) = config.search.first() {
        options.add(DOMAIN_NAME, domain.as_bytes());
    }
    options.add(SEARCH, &domains::write(&config.search, SEARCH_BYTES_MAX));
    let ip = if informs { Ipv4Addr::UNSPECIFIED } else { config.guest_ip };
    // Section 4.1: to the address that the client has; otherwise to all, or to the new one, as the client needs it.
    let to = match request.client_ip {
        ip if !ip.is_unspecified() => ip,
        _ if request.broadcast => Ipv4Addr::BROADCAST,
        _ => ip,
    };
    reply(config, request, (ip, to), options, Stat::DhcpAnswered)
}

/// Section 4.3.2: the client must start again.
fn refuse(config: &ContainerConfig, request: &Request<'_>) -> Reply {
    let mut options = Options::new(config, request, DhcpMessageType::Nak);
    options.add(MESSAGE, b"this address is not available");
    let addresses = (Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST);
    reply(config, request, addresses, options, Stat::DhcpRefused)
}

/// Options of an answer, behind room for the header.
struct Options(Vec<u8>);

impl Options {
    /// With the options of every answer.
    fn new(config: &ContainerConfig, request: &Request<'_>, kind: DhcpMessageType) -> Self {
        let mut options = Self(vec![0; HEADER]);
        options.add(MESSAGE_TYPE, &[kind.into()]);
        options.add(SERVER, &config.gateway_ip.octets());
        // RFC 6842: returned as it was sent.
        options.add(CLIENT_ID, request.client_id.unwrap_or_default());
        options
    }

    /// Adds an option with a value, if it fits with the end behind it.
    fn add(&mut self, kind: u8, data: &[u8]) {
        if let Ok(len) = u8::try_from(data.len())
            && len > 0
            && self.0.len() + 2 + data.len() < LEN_MAX
        {
            self.0.extend([kind, len]);
            self.0.extend(data);
        }
    }
}

/// Completes the message. `addresses`: that of the client from now on, and that of the packet.
fn reply(
    config: &ContainerConfig,
    request: &Request<'_>,
    (your_ip, to): (Ipv4Addr, Ipv4Addr),
    Options(mut bytes): Options,
    stat: Stat,
) -> Reply {
    bytes.push(END);
    bytes.resize(bytes.len().max(LEN_MIN), 0);
    let mut packet = DhcpPacket::new_unchecked(&mut bytes[..]);
    packet.set_opcode(DhcpOpCode::Reply);
    packet.set_hardware_type(ArpHardware::Ethernet);
    packet.set_hardware_len(6);
    packet.set_transaction_id(request.xid);
    packet.set_secs(request.secs);
    packet.set_flags(if request.broadcast { DhcpFlags::BROADCAST } else { DhcpFlags::empty() });
    packet.set_client_ip(request.client_ip);
    packet.set_your_ip(your_ip);
    packet.set_client_hardware_address(request.hardware);
    packet.set_magic_number(COOKIE);
    let (client, server) = PORTS_V4;
    let addresses = ((to, client).into(), (config.gateway_ip, server).into());
    Reply { addresses, bytes, stat }
}

//! DHCPv6 (RFC 8415): one non-temporary address, the name server, search domains. Messages are a type, an identifier
//! and options of type, length and value; options of an identity association (IA) are nested.

use std::net::Ipv6Addr;

use skbudget_controller::Instant;

use super::{Lease, Leases, Reply, SEARCH_BYTES_MAX, seconds};
use crate::config::{ContainerConfig, Ipv6Net};
use crate::counters::Stat;
use crate::wire::configure::PORTS_V6;
use crate::wire::domains;

/// Types of messages.
const SOLICIT: u8 = 1;
const ADVERTISE: u8 = 2;
const REQUEST: u8 = 3;
const CONFIRM: u8 = 4;
const RENEW: u8 = 5;
const REBIND: u8 = 6;
const REPLY: u8 = 7;
const RELEASE: u8 = 8;
const DECLINE: u8 = 9;
const INFORMATION_REQUEST: u8 = 11;

/// Types of options.
const CLIENT_ID: u16 = 1;
const SERVER_ID: u16 = 2;
const IA_NA: u16 = 3;
const IA_TA: u16 = 4;
const IA_ADDR: u16 = 5;
const PREFERENCE: u16 = 7;
const STATUS_CODE: u16 = 13;
const RAPID_COMMIT: u16 = 14;
const NAME_SERVERS: u16 = 23;
const SEARCH: u16 = 24;
const IA_PD: u16 = 25;

/// Status codes (section 21.13).
const SUCCESS: u16 = 0;
const NO_ADDRS_AVAIL: u16 = 2;
const NOT_ON_LINK: u16 = 4;
const NO_PREFIX_AVAIL: u16 = 6;

/// Longest identifier of a client, bytes (section 11.1).
const DUID_MAX: usize = 130;
/// IAs of one message that are answered, at most.
const IAS_MAX: usize = 8;

/// An identity association of a message.
#[derive(Debug, Clone, Copy)]
struct Ia<'a> {
    kind: u16,
    id: [u8; 4],
    /// Its nested options.
    options: &'a [u8],
}

impl Ia<'_> {
    /// The addresses that the client has or wants.
    fn addresses(&self) -> impl Iterator<Item = Ipv6Addr> {
        let addresses = options(self.options).filter(|(kind, _)| *kind == IA_ADDR);
        addresses.filter_map(|(_, data)| Some(Ipv6Addr::from(*data.first_chunk::<16>()?)))
    }
}

/// What the server reads of a client's message.
#[derive(Debug)]
struct Request<'a> {
    kind: u8,
    id: [u8; 3],
    client_id: Option<&'a [u8]>,
    rapid_commit: bool,
    ias: Vec<Ia<'a>>,
}

/// Answers a message of the client with this link-local and hardware address. `Err`: there is no answer, with the
/// counter of the reason.
pub(crate) fn answer(
    config: &ContainerConfig,
    leases: &mut Leases,
    (from, client): (Ipv6Addr, [u8; 6]),
    message: &[u8],
    now: Instant,
) -> Result<Reply, Stat> {
    let net = config.ipv6.as_ref().ok_or(Stat::DropDhcp)?;
    let request = parse(config, message).ok_or(Stat::DropDhcp)?;
    let lease = &mut leases.v6;
    let is_free = lease.is_free_for(client, now);
    let grants = match request.kind {
        SOLICIT => is_free && request.rapid_commit && request.wants_address(),
        REQUEST | RENEW | REBIND => is_free && request.wants_address(),
        _ => false,
    };
    if grants {
        lease.grant(client, now);
    }
    let body = match request.kind {
        SOLICIT | REQUEST | RENEW | REBIND => associations(net, &request, is_free),
        CONFIRM => confirm(net, &request)?,
        RELEASE | DECLINE => returned(lease, client),
        _ => Vec::new(),
    };
    let stat = match request.kind {
        RELEASE => Stat::DhcpReleased,
        DECLINE => Stat::DhcpDeclined,
        SOLICIT | REQUEST | RENEW | REBIND if !is_free => Stat::DhcpRefused,
        _ => Stat::DhcpAnswered,
    };
    let (client_port, server_port) = PORTS_V6;
    let addresses = ((from, client_port).into(), (net.router, server_port).into());
    Ok(Reply { addresses, bytes: complete(config, net, &request, &body), stat })
}

impl Request<'_> {
    fn wants_address(&self) -> bool {
        self.ias.iter().any(|ia| ia.kind == IA_NA)
    }
}

/// Section 16: which messages are valid, by their identifiers.
fn parse<'a>(config: &ContainerConfig, message: &'a [u8]) -> Option<Request<'a>> {
    let ([kind, id @ ..], body) = message.split_first_chunk::<4>()?;
    // Every option must be whole.
    if options(body).map(|(_, data)| 4 + data.len()).sum::<usize>() != body.len() {
        return None;
    }
    let find = |kind| options(body).find(|(k, _)| *k == kind).map(|(_, data)| data);
    let (client_id, server_id) = (find(CLIENT_ID), find(SERVER_ID));
    let has_client = client_id.is_some_and(|duid| (1..=DUID_MAX).contains(&duid.len()));
    let is_ours = server_id == Some(&server_duid(config)[..]);
    let ias: Vec<Ia<'_>> = options(body).filter_map(ia).take(IAS_MAX).collect();
    let is_valid = match *kind {
        SOLICIT | CONFIRM | REBIND => has_client && server_id.is_none(),
        REQUEST | RENEW | RELEASE | DECLINE => has_client && is_ours,
        // Section 16.12: it requests options only.
        INFORMATION_REQUEST => {
            (server_id.is_none() || is_ours)
                && ias.is_empty()
                && (client_id.is_none() || has_client)
        }
        _ => false,
    };
    let rapid_commit = find(RAPID_COMMIT).is_some();
    is_valid.then_some(Request { kind: *kind, id: *id, client_id, rapid_commit, ias })
}

/// Type and value of each option, up to one that is cut short.
fn options(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let ([a, b, c, d], behind) = rest.split_first_chunk::<4>()?;
        let (data, behind) = behind.split_at_checked(u16::from_be_bytes([*c, *d]).into())?;
        rest = behind;
        Some((u16::from_be_bytes([*a, *b]), data))
    })
}

/// The option as an IA, if it is one.
fn ia((kind, data): (u16, &[u8])) -> Option<Ia<'_>> {
    // All start with an identifier; that of temporary addresses is not followed by two times.
    let fixed = match kind {
        IA_NA | IA_PD => 12,
        IA_TA => 4,
        _ => return None,
    };
    Some(Ia { kind, id: *data.first_chunk()?, options: data.get(fixed..)? })
}

/// The answer to each IA: the address for the first one of its kind if the client may have it, otherwise a status.
fn associations(net: &Ipv6Net, request: &Request<'_>, is_free: bool) -> Vec<u8> {
    let mut body = Vec::new();
    let mut granted = !is_free;
    for ia in &request.ias {
        let mut data = ia.id.to_vec();
        if ia.kind != IA_TA {
            let times = if granted { [0; 2] } else { [seconds(1, 2), seconds(4, 5)] };
            times.iter().for_each(|time| data.extend(time.to_be_bytes()));
        }
        if ia.kind == IA_NA && !granted {
            granted = true;
            option(&mut data, IA_ADDR, &address(net.guest, seconds(1, 1)));
            // Section 18.3.4: an address that is not ours to give is of no use to the client any more.
            for ip in ia.addresses().filter(|ip| *ip != net.guest).take(IAS_MAX) {
                option(&mut data, IA_ADDR, &address(ip, 0));
            }
        } else {
            let code = if ia.kind == IA_PD { NO_PREFIX_AVAIL } else { NO_ADDRS_AVAIL };
            option(&mut data, STATUS_CODE, &status(code, "none is available"));
        }
        option(&mut body, ia.kind, &data);
    }
    body
}

/// Section 18.3.3: whether the client's addresses belong to this link.
fn confirm(net: &Ipv6Net, request: &Request<'_>) -> Result<Vec<u8>, Stat> {
    let mut addresses = request.ias.iter().flat_map(Ia::addresses).peekable();
    if addresses.peek().is_none() {
        return Err(Stat::DropDhcp);
    }
    let (code, text) = match addresses.all(|ip| net.contains(ip)) {
        true => (SUCCESS, "all addresses are on this link"),
        false => (NOT_ON_LINK, "an address is not on this link"),
    };
    let mut body = Vec::new();
    option(&mut body, STATUS_CODE, &status(code, text));
    Ok(body)
}

/// Sections 18.3.7 and 18.3.8: the client does not use the address any more.
fn returned(lease: &mut Lease, client: [u8; 6]) -> Vec<u8> {
    lease.release(client);
    let mut body = Vec::new();
    option(&mut body, STATUS_CODE, &status(SUCCESS, "returned"));
    body
}

/// The whole answer around `body`.
fn complete(
    config: &ContainerConfig,
    net: &Ipv6Net,
    request: &Request<'_>,
    body: &[u8],
) -> Vec<u8> {
    let commits = request.kind == SOLICIT && request.rapid_commit;
    let advertises = request.kind == SOLICIT && !commits;
    let mut bytes = vec![if advertises { ADVERTISE } else { REPLY }];
    bytes.extend(request.id);
    option(&mut bytes, SERVER_ID, &server_duid(config));
    if let Some(client_id) = request.client_id {
        option(&mut bytes, CLIENT_ID, client_id);
    }
    bytes.extend(body);
    if commits {
        option(&mut bytes, RAPID_COMMIT, &[]);
    }
    // The client need not wait for other servers (section 18.2.9).
    if advertises {
        option(&mut bytes, PREFERENCE, &[255]);
    }
    if !matches!(request.kind, CONFIRM | RELEASE | DECLINE) {
        option(&mut bytes, NAME_SERVERS, &net.dns.octets());
        let names = domains::write(&config.search, SEARCH_BYTES_MAX);
        if !names.is_empty() {
            option(&mut bytes, SEARCH, &names);
        }
    }
    bytes
}

/// Identifier of this server: its hardware address (DUID-LL, section 11.4).
fn server_duid(config: &ContainerConfig) -> [u8; 10] {
    let [a, b, c, d, e, f] = config.our_mac;
    [0, 3, 0, 1, a, b, c, d, e, f]
}

fn option(bytes: &mut Vec<u8>, kind: u16, data: &[u8]) {
    bytes.extend(kind.to_be_bytes());
    bytes.extend((data.len() as u16).to_be_bytes());
    bytes.extend(data);
}

/// Value of an address option: the address, its preferred and its valid lifetime.
fn address(ip: Ipv6Addr, lifetime: u32) -> Vec<u8> {
    [&ip.octets()[..], &lifetime.to_be_bytes(), &lifetime.to_be_bytes()].concat()
}

fn status(code: u16, text: &str) -> Vec<u8> {
    [&code.to_be_bytes(), text.as_bytes()].concat()
}

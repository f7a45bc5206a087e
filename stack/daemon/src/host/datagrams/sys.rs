//! System calls of datagram sockets that neither std nor nix wraps: batches with control messages, and the error queue.

use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use skbudget_stack::datagram::{RECEIVE_BATCH, SEND_BATCH, SendDatagram};

/// Largest datagram, bytes, with room to spare.
const DATAGRAM: usize = 64 << 10;
/// Room for the control messages of one datagram, bytes: TTL, TOS, drops, and an extended error with an address.
const CONTROL: usize = 192;

/// Control messages, aligned as the kernel requires.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Control([u8; CONTROL]);

/// Buffers of one receive call.
pub(super) struct Inbox {
    data: Vec<u8>,
    names: Box<[libc::sockaddr_storage; RECEIVE_BATCH]>,
    control: Box<[Control; RECEIVE_BATCH]>,
    /// Lengths of the payload and of the control messages.
    lengths: [(usize, usize); RECEIVE_BATCH],
}

/// One message that was received.
#[derive(Debug, Clone, Copy)]
pub(super) struct Message<'a> {
    /// The source; for an error, the destination of the datagram.
    pub(super) addr: SocketAddr,
    pub(super) hop_limit: u8,
    pub(super) traffic_class: u8,
    /// Datagrams that the socket has dropped so far (SO_RXQ_OVFL).
    pub(super) drops: Option<u32>,
    pub(super) error: Option<ExtendedError>,
    pub(super) payload: &'a [u8],
}

/// `struct sock_extended_err` with the address behind it.
#[derive(Debug, Clone, Copy)]
pub(super) struct ExtendedError {
    pub(super) errno: u32,
    pub(super) origin: u8,
    pub(super) kind: u8,
    pub(super) code: u8,
    pub(super) info: u32,
    pub(super) by: Option<IpAddr>,
}

impl Inbox {
    pub(super) fn new() -> Self {
        // SAFETY: all-zero bytes are a valid sockaddr_storage: it is plain old data.
        let name: libc::sockaddr_storage = unsafe { MaybeUninit::zeroed().assume_init() };
        Self {
            // Zeroed pages that the kernel provides when a datagram is written to them.
            data: vec![0; DATAGRAM * RECEIVE_BATCH],
            names: Box::new([name; RECEIVE_BATCH]),
            control: Box::new([Control([0; CONTROL]); RECEIVE_BATCH]),
            lengths: [(0, 0); RECEIVE_BATCH],
        }
    }

    /// Receives up to a batch: datagrams, or with `errors` entries of the error queue. Returns the number.
    pub(super) fn receive(&mut self, socket: BorrowedFd<'_>, errors: bool) -> io::Result<usize> {
        let flags = libc::MSG_DONTWAIT | if errors { libc::MSG_ERRQUEUE } else { 0 };
        let mut iovecs =
            [libc::iovec { iov_base: ptr::null_mut(), iov_len: DATAGRAM }; RECEIVE_BATCH];
        // SAFETY: all-zero bytes are a valid mmsghdr: null pointers with a length of zero.
        let mut headers: [libc::mmsghdr; RECEIVE_BATCH] =
            unsafe { MaybeUninit::zeroed().assume_init() };
        for (i, buffer) in self.data.chunks_exact_mut(DATAGRAM).enumerate() {
            iovecs[i].iov_base = buffer.as_mut_ptr().cast();
            let header = &mut headers[i].msg_hdr;
            header.msg_name = (&raw mut self.names[i]).cast();
            header.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
            header.msg_iov = &raw mut iovecs[i];
            header.msg_iovlen = 1;
            header.msg_control = self.control[i].0.as_mut_ptr().cast();
            header.msg_controllen = CONTROL;
        }
        // SAFETY: every header points to a name, a buffer and control bytes of the stated lengths, which outlive the
        // call.
        let count = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                headers.as_mut_ptr(),
                RECEIVE_BATCH as libc::c_uint,
                flags,
                ptr::null_mut(),
            )
        };
        let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
        for (length, header) in self.lengths.iter_mut().zip(&headers[..count]) {
            *length = (header.msg_len as usize, header.msg_hdr.msg_controllen);
        }
        Ok(count)
    }

    /// The message at this place of the last batch; `None`: it has no address.
    pub(super) fn message(&self, at: usize) -> Option<Message<'_>> {
        let (len, control_len) = self.lengths[at];
        let payload = &self.data[at * DATAGRAM..][..len.min(DATAGRAM)];
        let mut message = Message {
            addr: address(&self.names[at])?,
            hop_limit: 64,
            traffic_class: 0,
            drops: None,
            error: None,
            payload,
        };
        for (level, kind, data) in control_messages(&self.control[at].0, control_len) {
            let word = data.first_chunk().map(|word| u32::from_ne_bytes(*word));
            let byte = || data.first().copied();
            match (level, kind) {
                (libc::IPPROTO_IP, libc::IP_TTL) | (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT) => {
                    message.hop_limit = word.map_or(64, |word| word as u8);
                }
                // IPv4 passes one byte, IPv6 an int.
                (libc::IPPROTO_IP, libc::IP_TOS) => message.traffic_class = byte().unwrap_or(0),
                (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                    message.traffic_class = word.unwrap_or(0) as u8;
                }
                (libc::SOL_SOCKET, libc::SO_RXQ_OVFL) => message.drops = word,
                (libc::IPPROTO_IP, libc::IP_RECVERR) | (libc::IPPROTO_IPV6, libc::IPV6_RECVERR) => {
                    message.error = extended_error(data);
                }
                _ => {}
            }
        }
        Some(message)
    }
}

/// Parses `struct sock_extended_err`: errno, origin, type, code, padding, info, data; the reporter's address follows.
fn extended_error(data: &[u8]) -> Option<ExtendedError> {
    let word = |at: usize| Some(u32::from_ne_bytes(*data.get(at..)?.first_chunk()?));
    let &[origin, kind, code] = data.get(4..)?.first_chunk()?;
    Some(ExtendedError {
        errno: word(0)?,
        origin,
        kind,
        code,
        info: word(8)?,
        by: data.get(16..).and_then(address_bytes).map(|addr| addr.ip()),
    })
}

/// Parses a socket address. The family's number has the host's byte order.
fn address_bytes(bytes: &[u8]) -> Option<SocketAddr> {
    let family = i32::from(u16::from_ne_bytes(*bytes.first_chunk()?));
    let port = u16::from_be_bytes(*bytes.get(2..)?.first_chunk()?);
    match family {
        libc::AF_INET => {
            let ip = Ipv4Addr::from(*bytes.get(4..)?.first_chunk::<4>()?);
            Some(SocketAddr::new(ip.into(), port))
        }
        libc::AF_INET6 => {
            let ip = Ipv6Addr::from(*bytes.get(8..)?.first_chunk::<16>()?);
            // The interface of a link-local address, which an answer to it needs.
            let scope = u32::from_ne_bytes(*bytes.get(24..)?.first_chunk()?);
            Some(SocketAddrV6::new(ip, port, 0, scope).into())
        }
        _ => None,
    }
}

fn address(name: &libc::sockaddr_storage) -> Option<SocketAddr> {
    // SAFETY: the bytes are initialised: zeroed first, then written by the kernel.
    let bytes =
        unsafe { std::slice::from_raw_parts(ptr::from_ref(name).cast::<u8>(), size_of_val(name)) };
    address_bytes(bytes)
}

/// Length of the header of a control message, and the unit of alignment, bytes.
const CMSG_HEADER: usize = size_of::<libc::cmsghdr>();
const CMSG_ALIGN: usize = size_of::<usize>();

/// Level, type and data of each control message in the first `len` bytes (cmsg(3)).
fn control_messages(bytes: &[u8], len: usize) -> impl Iterator<Item = (i32, i32, &[u8])> {
    let mut rest = &bytes[..len.min(bytes.len())];
    std::iter::from_fn(move || {
        let len = usize::from_ne_bytes(*rest.first_chunk()?);
        let word = |at: usize| Some(i32::from_ne_bytes(*rest.get(at..)?.first_chunk()?));
        let (level, kind) = (word(CMSG_ALIGN)?, word(CMSG_ALIGN + 4)?);
        let data = rest.get(CMSG_HEADER..len)?;
        rest = rest.get(len.next_multiple_of(CMSG_ALIGN)..).unwrap_or(&[]);
        Some((level, kind, data))
    })
}

/// Appends control messages with one int each.
struct ControlWriter<'a> {
    control: &'a mut Control,
    used: usize,
}

impl ControlWriter<'_> {
    fn push(&mut self, level: i32, kind: i32, data: &[u8]) {
        let len = CMSG_HEADER + data.len();
        let Some(place) = self.control.0.get_mut(self.used..self.used + len) else { return };
        place[..CMSG_ALIGN].copy_from_slice(&len.to_ne_bytes());
        place[CMSG_ALIGN..CMSG_ALIGN + 4].copy_from_slice(&level.to_ne_bytes());
        place[CMSG_ALIGN + 4..CMSG_HEADER].copy_from_slice(&kind.to_ne_bytes());
        place[CMSG_HEADER..].copy_from_slice(data);
        self.used += len.next_multiple_of(CMSG_ALIGN);
    }
}

/// Header fields that a socket uses for datagrams without control messages of their own.
#[derive(Debug, Clone, Copy)]
pub(super) struct Defaults {
    pub(super) hop_limit: u8,
    /// Source address of IPv4 datagrams to other hosts.
    pub(super) outbound: Option<Ipv4Addr>,
}

/// Sends a batch, at most [`SEND_BATCH`]. Returns the number that the socket took; an error means none.
pub(super) fn send(
    socket: BorrowedFd<'_>,
    batch: &[SendDatagram<'_>],
    defaults: &Defaults,
) -> io::Result<usize> {
    let batch = &batch[..batch.len().min(SEND_BATCH)];
    // SAFETY: all-zero bytes are valid for these plain structures: null pointers with a length of zero.
    let (mut names, mut headers): (
        [libc::sockaddr_storage; SEND_BATCH],
        [libc::mmsghdr; SEND_BATCH],
    ) = unsafe { (MaybeUninit::zeroed().assume_init(), MaybeUninit::zeroed().assume_init()) };
    let mut iovecs = [libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 }; SEND_BATCH];
    let mut control = [Control([0; CONTROL]); SEND_BATCH];
    for (i, datagram) in batch.iter().enumerate() {
        let name_len = write_address(&mut names[i], datagram.to);
        iovecs[i].iov_base = datagram.payload.as_ptr().cast_mut().cast();
        iovecs[i].iov_len = datagram.payload.len();
        let used = write_control(&mut control[i], datagram, defaults);
        let header = &mut headers[i].msg_hdr;
        header.msg_name = (&raw mut names[i]).cast();
        header.msg_namelen = name_len;
        header.msg_iov = &raw mut iovecs[i];
        header.msg_iovlen = 1;
        if used > 0 {
            header.msg_control = control[i].0.as_mut_ptr().cast();
            header.msg_controllen = used;
        }
    }
    // SAFETY: every header points to a name, a payload and control bytes of the stated lengths, which outlive the
    // call; the kernel only reads them.
    let count = unsafe {
        libc::sendmmsg(
            socket.as_raw_fd(),
            headers.as_mut_ptr(),
            batch.len() as libc::c_uint,
            libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
        )
    };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

/// Writes the control messages that the datagram needs; returns their length.
fn write_control(control: &mut Control, datagram: &SendDatagram<'_>, defaults: &Defaults) -> usize {
    let ip = datagram.ip;
    let mut out = ControlWriter { control, used: 0 };
    let (hops, class) = match datagram.to {
        SocketAddr::V4(_) => ((libc::IPPROTO_IP, libc::IP_TTL), (libc::IPPROTO_IP, libc::IP_TOS)),
        SocketAddr::V6(_) => {
            ((libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT), (libc::IPPROTO_IPV6, libc::IPV6_TCLASS))
        }
    };
    if ip.hop_limit != defaults.hop_limit {
        out.push(hops.0, hops.1, &i32::from(ip.hop_limit).to_ne_bytes());
    }
    if ip.traffic_class != 0 {
        out.push(class.0, class.1, &i32::from(ip.traffic_class).to_ne_bytes());
    }
    if let Some(from) = defaults.outbound
        && datagram.to.is_ipv4()
        && !datagram.to.ip().is_loopback()
    {
        // struct in_pktinfo: interface index, source, destination (of received ones).
        let mut info = [0; 12];
        info[4..8].copy_from_slice(&from.octets());
        out.push(libc::IPPROTO_IP, libc::IP_PKTINFO, &info);
    }
    out.used
}

/// Writes a socket address; returns its length.
fn write_address(name: &mut libc::sockaddr_storage, addr: SocketAddr) -> libc::socklen_t {
    let place: *mut libc::sockaddr_storage = name;
    match addr {
        SocketAddr::V4(addr) => {
            let value = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: addr.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(addr.ip().octets()) },
                sin_zero: [0; 8],
            };
            // SAFETY: a sockaddr_storage is as large as any socket address, and aligned for it.
            unsafe { place.cast::<libc::sockaddr_in>().write(value) };
            size_of::<libc::sockaddr_in>() as libc::socklen_t
        }
        SocketAddr::V6(addr) => {
            let value = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: addr.port().to_be(),
                sin6_flowinfo: 0,
                sin6_addr: libc::in6_addr { s6_addr: addr.ip().octets() },
                sin6_scope_id: addr.scope_id(),
            };
            // SAFETY: as above.
            unsafe { place.cast::<libc::sockaddr_in6>().write(value) };
            size_of::<libc::sockaddr_in6>() as libc::socklen_t
        }
    }
}

/// Sets an option that is an int.
pub(super) fn set_int(socket: BorrowedFd<'_>, level: i32, name: i32, value: i32) -> io::Result<()> {
    // SAFETY: the kernel reads one int.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

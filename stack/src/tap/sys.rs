//! The only file of this package with `unsafe`: the ioctls that turn a descriptor into a TAP.

use std::fs::OpenOptions;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use crate::io::vnet::VNET_HDR_LEN;

/// Device node of TUN and TAP devices.
const NODE: &str = "/dev/net/tun";

/// Checksum and TCP segmentation offload: the guest's kernel may leave both to the receiver.
const OFFLOAD: libc::c_uint =
    libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;

/// Creates TAP `name` with the 12-byte virtio header and all TCP offloads.
pub(super) fn open_vnet(name: &str) -> io::Result<OwnedFd> {
    let node = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(NODE)?;
    let mut request = ifreq(name)?;
    request.ifr_ifru.ifru_flags =
        (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    // SAFETY: the descriptor is open and `request` is a whole, initialised ifreq that outlives the call.
    check(unsafe { libc::ioctl(node.as_raw_fd(), libc::TUNSETIFF, &raw const request) })?;
    // The kernel's default is the 10-byte header without `num_buffers`.
    let header_len = VNET_HDR_LEN as libc::c_int;
    // SAFETY: the kernel reads one int through the pointer.
    check(unsafe { libc::ioctl(node.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const header_len) })?;
    // SAFETY: the argument is a number, not a pointer.
    check(unsafe {
        libc::ioctl(node.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(OFFLOAD))
    })?;
    Ok(node.into())
}

/// Creates the plain TAP `name`: no header, frames of at most one MTU.
pub(super) fn open_plain(name: &str) -> io::Result<OwnedFd> {
    // Checks the name: `tun_tap` would cut a long one.
    ifreq(name)?;
    let device = tun_tap::Iface::without_packet_info(name, tun_tap::Mode::Tap)?;
    // SAFETY: `into_raw_fd` gives up the descriptor, so no other owner closes it.
    Ok(unsafe { OwnedFd::from_raw_fd(device.into_raw_fd()) })
}

/// True if this TAP puts a header in front of frames. Fails if the descriptor is no TAP or the header is not ours.
pub(super) fn has_vnet_hdr(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let mut request = ifreq("")?;
    // SAFETY: the kernel writes one ifreq through the pointer.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNGETIFF, &raw mut request) })?;
    // SAFETY: TUNGETIFF filled in the flags member.
    let flags = libc::c_int::from(unsafe { request.ifr_ifru.ifru_flags });
    // A TUN has no Ethernet header; without IFF_NO_PI four more bytes precede each frame.
    if flags & libc::IFF_TAP == 0 || flags & libc::IFF_NO_PI == 0 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the descriptor handed in must be a TAP opened with IFF_NO_PI",
        ));
    }
    if flags & libc::IFF_VNET_HDR == 0 {
        return Ok(false);
    }
    let mut len: libc::c_int = 0;
    // SAFETY: the kernel writes one int through the pointer.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNGETVNETHDRSZ, &raw mut len) })?;
    if len != VNET_HDR_LEN as libc::c_int {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("the TAP handed in has a virtio header of {len} bytes: 12 is allowed"),
        ));
    }
    Ok(true)
}

/// The current name of the device.
pub(super) fn device_name(fd: BorrowedFd<'_>) -> io::Result<String> {
    let mut request = ifreq("")?;
    // SAFETY: the kernel writes one ifreq through the pointer.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNGETIFF, &raw mut request) })?;
    // The name ends at the first NUL or fills the array.
    let name = request.ifr_name.iter().take_while(|byte| **byte != 0);
    let bytes: Vec<u8> = name.map(|byte| byte.cast_unsigned()).collect();
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Request number from linux/if_tun.h: _IO('T', 227).
const TUNGETDEVNETNS: libc::c_ulong = 0x54e3;

/// The current network namespace of the device. Needs CAP_NET_ADMIN over the one it was created in.
pub(super) fn device_netns(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // SAFETY: the request takes no argument and returns a new descriptor.
    let netns = check(unsafe { libc::ioctl(fd.as_raw_fd(), TUNGETDEVNETNS, 0) })?;
    // SAFETY: the kernel has just created this descriptor for this call alone.
    Ok(unsafe { OwnedFd::from_raw_fd(netns) })
}

/// True for a socket that preserves packet boundaries and has one peer.
pub(super) fn is_packet_socket(fd: BorrowedFd<'_>) -> bool {
    let mut kind: libc::c_int = 0;
    let mut len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the kernel writes one int through the pointer; `len` bounds the write.
    let result = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_TYPE,
            (&raw mut kind).cast(),
            &raw mut len,
        )
    };
    result == 0 && kind == libc::SOCK_SEQPACKET
}

pub(super) fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: F_GETFL takes no argument.
    let flags = check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) })?;
    // SAFETY: F_SETFL takes a number.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) })?;
    Ok(())
}

/// An ifreq with only the name set.
fn ifreq(name: &str) -> io::Result<libc::ifreq> {
    if name.len() >= libc::IFNAMSIZ || name.bytes().any(|b| b == 0 || b == b'/') {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("device name {name:?}: at most 15 bytes without '/' are allowed"),
        ));
    }
    // SAFETY: all-zero bytes are a valid ifreq: it is plain old data.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(request)
}

/// Turns a negative result into the thread's last OS error.
fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

//! Sizes that several layers share.

use crate::io::HostCaps;

/// IP and TCP headers without options, bytes.
pub(crate) const HEADERS_V4: u16 = 40;
pub(crate) const HEADERS_V6: u16 = 60;

/// Caps of a host socket at its floor, bytes: the least send buffer the kernel grants (SOCK_MIN_SNDBUF), and a receive
/// window of one chunk, because each window costs a read, a frame and two ACKs. Every admitted flow is charged this;
/// more is charged when it opens, if the budget has plenty (`relay`). A larger floor would refuse flows to containers
/// that have room for their real use.
pub const HOST_FLOOR: HostCaps = HostCaps { sndbuf: 4608, rcvbuf: 8192 };

/// Charge of a flow object with its places in tables and queues, bytes (A1: `sock`). `flow` asserts that it fits.
pub(crate) const FLOW_BYTES: u32 = 1536;

/// Longest SYN backlog, entries, and its charge as a whole, bytes. `flow/syn_backlog` asserts that it fits.
pub(crate) const SYN_BACKLOG_MAX: usize = 512;
pub(crate) const SYN_BACKLOG_BYTES: u64 = 64 * SYN_BACKLOG_MAX as u64;

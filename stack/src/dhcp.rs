//! The server of DHCP (RFC 2131) and DHCPv6 (RFC 8415) for guests that configure themselves: a message of a client in,
//! an answer out.
//!
//! A container has one address of each family, so there is one lease of each, held by the hardware address that
//! requested it. Another client on the link (a bridge or macvlan in the container) gets the address when the lease was
//! released or has expired. A lease that the stack does not know is granted if its address is right: a stack that
//! starts again has clients with leases.

use std::net::SocketAddr;
use std::time::Duration;

use skbudget_controller::Instant;

use crate::counters::Stat;

#[cfg(test)]
mod tests;
mod v4;
mod v6;

pub(crate) use v4::answer as answer_v4;
pub(crate) use v6::answer as answer_v6;

/// Duration of a lease. A client renews it in half of that, and a client in place of one that is gone waits for it.
const LEASE: Duration = Duration::from_secs(3600);
/// Search domains in an answer, bytes (an option of DHCP has one byte for its length).
const SEARCH_BYTES_MAX: usize = 255;

/// An answer to a client.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    /// Addresses and ports of the client and of the server.
    pub(crate) addresses: (SocketAddr, SocketAddr),
    pub(crate) bytes: Vec<u8>,
    /// The counter of this kind of answer.
    pub(crate) stat: Stat,
}

/// The leases of a container's addresses.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    v4: Lease,
    v6: Lease,
}

/// The lease of one address: hardware address of its client, and its end.
#[derive(Debug, Default)]
struct Lease(Option<([u8; 6], Instant)>);

impl Lease {
    /// True if this client may have the address.
    fn is_free_for(&self, client: [u8; 6], now: Instant) -> bool {
        self.0.is_none_or(|(holder, until)| holder == client || until <= now)
    }

    fn grant(&mut self, client: [u8; 6], now: Instant) {
        self.0 = Some((client, now + LEASE));
    }

    /// Ends the lease of this client. Returns whether it was its own.
    fn release(&mut self, client: [u8; 6]) -> bool {
        let own = self.0.is_some_and(|(holder, _)| holder == client);
        if own {
            self.0 = None;
        }
        own
    }
}

/// A part of the duration of a lease, seconds: the unit of both protocols.
fn seconds(numerator: u32, denominator: u32) -> u32 {
    (LEASE * numerator / denominator).as_secs() as u32
}

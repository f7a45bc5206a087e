//! Clients of a published UDP port that appear as the gateway: answers to the gateway's port find their way back.

use std::collections::VecDeque;
use std::net::SocketAddr;

/// Largest number of such clients of one port. The one that was silent longest is forgotten for a new one.
pub(super) const CLIENTS_MAX: usize = 64;
/// Charge for them, bytes.
pub(super) const CLIENTS_BYTES: u64 = 4 << 10;
const _: () = assert!(CLIENTS_MAX * size_of::<(u16, SocketAddr)>() + 128 <= CLIENTS_BYTES as usize);

/// The gateway's ports that are used, with the client behind each; the latest last.
#[derive(Debug, Default)]
pub(crate) struct Clients(VecDeque<(u16, SocketAddr)>);

impl Clients {
    /// The port of the gateway for a client: its own, unless another client has that.
    pub(super) fn port_of(&mut self, client: SocketAddr) -> u16 {
        if let Some(at) = self.0.iter().position(|(_, known)| *known == client)
            && let Some(entry) = self.0.remove(at)
        {
            self.0.push_back(entry);
            return entry.0;
        }
        if self.0.len() >= CLIENTS_MAX {
            self.0.pop_front();
        }
        let is_free = |port: &u16| *port != 0 && self.0.iter().all(|(used, _)| used != port);
        // There are more ports than clients, so one of these is free.
        let candidates = (0..=CLIENTS_MAX as u16).map(|more| client.port().wrapping_add(more));
        let port = candidates.into_iter().find(is_free).unwrap_or_else(|| client.port());
        self.0.push_back((port, client));
        port
    }

    /// The client behind a port of the gateway.
    pub(super) fn behind(&self, port: u16) -> Option<SocketAddr> {
        self.0.iter().find(|(used, _)| *used == port).map(|(_, client)| *client)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_client_has_a_port_and_the_latest_are_kept() {
        let mut clients = Clients::default();
        let client = |ip: u8, port| SocketAddr::from(([127, 0, 0, ip], port));
        assert_eq!(clients.port_of(client(1, 5000)), 5000);
        assert_eq!(clients.port_of(client(2, 5000)), 5001, "taken");
        assert_eq!(clients.port_of(client(1, 5000)), 5000);
        assert_eq!(clients.behind(5001), Some(client(2, 5000)));
        assert_eq!(clients.port_of(client(3, u16::MAX)), u16::MAX);
        assert_eq!(clients.port_of(client(4, u16::MAX)), 1, "there is no port 0");
        for port in 0..200 {
            assert_eq!(clients.port_of(client(1, 5000)), 5000, "in use");
            clients.port_of(client(9, 10_000 + port));
        }
        assert_eq!((clients.behind(5001), clients.0.len()), (None, CLIENTS_MAX));
        assert_eq!(clients.behind(10_199), Some(client(9, 10_199)));
    }
}

//! Messages between the parent of the daemon and its relay, besides the requests of [`super::privileged`].

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::api::LevelRequest;

/// From the parent to the relay.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Order {
    /// With the text of the config, if there is one: start the workers. `restarts`: relays that ended without an order
    /// before this one; the first one attaches the config's containers. `levels`: limits that clients have given groups
    /// and the host.
    Start { workers: usize, restarts: u64, levels: Vec<(String, LevelRequest)> },
    /// With the control socket: serve clients. The relay reports `Serving`.
    Serve,
    /// Use these name servers of the host from now on.
    NameServers { servers: Vec<SocketAddr> },
    /// With the text of the config, which was checked: apply what has changed in it.
    Reload,
    /// Report `Alive` when every worker has answered.
    Check,
    /// Deliver what the containers sent, and end.
    Stop,
    /// End without the delivery.
    Interrupt,
}

/// From the relay to the parent. The relay's end is the end of the channel.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Report {
    /// Clients are served.
    Serving,
    /// The answer to `Check`.
    Alive,
    /// The relay ends for this reason.
    Failed { code: u8, message: String },
}

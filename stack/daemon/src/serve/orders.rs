//! Messages between the parent of the daemon and its relay, besides the requests of [`super::privileged`].

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::privileged::Record;

/// From the parent to the relay.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Order {
    /// With the text of the config, if there is one: start the workers. `first`: attach the config's containers,
    /// because no relay has run before this one.
    Start { workers: usize, first: bool },
    /// With its device: serve this container again.
    Restore { name: String, record: Box<Record> },
    /// With the control socket: serve clients. The relay reports `Serving`.
    Serve,
    /// Use these name servers of the host from now on.
    NameServers { servers: Vec<SocketAddr> },
    /// With the text of the config, which was checked: apply what has changed in it.
    Reload,
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
    /// The relay ends for this reason.
    Failed { code: u8, message: String },
}

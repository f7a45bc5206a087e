//! The traffic of a container.

use serde::{Deserialize, Serialize};

/// An open-loop request/response client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeSpec {
    /// Interval between two requests, nanoseconds.
    pub every_ns: u64,
    /// Time of the first request after the start of the run; differs between containers to stagger them.
    pub offset_ns: u64,
    /// Length of a request.
    pub request_bytes: u32,
    /// Length of a response.
    pub response_bytes: u32,
    /// Requests beyond this number of outstanding ones are shed.
    pub outstanding_max: u32,
    /// A response later than this after its intended start counts as not delivered.
    pub deadline_ns: u64,
    /// Open a new connection for each request.
    pub fresh: bool,
}

/// Connections that fill buffers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fill {
    /// Number of connections.
    pub connections: u32,
    /// Rate at which the remote end of each reads; `None`: it never reads.
    pub reads_bits_per_second: Option<u64>,
    /// Bytes that each connection carries before it becomes idle; `None`: unlimited.
    pub bytes: Option<u64>,
    /// Buffer size of the container's socket.
    pub buffer_bytes: Option<u64>,
}

/// Kinds of handcrafted segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FloodKind {
    /// One byte, a hole of one byte, and so on; the first hole is never filled.
    OutOfOrder,
    /// Segments of one byte, in order.
    Tiny,
    /// Opens connections and sends nothing on them.
    Silent,
}

/// One kind of traffic of one container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Load {
    /// Sends as much as possible to servers that each read at a given rate. A rate just below the link's leaves a
    /// standing queue in the stack, as any real server does that is slower than its network.
    Up {
        /// Number of connections, one server each.
        connections: u32,
        /// Rate at which each server reads.
        reads_bits_per_second: u64,
    },
    /// Reads everything from servers that send as much as possible.
    Down {
        /// Number of connections.
        connections: u32,
    },
    /// Sends requests at fixed times.
    Probe(ProbeSpec),
    /// Sends to servers that read slowly or never.
    Stuff(Fill),
    /// Reads slowly or never from servers that send as much as possible.
    Hoard(Fill),
    /// Sends, closes and forgets, to servers that never read.
    Orphans {
        /// Connections opened in a second.
        per_second: u32,
        /// Bytes that each sends.
        bytes: u64,
    },
    /// Clients outside connect and send; the container never accepts.
    Accept {
        /// Number of clients.
        connections: u32,
    },
    /// Servers respond all at once.
    Incast {
        /// Number of servers, one connection each.
        connections: u32,
        /// Length of each response.
        bytes: u32,
        /// Interval between two requests, nanoseconds.
        every_ns: u64,
    },
    /// Sends handcrafted segments, without a TCP of its own.
    Flood {
        /// What the segments are.
        kind: FloodKind,
        /// Number of connections.
        connections: u32,
        /// Segments in a second, over all connections.
        per_second: u32,
    },
}

impl Load {
    /// The name in a scenario file.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Up { .. } => "up",
            Self::Down { .. } => "down",
            Self::Probe(_) => "probe",
            Self::Stuff(_) => "stuff",
            Self::Hoard(_) => "hoard",
            Self::Orphans { .. } => "orphans",
            Self::Accept { .. } => "accept",
            Self::Incast { .. } => "incast",
            Self::Flood { .. } => "flood",
        }
    }
}

//! The virtual world: containers with complete guests, simulated hosts and links, on one seeded virtual clock.
//!
//! Tests, benches and loadgen run in it; `fuzz` has the targets of the fuzzers.
//!
//! Nothing here reads a clock or calls the system: a seed and a program determine a run, bit for bit. CPU time costs
//! nothing, so only memory, a link, a pause of admissions or a bug can starve a flow in this world.
//!
//! ```text
//!  SmolGuest (smoltcp + App...)        World                            SimHost
//!  ┌───────────┐  up link: rate, queue, delay, faults   ┌───────────┐   sockets    ┌─────────┐
//!  │ App  App  ├──────────────▶ Container::on_frame ───▶│ Container ├─ Host::write ▶│ Server  │
//!  │           │◀────────────── Device::send        ◀───│           │◀ on_host_ready┤  ...    │
//!  └───────────┘  down link                             └─────┬─────┘              └─────────┘
//!                                                  Budget ◀───┘ (own, or shared by several)
//! ```
//!
//! A test creates a [`World`], adds budgets and containers ([`NodeConfig`]), puts [`Server`]s behind the ports of each
//! [`SimHost`], opens connections in the [`SmolGuest`]s ([`App`]s), and calls [`World::run_until`]. A test that builds
//! frames itself implements [`Guest`]; [`PeerStack`] is a guest that is one of our own stacks.
//!
//! Order within one instant: frames and timers in the order in which they were created; then, until no work is left:
//! host readiness, one turn of the loop (`skbudget_stack::schedule`, which the daemon's workers use), guest by guest a
//! poll. The loop has all bounds of the daemon's: flows and frames a turn, wake passes, pauses of admissions beside a
//! busy neighbour. Only its CPU throttle never acts, as no turn takes time. A deadline in the past is due a nanosecond
//! later, so a stack that always wants an immediate turn makes time pass instead of hanging the test.
//!
//! Every byte of every stream is a function of its server port, direction and position ([`Pattern`]). The receiving end
//! checks it and reports to the [`Observer`]s.
#![warn(missing_docs)]

use skbudget_stack::{HOST_FLOOR, HostCaps};

mod app;
mod datagram_guest;
mod event_queue;
pub mod fake_host;
pub mod flood;
mod frame;
#[cfg(feature = "fuzz")]
pub mod fuzz;
mod guest;
mod host;
mod link;
mod link_port;
mod observer;
pub mod packet;
mod pattern;
mod peer;
mod peer_stack;
mod server;
mod sock;
mod world;

pub use app::{App, BulkRecv, BulkSend, NeverRead, Next, Probe, ProbePlan};
pub use datagram_guest::DatagramGuest;
pub use frame::{Frame, FramePool};
pub use guest::{Buffers, ConnId, Guest, GuestConfig, Open, SmolGuest};
pub use host::{DatagramServer, DatagramStats, SimHost};
pub use link::{Fate, Faults, Link, LinkConfig, LinkStats, Mishap, WhenFull};
pub use observer::{Observer, Tally, Watch};
pub use pattern::Pattern;
pub use peer_stack::PeerStack;
pub use server::{Accept, End, Server, Source};
pub use skbudget_seed::{Rng, each_seed};
pub use smoltcp;
pub use sock::PortStats;
pub use world::{BudgetId, NodeConfig, NodeId, World, WorldStats};

/// Caps of a newly accepted socket: those that its admission charges.
pub const ACCEPTED_CAPS: HostCaps = HOST_FLOOR;

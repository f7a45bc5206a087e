//! A budgeted userspace TCP stack for one container, sans-io. Its inputs are frames and host-socket events, its outputs
//! frames and host-socket commands. Time, randomness and memory are arguments, so the same code runs behind a TAP and
//! in virtual time.
//!
//! This is the architecture page; file names count from `stack/src`, `stack` or the root.
//! `controller/docs/pressure-model.md` has the rules that comments cite by code (K7) and the glossary (credit, reserve,
//! demote, orphan). `CONTRIBUTING.md` describes how to build, test and write.
//!
//! # The path of a frame
//!
//! ```text
//!  1  tap.rs                  daemon/src/worker/container_slot.rs reads frames of the guest, a bounded number a turn
//!  2  container/frames.rs     wire/parse.rs checks the headers (wire/ipv6.rs, wire/reassembly.rs): a segment, an
//!                             answer, or a drop
//!  3  container.rs            flow/table.rs finds the flow; without one: flow/time_wait.rs, then a SYN to
//!                             flow/syn_backlog.rs, and a RST in answer to others
//!  4  tcp/input.rs            the checks of RFC 9293 in their order; tcp/ack.rs frees acknowledged data
//!  5  queue/receive.rs        data fills chunks that are charged already; the flow is marked dirty
//!  6  container/service.rs    once per dirty flow and turn:
//!  7    relay.rs to_host      in-order data to the host socket, then uncharged
//!  8    relay.rs to_guest     memory is requested (queue/send.rs), then the host socket is read
//!  9    tcp/output.rs         tcp/rcv.rs charges the next part of the window and advertises it; data and ACKs
//! 10    wire/emit.rs          headers, checksums, segmentation offload; tap.rs writes the frame
//! ```
//!
//! A datagram takes a shorter path: `container/datagrams.rs` finds its mapping in `udp.rs` and stores it in
//! `udp/outbox.rs`; at the start of the turn each mapping sends its own in a batch, and what its socket received goes
//! to the device without a queue.
//!
//! Steps 1 to 5 only mark flows; steps 6 to 10 move bytes and send, so a batch of segments costs one write and one ACK.
//! Answers that belong to no flow (RST, TIME-WAIT, ARP, ICMP) are sent at once.
//! A SYN opens a flow in `container/admission` (two a turn), after the flow's whole reservation is charged. `schedule`
//! is the order in which a loop runs containers; the loop itself, the host sockets and the TAP's set-up are in the
//! package `skbudget`, in the folder `daemon` beside this one, and for virtual time in `sim`.
//!
//! # Modules
//!
//! A module uses only modules before it; `tests/tidy/layers.rs` compares the order with the `use` lines:
//!
//! ```text
//! io < pressure < schedule < queue < sizes < config < counters < wire < tcp < flow < udp < dns < dhcp < relay
//!    < container < siblings < tap < fuzz
//! ```
//!
//! `io` has the traits of both ends and the device header, `pressure` the bounds over soft, `schedule` the order of the
//! loop that runs containers, `queue` is the memory that is charged, `wire` turns bytes into values and back, `tcp` is
//! one connection with the guest, `flow` a connection with its host socket and the tables of all, `udp` has the
//! mappings of the guest's UDP ports and echo requests, `dns` the questions of the DNS forwarder, `dhcp` the lease
//! of the guest's address, `relay` moves bytes between a flow's two ends, `container` is the only module that knows the
//! order of things, `siblings` the containers of one loop that reach each other.
//!
//! # How a flow ends
//!
//! Data that was acknowledged to one end is delivered to the other before that one learns of the end, in
//! `container/ending.rs`. A host socket in error is read to its end, and the guest is reset when it has acknowledged
//! everything (`relay.rs` `end_of_host`, `tcp.rs` `reset_is_due`). A flow that has lost its guest is an orphan (K11, in
//! `flow/orphan.rs`): it is charged until the host's peer has acknowledged everything; a timer polls its send queue. A
//! guest's keep-alive is answered once the host's peer has sent a sign of life (`container/keepalive.rs`): a peer that
//! is gone ends the flow as it would without a relay.
//!
//! # Where memory is charged
//!
//! In `queue/receive`, `queue/send`, `queue/pass` (moves a charge between containers), `container/admission` (the
//! reservation), `relay/host_caps` (of host sockets), `flow/syn_backlog` and `flow/time_wait` (small fixed entries),
//! `wire/reassembly` (fragments), `udp` (mappings with the caps of their sockets), `udp/outbox` (datagrams of a turn)
//! and `dns` (questions with their sockets), in the daemon's `worker/add` and `worker/live` (device queues, and
//! backlogs of published ports, H6), and at no other place; `tests/tidy/main.rs` compares the list with the calls. A
//! charge is a request to [`controller::Budget`], which knows nothing of packets.
//!
//! # What happens over soft, what at hard
//!
//! Over soft the container is slower and nothing is lost. `pressure.rs` computes what it does in smaller steps, with a
//! table of the values and their users: windows and reads fall to the flow's reserve, caps of host sockets return to
//! what a flow started with, a turn serves fewer flows and reads fewer frames, and the container pauses between turns.
//! Growth is bounded by the budget:
//!
//! | over soft, or near it | file |
//! |---|---|
//! | windows, send queues and caps stop growing well before soft: a step takes at most a quarter of the room left | `controller/src/budget/flow.rs` `may_grow`, called by `tcp/rcv.rs`, `tcp/snd.rs` and `relay/host_caps.rs` |
//! | caps of host sockets are not raised | `controller/src/budget/strict.rs` `strict_host_raise` |
//! | a flow grows only up to its fair share (H4), a container up to its share of the level (H5) | `controller/src/budget/strict.rs` `grow`, `controller/src/level/bounds.rs` `fair_room` |
//!
//! At hard a charge is refused; usage never exceeds it.
//!
//! | refused at hard | what happens | file |
//! |---|---|---|
//! | window credit | the window opens less; credit of idle flows is released (H3), otherwise the flow waits | `tcp/rcv.rs` `advance_edge`, `container/memory.rs` `short_of_memory`, `demote` |
//! | memory to read the host socket | it is not read, the remote's window closes; the target of the send queue drops to half of the queued bytes; as above | `relay.rs` `to_guest`, `tcp/snd.rs` `moderate_target` |
//! | data inside the window | not possible: it was charged before the window was advertised. Only a demoted flow requests its charge again, and drops what does not fit | `queue/receive.rs` `store`, `tcp/input.rs` `store` |
//! | a new flow | credit and caps of idle flows are released; otherwise its SYN stays in the queue, and connections to a published port stay in its backlog | `container/admission.rs` `reserve`, `wait_for_room`, `can_accept`, `wait_to_accept` |
//! | growth while SYNs wait | room for their reservations, up to half of the room that reservations leave, is held back from windows, queues and caps (H1) | `container/crowd.rs` `hold_for_admission`, `controller/src/meter.rs` `growth_room` |
//! | a higher cap of a host socket | it stays as it is | `relay/host_caps.rs` `raise` |
//! | a fragment | the oldest incomplete datagram is dropped | `wire/reassembly.rs` `make_room` |
//! | a mapping of a UDP port | the one that was silent longest is evicted, once; otherwise the datagram is dropped | `container/datagrams.rs` `open_mapping` |
//! | a datagram for the host | it is sent at once, without a place in a batch | `container/datagrams.rs` `on_datagram` |
//! | a larger buffer of a UDP socket | it stays as it is; a full one loses datagrams | `udp.rs` `raise` |
//! | a TIME-WAIT entry | the flow leaves no entry | `flow/time_wait.rs` `insert` |
//! | waiting | when memory returns, the oldest waiter runs in the same turn of the loop (B9) | `container/memory.rs` `on_wake`, `schedule.rs` `next_step` |
//! | linux rules | the segment is dropped and the window closes (L6); a sender retries after 8 to 200 ms (L4) | `tcp/input.rs` `count_stored`, `container/service.rs` `retry_later` |
//!
//! # To add a protocol
//!
//! TCP and UDP are relayed. The files that another transport protocol touches, in order; UDP's are an example:
//!
//! 1. `wire/parse.rs` (`transport`): the checks of its header, ends and checksum (`wire/udp.rs`), and a variant of
//!    `Ingress`. Each check has a drop reason in `counters.rs`, and a frame in `tests/container/malformed.rs`.
//! 2. `wire/emit.rs`: its headers and checksum towards the guest; `wire/icmp.rs` and `wire/icmp/undeliverable.rs`:
//!    errors that quote its packets, both ways.
//! 3. The key of what the stack remembers: `flow/table.rs` has tuples of TCP, `udp.rs` the guest's ports of UDP.
//! 4. `controller/src/ledger.rs` and `controller/src/budget/snapshot.rs`: a category for its charge, with a rule in
//!    `controller/docs/pressure-model.md`, as M4. The file that charges is listed above and in `tests/tidy/main.rs`.
//! 5. `config.rs`: its limits; a size that `sizes.rs` or the charge covers.
//! 6. `io.rs`: what it needs of a host socket, as a trait beside `Host`, as `io/datagram.rs`.
//! 7. `container/frames.rs` dispatches its frames; a file beside it, as `container/datagrams.rs`, relays them, bounded
//!    in a turn; `container.rs` has its timers in `next_deadline` and its end in `abort_all`.
//! 8. `daemon/src/host.rs`: the sockets; `daemon/src/token.rs`: a kind of event; `daemon/src/worker.rs`: the
//!    dispatch of that event.
//! 9. `container/info.rs` and `daemon/src/stats.rs`: what users see; `daemon/src/config.rs` and `daemon/src/cli.rs`:
//!    what they set.
//! 10. `sim/src/host.rs`: its servers in the virtual world; `sim/src/fake_host.rs`: its sockets in packet scripts.
#![deny(unsafe_code)]
#![warn(missing_docs)]

mod config;
pub mod container;
mod counters;
mod dhcp;
mod dns;
mod flow;
#[cfg(feature = "fuzz")]
pub mod fuzz;
pub mod io;
mod pressure;
mod queue;
mod relay;
pub mod schedule;
mod siblings;
mod sizes;
pub mod tap;
mod tcp;
#[cfg(test)]
mod test_budget;
mod udp;
mod wire;

pub use skbudget_controller as controller;

pub use config::{Algorithm, ContainerConfig, Ipv6Net, ReachRule};
pub use container::siblings::Pair;
pub use container::{
    Container, ContainerStats, Ctx, FlowInfo, MappingInfo, NotAccepted, Undelivered, WakeKey,
};
pub use dns::siblings::Directory;
pub use io::datagram::{self, DatagramHost, DatagramId};
pub use io::vnet::{self, VnetHdr};
pub use io::{Close, Device, FlowId, Host, HostCaps, HostError, Ready};
pub use pressure::Throttle;
pub use queue::chunk::{self, ChunkPool};
pub use queue::pass::Budgets;
pub use schedule::Schedule;
pub use siblings::{Loop, Siblings};
pub use sizes::HOST_FLOOR;
pub use tap::Tap;
pub use udp::PUBLISHED_BYTES as PUBLISHED_UDP_BYTES;

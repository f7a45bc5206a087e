//! Moves bytes between a flow's TCP and its host socket.
//!
//! Towards the host, the receive queue holds the guest's data until the host socket takes it (rmem). Towards the guest,
//! the send queue holds data read from the host socket until the guest acknowledges it (wmem). Nothing is read from the
//! host before its memory is granted, and nothing from the guest is acknowledged before it is stored: no data that
//! either end considers delivered is lost here.
//!
//! ```text
//! guest ──▶ rcv.q ──to_host──▶ host socket          FIN ──▶ shutdown(SHUT_WR) once rcv.q is empty
//! guest ◀── snd.q ◀─to_guest── host socket          FIN ◀── end of stream
//!                                                   RST ◀── error, once the guest has acknowledged all before it
//! ```
//!
//! A host socket with an error still holds data that arrived before: it is read to its end first. It takes no more
//! data, so data from the guest is acknowledged and dropped. Otherwise a guest that sends everything before it reads
//! would never read the answer.

pub(crate) mod host_caps;

use skbudget_controller::Rules;

use crate::flow::HostSide;
use crate::io::{FlowId, Host, HostError};
use crate::pressure::Throttle;
use crate::queue::MemCtx;
use crate::queue::chunk::PAYLOAD;
use crate::queue::send::{Filled, PARTS_MAX};
use crate::tcp::Tcb;

/// Slices of one write: 256 KiB.
const WRITE_PARTS: usize = 64;
/// Most bytes moved for one flow and direction in one turn: other flows get their turn before it continues.
const BYTES_PER_TURN: usize = 128 << 10;

/// How a move of bytes ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moved {
    /// Moved as far as both ends allow now.
    Done,
    /// The bound of the turn is reached.
    More,
    /// The budget refused memory for data of the host.
    NoMemory,
}

/// Both ends of one flow, and the host access.
pub(crate) struct Ends<'a> {
    pub(crate) id: FlowId,
    pub(crate) tcb: &'a mut Tcb,
    pub(crate) side: &'a mut HostSide,
    pub(crate) host: &'a mut dyn Host,
}

/// Writes in-order data to the host socket, and shuts it down after the last byte of the guest's stream. `queue_share`:
/// see [`Tcb::consume`].
pub(crate) fn to_host(ends: &mut Ends<'_>, queue_share: u64, mem: &mut MemCtx<'_>) -> Moved {
    let mut left = BYTES_PER_TURN;
    while ends.tcb.unread() > 0 && ends.side.ready.writable && !ends.side.is_broken() {
        let mut parts = [std::io::IoSlice::new(&[]); WRITE_PARTS];
        let mut count = 0;
        for (slot, part) in parts.iter_mut().zip(ends.tcb.readable(WRITE_PARTS)) {
            *slot = part;
            count += 1;
        }
        match ends.host.write(ends.id, &parts[..count]) {
            Ok(n) => {
                ends.tcb.consume(n, queue_share, mem);
                ends.side.to_host_since += n as u64;
                left = left.saturating_sub(n);
                if left == 0 {
                    return Moved::More;
                }
            }
            Err(HostError::WouldBlock) => {
                ends.side.ready.writable = false;
                // The socket filled up: a larger cap may let it take more at once.
                host_caps::raise_sndbuf(ends, mem);
            }
            Err(e) => {
                ends.side.error = Some(e);
                // Data that arrived before the error is still to be read.
                ends.side.ready.readable = true;
            }
        }
    }
    // The host takes no more data: drop it, so that the guest's window opens (see the head of this file).
    if ends.side.is_broken() {
        let unread = ends.tcb.unread() as usize;
        if unread > 0 {
            ends.tcb.consume(unread, queue_share, mem);
        }
        return Moved::Done;
    }
    // After the last byte, and once.
    if ends.tcb.drained() && !ends.side.shut {
        ends.side.shut = true;
        ends.host.shutdown_write(ends.id);
    }
    Moved::Done
}

/// Reads from the host socket as much as the guest's window, the queue and the budget allow.
pub(crate) fn to_guest(ends: &mut Ends<'_>, mem: &mut MemCtx<'_>) -> Moved {
    let mut left = BYTES_PER_TURN;
    while ends.side.ready.readable && !ends.side.eof {
        let room = ends.tcb.send_room(Throttle::of(mem.budget).host_read);
        if room == 0 {
            return Moved::Done;
        }
        if left == 0 {
            return Moved::More;
        }
        // The hint keeps a flow of small replies from requesting memory for a full read.
        let want = room.min(ends.side.read_hint * PAYLOAD);
        let (id, host) = (ends.id, &mut *ends.host);
        let filled = ends.tcb.fill(want, mem, |parts| host.read(id, parts));
        match filled {
            Filled::Bytes { n, full } => {
                ends.side.from_host_since += n as u64;
                ends.side.bytes_to_guest += n as u64;
                ends.side.read_hint = if full {
                    (ends.side.read_hint * 2).min(PARTS_MAX - 2)
                } else {
                    (n / PAYLOAD + 1).min(PARTS_MAX - 2)
                };
                left = left.saturating_sub(n);
                host_caps::raise_rcvbuf(ends, n, mem);
            }
            Filled::Eof => {
                if ends.side.broken {
                    // Reads continued after the error until the end of the stream, so the peer ended its stream before.
                    ends.side.error.get_or_insert(HostError::ResetAfterEnd);
                }
                end_of_host(ends);
            }
            // The flow's own cap refused, not the pool: the next ACK makes room and causes another call.
            Filled::NoMemory if at_sndbuf(mem) => return Moved::Done,
            Filled::NoMemory => {
                ends.tcb.moderate_send_target();
                return Moved::NoMemory;
            }
            Filled::Failed(HostError::WouldBlock) => {
                ends.side.ready.readable = false;
                // EPOLLERR was not for the connection, or a write received the error.
                ends.side.broken = false;
                if ends.side.error.is_some() {
                    end_of_host(ends);
                }
            }
            Filled::Failed(e) => {
                ends.side.error.get_or_insert(e);
                end_of_host(ends);
            }
        }
    }
    // The end of the stream was read before the error event arrived.
    if ends.side.eof && ends.side.broken && ends.side.error.is_none() {
        ends.side.error = Some(HostError::ResetAfterEnd);
        end_of_host(ends);
    }
    Moved::Done
}

/// Everything the host sent was read. Ends the stream to the guest as the host's ended: FIN, RST, or FIN and then RST.
fn end_of_host(ends: &mut Ends<'_>) {
    ends.side.eof = true;
    match ends.side.error {
        None => ends.tcb.finish(),
        Some(HostError::ResetAfterEnd) => {
            ends.tcb.finish();
            ends.tcb.reset_when_acknowledged();
        }
        Some(_) => ends.tcb.reset_when_acknowledged(),
    }
}

/// Linux rules: the flow has reached its sndbuf (`sk_stream_memory_free` is false).
fn at_sndbuf(mem: &MemCtx<'_>) -> bool {
    mem.budget.rules() == Rules::Linux && mem.ledger.wmem() >= u64::from(mem.ledger.sndbuf())
}

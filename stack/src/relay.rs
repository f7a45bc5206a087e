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

use std::time::Duration;

use skbudget_controller::{Budget, Counter, Instant, Ledger, Rules};

use crate::flow::HostSide;
use crate::io::{FlowId, Host, HostCaps, HostError};
use crate::queue::chunk::PAYLOAD;
use crate::queue::send::{Filled, PARTS_MAX};
use crate::sizes::HOST_FLOOR;
use crate::tcp::rcv::grows_by;
use crate::tcp::{Mem, Tcb};

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

/// Writes in-order data to the host socket, and shuts it down after the last byte of the guest's stream.
pub(crate) fn to_host(ends: &mut Ends<'_>, mem: &mut Mem<'_>) -> Moved {
    let mut left = BYTES_PER_TURN;
    while !ends.tcb.rcv.q.is_empty() && ends.side.ready.writable && !ends.side.is_broken() {
        let mut parts = [std::io::IoSlice::new(&[]); WRITE_PARTS];
        let mut count = 0;
        for (slot, part) in parts.iter_mut().zip(ends.tcb.rcv.q.readable(WRITE_PARTS)) {
            *slot = part;
            count += 1;
        }
        match ends.host.write(ends.id, &parts[..count]) {
            Ok(n) => {
                ends.tcb.consume(n, mem);
                ends.side.to_host_since += n as u64;
                left = left.saturating_sub(n);
                if left == 0 {
                    return Moved::More;
                }
            }
            Err(HostError::WouldBlock) => {
                ends.side.ready.writable = false;
                // The socket filled up: a larger cap may let it take more at once.
                raise_sndbuf(ends, mem);
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
        let unread = ends.tcb.rcv.q.unread() as usize;
        if unread > 0 {
            ends.tcb.consume(unread, mem);
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
pub(crate) fn to_guest(ends: &mut Ends<'_>, mem: &mut Mem<'_>) -> Moved {
    let mut left = BYTES_PER_TURN;
    while ends.side.ready.readable && !ends.side.eof {
        // Linux rules: pressure does not bound what a sender may queue, only sndbuf does (L4).
        let held_back = mem.budget.rules() == Rules::Strict && mem.budget.under_pressure();
        let room = ends.tcb.send_room(held_back);
        if room == 0 {
            return Moved::Done;
        }
        if left == 0 {
            return Moved::More;
        }
        // The hint keeps a flow of small replies from requesting memory for a full read.
        let want = room.min(ends.side.read_hint * PAYLOAD);
        let (id, host) = (ends.id, &mut *ends.host);
        let filled =
            ends.tcb.snd.q.fill(want, mem.pool, mem.budget, mem.ledger, mem.now, |parts| {
                host.read(id, parts)
            });
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
                raise_rcvbuf(ends, n, mem);
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
                ends.tcb.snd.moderate_target();
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

/// Caps of a flow that starts with enough room, bytes: enough for a usual reply and for an initial window of 10
/// segments from a real network.
const BEGIN_CAPS: HostCaps = HostCaps { sndbuf: 16 << 10, rcvbuf: 48 << 10 };

/// Receive caps of a new connection, best first, bytes. The cap at connect time decides for the life of the socket:
/// below the first value its window scale is zero, and the remote bounds its MSS by half of the window.
const RCVBUF_TO_BEGIN: [u32; 2] = [256 << 10, BEGIN_CAPS.rcvbuf];
/// A new connection takes at most this fraction of the room below soft.
const SHARE_TO_BEGIN: u64 = 64;

/// Caps with which the host socket of a new flow starts: those charged already, or larger ones, which this charges.
pub(crate) fn begin_caps(
    budget: &mut Budget,
    ledger: &mut Ledger,
    charged: HostCaps,
    now: Instant,
) -> HostCaps {
    let most = budget.sock_limits().rmem[2];
    let share = budget.calm_room() / SHARE_TO_BEGIN;
    for rcvbuf in RCVBUF_TO_BEGIN {
        let by = u64::from(rcvbuf.saturating_sub(charged.rcvbuf));
        if by == 0 {
            break;
        }
        if rcvbuf <= most && by <= share && budget.host_raise(ledger, by, now) {
            return HostCaps { rcvbuf, ..charged };
        }
    }
    charged
}

/// Data is about to move: raises the caps from the floor to [`BEGIN_CAPS`] if the budget has room. Once until the flow
/// becomes idle.
pub(crate) fn begin(ends: &mut Ends<'_>, mem: &mut Mem<'_>) {
    if std::mem::replace(&mut ends.side.begun, true) {
        return;
    }
    let limits = mem.budget.sock_limits();
    let sndbuf = BEGIN_CAPS.sndbuf.min(limits.wmem[2]);
    let rcvbuf = BEGIN_CAPS.rcvbuf.min(limits.rmem[2]);
    raise(ends, HostCaps { sndbuf, rcvbuf }, mem);
}

/// Linux rules: the flow has reached its sndbuf (`sk_stream_memory_free` is false).
fn at_sndbuf(mem: &Mem<'_>) -> bool {
    mem.budget.rules() == Rules::Linux && mem.ledger.wmem() >= u64::from(mem.ledger.sndbuf())
}

/// Doubles the send cap of a socket that filled up after it took twice its cap; the difference is charged first (B10).
fn raise_sndbuf(ends: &mut Ends<'_>, mem: &mut Mem<'_>) {
    let cap = ends.side.caps.sndbuf;
    if ends.side.to_host_since < 2 * u64::from(cap) {
        return;
    }
    ends.side.to_host_since = 0;
    let max = mem.budget.sock_limits().wmem[2];
    let raised = HostCaps { sndbuf: (cap * 2).min(max), ..ends.side.caps };
    raise(ends, raised, mem);
}

/// Doubles the receive cap, which bounds the window that the remote sees: about half of the cap. There are two cases,
/// both charged first (B10):
///
/// - A read found a quarter of the cap or more, so half the window: the remote waits for this side.
/// - Twice the cap arrived within a second. A window that limits the flow carries that in four round trips, so paths of
///   up to 250 ms are not limited by the cap, and a slower remote has no use for a larger one.
fn raise_rcvbuf(ends: &mut Ends<'_>, n: usize, mem: &mut Mem<'_>) {
    let cap = ends.side.caps.rcvbuf;
    let moved = ends.side.from_host_since;
    // A read is limited to its slices, so a full one counts, too.
    let waits = n >= cap as usize / 4 || n >= PAYLOAD * (PARTS_MAX - 3);
    let quick = mem.now.since(ends.side.from_host_at) <= RAISE_WITHIN;
    let raises = (waits && moved >= u64::from(cap)) || (quick && moved >= 2 * u64::from(cap));
    if !raises && quick {
        return;
    }
    ends.side.from_host_since = 0;
    ends.side.from_host_at = mem.now;
    if !raises {
        return;
    }
    let max = mem.budget.sock_limits().rmem[2].min(HOST_RCVBUF_MAX);
    let raised = HostCaps { rcvbuf: (cap * 2).min(max), ..ends.side.caps };
    raise(ends, raised, mem);
}

/// Time in which twice the cap must arrive for the second case of `raise_rcvbuf`.
const RAISE_WITHIN: Duration = Duration::from_secs(1);

/// Largest receive cap, bytes: beyond it a larger host buffer only moves the queue from the remote to this machine.
const HOST_RCVBUF_MAX: u32 = 4 << 20;

/// Raises the caps to `wanted` if the budget grants the difference. Never lowers a cap, even if
/// its limit is below the floor.
fn raise(ends: &mut Ends<'_>, wanted: HostCaps, mem: &mut Mem<'_>) {
    let caps = ends.side.caps;
    let raised =
        HostCaps { sndbuf: wanted.sndbuf.max(caps.sndbuf), rcvbuf: wanted.rcvbuf.max(caps.rcvbuf) };
    let by = u64::from(raised.sndbuf - caps.sndbuf) + u64::from(raised.rcvbuf - caps.rcvbuf);
    if by == 0 || !grows_by(mem.budget, by) || !mem.budget.host_raise(mem.ledger, by, mem.now) {
        return;
    }
    ends.side.caps = raised;
    ends.host.set_caps(ends.id, raised);
}

/// The flow is idle: lowers the send cap of its host socket to the floor, as far as it is empty. The receive cap stays:
/// a remote kernel sends nothing into a window below half of the largest one it saw until its persist timer fires, 200
/// ms later.
pub(crate) fn lower(ends: &mut Ends<'_>, mem: &mut Mem<'_>) {
    // The flow starts with `BEGIN_CAPS` again when data moves.
    ends.side.begun = false;
    lower_to(ends, HostCaps { sndbuf: HOST_FLOOR.sndbuf, ..ends.side.caps }, mem);
}

/// The caps of an idle flow are needed to admit a connection: lowers all of them to the floor. A remote that was
/// sending last may wait those 200 ms once.
pub(crate) fn lower_to_floor(ends: &mut Ends<'_>, mem: &mut Mem<'_>) {
    ends.side.begun = false;
    lower_to(ends, HOST_FLOOR, mem);
}

/// TCP with the guest is over, so nothing is read from the host any more: lowers the receive cap to the floor, and the
/// send cap, too, once everything is written. Uncharges what the kernel gave back.
pub(crate) fn lower_as_delivered(ends: &mut Ends<'_>, mem: &mut Mem<'_>) {
    let sndbuf = if ends.tcb.rcv.q.is_empty() { HOST_FLOOR.sndbuf } else { ends.side.caps.sndbuf };
    lower_to(ends, HostCaps { sndbuf, ..HOST_FLOOR }, mem);
}

/// The container is under pressure: lowers the caps of a fast flow to [`BEGIN_CAPS`] (B7, B10). If the kernel still
/// holds more, tries again after [`RELAX_EVERY`]: a system call at every segment would cost more than the segment.
pub(crate) fn relax(ends: &mut Ends<'_>, mem: &mut Mem<'_>) {
    if mem.now < ends.side.relax_from {
        return;
    }
    lower_to(ends, BEGIN_CAPS, mem);
    let caps = ends.side.caps;
    if caps.sndbuf > BEGIN_CAPS.sndbuf || caps.rcvbuf > BEGIN_CAPS.rcvbuf {
        ends.side.relax_from = mem.now + RELAX_EVERY;
    }
}

/// Shortest time between two attempts to lower the caps of a flow.
const RELAX_EVERY: Duration = Duration::from_millis(10);

/// Lowers the caps as far as the kernel allows, and uncharges the difference.
fn lower_to(ends: &mut Ends<'_>, to: HostCaps, mem: &mut Mem<'_>) {
    let before = ends.side.caps;
    let to =
        HostCaps { sndbuf: to.sndbuf.min(before.sndbuf), rcvbuf: to.rcvbuf.min(before.rcvbuf) };
    if !ends.side.open || to == before {
        return;
    }
    let held = ends.host.lower_caps(ends.id, to);
    if held.sndbuf > before.sndbuf || held.rcvbuf > before.rcvbuf {
        // The kernel exceeded its own cap; this cannot be taken back, only counted.
        mem.budget.count(mem.ledger.member(), Counter::HostMemExcess, 1);
    }
    let after =
        HostCaps { sndbuf: held.sndbuf.min(before.sndbuf), rcvbuf: held.rcvbuf.min(before.rcvbuf) };
    let by = (before.sndbuf - after.sndbuf) + (before.rcvbuf - after.rcvbuf);
    ends.side.caps = after;
    mem.budget.host_lower(mem.ledger, u64::from(by), mem.now);
}

#[cfg(test)]
mod tests {
    use skbudget_controller::FlowSizes;

    use super::*;
    use crate::test_seed::Setting;

    #[test]
    fn connections_begin_large_while_a_64th_of_the_room_is_enough_and_are_charged_for_it() {
        let mut budget = Setting::Plenty.budget();
        let member = budget.add_member(0).unwrap();
        let host_floor = HOST_FLOOR.sndbuf + HOST_FLOOR.rcvbuf;
        let sizes = FlowSizes { sock: 1536, rmem_min: 4096, wmem_min: 4096, host_floor };
        let now = Instant(1);
        let mut ledgers = Vec::new();
        let mut begun = Vec::new();
        while begun.last() != Some(&HOST_FLOOR.rcvbuf) {
            let mut ledger = budget.admit(member, &sizes, now).unwrap();
            budget.establish(&mut ledger, now).unwrap();
            let room = budget.calm_room();
            let caps = begin_caps(&mut budget, &mut ledger, HOST_FLOOR, now);
            assert_eq!(ledger.host(), u64::from(caps.sndbuf + caps.rcvbuf));
            assert!(u64::from(caps.rcvbuf - HOST_FLOOR.rcvbuf) <= room / SHARE_TO_BEGIN);
            begun.push(caps.rcvbuf);
            ledgers.push(ledger);
        }
        assert!(begun.is_sorted_by(|a, b| a >= b), "the more there are, the smaller they begin");
        begun.dedup();
        assert_eq!(begun, [RCVBUF_TO_BEGIN[0], RCVBUF_TO_BEGIN[1], HOST_FLOOR.rcvbuf]);
        assert!(!budget.under_pressure());
        ledgers.into_iter().for_each(|ledger| budget.release(ledger, now));
    }
}

//! Buffer caps of host sockets: raised while a flow moves data and the budget grants the charge, lowered when it is
//! idle or the container is under pressure (B7, B10).

use std::time::Duration;

use skbudget_controller::Counter;

use super::Ends;
use crate::io::HostCaps;
use crate::queue::MemCtx;
use crate::queue::chunk::PAYLOAD;
use crate::queue::send::PARTS_MAX;
use crate::sizes::HOST_FLOOR;

/// Caps of a flow that starts with enough room, bytes: enough for a usual reply and for an initial window of 10
/// segments from a real network.
const INITIAL_CAPS: HostCaps = HostCaps { sndbuf: 16 << 10, rcvbuf: 48 << 10 };

/// Receive caps of a new connection, best first, bytes. The cap at connect time decides for the life of the socket:
/// below the first value its window scale is zero, and the remote bounds its MSS by half of the window.
const INITIAL_RCVBUFS: [u32; 2] = [256 << 10, INITIAL_CAPS.rcvbuf];
/// A new connection takes at most this fraction of the room below soft.
const INITIAL_SHARE: u64 = 64;

/// Caps with which the host socket of a new flow starts: those charged already, or larger ones, which this charges.
pub(crate) fn initial_caps(charged: HostCaps, mem: &mut MemCtx<'_>) -> HostCaps {
    let most = mem.budget.sock_limits().rmem[2];
    let share = mem.budget.calm_room() / INITIAL_SHARE;
    for rcvbuf in INITIAL_RCVBUFS {
        let by = u64::from(rcvbuf.saturating_sub(charged.rcvbuf));
        if by == 0 {
            break;
        }
        if rcvbuf <= most && by <= share && mem.budget.host_raise(mem.ledger, by, mem.now) {
            return HostCaps { rcvbuf, ..charged };
        }
    }
    charged
}

/// Data is about to move: raises the caps from the floor to [`INITIAL_CAPS`] if the budget has room. Once until the
/// flow becomes idle.
pub(crate) fn raise_initial(ends: &mut Ends<'_>, mem: &mut MemCtx<'_>) {
    if std::mem::replace(&mut ends.side.caps_raised, true) {
        return;
    }
    let limits = mem.budget.sock_limits();
    let sndbuf = INITIAL_CAPS.sndbuf.min(limits.wmem[2]);
    let rcvbuf = INITIAL_CAPS.rcvbuf.min(limits.rmem[2]);
    raise(ends, HostCaps { sndbuf, rcvbuf }, mem);
}

/// Doubles the send cap of a socket that filled up after it took twice its cap; the difference is charged first (B10).
pub(super) fn raise_sndbuf(ends: &mut Ends<'_>, mem: &mut MemCtx<'_>) {
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
pub(super) fn raise_rcvbuf(ends: &mut Ends<'_>, n: usize, mem: &mut MemCtx<'_>) {
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
fn raise(ends: &mut Ends<'_>, wanted: HostCaps, mem: &mut MemCtx<'_>) {
    let caps = ends.side.caps;
    let raised =
        HostCaps { sndbuf: wanted.sndbuf.max(caps.sndbuf), rcvbuf: wanted.rcvbuf.max(caps.rcvbuf) };
    let by = u64::from(raised.sndbuf - caps.sndbuf) + u64::from(raised.rcvbuf - caps.rcvbuf);
    if by == 0 || !mem.budget.may_grow(by) || !mem.budget.host_raise(mem.ledger, by, mem.now) {
        return;
    }
    ends.side.caps = raised;
    ends.host.set_caps(ends.id, raised);
}

/// The flow is idle: lowers the send cap of its host socket to the floor, as far as it is empty. The receive cap stays:
/// a remote kernel sends nothing into a window below half of the largest one it saw until its persist timer fires, 200
/// ms later.
pub(crate) fn lower_idle(ends: &mut Ends<'_>, mem: &mut MemCtx<'_>) {
    // The flow starts with `INITIAL_CAPS` again when data moves.
    ends.side.caps_raised = false;
    lower_to(ends, HostCaps { sndbuf: HOST_FLOOR.sndbuf, ..ends.side.caps }, mem);
}

/// The caps of an idle flow are needed to admit a connection: lowers all of them to the floor. A remote that was
/// sending last may wait those 200 ms once.
pub(crate) fn lower_to_floor(ends: &mut Ends<'_>, mem: &mut MemCtx<'_>) {
    ends.side.caps_raised = false;
    lower_to(ends, HOST_FLOOR, mem);
}

/// TCP with the guest is over, so nothing is read from the host any more: lowers the receive cap to the floor, and the
/// send cap, too, once everything is written. Uncharges what the kernel gave back.
pub(crate) fn lower_as_delivered(ends: &mut Ends<'_>, mem: &mut MemCtx<'_>) {
    let sndbuf = if ends.tcb.unread() == 0 { HOST_FLOOR.sndbuf } else { ends.side.caps.sndbuf };
    lower_to(ends, HostCaps { sndbuf, ..HOST_FLOOR }, mem);
}

/// The container is under pressure: lowers the caps of a fast flow to [`INITIAL_CAPS`] (B7, B10). If the kernel still
/// holds more, tries again after [`RETRY_EVERY`]: a system call at every segment would cost more than the segment.
pub(crate) fn lower_under_pressure(ends: &mut Ends<'_>, mem: &mut MemCtx<'_>) {
    if mem.now < ends.side.lower_again_at {
        return;
    }
    lower_to(ends, INITIAL_CAPS, mem);
    let caps = ends.side.caps;
    if caps.sndbuf > INITIAL_CAPS.sndbuf || caps.rcvbuf > INITIAL_CAPS.rcvbuf {
        ends.side.lower_again_at = mem.now + RETRY_EVERY;
    }
}

/// Shortest time between two attempts to lower the caps of a flow.
const RETRY_EVERY: Duration = Duration::from_millis(10);

/// Lowers the caps as far as the kernel allows, and uncharges the difference.
fn lower_to(ends: &mut Ends<'_>, to: HostCaps, mem: &mut MemCtx<'_>) {
    let before = ends.side.caps;
    let to =
        HostCaps { sndbuf: to.sndbuf.min(before.sndbuf), rcvbuf: to.rcvbuf.min(before.rcvbuf) };
    if !ends.side.open || to == before {
        return;
    }
    let held = ends.host.lower_caps(ends.id, to);
    if held.sndbuf > before.sndbuf || held.rcvbuf > before.rcvbuf {
        // The kernel exceeded its own cap; this cannot be taken back, only counted.
        mem.count(Counter::HostMemExcess, 1);
    }
    let after =
        HostCaps { sndbuf: held.sndbuf.min(before.sndbuf), rcvbuf: held.rcvbuf.min(before.rcvbuf) };
    let by = (before.sndbuf - after.sndbuf) + (before.rcvbuf - after.rcvbuf);
    ends.side.caps = after;
    mem.budget.host_lower(mem.ledger, u64::from(by), mem.now);
}

#[cfg(test)]
mod tests {
    use skbudget_controller::{FlowSizes, Instant};

    use super::*;
    use crate::queue::chunk::ChunkPool;
    use crate::test_budget::Setting;

    #[test]
    fn connections_begin_large_while_a_64th_of_the_room_is_enough_and_are_charged_for_it() {
        let mut budget = Setting::Plenty.budget();
        let member = budget.add_member(0).unwrap();
        let host_floor = HOST_FLOOR.sndbuf + HOST_FLOOR.rcvbuf;
        let sizes = FlowSizes { sock: 1536, rmem_min: 4096, wmem_min: 4096, host_floor };
        let now = Instant(1);
        let (mut pool, mut ledgers) = (ChunkPool::new(), Vec::new());
        let mut rcvbufs = Vec::new();
        while rcvbufs.last() != Some(&HOST_FLOOR.rcvbuf) {
            let mut ledger = budget.admit(member, &sizes, now).unwrap();
            budget.establish(&mut ledger, now).unwrap();
            let room = budget.calm_room();
            let mut mem = MemCtx { now, budget: &mut budget, pool: &mut pool, ledger: &mut ledger };
            let caps = initial_caps(HOST_FLOOR, &mut mem);
            assert_eq!(ledger.host(), u64::from(caps.sndbuf + caps.rcvbuf));
            assert!(u64::from(caps.rcvbuf - HOST_FLOOR.rcvbuf) <= room / INITIAL_SHARE);
            rcvbufs.push(caps.rcvbuf);
            ledgers.push(ledger);
        }
        assert!(rcvbufs.is_sorted_by(|a, b| a >= b), "the more there are, the smaller they begin");
        rcvbufs.dedup();
        assert_eq!(rcvbufs, [INITIAL_RCVBUFS[0], INITIAL_RCVBUFS[1], HOST_FLOOR.rcvbuf]);
        assert!(!budget.under_pressure());
        ledgers.into_iter().for_each(|ledger| budget.release(ledger, now));
    }
}

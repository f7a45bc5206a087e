//! Relays the guest's TCP keep-alive to the host's peer.
//!
//! A relay that answered the guest's probes itself would hide a peer that is gone, and the guest's flow would stay for
//! ever. So a probe of the guest becomes a probe of the host socket, and the guest receives its answer once the peer
//! has answered. The guest's own interval, count and ETIMEDOUT then hold as without a relay, whatever their values and
//! however often they change. A live but idle peer answers each time.
//!
//! The first probe of a flow is answered at once. Only from then on is it known that the guest uses keep-alive, and a
//! single segment of that form may also be a window probe that crossed our window update. Unacknowledged bytes on their
//! way to the peer are a different case: the guest has its acknowledgement, the host kernel's retransmissions decide,
//! and their ETIMEDOUT resets the flow.

use std::time::Duration;

use super::{Container, Ctx};
use crate::counters::Stat;
use crate::flow::Flow;
use crate::io::Host;
use crate::wire::segment::Segment;

/// Shortest silence before a keep-alive probe. A kernel waits at least a second (TCP_KEEPIDLE counts seconds); this is
/// half of it, because the stack reads its clock once a turn and may have processed earlier data late.
const IDLE_LEAST: Duration = Duration::from_millis(500);
/// A peer that sent a segment within this time is not probed. A kernel's probes are at least a second apart, and the
/// first follows at least a second of silence.
const HEARD_LATELY: Duration = Duration::from_secs(1);
/// Probes of one flow that arrive faster are ignored, because each costs a few system calls.
const BETWEEN_PROBES: Duration = Duration::from_millis(100);
/// First poll for the peer's answer after a probe. A nearby peer answers within a tick of the kernel's clock; the
/// kernel reports no event for an ACK without data.
const LOOK_FIRST: Duration = Duration::from_millis(10);
/// Polling ends after this time, which is longer than any round trip. A later probe of the guest starts it again.
const LOOK_FOR: Duration = Duration::from_secs(30);
/// Largest value the kernel accepts for TCP_KEEPIDLE and TCP_KEEPINTVL, seconds.
const EVERY_MAX: u64 = 32_767;

impl Container {
    /// Handles a segment that has the form of a keep-alive probe.
    pub(super) fn on_keepalive(
        &mut self,
        cx: &mut Ctx<'_>,
        flow: &mut Flow,
        seg: Option<&Segment<'_>>,
    ) {
        // Silence counts from the last data. ACKs that answer our own probes do not end it.
        let data_at = flow.last_data;
        if cx.now.since(data_at) < IDLE_LEAST {
            // Too early for a kernel's keep-alive: most likely a retransmission of the last byte.
            return seg.into_iter().for_each(|seg| flow.tcb.answer_unacceptable(seg, cx.now));
        }
        let before = flow.probes.at;
        // Not answered: a guest's kernel never probes at this rate.
        if before.is_some_and(|at| cx.now.since(at) < BETWEEN_PROBES) {
            return;
        }
        self.stats.add(Stat::GuestKeepAlive);
        // The probe shows that the guest is alive: our own keep-alive timer starts anew.
        flow.tcb.on_guest_keepalive(cx.now);
        // The guest's interval is not known: the time since its last probe, or since data, estimates it.
        let spacing = cx.now.since(before.map_or(data_at, |at| at.max(data_at)));
        flow.probes.at = Some(cx.now);
        let every = spacing.as_secs().clamp(1, EVERY_MAX) as u32;
        // While the guest waits for an answer, any segment of the peer since its previous probe counts.
        let unanswered = flow.probes.open && before.is_some_and(|at| at >= data_at);
        let lately = if unanswered { spacing.max(HEARD_LATELY) } else { HEARD_LATELY };
        // Answer at once: the first probe (see above), or a peer that is known to be alive.
        if before.is_none() || heard_within(cx.host, flow, lately) {
            // Only a change costs a setsockopt(2).
            let changed = flow.probes.every != every;
            return answer(cx.host, flow, changed.then_some(every));
        }
        // Otherwise the host kernel probes the peer, and the flow's timer polls for the answer.
        self.stats.add(Stat::GuestKeepAliveRelayed);
        flow.probes.open = true;
        flow.probes.every = every;
        flow.probes.look_at = Some(cx.now + LOOK_FIRST);
        cx.host.ask_peer(flow.id);
    }

    /// The flow's timer fired: answers the guest if the peer has answered, otherwise polls again later.
    pub(super) fn look_for_peer(&mut self, cx: &mut Ctx<'_>, flow: &mut Flow) {
        let (Some(asked), Some(at)) = (flow.probes.at, flow.probes.look_at) else { return };
        if at > cx.now {
            return;
        }
        flow.probes.look_at = None;
        if flow.last_data > asked {
            // Data moved since: its segments and ACKs answer the guest, too.
            return;
        }
        let waited = cx.now.since(asked);
        if heard_within(cx.host, flow, waited.max(HEARD_LATELY)) {
            // `ask_peer` shortened the socket's interval to force a probe: set the right one.
            answer(cx.host, flow, Some(flow.probes.every));
        } else if waited < LOOK_FOR {
            // After `LOOK_FOR` no poll follows: the guest stays unanswered, and its own count decides.
            flow.probes.look_at = Some(cx.now + LOOK_FIRST.max(waited / 2));
        }
    }
}

/// True if the peer sent anything within this time. With unread data or unacknowledged bytes the kernel's own timers
/// decide, which counts as alive.
fn heard_within(host: &mut dyn Host, flow: &Flow, within: Duration) -> bool {
    // A container of the same loop cannot vanish unnoticed.
    let here = flow.host.sibling().is_some() || flow.tcb.unread() > 0;
    here || host.silence(flow.id).is_none_or(|silence| silence < within)
}

/// Answers the guest's probe and sets the host socket's keep-alive interval if `every` is given, seconds.
fn answer(host: &mut dyn Host, flow: &mut Flow, every: Option<u32>) {
    flow.probes.open = false;
    flow.probes.look_at = None;
    flow.tcb.answer_keepalive();
    if let Some(every) = every {
        flow.probes.every = every;
        if flow.host.sibling().is_none() {
            host.keep_alive(flow.id, Duration::from_secs(every.into()));
        }
    }
}

//! The guest's keep-alive reaches the peer.
//!
//! A relay that answers the probes of the guest by itself hides a peer that is gone: the guest's flow would stay for
//! ever. So a probe of the guest becomes a probe of the host socket, and the guest is answered once the peer was heard.
//! The guest's own interval, count and ETIMEDOUT then hold as on a wire, whatever they are and however often they
//! change, and a peer that is well but idle answers each time.
//!
//! The first probe of a flow is answered at once: only then is it known that the guest uses keep-alive, and a single
//! segment of that shape may be a window probe that crossed our window update. Bytes of the guest's on their way to the
//! peer are another matter: the guest has its acknowledgement, the kernel's retransmissions decide, and their ETIMEDOUT
//! resets the flow.

use std::time::Duration;

use skbudget_controller::Instant;

use super::Container;
use crate::counters::Stat;
use crate::flow::Flow;
use crate::io::{Ctx, Host};
use crate::segment::Segment;

/// A kernel is idle for a second at least before it probes (TCP_KEEPIDLE counts seconds). Half of it: our clock is read
/// once a turn, and what came before may have been seen late.
const IDLE_LEAST: Duration = Duration::from_millis(500);
/// A peer heard within this time need not be asked. A kernel's probes are a second apart at least, and a kernel asks
/// after a whole second of silence at the earliest.
const HEARD_LATELY: Duration = Duration::from_secs(1);
/// Probes of one flow that come faster are not looked at: each costs a few system calls.
const BETWEEN_PROBES: Duration = Duration::from_millis(100);
/// After the peer was asked its answer is looked for, soon at first: one nearby answers within a tick of the kernel's
/// clock. No event tells of an acknowledgement without data.
const LOOK_FIRST: Duration = Duration::from_millis(10);
/// Longer than any round trip. Whoever asks again after that is looked after anew.
const LOOK_FOR: Duration = Duration::from_secs(30);
/// What a kernel takes for TCP_KEEPIDLE and TCP_KEEPINTVL, seconds.
const EVERY_MAX: u64 = 32_767;

/// What is known of the keep-alive of one guest flow.
#[derive(Debug, Default)]
pub(crate) struct GuestProbes {
    /// The latest probe.
    at: Option<Instant>,
    /// It was not answered.
    open: bool,
    /// The host socket's keep-alive interval, seconds; 0: off.
    every: u32,
    /// The peer's answer is looked for then.
    look_at: Option<Instant>,
}

impl GuestProbes {
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.look_at
    }
}

impl Container {
    /// A segment that has the form of a keep-alive probe.
    pub(super) fn on_keepalive(
        &mut self,
        cx: &mut Ctx<'_>,
        flow: &mut Flow,
        seg: Option<&Segment<'_>>,
    ) {
        // When data last moved: acknowledgements that answer probes of our own do not end a silence.
        let data_at = flow.last_data;
        if cx.now.since(data_at) < IDLE_LEAST {
            // The last byte once more, most likely.
            return seg.into_iter().for_each(|seg| flow.tcb.answer_unacceptable(seg, cx.now));
        }
        let before = flow.probes.at;
        if before.is_some_and(|at| cx.now.since(at) < BETWEEN_PROBES) {
            return;
        }
        self.stats.add(Stat::GuestKeepAlive);
        flow.tcb.on_guest_keepalive(cx.now);
        let spacing = cx.now.since(before.map_or(data_at, |at| at.max(data_at)));
        flow.probes.at = Some(cx.now);
        let every = spacing.as_secs().clamp(1, EVERY_MAX) as u32;
        // As long as the guest waits for an answer, any sign of life since it first asked is one.
        let unanswered = flow.probes.open && before.is_some_and(|at| at >= data_at);
        let lately = if unanswered { spacing.max(HEARD_LATELY) } else { HEARD_LATELY };
        if before.is_none() || heard_within(cx.host, flow, lately) {
            let changed = flow.probes.every != every;
            return answer(cx.host, flow, changed.then_some(every));
        }
        self.stats.add(Stat::GuestKeepAliveRelayed);
        flow.probes.open = true;
        flow.probes.every = every;
        flow.probes.look_at = Some(cx.now + LOOK_FIRST);
        cx.host.ask_peer(flow.id);
    }

    /// The flow's timer ran out: did the peer answer?
    pub(super) fn look_for_peer(&mut self, cx: &mut Ctx<'_>, flow: &mut Flow) {
        let (Some(asked), Some(at)) = (flow.probes.at, flow.probes.look_at) else { return };
        if at > cx.now {
            return;
        }
        flow.probes.look_at = None;
        if flow.last_data > asked {
            // The guest went on with its stream.
            return;
        }
        let waited = cx.now.since(asked);
        if heard_within(cx.host, flow, waited.max(HEARD_LATELY)) {
            // It was asked by shortening the interval, which is set right again.
            answer(cx.host, flow, Some(flow.probes.every));
        } else if waited < LOOK_FOR {
            flow.probes.look_at = Some(cx.now + LOOK_FIRST.max(waited / 2));
        }
    }
}

fn heard_within(host: &mut dyn Host, flow: &Flow, within: Duration) -> bool {
    !flow.tcb.rcv.q.is_empty() || host.silence(flow.id).is_none_or(|silence| silence < within)
}

fn answer(host: &mut dyn Host, flow: &mut Flow, every: Option<u32>) {
    flow.probes.open = false;
    flow.probes.look_at = None;
    flow.tcb.answer_keepalive();
    if let Some(every) = every {
        flow.probes.every = every;
        host.keep_alive(flow.id, Duration::from_secs(every.into()));
    }
}

//! Passes the guest's data to a flow of another container (B11).

use skbudget_controller::Rules;

use super::Tcb;
use super::state::State;
use crate::pressure::Throttle;
use crate::queue::pass::{PassCtx, Passed, pass};

impl Tcb {
    /// Moves in-order data to the send queue of `to`, as far as that takes it, and about `most` bytes. `queue_share`:
    /// see [`Tcb::consume`].
    pub(crate) fn pass_to(
        &mut self,
        to: &mut Self,
        queue_share: u64,
        most: usize,
        cx: &mut PassCtx<'_>,
    ) -> Passed {
        let mut passed = Passed::default();
        while passed.bytes < most && !passed.refused && !self.rcv.q.is_empty() {
            let room = to.send_room(Throttle::of(cx.budgets.taker()).host_read);
            // The next ACK makes room, and another call.
            if room == 0 || at_sndbuf(cx) {
                break;
            }
            let step = pass(&mut self.rcv.q, &mut to.snd.q, room.min(most - passed.bytes), cx);
            passed = Passed { bytes: passed.bytes + step.bytes, refused: step.refused };
        }
        if passed.bytes > 0 {
            let budget = cx.budgets.giver();
            let window_max = self.window_max(queue_share, budget);
            self.rcv.on_taken(passed.bytes as u64, budget, window_max);
        }
        if passed.refused {
            to.snd.moderate_target();
        }
        passed
    }

    /// The guest has answered the SYN of a connection that this side opened.
    pub(crate) fn is_answered(&self) -> bool {
        !matches!(self.state, State::Connecting | State::SynSent)
    }
}

/// Linux rules: the taker's flow has reached its sndbuf (`sk_stream_memory_free` is false).
fn at_sndbuf(cx: &mut PassCtx<'_>) -> bool {
    let limit = u64::from(cx.to.sndbuf());
    cx.budgets.taker().rules() == Rules::Linux && cx.to.wmem() >= limit
}

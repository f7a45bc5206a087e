//! What a container does in smaller steps while its budget is under pressure (over soft, or over its share; K7, H5).
//!
//! | | no pressure | over soft, strict rules | over soft, linux rules | used by |
//! |---|---|---|---|---|
//! | flows served in a turn | 8 | 2 | 2 | `container.rs` `turn` |
//! | frames read in a turn | 32 | 8 | 8 | `schedule.rs` `DeviceBound` |
//! | pause after a turn beside busy neighbours | none | 8 times the turn's CPU time, at most 2 ms | the same | `schedule.rs` `ran` |
//! | receive window | the flow's target | the flow's reserve | four segments, once less than half of `rcvbuf` is free | `tcp/rcv.rs` `advance_edge`, `tcp/rcv/linux.rs` `select_window` |
//! | data read from the host socket | up to the target of the send queue | one chunk at a time | up to the target | `relay.rs` `to_guest`, `tcp.rs` `send_room` |
//! | caps of the host socket | raised | lowered | not raised | `container/service.rs` `move_bytes` |
//! | send cap of the linux rules | grows | does not exist | fixed | `tcp/ack.rs` `free_acked` |
//!
//! The budget itself bounds growth: [`Budget::may_grow`], the fair shares (H4, H5), `host_raise`.

use skbudget_controller::{Budget, Rules};

/// Flows served in one turn. After a turn the loop reads the device again, where the guest's ACKs wait in a short
/// queue, and serves the other containers. Serving a flow costs two or three system calls, so a container with many
/// busy flows delays its neighbours by a fraction of a millisecond.
const FLOWS_PER_TURN: usize = 8;
/// Under pressure every flow always has work, in the smallest pieces.
const FLOWS_PER_PRESSED_TURN: usize = 2;
/// Frames read from the device in one turn. Few enough that the data is still in the CPU cache when it is relayed, and
/// that other containers wait only briefly; enough to amortise the fixed cost of a turn.
const FRAMES_PER_TURN: usize = 32;
/// Under pressure frames are small and many, and each of them causes a response.
const FRAMES_PER_PRESSED_TURN: usize = 8;
/// Length of the pause under pressure, in multiples of the CPU time of the turn.
const PAUSE_FACTOR: u32 = 8;

/// Bound of what a flow may have queued or advertised in one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FlowBound {
    /// The flow's target, which autotuning moves.
    Target,
    /// The flow's reserve: the room between soft and hard belongs to the guarantees of flows that are still to be
    /// admitted (B7).
    Reserve,
    /// Linux rules: four segments, once less than half of `rcvbuf` is free (L8).
    FourSegments,
}

/// Change of the caps of a flow's host socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CapChange {
    /// To what a flow that moves data starts with, if the budget has room for it.
    Raise,
    /// Back to that, if they are higher.
    Lower,
}

/// The bounds that hold for a container now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Throttle {
    /// Flows served in one turn.
    pub flows_per_turn: usize,
    /// Frames of the guest read in one turn.
    pub frames_per_turn: usize,
    /// Pause after a turn beside busy neighbours, in multiples of the turn's CPU time; `None`: no pause.
    pub pause_factor: Option<u32>,
    /// Bound of the receive window.
    pub(crate) window: FlowBound,
    /// Bound of the send queue for data read from the host socket.
    pub(crate) host_read: FlowBound,
    /// What to do with the caps of the host socket of a flow that moves data.
    pub(crate) host_caps: CapChange,
    /// Linux rules: acknowledged data lets the send cap grow (L5).
    pub(crate) sndbuf_grows: bool,
}

impl Throttle {
    /// The bounds for containers of this budget now.
    #[inline]
    pub fn of(budget: &Budget) -> Self {
        Self::new(budget.rules(), budget.under_pressure())
    }

    #[inline]
    fn new(rules: Rules, pressure: bool) -> Self {
        let calm = Self {
            flows_per_turn: FLOWS_PER_TURN,
            frames_per_turn: FRAMES_PER_TURN,
            pause_factor: None,
            window: FlowBound::Target,
            host_read: FlowBound::Target,
            host_caps: CapChange::Raise,
            sndbuf_grows: true,
        };
        if !pressure {
            return calm;
        }
        let pressed = Self {
            flows_per_turn: FLOWS_PER_PRESSED_TURN,
            frames_per_turn: FRAMES_PER_PRESSED_TURN,
            pause_factor: Some(PAUSE_FACTOR),
            sndbuf_grows: false,
            ..calm
        };
        match rules {
            Rules::Strict => Self {
                window: FlowBound::Reserve,
                host_read: FlowBound::Reserve,
                host_caps: CapChange::Lower,
                ..pressed
            },
            // Pressure does not bound what a sender may queue, only sndbuf does (L4). `host_raise` does the rest: no
            // cap grows under pressure.
            Rules::Linux => Self { window: FlowBound::FourSegments, ..pressed },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::tests::{NOW, SIZES};
    use crate::test_budget::Setting;

    /// The bounds before and after one flow fills the budget beyond soft.
    fn before_and_after(setting: Setting) -> [Throttle; 2] {
        let mut budget = setting.budget();
        let member = budget.add_member(0).unwrap();
        let mut ledger = budget.admit(member, &SIZES, NOW).unwrap();
        budget.establish(&mut ledger, NOW).unwrap();
        let before = Throttle::of(&budget);
        ledger.set_sndbuf(1 << 20);
        budget.tx_grant(&mut ledger, 15, NOW);
        assert!(budget.under_pressure(), "15 of 20 pages are over soft");
        let after = Throttle::of(&budget);
        let held = ledger.wmem() / skbudget_controller::CHUNK_SIZE;
        budget.tx_free(&mut ledger, held as u32, NOW);
        assert_eq!(Throttle::of(&budget), before, "nothing stays bounded below low");
        budget.release(ledger, NOW);
        [before, after]
    }

    #[test]
    fn over_soft_strict_flows_keep_to_their_reserve() {
        let [before, after] = before_and_after(Setting::Tiny);
        assert_eq!((before.window, before.host_read), (FlowBound::Target, FlowBound::Target));
        assert_eq!((after.window, after.host_read), (FlowBound::Reserve, FlowBound::Reserve));
        assert_eq!((before.host_caps, after.host_caps), (CapChange::Raise, CapChange::Lower));
    }

    #[test]
    fn over_soft_linux_windows_are_four_segments_and_senders_are_not_bounded() {
        let [before, after] = before_and_after(Setting::LinuxTiny);
        assert_eq!((before.window, after.window), (FlowBound::Target, FlowBound::FourSegments));
        assert_eq!((before.sndbuf_grows, after.sndbuf_grows), (true, false));
        assert_eq!((after.host_read, after.host_caps), (FlowBound::Target, CapChange::Raise));
    }

    #[test]
    fn over_soft_turns_are_short_and_followed_by_a_pause_under_both_rules() {
        for setting in [Setting::Tiny, Setting::LinuxTiny] {
            let [before, after] = before_and_after(setting);
            let turn = |t: Throttle| (t.flows_per_turn, t.frames_per_turn, t.pause_factor);
            assert_eq!([before, after].map(turn), [(8, 32, None), (2, 8, Some(8))]);
        }
    }
}

//! Window and buffer sizes of the kernel as pure functions (`controller/docs/kernel.md`, L3 to L8).
//! The stack calls each of them; formulas of the kernel that have no use there are with the tests.
//!
//! Nothing here touches a meter. Bytes unless stated otherwise.

use crate::units::SNDBUF_MIN;

// ---- receive windows ----

/// Input of [`select_window`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WindowInput {
    /// Receive cap.
    pub rcvbuf: u32,
    /// True size held: in order, out of order and in the backlog.
    pub rmem: u32,
    /// Payload in 256ths of true size; 128 is half.
    pub ratio: u32,
    /// Window scale; 0 means no scaling.
    pub scale: u8,
    /// Estimate of the peer's segment.
    pub mss: u32,
    /// The MSS that we advertised.
    pub advmss: u32,
    /// Slow-start bound of the window.
    pub rcv_ssthresh: u32,
    /// Upper bound of the window.
    pub window_clamp: u32,
    /// Window that is still open.
    pub open: u32,
    /// Whether the container is under pressure.
    pub pressure: bool,
}

/// Result of [`select_window`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WindowChoice {
    /// The window to offer, before [`advertise`].
    pub window: u32,
    /// The bound, lowered under pressure.
    pub rcv_ssthresh: u32,
}

/// `__tcp_select_window` (L8).
#[inline]
pub fn select_window(input: &WindowInput) -> WindowChoice {
    let &WindowInput { rcvbuf, rmem, ratio, scale, mss, advmss, window_clamp, open, .. } = input;
    let mut rcv_ssthresh = input.rcv_ssthresh;
    let allowed = window_of(rcvbuf, ratio);
    let full = window_clamp.min(allowed);
    let mut free = window_of(rcvbuf.saturating_sub(rmem), ratio);
    // A buffer smaller than a segment counts as one segment.
    let mss = mss.min(full);
    if full == 0 {
        return WindowChoice { window: 0, rcv_ssthresh };
    }
    // Less than half is free.
    if free < full / 2 {
        if input.pressure {
            rcv_ssthresh = rcv_ssthresh.min(advmss.saturating_mul(4));
        }
        // Round down, so that the rounding up below never exceeds the free room.
        free = free >> scale << scale;
        // Silly window avoidance (RFC 9293, section 3.8.6.2.2): a small window is offered as zero.
        if free < allowed / 16 || free < mss {
            return WindowChoice { window: 0, rcv_ssthresh };
        }
    }
    free = free.min(rcv_ssthresh);
    // With scaling the window is rounded up to its unit. Without, it is a number of whole segments,
    // and stays as it is unless it must shrink or one more segment fits.
    let window = if scale > 0 {
        free.next_multiple_of(1 << scale)
    } else if open > free || open + mss <= free {
        free / mss * mss
    } else if mss == full && free > open + full / 2 {
        free
    } else {
        open
    };
    WindowChoice { window, rcv_ssthresh }
}

/// `tcp_select_window`: an open window is not taken back, except on purpose (`shrink`) or for want
/// of memory.
#[inline]
pub const fn advertise(window: u32, open: u32, scale: u8, shrink: bool, no_memory: bool) -> u32 {
    if no_memory {
        return 0;
    }
    if window < open && !(shrink && scale > 0) {
        return open.next_multiple_of(1 << scale);
    }
    window
}

/// `tcp_win_from_space`.
#[inline]
pub const fn window_of(space: u32, ratio: u32) -> u32 {
    (space as u64 * ratio as u64 / 256) as u32
}

// ---- receive admission ----

/// `tcp_can_ingest`: data is admitted while the held bytes do not exceed the cap; the arriving
/// segment's own size does not count (L6).
#[inline]
pub const fn can_ingest(rmem: u32, rcvbuf: u32) -> bool {
    rmem <= rcvbuf
}

/// Input of [`clamp_window`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClampInput {
    /// True size held.
    pub rmem: u32,
    /// Receive cap.
    pub rcvbuf: u32,
    /// Cap of autotuning.
    pub rmem_max: u32,
    /// The user set the cap (SO_RCVBUF).
    pub locked: bool,
    /// Whether the container is under pressure.
    pub pressure: bool,
    /// Whether the pool is below its low threshold.
    pub below_low: bool,
    /// Slow-start bound of the window.
    pub rcv_ssthresh: u32,
    /// Upper bound of the window.
    pub window_clamp: u32,
    /// The MSS that we advertised.
    pub advmss: u32,
}

/// `tcp_clamp_window` (L7): raises the cap to what is held when memory is plentiful, otherwise
/// lowers the window's bound. Returns the new `rcvbuf` and `rcv_ssthresh`.
pub fn clamp_window(input: &ClampInput) -> (u32, u32) {
    let mut rcvbuf = input.rcvbuf;
    if rcvbuf < input.rmem_max && !input.locked && !input.pressure && input.below_low {
        rcvbuf = input.rmem.min(input.rmem_max);
    }
    let rcv_ssthresh = if input.rmem > rcvbuf {
        input.window_clamp.min(input.advmss.saturating_mul(2))
    } else {
        input.rcv_ssthresh
    };
    (rcvbuf, rcv_ssthresh)
}

/// Treatment of a data segment whose charge was refused for good (L6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// The segment is dropped and counted as `TCPRcvQDrop`; the next window is zero.
    Drop,
    /// The receive queue is empty: the segment is charged by force and kept, so that the reader
    /// makes progress; the next window is zero too.
    Force,
}

/// Linux rules: an empty receive queue or a bare FIN makes progress beyond the limit.
pub const fn on_refused(queue_empty: bool, bare_fin: bool) -> Refused {
    if queue_empty || bare_fin { Refused::Force } else { Refused::Drop }
}

/// `tcp_prune_ofo_queue` (L7): how many buffers to drop. `above` are the true sizes of out-of-order
/// buffers beyond the arriving segment, highest sequence first. They are dropped by eighths of
/// `rcvbuf`, until `rmem` fits and there is no pressure.
pub fn prune_ofo(
    above: impl IntoIterator<Item = u32>,
    rmem: u32,
    rcvbuf: u32,
    pressure: bool,
) -> usize {
    let goal = rcvbuf / 8;
    let (mut rmem, mut step, mut dropped) = (rmem, 0, 0);
    for truesize in above {
        dropped += 1;
        rmem = rmem.saturating_sub(truesize);
        step += truesize;
        // An eighth is dropped: test whether that is enough.
        if step >= goal {
            if rmem <= rcvbuf && !pressure {
                break;
            }
            step = 0;
        }
    }
    dropped
}

// ---- send caps ----

/// Input of [`sndbuf_expand`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SndbufInput {
    /// Current cap.
    pub sndbuf: u32,
    /// Segment size.
    pub mss: u32,
    /// Congestion window, segments.
    pub cwnd: u32,
    /// Reordering degree, segments.
    pub reordering: u32,
    /// `MAX_TCP_HEADER`, bytes: 192 or 320.
    pub header: u32,
    /// Congestion windows to hold: 2; BBR takes 3.
    pub factor: u32,
    /// Cap of autotuning.
    pub wmem_max: u32,
}

/// `tcp_sndbuf_expand` (L5): room for `factor` congestion windows at true size. Never lowers the
/// cap.
pub fn sndbuf_expand(input: &SndbufInput) -> u32 {
    let &SndbufInput { sndbuf, mss, cwnd, reordering, header, factor, wmem_max } = input;
    // 320 bytes of `skb_shared_info` with the data, rounded as the slab does, and 256 of `sk_buff`.
    let per_mss = u64::from((mss + header + 320).next_power_of_two() + 256);
    let segments = u64::from(cwnd.max(reordering + 1).max(10));
    let want = u64::from(factor) * segments * per_mss;
    sndbuf.max(u32::try_from(want).unwrap_or(u32::MAX).min(wmem_max))
}

/// `sk_stream_moderate_sndbuf` (L3): `max(min(sndbuf, wmem / 2), 4608)`, unless the user set the
/// cap.
pub fn moderate_sndbuf(sndbuf: u32, wmem: u64, locked: bool) -> u32 {
    if locked {
        return sndbuf;
    }
    let half = u32::try_from(wmem / 2).unwrap_or(u32::MAX);
    sndbuf.min(half).max(SNDBUF_MIN)
}

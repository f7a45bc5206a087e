//! Linux rules: the receive window, and what becomes of data that rcvbuf or the budget does not admit. The decisions
//! are the kernel's functions in `skbudget_controller::sizing`, the same that its numbered vectors check.

use skbudget_controller::sizing::{
    ClampInput, WindowInput, advertise, can_ingest, clamp_window, select_window, window_of,
};
use skbudget_controller::{Budget, Counter};

use super::Rcv;
use crate::pressure::{FlowBound, Throttle};
use crate::queue::MemCtx;
use crate::queue::receive::Stored;

/// Payload in 256ths of true size: half, with which a socket of the kernel starts.
const RATIO: u32 = 128;

impl Rcv {
    /// Sets the edge as `tcp_select_window` (L8).
    pub(super) fn select_window(&mut self, mem: &mut MemCtx<'_>) {
        let pressure = is_pressed(mem.budget);
        if !pressure && self.unacked > 0 {
            self.grow_ssthresh(mem);
        }
        let choice = select_window(&WindowInput {
            rcvbuf: mem.ledger.rcvbuf(),
            rmem: mem.ledger.rx_bytes(),
            ratio: RATIO,
            scale: self.wscale,
            mss: self.mss,
            advmss: self.mss,
            rcv_ssthresh: self.ssthresh,
            window_clamp: window_clamp(mem.budget),
            open: self.wnd(),
            pressure,
        });
        self.ssthresh = choice.rcv_ssthresh;
        // L6: a refused charge closes the window, even though this moves the edge back.
        let window = advertise(choice.window, self.wnd(), self.wscale, false, self.nomem);
        let field_max = u64::from(u16::MAX) << self.wscale;
        let window = u64::from(window).min(field_max);
        self.edge = self.q.nxt() + window;
        // Under the linux rules this permits slots; they are charged when data fills them.
        self.q.open(window, mem);
    }

    /// `tcp_grow_window`: data that arrived earns room for two more segments, as far as room is free.
    fn grow_ssthresh(&mut self, mem: &MemCtx<'_>) {
        let free = window_of(mem.ledger.rcvbuf().saturating_sub(mem.ledger.rx_bytes()), RATIO);
        let room = free.min(window_clamp(mem.budget)).saturating_sub(self.ssthresh);
        self.ssthresh += room.min(2 * self.mss);
    }

    /// Memory for in-order data was refused: the next ACK advertises a zero window (L6).
    pub(in crate::tcp) fn on_nomem(&mut self) {
        self.nomem = true;
        self.ack_now = true;
    }

    /// Stores `data`, `offset` bytes beyond RCV.NXT, as `tcp_try_rmem_schedule`: what rcvbuf or the budget does not
    /// admit is tried again while pruning makes room (L6, L7).
    pub(in crate::tcp) fn store_or_prune(
        &mut self,
        offset: u64,
        data: &[u8],
        mem: &mut MemCtx<'_>,
    ) -> Stored {
        let admitted = fits_rcvbuf(mem);
        let mut stored = if admitted {
            self.q.store(offset, data, mem)
        } else {
            Stored { refused: data.len() as u32, ..Stored::default() }
        };
        // `tcp_prune_queue` has nothing to prune in empty queues.
        if stored.refused == 0 || mem.ledger.rx_bytes() == 0 {
            return stored;
        }
        mem.count(Counter::PruneCalled, 1);
        self.clamp_window(mem);
        if !fits_rcvbuf(mem) {
            self.prune(offset, mem);
            if !fits_rcvbuf(mem) {
                mem.count(Counter::RcvPruned, 1);
                return stored;
            }
        }
        // Only rcvbuf was in the way: the budget was not tried yet, so the first try needs no pruning.
        let mut retry = !admitted;
        loop {
            let kept = data.len() - stored.refused as usize;
            // In order, RCV.NXT moved over the stored bytes; out of order, it is where it was.
            let offset = if offset > 0 { offset + kept as u64 } else { 0 };
            if !retry && !self.prune(offset, mem) {
                return stored;
            }
            retry = false;
            let again = self.q.store(offset, &data[kept..], mem);
            stored.advanced += again.advanced;
            stored.out_of_order |= again.out_of_order;
            stored.refused = again.refused;
            if stored.refused == 0 {
                return stored;
            }
        }
    }

    /// First part of `tcp_prune_queue`: over rcvbuf, raises it or lowers the window's bound; otherwise the bound falls
    /// to four segments under pressure.
    fn clamp_window(&mut self, mem: &mut MemCtx<'_>) {
        let pressure = is_pressed(mem.budget);
        if fits_rcvbuf(mem) {
            if pressure {
                self.ssthresh = self.ssthresh.min(4 * self.mss);
            }
            return;
        }
        let (rcvbuf, ssthresh) = clamp_window(&ClampInput {
            rmem: mem.ledger.rx_bytes(),
            rcvbuf: mem.ledger.rcvbuf(),
            rmem_max: mem.budget.sock_limits().rmem[2],
            // The relay sets no SO_RCVBUF on the guest's side.
            locked: false,
            pressure,
            below_low: mem.budget.below_low(),
            rcv_ssthresh: self.ssthresh,
            window_clamp: window_clamp(mem.budget),
            advmss: self.mss,
        });
        mem.ledger.set_rcvbuf(rcvbuf);
        self.ssthresh = ssthresh;
    }

    /// `tcp_prune_ofo_queue` for data that arrives `offset` bytes beyond RCV.NXT. Returns true if something was
    /// dropped.
    fn prune(&mut self, offset: u64, mem: &mut MemCtx<'_>) -> bool {
        let pruned = self.q.prune_ofo(offset, is_pressed(mem.budget), mem);
        if pruned {
            mem.count(Counter::OfoPruned, 1);
        }
        pruned
    }
}

fn fits_rcvbuf(mem: &MemCtx<'_>) -> bool {
    can_ingest(mem.ledger.rx_bytes(), mem.ledger.rcvbuf())
}

/// Upper bound of the window: the payload that the first rcvbuf holds. Only autotuning (L9) would raise it.
fn window_clamp(budget: &Budget) -> u32 {
    window_of(budget.sock_limits().rmem[1], RATIO)
}

fn is_pressed(budget: &Budget) -> bool {
    Throttle::of(budget).window == FlowBound::FourSegments
}

#[cfg(test)]
mod tests;

//! One flow, one turn: the host side, the relay, the segments.

use std::time::Duration;

use skbudget_controller::{Budget, Rules};

use super::Container;
use crate::config::ContainerConfig;
use crate::counters::Stat;
use crate::flow::Flow;
use crate::icmp::{self, Unreachable};
use crate::io::{Close, Ctx, HostError};
use crate::relay::{self, Ends, Moved};
use crate::tcp::Mem;
use crate::tcp::state::State;

/// How long a flow whose frame the device did not take waits.
const DEVICE_RETRY: Duration = Duration::from_millis(1);
/// How often the guest is asked for its hardware address.
const ARP_RETRY: Duration = Duration::from_millis(100);

/// What a flow's turn ended with.
#[derive(Debug, Default)]
struct Serviced {
    /// The turn's share is used up.
    more: bool,
    no_send_memory: bool,
    short_window: bool,
    device_full: bool,
}

impl Container {
    pub(super) fn service(&mut self, cx: &mut Ctx<'_>, mut flow: Box<Flow>) {
        if !flow.host.open && flow.host.ready.writable {
            match cx.host.connect_outcome(flow.id) {
                None => flow.host.ready.writable = false,
                Some(Ok(())) => {
                    flow.host.open = true;
                    flow.tcb.on_host_connected();
                    self.watch_new(&mut flow, cx.now);
                }
                Some(Err(e @ (HostError::Reset | HostError::ResetAfterEnd))) => {
                    // It was made, and the peer has said all it had to say.
                    (flow.host.open, flow.host.error) = (true, Some(e));
                    flow.host.ready.readable = true;
                    flow.tcb.on_host_connected();
                    self.watch_new(&mut flow, cx.now);
                }
                Some(Err(e)) => return self.host_connect_failed(cx, flow, e),
            }
        }
        let before = flow.host.bytes_to_guest;
        let unread = flow.tcb.rcv.q.unread();
        let serviced = self.move_bytes(cx, &mut flow);
        let taken = unread - flow.tcb.rcv.q.unread();
        self.bytes_to_host += taken;
        if flow.host.bytes_to_guest > before {
            self.bytes_to_guest += flow.host.bytes_to_guest - before;
            self.note_data(&mut flow, cx);
        }
        if serviced.more {
            self.mark(flow.id.index);
        }
        if let Some(orphan) = flow.orphan {
            return self.see_orphan_off(cx, flow, orphan);
        }
        if flow.tcb.reset_is_due() {
            return self.abort(cx, flow);
        }
        if serviced.device_full {
            self.block(cx, &flow);
        }
        if serviced.no_send_memory || serviced.short_window {
            self.short_of_memory(cx, &mut flow, serviced.no_send_memory);
        }
        self.schedule(&mut flow);
        self.flows.put(flow);
    }

    /// Lends a flow's two ends and its memory to `work`.
    pub(super) fn with_ends<T>(
        &mut self,
        cx: &mut Ctx<'_>,
        flow: &mut Flow,
        work: impl FnOnce(&mut Ends<'_>, &mut Mem<'_>) -> T,
    ) -> T {
        let window_max = share_of_queue(&self.config, cx.budget, self.watched);
        let mut mem = Mem {
            now: cx.now,
            budget: cx.budget,
            pool: cx.pool,
            ledger: &mut flow.ledger,
            stats: &mut self.stats,
            window_max,
        };
        let mut ends =
            Ends { id: flow.id, tcb: &mut flow.tcb, side: &mut flow.host, host: cx.host };
        work(&mut ends, &mut mem)
    }

    fn move_bytes(&mut self, cx: &mut Ctx<'_>, flow: &mut Flow) -> Serviced {
        let mut done = Serviced::default();
        let (idle, reads) = (flow.idle, flow.orphan.is_none() && flow.retry_at.is_none());
        if flow.host.open {
            self.with_ends(cx, flow, |ends, mem| {
                if mem.budget.rules() == Rules::Strict && mem.budget.under_pressure() {
                    relay::relax(ends, mem);
                } else if !idle {
                    relay::begin(ends, mem);
                }
                match relay::to_host(ends, mem) {
                    Moved::More => done.more = true,
                    Moved::Done | Moved::NoMemory => {}
                }
                if !reads {
                    return;
                }
                match relay::to_guest(ends, mem) {
                    Moved::More => done.more = true,
                    Moved::NoMemory => done.no_send_memory = true,
                    Moved::Done => {}
                }
            });
        }
        if flow.orphan.is_none() {
            self.say(cx, flow, &mut done);
        }
        done
    }

    /// Segments for the guest.
    fn say(&mut self, cx: &mut Ctx<'_>, flow: &mut Flow, done: &mut Serviced) {
        if self.egress.guest_mac.is_none() {
            done.device_full = true;
            return;
        }
        let (egress, device, tuple) = (&mut self.egress, &mut *cx.device, flow.tuple);
        let (tcb, mut mem) = flow.tcb_and_mem(cx.now, cx.budget, cx.pool, &mut self.stats);
        let out =
            tcb.output(&mut mem, &mut |seg, parts| egress.segment(device, &tuple, seg, parts));
        done.more |= out.more;
        done.device_full = out.device_full;
        done.short_window = out.short;
    }

    /// The device is full, or the guest's hardware address is not known yet.
    fn block(&mut self, cx: &mut Ctx<'_>, flow: &Flow) {
        if self.flows.set_blocked(flow.id.index) {
            self.blocked.push(flow.id.index);
        }
        let retry = if self.egress.guest_mac.is_some() {
            self.stats.add(Stat::DeviceFull);
            DEVICE_RETRY
        } else {
            if self.arp_asked.is_none_or(|at| cx.now.since(at) >= ARP_RETRY) {
                self.arp_asked = Some(cx.now);
                self.ask_for_guest(cx, flow.tuple.is_ipv6());
            }
            ARP_RETRY
        };
        let at = cx.now + retry;
        self.blocked_until = Some(self.blocked_until.map_or(at, |t| t.min(at)));
    }

    /// What the guest learns when the host cannot be reached is what it would learn from a network:
    /// refused is RST, no route an ICMP error, a timeout silence.
    pub(super) fn host_connect_failed(
        &mut self,
        cx: &mut Ctx<'_>,
        flow: Box<Flow>,
        error: HostError,
    ) {
        self.stats.add(Stat::HostConnectFailed);
        let reason = match error {
            HostError::HostUnreachable => Some(Unreachable::Host),
            HostError::NetUnreachable => Some(Unreachable::Net),
            HostError::TimedOut | HostError::NoResources | HostError::WouldBlock => None,
            HostError::Refused | HostError::Reset | HostError::ResetAfterEnd => {
                debug_assert_eq!(flow.tcb.state, State::Connecting);
                return self.abort(cx, flow);
            }
        };
        if let Some(reason) = reason
            && self.icmp_allowed(cx.now)
        {
            let answer = icmp::syn_unreachable(&flow.tuple, flow.tcb.rcv.irs.0, reason);
            self.egress.answer(cx.device, &answer);
        }
        self.end(cx, flow, Close::Reset);
    }

    /// Linux rules: a sender refused by the budget sleeps 2 jiffies to a fifth of a second (L4).
    pub(super) fn retry_later(&mut self, cx: &Ctx<'_>, flow: &mut Flow) {
        debug_assert_eq!(cx.budget.rules(), Rules::Linux);
        let wait = Duration::from_millis(8 + self.random() % 193);
        flow.retry_at = Some(cx.now + wait);
    }
}

/// The windows of all active flows together fit the device queue.
fn share_of_queue(config: &ContainerConfig, budget: &Budget, active: usize) -> u64 {
    let share = config.queue_window() / active.max(1) as u64;
    share.min(u64::from(budget.sock_limits().rmem[2]))
}

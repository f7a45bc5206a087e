//! The pressure core of skbudget: decides how much TCP buffer memory each container may hold.
//!
//! The name follows the kernel's memory *controller*. The crate knows numbers, ledgers and the time
//! that the caller passes in; it never sees a packet, a descriptor, a clock or a thread. The stack
//! requests memory before it holds a byte, the controller grants or refuses, and the stack acts on
//! the result. The same calls with the same times give the same results and the same events.
//!
//! `controller/docs/pressure-model.md` has the rules by the codes that comments cite (K7, B9) and a
//! glossary; `controller/docs/kernel.md` has the kernel's rules (L2).
//!
//! # Theory of operation
//!
//! A **flow** has a [`Ledger`]: the memory it holds, by category. A **container** is a member of a
//! [`Budget`] (its own, or a pool that it shares). A budget has one meter with three thresholds, a
//! pressure flag, and above it a chain of at most three [`Level`]s (group, host). Every operation
//! takes `&mut Budget` and `&mut Ledger`, changes a few integers, and walks the chain only when the
//! budget's usage crosses a page. One worker owns a budget, so a budget has no atomics; only levels
//! are shared between workers.
//!
//! Two rule sets decide over the same ledgers. **Strict** is the product: usage never exceeds hard,
//! a guarantee is a reservation, and a receive window is charged before it is advertised, so that
//! memory exists for everything a guest may send. **Linux** reproduces the kernel's ladder with its
//! bypasses, so that the difference can be measured; it is in [`linux`], works on bytes, and a
//! budget drives it one chunk at a time.
//!
//! Strict counts in chunks of 4096 bytes true size (4032 payload). The receive queue is a run of
//! slots at fixed stream positions, from the first unread byte to the advertised edge. Opening the
//! window charges slots as credit ([`Budget::rx_open`]); arriving data, in order or not, turns
//! credit into held data without a charge ([`Budget::rx_fill`]); reading uncharges the slot
//! ([`Budget::rx_free`]). On the send side the stack requests chunks before it reads the host
//! socket ([`Budget::tx_grant`]).
//!
//! # The ledger formula (strict)
//!
//! ```text
//! rx      = max(rmem_min, 4096 * (in-order + out-of-order + credit chunks))
//! tx      = max(wmem_min, 4096 * (unsent + unacknowledged chunks))
//! held    = sock + rx + tx + host                          half-open: sock
//! bytes   = sum of held + compact + udp + frag + dev + listen of one budget
//! usage   = ceil(bytes / 4096)                             rounded once a budget
//! level   = sum over children of max(usage, min)           a min is charged when it is set
//! fixed   = sum of (sock + rmem_min + wmem_min + host_floor) + compact + dev + listen
//! E       = hard - ceil(fixed / 4096)                      the room for elastic memory
//! elastic = usage - ceil(fixed / 4096) - idle credit
//! ```
//!
//! `listen` is what the backlogs of published ports may hold. The result is a pure function of the
//! states of flows and members: `tests/model.rs` checks the running sums against it after every
//! operation.
//!
//! # The steps of a decision
//!
//! | step | strict | linux |
//! |---|---|---|
//! | 1 | within the flow's reserve: granted, no meter is touched | `forward_alloc` covers it: granted |
//! | 2 | budget under pressure and above the reserve: only while `E > n_active * elastic of the flow` | add to the pool; each hard counter of the chain: refused -> suppress |
//! | 3 | budget's `hard` | pool at or below `low`: leave pressure, granted |
//! | 4 | a level is under pressure: only up to its fair level times the weight, or up to `min`; until that is known, up to the budget's part or while the level is at or below soft | pool above `soft`: enter pressure, go on |
//! | 5 | every level's `hard` | pool above `hard`: suppress |
//! | 6 | granted; the soft test | queue below its guarantee: granted |
//! | 7 | | no pressure, or `hard > nsock * pages of the socket`: granted; otherwise suppress |
//! | refused | undone exactly, counted at the level that refused | sender: cut sndbuf, and if `wmem + size >= sndbuf` force the charge; otherwise undone |
//!
//! A child's *part* of a level is `hard * weight / weights of all children`, or what the maxima of
//! the others leave of `hard` if that is more. The room between soft and hard is for children below
//! their part. A reservation never sets the flag; so it is charged beyond a child's part only while
//! the level is at or below `mins + (hard - mins) * soft / hard`, flagged or not (`mins`: the
//! guarantees below the level).
//!
//! Steps 2 to 5 of strict grant the largest prefix of a request in chunks. Requests in bytes
//! (admission, host caps, UDP) are granted whole or refused, and step 2 does not apply to them:
//! host caps are refused under any pressure, admission under none of its own. Linux has three more
//! forced charges: the first buffer of an empty send queue, up to `wmem_min` of a refused copy, and
//! the first in-order segment of an empty receive queue.
//!
//! The soft test (strict) compares `elastic` with `E * soft / hard` (enter above) and `E * low /
//! hard` (leave at or below); the test is the same after every change. Levels make the same test on
//! their own sums; there a child's whole `min` counts as fixed, used or not.
//!
//! # Invariants
//!
//! 1. The categories of a budget's members sum to its bytes; a level's usage is the sum over its
//!    children.
//! 2. Strict: no meter exceeds `max(hard, usage when hard was lowered)`, at any level and at any
//!    time, as other workers see it too. Linux: a meter exceeds it only by forced pages.
//! 3. No meter below zero; all zero after the last flow and container.
//! 4. A refusal changes counters, flags and `sndbuf` only.
//! 5. Entering and leaving pressure alternate, and the chronometer is the sum of the episodes.
//! 6. Strict: a request within the reserve of an established flow is never refused, nor is data
//!    within its credit.
//! 7. The same calls give the same results.
//! 8. A call costs at most one walk of the chain, whatever the number of flows.
//!
//! # Decisions, and why
//!
//! - *Admission has two steps*: `admit` charges `sock` as half-open, `establish` the other parts.
//!   The stack makes both before it connects, because the host socket's caps are charged first.
//! - *An idle flow's window is idle credit only above its reserve*: the part within the reserve is
//!   fixed already and would be subtracted twice.
//! - *A level counts a whole `min` as fixed*, as a budget does with a flow's reserve, and not only
//!   the unused part: such a sum changes when reservations change, not with every page.
//! - *A level's flag is decided once reservations and usage have both arrived*: otherwise admitting
//!   a flow, which adds nothing elastic, could set or clear it (found by the model).
//! - *`max_eff = max(hard, usage)`* needs no state: growth is tested against `hard`, so usage only
//!   falls while above.
//! - *The fair level divides the scaled soft threshold* ([`Level::soft_effective`]), the threshold
//!   that sets the flag.
//! - *The parts bound growth until the first fair level is published*: a hog fills the room above
//!   soft in less than a turn (94 connections and their windows in 0.2 ms), and that memory is
//!   acknowledged data or reserved for good. So the parts apply in the same step that sets the flag, and
//!   also while a computed fair level is no bound.
//! - *Reservations are bounded too*: with "admission is all or nothing against hard", a hog of
//!   weight 10 filled the host with idle flows, and containers of weight 1000 could not grow by a
//!   page.
//! - *The fair level leaves an eighth* ([`Budget::as_child`]) above the usage of each child: with
//!   exactly `sum(min(usage, x * weight)) <= soft`, a level at its soft threshold has no bound to
//!   publish, and the first to arrive keep what they hold, whatever the weights.
//! - *The fair level is in fractions of a page*: whole pages a unit of weight are zero when there
//!   are more units than pages, and then every child is above its share. The fair level counts a
//!   child's `min` whole, as the level does.
//! - *A flow that was refused although there was room* (its share, the half-open bound) is woken
//!   only after a release, and at most 16 of them a turn: "wake while headroom >= need" would spin,
//!   or visit every flow each turn.
//! - *`AdmissionDenied` becomes an event when the stack counts it*: a refused SYN first waits in
//!   the list of waiting SYNs and may still be admitted.
//! - *Left out*: the page stock (M5), because an uncontended level costs about ten nanoseconds a
//!   call; transfers between budgets of two workers (K5), which are a grant on one side and a
//!   release on the other.
//! - *The kernel skips its undo when its visible counter is 0* (L2); here the undo always happens.
//!
//! # Terms
//!
//! | here | tcp_mem | cgroup v2 | meaning |
//! |---|---|---|---|
//! | `low` | \[0\] low | - | pressure ends at or below |
//! | `soft` | \[1\] pressure | nearest: memory.high | pressure starts above |
//! | `hard` | \[2\] high | memory.max | charges are refused |
//! | `min` | - | memory.min | charged to every level above when set |
//! | true size | `skb->truesize` | | memory really held; here whole chunks |
//! | `rmem`, `ofo` | `sk_rmem_alloc` | | in order, out of order |
//! | `wmem` | `sk_wmem_queued` | | unsent and unacknowledged |
//! | `fwd` | `sk_forward_alloc` | | charged and unused (linux rules) |
//! | credit | - | | open window, charged and empty |
//! | reserve | `tcp_rmem[0]`, `tcp_wmem[0]` | | guarantee of a flow; a bypass in linux rules |
//! | host | - | | caps of the flow's host-side socket |
//! | compact | `request_sock`, `timewait_sock` | | small entries of fixed size |
//! | dev | - | | device queue of the container |
//! | level | `page_counter` | | a meter above budgets |
#![no_std]
#![forbid(unsafe_code)]
#![warn(missing_docs)]
extern crate alloc;

mod atomic;
pub mod budget;
pub mod composite;
pub mod event;
pub mod ledger;
pub mod level;
pub mod limits;
pub mod linux;
mod meter;
pub mod share;
mod share_clock;
pub mod sizing;
pub mod units;
mod wait;

pub use budget::{Budget, BudgetConfig, MemberStats, MeterStats, Pressure, Rules, transfer};
pub use event::{Counter, Event};
pub use ledger::{FlowSizes, Ledger, MemberId, RxKind};
pub use level::{Level, LevelConfig, LevelStats};
pub use limits::{LimitError, Limits, SockLimits};
pub use meter::Refusal;
pub use share_clock::ShareClock;
pub use units::{CHUNK_PAYLOAD, CHUNK_SIZE, Instant, PAGE_SIZE, pages};

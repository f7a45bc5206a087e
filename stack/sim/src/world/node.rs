//! One container of a world, with its links, guest and host.

use std::collections::VecDeque;

use skbudget_controller::{Budget, Instant};
use skbudget_stack::schedule::DeviceBound;
use skbudget_stack::{ChunkPool, Container, ContainerConfig, Ctx, Throttle};

use super::BudgetId;
use crate::event_queue::{EventQueue, What};
use crate::frame::{Frame, FramePool};
use crate::guest::Guest;
use crate::host::SimHost;
use crate::link::{Link, LinkConfig};
use crate::link_port::{DownPort, send};

/// One container with its links, guest and host.
#[derive(Debug)]
pub struct NodeConfig {
    /// Configuration of its stack.
    pub container: ContainerConfig,
    /// The budget that it is charged to.
    pub budget: BudgetId,
    /// From the guest to the stack.
    pub up: LinkConfig,
    /// From the stack to the guest.
    pub down: LinkConfig,
    /// The guest.
    pub guest: Box<dyn Guest>,
    /// Its host sockets.
    pub host: SimHost,
}

/// What all nodes of a world use.
#[derive(Debug, Default)]
pub(super) struct Common {
    pub(super) now: Instant,
    pub(super) events: EventQueue,
    pub(super) pool: ChunkPool,
    pub(super) frames: FramePool,
}

/// Timers of a node in the event queue. The deadline of the stack is in the world's schedule.
pub(super) const GUEST: usize = 0;
pub(super) const HOST: usize = 1;

#[derive(Debug)]
pub(super) struct Node {
    pub(super) index: usize,
    pub(super) container: Container,
    pub(super) budget: usize,
    pub(super) guest: Box<dyn Guest>,
    pub(super) host: SimHost,
    pub(super) up: Link,
    pub(super) down: Link,
    pub(super) alive: bool,
    /// Frames that arrived at the stack's device and were not read yet.
    pub(super) device: VecDeque<Frame>,
    /// The guest is to be polled.
    pub(super) guest_dirty: bool,
    /// Earliest pending timer event of the guest and the host.
    pub(super) armed: [Option<Instant>; 2],
}

impl Node {
    /// Calls the container with its context.
    pub(super) fn with<R>(
        &mut self,
        common: &mut Common,
        budget: &mut Budget,
        f: impl FnOnce(&mut Container, &mut Ctx<'_>) -> R,
    ) -> R {
        let Common { now, events, pool, frames } = common;
        let now = *now;
        self.host.set_now(now);
        let mut device = DownPort { link: &mut self.down, now, events, frames, node: self.index };
        let mut cx = Ctx { now, budget, pool, host: &mut self.host, device: &mut device };
        f(&mut self.container, &mut cx)
    }

    /// Passes frames of the device to the stack, as many as a turn may read. True when more are left.
    pub(super) fn take_frames(&mut self, common: &mut Common, budget: &mut Budget) -> bool {
        let mut bound = DeviceBound::new(Throttle::of(budget));
        while bound.has_room()
            && let Some(frame) = self.device.pop_front()
        {
            bound.count(frame.bytes().len());
            self.with(common, budget, |container, cx| {
                container.on_frame(cx, &frame.vnet, frame.bytes());
            });
            common.frames.give(frame);
        }
        !self.device.is_empty()
    }

    /// Passes the events of the host sockets to the stack. True when there were any.
    pub(super) fn take_host_events(&mut self) -> bool {
        let mut any = false;
        while let Some((flow, ready)) = self.host.poll_ready() {
            self.container.on_host_ready(flow, ready);
            any = true;
        }
        while let Some(id) = self.host.poll_datagram_ready() {
            self.container.on_datagram_ready(id);
            any = true;
        }
        while let Some(flow) = self.host.poll_broken() {
            self.container.on_host_broken(flow);
            any = true;
        }
        any
    }

    /// Polls the guest, and sends its frames. `outbox` is empty before and after.
    pub(super) fn poll_guest(&mut self, common: &mut Common, outbox: &mut Vec<Frame>) {
        let Common { now, events, frames, .. } = common;
        // The guest needs the room beforehand: a frame that it produced cannot be put back.
        let room = self.up.room(*now);
        self.guest.poll(*now, room, frames, outbox);
        if self.guest.is_blocked() {
            self.up.want_room();
        }
        for frame in outbox.drain(..) {
            send(&mut self.up, *now, frame, events, frames, self.index, What::ToStack);
        }
    }

    /// Sets the timers of the guest, the host and the links.
    pub(super) fn arm(&mut self, now: Instant, events: &mut EventQueue) {
        let due = [self.guest.next_deadline(), self.host.next_deadline()];
        for (kind, due) in due.into_iter().enumerate() {
            let Some(at) = due.map(|due| due_after(now, due)) else { continue };
            if self.armed[kind].is_none_or(|armed| at < armed) {
                self.armed[kind] = Some(at);
                events.add(at, self.index, What::Timer(kind));
            }
        }
        for link in [&mut self.up, &mut self.down] {
            if let Some(at) = link.take_room_at() {
                events.add(at.max(now), self.index, What::Room);
            }
        }
    }
}

/// A deadline in the past is due next, but not again at this instant: otherwise time would stop.
pub(super) fn due_after(now: Instant, deadline: Instant) -> Instant {
    deadline.max(Instant(now.0 + 1))
}

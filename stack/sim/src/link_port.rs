//! Sends frames onto a link.

use std::io::IoSlice;

use skbudget_controller::Instant;
use skbudget_stack::Device;
use skbudget_stack::vnet::VnetHdr;

use crate::event_queue::{EventQueue, What};
use crate::frame::{Frame, FramePool};
use crate::link::{Fate, Link};

/// The stack's end of the link to the guest.
pub(crate) struct DownPort<'a> {
    pub(crate) link: &'a mut Link,
    pub(crate) now: Instant,
    pub(crate) events: &'a mut EventQueue,
    pub(crate) frames: &'a mut FramePool,
    pub(crate) node: usize,
}

impl Device for DownPort<'_> {
    fn send(&mut self, vnet: &VnetHdr, parts: &[IoSlice<'_>]) -> bool {
        if self.link.room(self.now) == 0 && self.link.refuses() {
            self.link.want_room();
            return false;
        }
        let frame = self.frames.gather(vnet, parts);
        let (now, node) = (self.now, self.node);
        send(self.link, now, frame, self.events, self.frames, node, What::ToGuest);
        true
    }
}

/// Offers a frame to a link and schedules its arrival, a duplicate's too.
pub(crate) fn send(
    link: &mut Link,
    now: Instant,
    mut frame: Frame,
    events: &mut EventQueue,
    frames: &mut FramePool,
    node: usize,
    what: fn(Frame) -> What,
) {
    match link.offer(now, flow_of(frame.bytes()), frame.bytes().len()) {
        Fate::Refused | Fate::Gone => frames.give(frame),
        Fate::Arrives { at, again, corrupt } => {
            if let Some(again) = again {
                events.add(again, node, what(frames.copy(&frame)));
            }
            if let Some((byte, mask)) = corrupt {
                frame.bytes_mut()[byte] ^= mask;
            }
            events.add(at, node, what(frame));
        }
    }
}

/// A number for the flow of a frame: addresses and ports of IPv4 without options, or the bytes at their place.
fn flow_of(frame: &[u8]) -> u64 {
    let word = |at: usize| {
        frame.get(at..at + 4).map_or(0, |b| {
            u64::from(b[0]) << 24 | u64::from(b[1]) << 16 | u64::from(b[2]) << 8 | u64::from(b[3])
        })
    };
    (word(26) << 32 | word(30)) ^ word(34).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

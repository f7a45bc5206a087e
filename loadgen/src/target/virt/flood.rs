//! A guest that sends handcrafted segments over a simulated link.

use std::any::Any;

use skbudget_controller::Instant;
use skbudget_sim::{Frame, FramePool, Guest};

use crate::traffic::raw_tcp::RawTcpClient;

#[derive(Debug)]
pub(super) struct FloodGuest {
    inner: RawTcpClient,
    next: Option<Instant>,
    blocked: bool,
}

impl FloodGuest {
    pub(super) fn new(inner: RawTcpClient) -> Self {
        let next = inner.next_deadline(0).map(Instant);
        Self { inner, next, blocked: false }
    }
}

impl Guest for FloodGuest {
    fn on_frame(&mut self, now: Instant, frame: Frame) {
        self.inner.on_frame(now.0, frame.bytes());
    }

    fn poll(&mut self, now: Instant, room: usize, frames: &mut FramePool, out: &mut Vec<Frame>) {
        let before = out.len();
        self.inner.poll(now.0, room, |bytes| {
            let mut frame = frames.take(bytes.len());
            frame.bytes_mut().copy_from_slice(bytes);
            out.push(frame);
        });
        self.next = self.inner.next_deadline(now.0).map(Instant);
        // Out of room with frames due: the link polls again when it has room, so no timer is needed.
        self.blocked = out.len() - before == room && self.next.is_some_and(|at| at <= now);
        if self.blocked {
            self.next = None;
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.next
    }
    fn is_blocked(&self) -> bool {
        self.blocked
    }
    fn as_any(&mut self) -> &mut dyn Any {
        self
    }
}

//! Guests without a TCP: scripted segments, honest or hostile, against the virtual world and against real devices.

use std::any::Any;
use std::fmt::Debug;

use skbudget_controller::Instant;
use skbudget_stack::VnetHdr;
use skbudget_stack::vnet::F_DATA_VALID;

use crate::frame::{Frame, FramePool};
use crate::guest::Guest;
use crate::packet::Segment;

mod attack;

pub use attack::{Attack, Kind};

/// Port of the gateway with a server that reads everything.
pub const SINK: u16 = 80;
/// The server of this port sends without end.
pub const PUSHER: u16 = 81;
/// Connects to this port are never answered.
pub const SILENT: u16 = 82;
/// The server of this port accepts and reads nothing.
pub const NEVER_READS: u16 = 83;
/// The server of this port answers requests.
pub const RESPONDER: u16 = 84;
/// No server: connects are refused.
pub const CLOSED: u16 = 9;

/// Decides what a raw guest sends.
pub trait Script: Debug {
    /// A segment arrived; answers are appended to `out`.
    fn on_segment(&mut self, now: Instant, segment: &Segment, out: &mut Vec<Segment>);
    /// Called at `next_deadline` or later: appends what is due. The link has room for `room` segments.
    fn send_due(&mut self, now: Instant, room: usize, out: &mut Vec<Segment>);
    /// Time of the next `send_due`.
    fn next_deadline(&self) -> Option<Instant>;
}

/// A guest that sends the segments of a script.
#[derive(Debug)]
pub struct RawGuest<S> {
    /// The script.
    pub script: S,
    out: Vec<Segment>,
    blocked: bool,
}

impl<S: Script> RawGuest<S> {
    /// A guest that has sent nothing yet.
    pub fn new(script: S) -> Self {
        Self { script, out: Vec::new(), blocked: false }
    }
}

impl<S: Script + 'static> Guest for RawGuest<S> {
    fn on_frame(&mut self, now: Instant, frame: Frame) {
        if let Some(segment) = Segment::parse(frame.bytes()) {
            self.script.on_segment(now, &segment, &mut self.out);
        }
    }

    fn poll(&mut self, now: Instant, room: usize, frames: &mut FramePool, out: &mut Vec<Frame>) {
        if self.script.next_deadline().is_some_and(|at| at <= now) && self.out.len() < room {
            self.script.send_due(now, room - self.out.len(), &mut self.out);
        }
        let n = room.min(self.out.len());
        for segment in self.out.drain(..n) {
            let bytes = segment.frame();
            let mut frame = frames.take(bytes.len());
            // The checksum counts as verified, so that the stack does not verify it again.
            frame.vnet = VnetHdr { flags: F_DATA_VALID, ..VnetHdr::default() };
            frame.bytes_mut().copy_from_slice(&bytes);
            out.push(frame);
        }
        self.blocked = !self.out.is_empty();
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.script.next_deadline().filter(|_| !self.blocked)
    }

    fn is_blocked(&self) -> bool {
        self.blocked
    }

    fn as_any(&mut self) -> &mut dyn Any {
        self
    }
}

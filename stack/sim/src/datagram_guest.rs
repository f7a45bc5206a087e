//! A guest that sends datagrams by a script, and keeps what it receives.

use std::any::Any;
use std::collections::VecDeque;

use skbudget_controller::Instant;
use skbudget_stack::VnetHdr;
use skbudget_stack::vnet::F_DATA_VALID;

use crate::frame::{Frame, FramePool};
use crate::guest::Guest;
use crate::packet::Datagram;

/// Datagrams at set times. They are sent in order, each at its time or as soon after it as the link has room.
#[derive(Debug, Default)]
pub struct DatagramGuest {
    plan: VecDeque<(Instant, Datagram)>,
    /// Datagrams received, with their times.
    pub received: Vec<(Instant, Datagram)>,
    /// Other frames received.
    pub others: Vec<Vec<u8>>,
    blocked: bool,
}

impl DatagramGuest {
    /// A guest that sends these datagrams, which are in the order of their times.
    pub fn new(plan: Vec<(Instant, Datagram)>) -> Self {
        Self { plan: plan.into(), ..Self::default() }
    }

    /// Number of datagrams that are not sent yet.
    pub fn unsent(&self) -> usize {
        self.plan.len()
    }
}

impl Guest for DatagramGuest {
    fn on_frame(&mut self, now: Instant, frame: Frame) {
        match Datagram::parse(frame.bytes()) {
            Some(datagram) => self.received.push((now, datagram)),
            None => self.others.push(frame.bytes().to_vec()),
        }
    }

    fn poll(&mut self, now: Instant, room: usize, frames: &mut FramePool, out: &mut Vec<Frame>) {
        self.blocked = false;
        for sent in 0.. {
            let Some((at, _)) = self.plan.front() else { return };
            if *at > now {
                return;
            }
            if sent >= room {
                self.blocked = true;
                return;
            }
            let Some((_, datagram)) = self.plan.pop_front() else { return };
            let bytes = datagram.frame();
            let mut frame = frames.take(bytes.len());
            frame.bytes_mut().copy_from_slice(&bytes);
            frame.vnet = VnetHdr { flags: F_DATA_VALID, ..VnetHdr::default() };
            out.push(frame);
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.plan.front().map(|(at, _)| *at).filter(|_| !self.blocked)
    }

    fn is_blocked(&self) -> bool {
        self.blocked
    }

    fn as_any(&mut self) -> &mut dyn Any {
        self
    }
}

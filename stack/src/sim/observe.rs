//! Who watches a stream: loadgen's meters, a test's assertions.

use std::cell::RefCell;
use std::rc::Rc;

use skbudget_controller::Instant;

/// What the ends of simulated connections report. Every method does nothing unless overridden.
pub trait Observer: std::fmt::Debug {
    /// Bytes reached the application they were meant for (and were the right ones).
    fn bytes(&mut self, _now: Instant, _n: u64) {}
    /// Bytes that were not what was sent: position of the first in its stream.
    fn corrupt(&mut self, _now: Instant, _position: u64) {}
    /// The connection ended although its application still wanted it.
    fn broken(&mut self, _now: Instant) {}
    /// A request was due at `intended`, whether or not it could be sent.
    fn intended(&mut self, _id: u64, _intended: Instant) {}
    /// The client looked at request `id`, which was due: what keeps it back from here on is not the client.
    fn looked(&mut self, _id: u64, _now: Instant) {}
    /// The socket took the first byte of request `id`.
    fn sent(&mut self, _id: u64, _now: Instant) {}
    /// The whole response to request `id` is here.
    fn completed(&mut self, _id: u64, _now: Instant) {}
    /// Too many were outstanding: request `id` is not sent at all.
    fn shed(&mut self, _id: u64) {}
    /// The connection broke under request `id`.
    fn failed(&mut self, _id: u64) {}
}

/// A shared observer. A world lives on one thread.
pub type Watch = Rc<RefCell<dyn Observer>>;

/// Counts and nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    pub bytes: u64,
    pub corrupt: u64,
    pub broken: u64,
    pub intended: u64,
    pub completed: u64,
    pub shed: u64,
    pub failed: u64,
    pub last: Instant,
}

impl Tally {
    pub fn shared() -> Rc<RefCell<Self>> {
        Rc::new(RefCell::new(Self::default()))
    }
}

impl Observer for Tally {
    fn bytes(&mut self, now: Instant, n: u64) {
        self.bytes += n;
        self.last = now;
    }
    fn corrupt(&mut self, _now: Instant, _position: u64) {
        self.corrupt += 1;
    }
    fn broken(&mut self, _now: Instant) {
        self.broken += 1;
    }
    fn intended(&mut self, _id: u64, _intended: Instant) {
        self.intended += 1;
    }
    fn completed(&mut self, _id: u64, now: Instant) {
        self.completed += 1;
        self.last = now;
    }
    fn shed(&mut self, _id: u64) {
        self.shed += 1;
    }
    fn failed(&mut self, _id: u64) {
        self.failed += 1;
    }
}

//! Observers of a stream: loadgen's meters, a test's assertions.

use std::cell::RefCell;
use std::rc::Rc;

use skbudget_controller::Instant;

/// Reports from the ends of simulated connections. Each method does nothing unless overridden.
pub trait Observer: std::fmt::Debug {
    /// Correct bytes reached their application.
    fn bytes(&mut self, _now: Instant, _n: u64) {}
    /// Bytes differ from those sent; `position` is the first of them in its stream.
    fn corrupt(&mut self, _now: Instant, _position: u64) {}
    /// The connection ended although its application still needed it.
    fn broken(&mut self, _now: Instant) {}
    /// A request was due at `intended`, whether or not it could be sent.
    fn intended(&mut self, _id: u64, _intended: Instant) {}
    /// The client processed request `id`, which was due. Any later delay is not the client's.
    fn looked(&mut self, _id: u64, _now: Instant) {}
    /// The socket took the first byte of request `id`.
    fn sent(&mut self, _id: u64, _now: Instant) {}
    /// The whole response to request `id` has arrived.
    fn completed(&mut self, _id: u64, _now: Instant) {}
    /// Too many requests were outstanding, so request `id` is never sent.
    fn shed(&mut self, _id: u64) {}
    /// The connection broke under request `id`.
    fn failed(&mut self, _id: u64) {}
}

/// A shared observer. A world runs on one thread.
pub type Watch = Rc<RefCell<dyn Observer>>;

/// An observer that only counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// Bytes received.
    pub bytes: u64,
    /// Wrong bytes received.
    pub corrupt: u64,
    /// Connections that broke.
    pub broken: u64,
    /// Requests that were due.
    pub intended: u64,
    /// Requests that were answered.
    pub completed: u64,
    /// Requests not sent, because too many were outstanding.
    pub shed: u64,
    /// Connects that failed.
    pub failed: u64,
    /// Time of the last event.
    pub last: Instant,
}

impl Tally {
    /// Counters at zero, for several applications.
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

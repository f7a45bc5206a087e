//! Opens the connections of a container's loads.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use skbudget_controller::Instant;
use skbudget_sim::{
    ACCEPTED_CAPS, App, Buffers, BulkRecv, BulkSend, NeverRead, Open, Probe, ProbePlan, Rng,
    Server, SmolGuest, Tally, World,
};

use super::apps::{FreshProbe, HoardSome, Make, SendSome, SlowRead, Timed};
use super::build::{
    ACCEPT, ContainerRun, DOWN, HOARD, INCAST, INCAST_REQUEST, ORPHANS, OUTSIDE, PROBE, STUFF, UP,
};
use crate::scenario::plan::{Fill, Load, Plan, ProbeSpec, Role};

/// A container opens its connections one after another, as a program does, plus a seeded jitter of up to this time.
const DIAL_EVERY_NS: u64 = 5_000;
/// Maximum concurrent connections of a probe that opens a new one for each request.
const SLOTS: u16 = 64;

/// One connection to open.
struct Dial {
    at: Instant,
    open: Open,
    rx: Option<u64>,
    tx: Option<u64>,
    app: Box<dyn App>,
}

/// Collects the connections, each with its time.
struct Dialer<'a> {
    c: &'a ContainerRun,
    rng: Rng,
    at: Instant,
    dials: Vec<Dial>,
}

impl Dialer<'_> {
    fn connect(&mut self, port: u16, fill: Option<Fill>, make: Make) {
        let to = SocketAddr::from(([10, 0, 2, 2], port));
        self.add(Open::Connect(to), fill, make);
    }

    fn add(&mut self, open: Open, fill: Option<Fill>, make: Make) {
        let spans = &self.c.plan.active;
        let from = spans.first().map_or(0, |s| s.from_ns);
        let offset = self.at.0.saturating_sub(from);
        // A hog's load ends with its span; a victim's single span lasts as long as the run.
        let app: Box<dyn App> = if spans.len() > 1 || self.c.plan.role == Role::Hog {
            Box::new(Timed::new(make, spans, offset))
        } else {
            make()
        };
        let buffer = fill.and_then(|f| f.buffer_bytes);
        self.dials.push(Dial { at: self.at, open, rx: buffer, tx: buffer, app });
        self.at = self.at + Duration::from_nanos(DIAL_EVERY_NS + self.rng.below(DIAL_EVERY_NS));
    }
}

/// Opens all connections of all spans, the first at `from`.
pub(super) fn start_loads(world: &mut World, c: &ContainerRun, plan: &Plan, from: Instant) {
    let Some(node) = c.node else { return };
    let mut rng = Rng::fork(plan.seed, 2000 + c.index);
    // Avoid that all containers start in step.
    let at = from + Duration::from_nanos(rng.below(1_000_000));
    // Shifts the probe's schedule, so that victims do not send in step.
    let jitter_ns = rng.below(100_000);
    let mut dialer = Dialer { c, rng, at, dials: Vec::new() };
    let mut is_raw = false;
    for load in &c.plan.loads {
        is_raw |= matches!(load, Load::Flood { .. });
        one(&mut dialer, load, plan, jitter_ns);
    }
    // A flood guest has no TCP sockets.
    if !is_raw {
        let default = plan.link.guest_buffer_bytes;
        let dials = dialer.dials;
        world.with_guest(node, |guest: &mut SmolGuest| {
            for d in dials {
                let (rx, tx) = (d.rx.unwrap_or(default), d.tx.unwrap_or(default));
                let buffers = Buffers { rx: rx as usize, tx: tx as usize };
                guest.open(d.at, d.open, buffers, d.app);
            }
        });
    }
}

/// Adds the connections of one load.
fn one(d: &mut Dialer<'_>, load: &Load, plan: &Plan, jitter_ns: u64) {
    let c = d.c;
    match *load {
        Load::Up { connections, .. } => {
            for port in (UP..).take(connections as usize) {
                let sender = c.sender.clone();
                d.connect(
                    port,
                    None,
                    Box::new(move || Box::new(BulkSend::new(None, sender.clone()))),
                );
            }
        }
        Load::Down { connections } => {
            for port in (DOWN..).take(connections as usize) {
                let down = c.down.clone();
                d.connect(port, None, Box::new(move || Box::new(BulkRecv::new(down.clone()))));
            }
        }
        Load::Probe(spec) => probe(d, &probe_plan(&spec, plan, jitter_ns), spec.fresh),
        Load::Stuff(fill) => {
            for port in (STUFF..).take(fill.connections as usize) {
                // No meter: a hog's connections may break without consequence.
                let make: Make = match fill.bytes {
                    Some(n) => Box::new(move || Box::new(SendSome::new(n))),
                    None => Box::new(|| Box::new(BulkSend::new(None, Tally::shared()))),
                };
                d.connect(port, Some(fill), make);
            }
        }
        Load::Hoard(fill) => {
            for port in (HOARD..).take(fill.connections as usize) {
                let make: Make = match (fill.reads_bits_per_second, fill.bytes) {
                    (Some(rate), _) => Box::new(move || Box::new(SlowRead::new(rate))),
                    // The server sends its bytes in response to a single request.
                    (None, Some(n)) if n > 0 => Box::new(|| Box::new(HoardSome::default())),
                    (None, _) => Box::new(|| Box::new(NeverRead)),
                };
                d.connect(port, Some(fill), make);
            }
        }
        Load::Orphans { per_second, bytes } => orphans(d, per_second, bytes),
        Load::Accept { connections } => {
            for _ in 0..connections {
                d.add(Open::Listen(ACCEPT), None, Box::new(|| Box::new(NeverRead)));
            }
        }
        Load::Incast { connections, bytes, every_ns } => {
            let Some(span) = c.plan.active.first() else { return };
            let plan = ProbePlan {
                // Leaves time for the connections to open.
                start: Instant(span.from_ns + 20_000_000),
                every: Duration::from_nanos(every_ns),
                until: Instant(span.to_ns),
                request: INCAST_REQUEST,
                response: bytes,
                outstanding_max: 16,
            };
            for port in (INCAST..).take(connections as usize) {
                let make: Make = Box::new(move || Box::new(Probe::new(plan, Tally::shared())));
                d.connect(port, None, make);
            }
        }
        // The flood guest opens its own connections.
        Load::Flood { .. } => {}
    }
}

fn probe(d: &mut Dialer<'_>, plan: &ProbePlan, fresh: bool) {
    let (plan, log) = (*plan, d.c.probe.clone());
    // One slot is enough for a persistent connection; with a new one per request, slots overlap.
    if !fresh {
        d.connect(PROBE, None, Box::new(move || Box::new(Probe::new(plan, log.clone()))));
        return;
    }
    for slot in 0..SLOTS {
        let log = log.clone();
        let slots = u64::from(SLOTS);
        let app = move || FreshProbe::new(plan, log.clone(), u64::from(slot), slots);
        let at = app().due().unwrap_or(plan.until);
        let to = SocketAddr::from(([10, 0, 2, 2], PROBE + slot));
        let (open, app) = (Open::Connect(to), Box::new(app()));
        d.dials.push(Dial { at, open, rx: None, tx: None, app });
    }
}

/// Opens connections at a fixed rate; each sends its bytes, closes and is forgotten.
fn orphans(d: &mut Dialer<'_>, per_second: u32, bytes: u64) {
    let every = 1_000_000_000 / u64::from(per_second.max(1));
    let mut port = ORPHANS;
    for span in d.c.plan.active.clone() {
        let mut at = span.from_ns;
        // One port per connection: the port range limits their number.
        while at < span.to_ns && port < ORPHANS + 9_999 {
            let to = SocketAddr::from(([10, 0, 2, 2], port));
            let app = Box::new(BulkSend::new(Some(bytes), Tally::shared()));
            // Large enough for all bytes, so that the application closes at once.
            let tx = Some(bytes.min(256 << 10));
            d.dials.push(Dial {
                at: Instant(at),
                open: Open::Connect(to),
                rx: Some(4096),
                tx,
                app,
            });
            port += 1;
            at += every;
        }
    }
}

/// Clients outside connect to the container's port, where no application accepts, and send.
pub(super) fn connect_clients(world: &mut World, c: &ContainerRun) {
    let Some(node) = c.node else { return };
    let count = c.plan.loads.iter().find_map(|l| match l {
        Load::Accept { connections } => Some(*connections),
        _ => None,
    });
    for i in 0..count.unwrap_or(0) {
        let peer = SocketAddr::new(IpAddr::V4(OUTSIDE), 10_000 + i as u16);
        // Ignore refusals: the load shows what the stack admits.
        let _ = world.accept(node, ACCEPT, peer, Server::pusher(None), ACCEPTED_CAPS);
    }
}

fn probe_plan(spec: &ProbeSpec, plan: &Plan, jitter_ns: u64) -> ProbePlan {
    ProbePlan {
        start: Instant(spec.offset_ns + jitter_ns),
        every: Duration::from_nanos(spec.every_ns),
        until: Instant(plan.end_ns()),
        request: spec.request_bytes,
        response: spec.response_bytes,
        outstanding_max: spec.outstanding_max as usize,
    }
}

/// Number of bytes that reached the container's loads altered.
pub(super) fn corrupt(c: &ContainerRun) -> u64 {
    c.up.borrow().corrupt() + c.down.borrow().corrupt() + c.probe.borrow().corrupt()
}

pub(super) fn broken(c: &ContainerRun) -> u64 {
    let bulk = c.up.borrow().broken() + c.down.borrow().broken();
    bulk + c.probe.borrow().broken() + Rc::clone(&c.sender).borrow().broken
}

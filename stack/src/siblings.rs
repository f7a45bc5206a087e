//! The containers of one loop that reach each other: the address of each, the visibility by group, and the work
//! between two of them. The daemon's worker and the virtual world call [`Siblings::run`] for a container before the
//! turn of its stack.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};

use skbudget_controller::Instant;

use crate::config::ContainerConfig;
use crate::container::siblings::{Pair, SiblingWork, exchange};
use crate::container::{Container, Ctx, NotAccepted};
use crate::dns::siblings::Directory;
use crate::flow::SiblingFlow;
use crate::io::{FlowId, HostError};

/// Steps of one call: an exchange, an open, an end. Other containers get their turn before it continues.
const STEPS_PER_CALL: usize = 64;

/// Connections that wait for room in one container. Each of them is a flow of another container, charged there; a
/// further one is dropped, and the guest's kernel sends its SYN again.
const WAITING_MAX: usize = 1024;

/// Access to the containers of a loop, which names them by index.
pub trait Loop {
    /// The time of this turn.
    fn now(&self) -> Instant;
    /// Calls `work` with a container, if it runs.
    fn one(&mut self, container: usize, work: &mut dyn FnMut(&mut Container, &mut Ctx<'_>));
    /// Calls `work` with two different containers, if both run.
    fn two(&mut self, containers: [usize; 2], work: &mut dyn FnMut(&mut Pair<'_>));
    /// The container has work: its turn follows.
    fn activate(&mut self, container: usize);
}

/// The containers by address, and connections between them that wait.
#[derive(Debug, Default)]
pub struct Siblings {
    by_address: BTreeMap<IpAddr, usize>,
    /// By index of the container.
    places: Vec<Option<Place>>,
    /// Every container sees all others, whatever its group.
    all_see_all: bool,
    directory: Directory,
}

/// One container.
#[derive(Debug)]
struct Place {
    group: String,
    /// Flows of other containers whose connection waits for room here, oldest first.
    waiting: VecDeque<Waiting>,
}

/// A flow of another container that waits for its other end.
#[derive(Debug, Clone, Copy)]
struct Waiting {
    container: usize,
    flow: FlowId,
    from: SocketAddr,
    to: SocketAddr,
}

impl Siblings {
    /// No containers. `all_see_all`: groups do not isolate.
    pub fn new(all_see_all: bool) -> Self {
        Self { all_see_all, directory: Directory::new(all_see_all), ..Self::default() }
    }

    /// A container takes this index and its addresses; those of its group see it. Only for containers with addresses of
    /// their own (`ContainerConfig::siblings`).
    pub fn add(&mut self, container: usize, name: &str, config: &ContainerConfig, group: &str) {
        if !config.siblings {
            return;
        }
        if self.places.len() <= container {
            self.places.resize_with(container + 1, || None);
        }
        self.directory.add(name, group, config);
        let v6 = config.ipv6.map(|net| IpAddr::V6(net.guest));
        for address in [Some(IpAddr::V4(config.guest_ip)), v6].into_iter().flatten() {
            self.by_address.insert(address, container);
        }
        self.places[container] = Some(Place { group: group.to_owned(), waiting: VecDeque::new() });
    }

    /// The names of the containers, for `Container::set_directory`.
    pub fn directory(&self) -> Directory {
        self.directory.clone()
    }

    /// A container moves to another group. Open connections stay open.
    pub fn set_group(&mut self, container: usize, group: &str) {
        if let Some(place) = self.places.get_mut(container).and_then(Option::as_mut) {
            place.group = group.to_owned();
            let own = |(address, at): (&IpAddr, &usize)| (*at == container).then_some(*address);
            self.by_address
                .iter()
                .filter_map(own)
                .for_each(|ip| self.directory.set_group(ip, group));
        }
    }

    /// A container has ended, and reset its flows (`Container::abort_all`): the other ends are notified, and its index
    /// is free.
    pub fn remove(&mut self, container: usize, lends: &mut dyn Loop) {
        // All flows have ended: only their notifications are left.
        while let Some(work) = next_work(container, lends) {
            self.carry_out(container, work, lends);
        }
        for (address, _) in self.by_address.extract_if(.., |_, other| *other == container) {
            self.directory.remove(address);
        }
        let place = self.places.get_mut(container).and_then(Option::take);
        for waiting in place.into_iter().flat_map(|place| place.waiting) {
            fail(waiting, HostError::HostUnreachable, lends);
        }
    }

    /// Carries out the work of a container's flows to siblings, and opens connections that waited for room in it.
    /// Returns true when work is left.
    pub fn run(&mut self, container: usize, lends: &mut dyn Loop) -> bool {
        self.open_waiting(container, lends);
        for _ in 0..STEPS_PER_CALL {
            let Some(work) = next_work(container, lends) else { return false };
            if self.carry_out(container, work, lends) {
                return true;
            }
        }
        true
    }

    /// Whether the turn of a container's stack left work: an event for a sibling, or room for a connection that waits.
    pub fn has_work(&self, container: usize, lends: &mut dyn Loop) -> bool {
        let place = self.places.get(container).and_then(Option::as_ref);
        let waits = place.is_some_and(|place| !place.waiting.is_empty());
        let mut has_work = false;
        lends.one(container, &mut |stack, cx| {
            has_work = stack.has_sibling_work() || waits && stack.can_accept(cx);
        });
        has_work
    }

    /// Carries out one step. Returns true if a bound was reached.
    fn carry_out(&mut self, container: usize, work: SiblingWork, lends: &mut dyn Loop) -> bool {
        match work {
            SiblingWork::Ended { other, end } => {
                let at = other.container as usize;
                lends.one(at, &mut |stack, _| stack.sibling_ended(other.flow, end));
                lends.activate(at);
                false
            }
            SiblingWork::Pass { flow, other } => {
                let (at, mut more) = (other.container as usize, false);
                lends.two([container, at], &mut |pair| more = exchange(pair, [flow, other.flow]));
                lends.activate(at);
                more
            }
            SiblingWork::Open { flow, from, to } => {
                self.open(Waiting { container, flow, from, to }, lends);
                false
            }
        }
    }

    /// Opens a connection to the container with that address, or lets it wait for room there.
    fn open(&mut self, waiting: Waiting, lends: &mut dyn Loop) {
        let at = self.by_address.get(&waiting.to.ip()).copied();
        let at = at.filter(|at| *at != waiting.container && self.sees(waiting.container, *at));
        let Some((at, place)) = at.and_then(|at| Some((at, self.places[at].as_mut()?))) else {
            return fail(waiting, HostError::HostUnreachable, lends);
        };
        // No connection overtakes one that waits.
        if place.waiting.is_empty() && connect(waiting, at, lends) {
            return;
        }
        place.waiting.retain(|other| is_alive(*other, lends));
        match place.waiting.len() < WAITING_MAX {
            true => place.waiting.push_back(waiting),
            false => fail(waiting, HostError::NoResources, lends),
        }
    }

    /// Opens the connections that wait for room in the container, as many as fit.
    fn open_waiting(&mut self, at: usize, lends: &mut dyn Loop) {
        let Some(place) = self.places.get_mut(at).and_then(Option::as_mut) else { return };
        while let Some(waiting) = place.waiting.front().copied() {
            if is_alive(waiting, lends) && !connect(waiting, at, lends) {
                return;
            }
            place.waiting.pop_front();
        }
    }

    /// Whether a container may connect to another.
    fn sees(&self, container: usize, other: usize) -> bool {
        let group = |at: usize| self.places.get(at)?.as_ref().map(|place| place.group.as_str());
        group(container).is_some_and(|own| self.all_see_all || group(other) == Some(own))
    }
}

/// The next work of a container.
fn next_work(container: usize, lends: &mut dyn Loop) -> Option<SiblingWork> {
    let mut work = None;
    lends.one(container, &mut |stack, _| work = stack.next_sibling_work());
    work
}

/// Opens the other end of a connection in the container. Returns false without room: that container is woken when there
/// may be some.
fn connect(waiting: Waiting, at: usize, lends: &mut dyn Loop) -> bool {
    let Waiting { container, flow, from, to } = waiting;
    let other = SiblingFlow { container: container as u32, flow };
    let mut opened = Err(NotAccepted::NoRoom);
    lends.one(at, &mut |stack, cx| {
        if stack.can_accept(cx) {
            opened = stack.on_sibling(cx, [from, to], other);
        }
        if opened == Err(NotAccepted::NoRoom) {
            stack.wait_to_accept(cx.budget);
        }
    });
    match opened {
        Ok(id) => {
            let other = SiblingFlow { container: at as u32, flow: id };
            lends.one(container, &mut |stack, _| stack.sibling_opened(flow, other));
            lends.activate(at);
            true
        }
        Err(NotAccepted::NoRoom) => false,
        // An earlier connection on these ports is not over there: the guest's kernel sends its SYN again.
        Err(NotAccepted::NoPort) => {
            fail(waiting, HostError::NoResources, lends);
            true
        }
    }
}

/// Reports a connection that cannot be opened.
fn fail(waiting: Waiting, error: HostError, lends: &mut dyn Loop) {
    lends.one(waiting.container, &mut |stack, _| stack.sibling_failed(waiting.flow, error));
    lends.activate(waiting.container);
}

/// Whether the flow of a connection that waits has not ended.
fn is_alive(waiting: Waiting, lends: &mut dyn Loop) -> bool {
    let mut alive = false;
    lends.one(waiting.container, &mut |stack, _| alive = stack.waits_for_sibling(waiting.flow));
    alive
}

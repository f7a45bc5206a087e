//! Two containers under one daemon: a neighbour that is measured, and an attacker.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use skbudget::Daemon;
use skbudget::stats::ContainerReport;

use crate::attack::Attack;
use crate::hostile::{self, KERNEL_IP, Said, Servers};
use crate::neighbour::{Neighbour, Seen};
use crate::world::{self, World};

/// Hard limit of the attacker, bytes.
pub(crate) const HARD: u64 = 16 << 20;
const NEIGHBOUR_HARD: u64 = 8 << 20;

const ATTACKER: &str = "attacker";

#[derive(Debug)]
pub(crate) struct Siege {
    pub(crate) daemon: Daemon,
    pub(crate) neighbour: Neighbour,
    attacker: Option<Attacker>,
    world: World,
    // Keeps the neighbour's kernel.
    _netns: OwnedFd,
}

#[derive(Debug)]
struct Attacker {
    netns: OwnedFd,
    /// The attacker's own daemon, if it is apart.
    daemon: Option<Daemon>,
    _servers: Servers,
}

impl Siege {
    /// Starts the neighbour alone, under a daemon with this number of workers.
    pub(crate) fn new(workers: usize) -> Self {
        let world = World::new();
        let daemon = world.daemon_of(workers, HARD + NEIGHBOUR_HARD);
        let netns = world::container(&daemon, "neighbour", NEIGHBOUR_HARD, None, true);
        let neighbour = Neighbour::start(&world, &netns);
        Self { daemon, neighbour, attacker: None, world, _netns: netns }
    }

    /// Adds the attacker's container, which is idle. `apart`: under a daemon of its own, so that it shares only the
    /// machine with the neighbour.
    pub(crate) fn let_in(&mut self, apart: bool) {
        let servers = Servers::start(&self.world);
        let daemon = apart.then(|| self.world.daemon(HARD));
        let netns = world::container(
            daemon.as_ref().unwrap_or(&self.daemon),
            ATTACKER,
            HARD,
            Some(KERNEL_IP),
            true,
        );
        self.attacker = Some(Attacker { netns, daemon, _servers: servers });
    }

    /// Runs the attack to its end.
    pub(crate) fn attack(&self, plot: &mut Attack, stop: &AtomicBool) -> Said {
        let attacker = self.attacker.as_ref().expect("an attacker that was let in");
        hostile::attack(attacker.netns.as_fd(), plot, stop)
    }

    pub(crate) fn attacker(&self) -> ContainerReport {
        let apart = self.attacker.as_ref().and_then(|attacker| attacker.daemon.as_ref());
        world::report(apart.unwrap_or(&self.daemon), ATTACKER)
    }

    /// Removes the attacker's container, and its servers.
    pub(crate) fn throw_out(&mut self) {
        let apart = self.attacker.as_ref().and_then(|attacker| attacker.daemon.as_ref());
        apart.unwrap_or(&self.daemon).remove(ATTACKER).unwrap();
        self.attacker = None;
    }

    /// Time since the start of the neighbour.
    pub(crate) fn now(&self) -> Duration {
        self.neighbour.now()
    }

    /// The neighbour's results, and the bytes that are still charged after its end.
    pub(crate) fn end(self) -> (Seen, u64) {
        let Self { daemon, neighbour, world, .. } = self;
        let seen = neighbour.end();
        daemon.remove("neighbour").unwrap();
        let left = daemon.stats(false).unwrap().host.usage_bytes;
        daemon.shutdown().unwrap();
        drop(world);
        (seen, left)
    }
}

//! Two containers under one daemon: a neighbour that is measured, and an attacker.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use skbudget::Daemon;
use skbudget::stats::ContainerReport;
use skbudget_sim::flood::Attack;

use crate::hostile::{self, KERNEL_IP, Sent, Servers};
use crate::neighbour::{Neighbour, Seen};
use crate::network::{self, Network};

/// Hard limit of the attacker, bytes.
pub const HARD: u64 = 16 << 20;
const NEIGHBOUR_HARD: u64 = 8 << 20;

const ATTACKER: &str = "attacker";

#[derive(Debug)]
pub struct FloodRig {
    pub daemon: Daemon,
    pub neighbour: Neighbour,
    attacker: Option<Attacker>,
    network: Network,
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

impl FloodRig {
    /// Starts the neighbour alone, under a daemon with this number of workers.
    pub fn new(workers: usize) -> Self {
        let network = Network::create();
        let daemon = network.daemon_of(workers, HARD + NEIGHBOUR_HARD);
        let netns = network::container(&daemon, "neighbour", NEIGHBOUR_HARD, None, true);
        let neighbour = Neighbour::start(&network, &netns);
        Self { daemon, neighbour, attacker: None, network, _netns: netns }
    }

    /// Adds the attacker's container, which is idle. `apart`: under a daemon of its own, so that it shares only the
    /// machine with the neighbour.
    pub fn add_attacker(&mut self, apart: bool) {
        let servers = Servers::start(&self.network);
        let daemon = apart.then(|| self.network.daemon(HARD));
        let netns = network::container(
            daemon.as_ref().unwrap_or(&self.daemon),
            ATTACKER,
            HARD,
            Some(KERNEL_IP),
            true,
        );
        self.attacker = Some(Attacker { netns, daemon, _servers: servers });
    }

    /// Runs the attack to its end.
    pub fn attack(&self, plot: &mut Attack, stop: &AtomicBool) -> Sent {
        let attacker = self.attacker.as_ref().expect("an attacker that was added");
        hostile::attack(attacker.netns.as_fd(), plot, stop)
    }

    pub fn attacker(&self) -> ContainerReport {
        let apart = self.attacker.as_ref().and_then(|attacker| attacker.daemon.as_ref());
        network::report(apart.unwrap_or(&self.daemon), ATTACKER)
    }

    /// Removes the attacker's container, and its servers.
    pub fn remove_attacker(&mut self) {
        let apart = self.attacker.as_ref().and_then(|attacker| attacker.daemon.as_ref());
        apart.unwrap_or(&self.daemon).remove(ATTACKER).unwrap();
        self.attacker = None;
    }

    /// Time since the start of the neighbour.
    pub fn now(&self) -> Duration {
        self.neighbour.now()
    }

    /// The neighbour's results, and the bytes that are still charged after its end.
    pub fn end(self) -> (Seen, u64) {
        let Self { daemon, neighbour, network, .. } = self;
        let seen = neighbour.end();
        daemon.remove("neighbour").unwrap();
        let left = daemon.stats(false).unwrap().host.usage_bytes;
        daemon.shutdown().unwrap();
        drop(network);
        (seen, left)
    }
}

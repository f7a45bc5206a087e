//! The plan of a seed: link, budget, host and the connections of one world.

use std::time::Duration;

use skbudget_sim::{Faults, Rng};
use skbudget_stack::controller::Rules;

/// One connection of the guest.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Job {
    /// To a server that reads at a rate, or without a limit.
    Up { bytes: u64, rate: Option<u64> },
    /// From a server that sends and ends; the guest reads after a delay.
    Down { bytes: u64, reads_after: Duration },
    /// In both directions at once: an echo server.
    Echo { bytes: u64 },
    /// A remote client connects to a port of the guest and sends.
    Published { bytes: u64 },
}

#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) rules: Rules,
    pub(crate) hard: u64,
    pub(crate) mtu: u16,
    /// Whether every connection is over IPv6.
    pub(crate) ipv6: bool,
    pub(crate) offload: bool,
    pub(crate) delay: Duration,
    pub(crate) bits_per_second: Option<u64>,
    pub(crate) queue_frames: usize,
    pub(crate) drop_when_full: bool,
    pub(crate) faults: Faults,
    pub(crate) jobs: Vec<Job>,
    /// Sizes of the guest's socket buffers.
    pub(crate) guest_rx: usize,
    pub(crate) guest_tx: usize,
    pub(crate) server_delay: Duration,
}

pub(crate) fn pick<T: Copy>(rng: &mut Rng, of: &[T]) -> T {
    of[rng.below(of.len() as u64) as usize]
}

/// Each fault with a rate below that in `most`, or none; reordered frames are late by one of `reorder_by`,
/// microseconds.
pub(crate) fn faults(rng: &mut Rng, most: &Faults, reorder_by: &[u64]) -> Faults {
    let mut ppm = |max: u32| if rng.below(3) == 0 { 0 } else { rng.below(max.into()) as u32 };
    Faults {
        loss: ppm(most.loss),
        duplicate: ppm(most.duplicate),
        corrupt: ppm(most.corrupt),
        reorder: ppm(most.reorder),
        reorder_by: Duration::from_micros(pick(rng, reorder_by)),
    }
}

impl Plan {
    pub(crate) fn clean(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let rng = &mut rng;
        let mtu = pick(rng, &[296, 576, 1280, 1500, 1500, 9000, 65_520]);
        let jobs = 1 + rng.below(6);
        Self {
            seed,
            rules: pick(rng, &[Rules::Strict, Rules::Strict, Rules::Linux]),
            hard: 64 << 20,
            mtu,
            // Drawn from a separate generator, so that older seeds keep their meaning.
            ipv6: mtu >= 1280 && Rng::new(seed ^ 0x1b6).below(2) == 1,
            offload: rng.below(2) == 1,
            delay: Duration::from_micros(pick(rng, &[0, 25, 1000, 20_000])),
            bits_per_second: pick(rng, &[None, Some(100_000_000), Some(10_000_000_000)]),
            queue_frames: pick(rng, &[4, 32, 256]),
            drop_when_full: false,
            faults: Faults::default(),
            jobs: (0..jobs).map(|_| Self::job(rng)).collect(),
            guest_rx: pick(rng, &[2048, 16_384, 65_535, 300_000]),
            guest_tx: pick(rng, &[4096, 65_536]),
            server_delay: Duration::from_micros(pick(rng, &[10, 10, 5000])),
        }
    }

    fn job(rng: &mut Rng) -> Job {
        let bytes = 1 + rng.below(150_000);
        match rng.below(4) {
            0 => Job::Up { bytes, rate: pick(rng, &[None, None, Some(200_000)]) },
            1 => {
                let reads_after = Duration::from_millis(pick(rng, &[0, 0, 1700]));
                Job::Down { bytes, reads_after }
            }
            2 => Job::Echo { bytes: bytes / 2 },
            _ => Job::Published { bytes },
        }
    }

    pub(crate) fn with_faults(self) -> Self {
        let rng = &mut Rng::new(self.seed ^ 0xfa17);
        let most = Faults {
            loss: 50_000,
            duplicate: 30_000,
            corrupt: 20_000,
            reorder: 50_000,
            ..Faults::default()
        };
        let faults = faults(rng, &most, &[50, 500, 30_000]);
        Self {
            faults,
            drop_when_full: rng.below(2) == 1,
            // A guest that does not verify checksums would receive corrupt bytes.
            offload: self.offload && faults.corrupt == 0,
            ..self
        }
    }

    pub(crate) fn short(seed: u64) -> Self {
        let base = Self::clean(seed);
        let rng = &mut Rng::new(seed ^ 0x5407);
        let least = skbudget_stack::ContainerConfig::least_hard_bytes(base.mtu, false);
        // The linux rules drop data that was sent into an open window, and close it. smoltcp forgets its retransmission
        // timer when that happens over data in flight, and stalls when the window opens: there the guest sends only
        // ACKs.
        let down = |job: &Job| matches!(job, Job::Down { .. } | Job::Published { .. });
        let goes = |job: &Job| base.rules == Rules::Strict || down(job);
        let jobs = base.jobs.iter().copied().filter(goes).collect();
        Self { hard: least + rng.below(300 << 10), jobs, ..base }
    }
}

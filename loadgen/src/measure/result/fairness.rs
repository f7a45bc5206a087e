//! The fairness numbers, which `judge::analyse` computes.

use serde::{Deserialize, Serialize};

/// Contended against solo for one container. Ratios in thousandths; `null`: nothing arrived, or no upper bound is
/// known.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cost {
    /// Solo over contended, in the worse direction.
    pub throughput_slowdown_milli: Option<u64>,
    /// Contended over solo.
    pub p99_inflation_milli: Option<u64>,
    /// Longest stall in the contended phase, nanoseconds.
    pub stall_ns: u64,
    /// Time from the departure of the hog to solo goodput; `null`: it did not recover.
    pub recovery_ns: Option<u64>,
}

/// The worst victim, and numbers of the whole arm. Ratios in thousandths or millionths.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fairness {
    /// Worst victim in its worse direction: solo over contended; `null`: nothing arrived at all.
    pub throughput_slowdown_milli: Option<u64>,
    /// That victim, and the direction.
    pub throughput_slowdown_of: String,
    /// Worst victim: contended over solo; `null`: too few samples, or no upper bound is known.
    pub p99_inflation_milli: Option<u64>,
    /// That victim, or its group.
    pub p99_inflation_of: String,
    /// Longest stall of a victim in the contended phase, nanoseconds.
    pub stall_ns: u64,
    /// Longest stall of a victim in the solo phase, nanoseconds.
    pub stall_solo_ns: u64,
    /// The victim with the longest stall.
    pub stall_of: String,
    /// Least of the victims, contended.
    pub delivered_ppm: Option<u64>,
    /// Jain's index of the bulk goodput of the victims that have bulk, contended.
    pub jain_victims_ppm: u64,
    /// Jain's index of the bytes moved for all containers, contended.
    pub jain_all_ppm: u64,
    /// Least over victims and directions: solo goodput over the rate of the link.
    pub solo_share_ppm: u64,
    /// Time from the departure of the hog to the first of two consecutive steps with 95 % of solo, of the slowest
    /// victim; `null`: a victim did not recover.
    pub recovery_ns: Option<u64>,
    /// Maximum of the bytes charged to a hog.
    pub hog_peak_bytes: u64,
    /// `null`: the arm enforces no limit, or has no hog.
    pub hog_hard_bytes: Option<u64>,
    /// Largest overshoot of a hard limit of the arm.
    pub overshoot_bytes: u64,
    /// Sum over the victims.
    pub victim_refusals: u64,
    /// Longest of the budgets of the victims; `null`: no victims.
    pub victim_pressure_ns: Option<u64>,
    /// Altered bytes, over all containers.
    pub corrupt: u64,
    /// Connections of victims that ended unexpectedly.
    pub broken: u64,
}

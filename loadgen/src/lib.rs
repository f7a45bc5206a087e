//! The load generator of skbudget: reproduces cross-container TCP buffer starvation, measures the cost that a neighbour
//! causes, and fails a build when it exceeds the limits.
//!
//! # The way of a run
//!
//! ```text
//!  scenario ──▶ Plan ──▶ target::{virt, tap, ...} ──▶ ArmResult ──▶ judge ──▶ RunResult ──▶ output
//!                             │         ▲
//!                             ▼         │
//!                          traffic ──▶ measure
//! ```
//! 1. [`scenario`] reads a TOML file and its parameters and makes a [`scenario::plan::Plan`]: containers, loads,
//!    phases, arms and gates.
//! 2. A [`target`] runs one arm of the plan. On the wall clock, `traffic` has its clients and servers.
//! 3. [`measure`] has the meters of all targets and the records that they fill: [`measure::result::ArmResult`] of an
//!    arm, [`measure::result::RunResult`] of the run (`result.json`).
//! 4. [`judge`] is pure: `analyse` derives the fairness numbers, `gate` decides, `compare` and `merge` take several
//!    results.
//! 5. [`output`] renders the result: files in a locked folder, and the table on the terminal.
//! 6. [`run`] does 2 to 4 for all arms, as often as the target needs; `sweep` and `search` do it for many plans.
//! 7. [`command`] has the command line.
//!
//! # Modules
//!
//! A module uses only modules before it; `stack/tests/tidy/layers.rs` compares the order with the `use` lines:
//!
//! ```text
//! exit < units < scenario < measure < traffic < judge < target < output < run < command
//! ```
//!
//! Integers with a unit in their name (`_ns`, `_bytes`, `_ppm`, `_milli`: thousandths), no floats, in all records.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod command;
pub mod exit;
pub mod judge;
pub mod measure;
pub mod output;
pub mod run;
pub mod scenario;
pub mod target;
mod traffic;
mod units;

pub use exit::Exit;

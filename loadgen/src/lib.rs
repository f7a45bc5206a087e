//! The load generator of skbudget: reproduces cross-container TCP buffer starvation, measures the cost that a neighbour
//! causes, and fails a build when it exceeds the limits.
//!
//! A [`plan::Plan`], made from a [`scenario`] and its parameters, lists the containers, their loads, the phases and the
//! arms. A [`target`] runs one arm of it and returns plain records ([`result::ArmResult`]). Everything after that is
//! shared and pure: [`analyse`] derives the fairness numbers, [`gate`] judges them, [`report`] and [`export`] render
//! them.
//!
//! ```text
//!  scenario ──▶ Plan ──▶ target::{virt, tap, kernel} ──▶ ArmResult ──▶ analyse ──▶ gate ──▶ report, export
//!                             measure: the meters and probe books of all targets
//! ```
#![forbid(unsafe_code)]

pub mod command;
pub mod exit;
pub mod judge;
pub mod measure;
pub mod output;
pub mod run;
pub mod scenario;
pub mod target;
pub mod traffic;
pub mod units;

pub use exit::Exit;

//! The pressure core.
#![no_std]
#![forbid(unsafe_code)]
#![warn(missing_docs)]
extern crate alloc;

mod atomic;
pub mod budget;
pub mod composite;
pub mod event;
pub mod ledger;
pub mod level;
pub mod limits;
pub mod linux;
mod meter;
pub mod share;
pub mod sizing;
pub mod units;
mod wait;

pub use budget::{Budget, BudgetConfig, MemberStats, MeterStats, Pressure, Rules, transfer};
pub use event::{Counter, Event};
pub use ledger::{FlowSizes, Ledger, MemberId, RxKind};
pub use level::{Level, LevelConfig, LevelStats};
pub use limits::{LimitError, Limits, SockLimits};
pub use meter::Refusal;
pub use units::{CHUNK_PAYLOAD, CHUNK_SIZE, Instant, PAGE_SIZE, pages};

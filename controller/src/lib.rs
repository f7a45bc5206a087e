//! The pressure core (skeleton: the contract the stack is written against).
#![no_std]
#![forbid(unsafe_code)]
extern crate alloc;

pub mod budget;
pub mod level;
pub mod limits;
pub mod units;

pub use budget::{
    Budget, BudgetConfig, Counter, Event, FlowSizes, Ledger, MemberId, MemberStats, MeterStats,
    Pressure, Refusal, Rules, RxKind,
};
pub use level::{Level, LevelConfig};
pub use limits::{LimitError, Limits, SockLimits};
pub use units::{CHUNK_PAYLOAD, CHUNK_SIZE, Instant, PAGE_SIZE, pages};

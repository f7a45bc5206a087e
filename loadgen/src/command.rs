//! The command line: options, their texts, and what each command does.

mod batch;
pub mod cli;
mod compare;
mod gate;
mod help;
mod list;
mod options;
mod outcome;
mod results;
pub mod selftest;

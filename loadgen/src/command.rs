//! The command line: options, their texts, and what each command does.

pub mod cli;
mod commands;
mod help;
pub mod recheck;
pub mod selftest;

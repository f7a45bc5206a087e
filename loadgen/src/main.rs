//! The command `loadgen`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(skbudget_loadgen::command::cli::main())
}

//! The binary: parse, carry out, exit code.

use std::process::ExitCode;

use clap::Parser;
use log::{LevelFilter, Log, Metadata, Record};
use skbudget::cli::{Cli, Command};
use skbudget::config::RunConfig;
use skbudget::exit::{FAILURE, Failure};
use skbudget::run;

fn main() -> ExitCode {
    // The inner processes warn on the same stderr.
    start_log();
    if let Some(code) = run::inner_main() {
        return code;
    }
    let Command::Run(args) = Cli::parse().command;
    say_more(args.verbose);
    die_on_panic();
    let carried_out = run::secret()
        .and_then(|secret| RunConfig::new(*args, secret, std::process::id()))
        .and_then(run::run);
    match carried_out {
        Ok(code) => ExitCode::from(code),
        Err(Failure { code, message }) => {
            eprintln!("skbudget: {message}");
            ExitCode::from(code)
        }
    }
}

/// A worker that panics takes its containers along: a half-dead daemon would leave them without a network and nobody
/// the wiser.
fn die_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::exit(FAILURE.into());
    }));
}

struct Stderr;

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("skbudget")
    }
    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            eprintln!("skbudget: {}: {}", record.level().as_str().to_lowercase(), record.args());
        }
    }
    fn flush(&self) {}
}

fn start_log() {
    log::set_max_level(LevelFilter::Warn);
    // Fails only when one is set already.
    let _ = log::set_logger(&Stderr);
}

fn say_more(verbose: u8) {
    match verbose {
        0 => {}
        1 => log::set_max_level(LevelFilter::Info),
        _ => log::set_max_level(LevelFilter::Trace),
    }
}

//! The program: parses the command line, runs the command, returns the exit code.
#![deny(clippy::print_stdout, clippy::print_stderr)]

use std::io;
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;
use skbudget::cli::{Cli, Command};
use skbudget::config::RunConfig;
use skbudget::exit::{FAILURE, Failure};
use skbudget::{client, generate, logger, run, serve};
use tracing::level_filters::LevelFilter;

fn main() -> ExitCode {
    // A child process of a run or of the daemon: it has a role instead of a command line.
    if let Some(code) = run::inner_main().or_else(serve::inner_main) {
        return code;
    }
    // Fails only when the kernel grants neither a socket nor a thread; the run then fails for the same reason.
    let _ = logger::start();
    let code = carry_out().unwrap_or_else(|Failure { code, message }| {
        logger::report(message);
        code
    });
    logger::finish();
    ExitCode::from(code)
}

/// Runs the command of the command line. Returns the exit code.
fn carry_out() -> Result<u8, Failure> {
    let command = match Cli::try_parse() {
        Ok(cli) => cli.command,
        Err(answer) => return print(&answer),
    };
    match command {
        Command::Run(args) => {
            logger::set_format(args.log_format);
            set_level(args.verbose);
            let secret = run::secret()?;
            // For the relay process, which parses the options itself and needs no command.
            let options = std::env::args_os().skip(1).take_while(|arg| arg != "--");
            let options: Vec<_> = options.collect();
            run::run(RunConfig::new(*args, secret)?, secret, &options)
        }
        Command::Serve(args) => {
            logger::set_format(args.log_format);
            set_level(args.verbose);
            serve::serve(args, &std::env::args_os().skip(1).collect::<Vec<_>>())
        }
        Command::Attach(args) => client::attach(*args),
        Command::Detach(args) => client::detach(args),
        Command::Ls(args) => client::ls(args),
        Command::Stats(args) => client::stats(args),
        Command::Flows(args) => client::flows(args),
        Command::Top(args) => client::top(args),
        Command::Events(args) => client::events(args),
        Command::Capture(args) => client::capture(args),
        Command::Set(args) => client::set(args),
        Command::Completions(args) => generate::completions(args),
        Command::Man(args) => generate::man(args),
        Command::Publish(args) => client::publish(args),
        Command::Unpublish(args) => client::unpublish(args),
    }
}

/// Sets the level of the log to that of this number of -v.
fn set_level(verbose: u8) {
    match verbose {
        0 => {}
        1 => logger::set_level(LevelFilter::INFO),
        _ => logger::set_level(LevelFilter::TRACE),
    }
}

/// Prints the help, the version, or the error in the command line. Nothing runs yet, so a slow reader does no harm.
fn print(answer: &clap::Error) -> Result<u8, Failure> {
    let asked_for = matches!(answer.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
    match answer.print() {
        // A reader that closes the pipe early has read enough: no failure.
        Err(e) if asked_for && e.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure { code: FAILURE, message: format!("cannot write to stdout: {e}") })
        }
        _ => Ok(u8::try_from(answer.exit_code()).unwrap_or(FAILURE)),
    }
}

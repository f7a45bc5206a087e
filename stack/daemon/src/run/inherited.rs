//! What the caller passes on to the command by inheritance: open descriptors and ignored signals. It passes through the
//! processes of the run, which must change neither, and must not keep a descriptor open that the command closes: the
//! reader of a pipe would wait for the end of the run.

use std::fs::File;
use std::io;

use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout};

use crate::sys;

/// Starts the next process on the way to the command, then closes the caller's descriptors in this process. `stderr`:
/// this process keeps descriptor 2, for messages.
pub(super) fn hand_on<T, E>(stderr: bool, start: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    // Listed first: process 1 mounts another /proc over the sandbox's.
    let inherited = sys::inherited();
    let started = start()?;
    let close = || -> io::Result<()> {
        let null = File::options().read(true).write(true).open("/dev/null")?;
        dup2_stdin(&null)?;
        dup2_stdout(&null)?;
        if !stderr {
            dup2_stderr(&null)?;
        }
        sys::close_inherited(&inherited?);
        Ok(())
    };
    // Harmless: only a reader of such a descriptor waits longer.
    if let Err(e) = close() {
        tracing::info!("descriptors of the caller stay open until the end of the run: {e}");
    }
    Ok(started)
}

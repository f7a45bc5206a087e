//! Writes a command's result to stdout.

use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;

use crate::exit::Failure;
use crate::sys;

/// Prints the text. A reader that closes the pipe early has read enough: that is no failure.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::other(format!("cannot write to stdout: {e}")))
        }
        _ => Ok(()),
    }
}

/// Writes bytes of a stream.
pub(crate) fn write(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)?;
    out.flush()
}

/// Whether stdout is a terminal.
pub(crate) fn is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// Columns of the terminal; `None`: stdout is none.
pub(crate) fn width() -> Option<usize> {
    size().map(|(columns, _)| columns.into())
}

/// Columns and lines of the terminal; `None`: stdout is none.
pub(crate) fn size() -> Option<(u16, u16)> {
    let out = io::stdout();
    let size = if out.is_terminal() { sys::terminal_size(out.as_fd()).ok() } else { None };
    // A terminal that does not know its size has none.
    size.filter(|(columns, lines)| *columns > 0 && *lines > 0)
}

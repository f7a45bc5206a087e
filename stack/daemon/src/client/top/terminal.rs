//! The terminal: its mode, its size, and what is drawn on it. However the command ends, the terminal is as before.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Stdin};
use std::os::fd::{AsFd, BorrowedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::termios::{InputFlags, LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};
use nix::unistd::read;
use ratatui_core::buffer::{Buffer, Cell};
use ratatui_core::layout::Rect;
use ratatui_core::style::{Color, Modifier};

use super::keys::{Key, Keys};
use crate::stdout;

/// The alternate screen, without a cursor; and back (xterm's control sequences, which all terminals of today have).
const ENTER: &str = "\x1b[?1049h\x1b[?25l\x1b[2J";
const LEAVE: &str = "\x1b[0m\x1b[?25h\x1b[?1049l";

/// Largest size that is drawn: more is left blank.
const SIZE_MAX: u16 = 1000;

/// The terminal in use.
#[derive(Debug)]
pub(super) struct Terminal {
    input: Stdin,
    before: Termios,
    /// What it shows.
    shown: Buffer,
}

/// Whether keys can be read.
pub(super) fn stdin_is_terminal() -> bool {
    io::stdin().is_terminal()
}

impl Terminal {
    /// Takes the terminal over.
    pub(super) fn open() -> io::Result<Self> {
        let input = io::stdin();
        let before = tcgetattr(&input)?;
        // Keys arrive one by one and are not shown. Ctrl-C remains a signal, and lines end as before.
        let mut mode = before.clone();
        mode.local_flags.remove(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::IEXTEN);
        mode.input_flags.remove(InputFlags::IXON | InputFlags::ICRNL);
        tcsetattr(&input, SetArg::TCSADRAIN, &mode)?;
        // From here on `drop` restores it.
        let terminal = Self { input, before, shown: Buffer::default() };
        // The message of a panic belongs on the caller's screen.
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let _ = stdout::write(LEAVE.as_bytes());
            hook(panic);
        }));
        stdout::write(ENTER.as_bytes())?;
        Ok(terminal)
    }

    /// Where keys arrive.
    pub(super) fn input(&self) -> BorrowedFd<'_> {
        self.input.as_fd()
    }

    /// The keys that have arrived. An error if the terminal is gone.
    pub(super) fn keys(&self, keys: &mut Keys) -> io::Result<Vec<Key>> {
        let mut ready = [PollFd::new(self.input(), PollFlags::POLLIN)];
        if poll(&mut ready, PollTimeout::ZERO)? == 0 {
            return Ok(Vec::new());
        }
        let mut bytes = [0; 256];
        match read(&self.input, &mut bytes)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            n => Ok(keys.read(&bytes[..n])),
        }
    }

    /// Draws what differs from what is shown.
    pub(super) fn draw(&mut self, draw: impl FnOnce(&mut Buffer)) -> io::Result<()> {
        let (columns, rows) = stdout::size().unwrap_or((80, 24));
        let mut next = Buffer::empty(Rect::new(0, 0, columns.min(SIZE_MAX), rows.min(SIZE_MAX)));
        draw(&mut next);
        let mut text = String::new();
        if next.area != self.shown.area {
            // After a change of size nothing is known of what is shown.
            text.push_str("\x1b[0m\x1b[2J");
            self.shown = Buffer::empty(next.area);
        }
        let (mut at, mut style) = (None, None);
        for (x, y, cell) in self.shown.diff(&next) {
            // The cursor is behind the last character already, unless something was left out.
            if at != Some((x, y)) {
                // Writing to a String does not fail.
                let _ = write!(text, "\x1b[{};{}H", y + 1, x + 1);
            }
            // As is the style.
            if style != Some((cell.modifier, cell.fg)) {
                set_style(cell, &mut text);
                style = Some((cell.modifier, cell.fg));
            }
            text.push_str(cell.symbol());
            at = Some((x + 1, y));
        }
        self.shown = next;
        stdout::write(text.as_bytes())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Nothing can be done about a terminal that is gone.
        let _ = stdout::write(LEAVE.as_bytes());
        let _ = tcsetattr(&self.input, SetArg::TCSADRAIN, &self.before);
    }
}

/// The style of what follows (SGR, ECMA-48 section 8.3.117).
fn set_style(cell: &Cell, text: &mut String) {
    text.push_str("\x1b[0");
    if cell.modifier.contains(Modifier::BOLD) {
        text.push_str(";1");
    }
    if cell.modifier.contains(Modifier::REVERSED) {
        text.push_str(";7");
    }
    // The colours of the screen; no other is used.
    text.push_str(match cell.fg {
        Color::Red => ";31",
        Color::Green => ";32",
        Color::Yellow => ";33",
        _ => "",
    });
    text.push('m');
}

//! The handler of SIGSYS, which the kernel sends instead of a forbidden system call.

use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicI32, Ordering};

use super::calls;
use crate::exit::FAILURE;

/// Socket to the logger; -1: none, and messages go to stderr.
static LOG: AtomicI32 = AtomicI32::new(-1);

/// Number of messages lost before this one: the head of each message to the logger.
const NONE_LOST: [u8; 8] = [0; 8];

const BEFORE: &[u8] = b"skbudget: sandbox: forbidden system call ";
const AFTER: &[u8] = b": the process ends\n";

/// Longest message, bytes.
const MESSAGE_MAX: usize = 160;

/// Offset of the call's number in siginfo_t: behind three ints, their padding and the address of the call.
const SI_SYSCALL: usize = 24;

/// A text of bounded length, made without an allocation.
struct Text {
    bytes: [u8; MESSAGE_MAX],
    len: usize,
}

impl Text {
    fn push(&mut self, more: &[u8]) {
        let room = &mut self.bytes[self.len..];
        let n = more.len().min(room.len());
        room[..n].copy_from_slice(&more[..n]);
        self.len += n;
    }

    fn push_number(&mut self, number: u32) {
        let (mut digits, mut at, mut rest) = ([0; 10], 10, number);
        loop {
            at -= 1;
            digits[at] = b'0' + (rest % 10) as u8;
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        self.push(&digits[at..]);
    }
}

/// The message for a call.
fn message(number: i32) -> Text {
    let mut text = Text { bytes: [0; MESSAGE_MAX], len: 0 };
    text.push(&NONE_LOST);
    text.push(BEFORE);
    if let Some(name) = calls::name(number.into()) {
        text.push(name.as_bytes());
        text.push(b" ");
    }
    text.push(b"(number ");
    text.push_number(number.cast_unsigned());
    text.push(b")");
    text.push(AFTER);
    text
}

/// Reports the call and ends the process. Calls only async-signal-safe functions.
extern "C" fn on_forbidden_call(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a siginfo_t, which is longer than that, and has written the number there.
    let number = unsafe { info.byte_add(SI_SYSCALL).cast::<i32>().read() };
    let text = message(number);
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    let log = LOG.load(Ordering::Relaxed);
    // SAFETY: the text is `len` bytes long; a wrong descriptor is an error. `_exit` runs no code of this program.
    unsafe {
        if log < 0 {
            let line = &text.bytes[NONE_LOST.len()..text.len];
            libc::write(libc::STDERR_FILENO, line.as_ptr().cast(), line.len());
        } else {
            libc::send(log, text.bytes.as_ptr().cast(), text.len, flags);
        }
        libc::_exit(FAILURE.into());
    }
}

/// Installs the handler, and unblocks the signal in the calling thread and in those that it starts. `log`: the logger's
/// socket; `None`: stderr.
pub(super) fn report_forbidden_calls(log: Option<RawFd>) -> io::Result<()> {
    LOG.store(log.unwrap_or(-1), Ordering::Relaxed);
    let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
        on_forbidden_call;
    // SAFETY: all-zero bytes are a valid sigaction and a valid sigset_t: they are plain old data.
    let (mut action, mut set): (libc::sigaction, libc::sigset_t) =
        unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
    action.sa_sigaction = handler as usize;
    action.sa_flags = libc::SA_SIGINFO;
    // SAFETY: the kernel reads the structures, which outlive the calls; the handler is async-signal-safe.
    let failed = unsafe {
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGSYS);
        libc::sigaction(libc::SIGSYS, &raw const action, std::ptr::null_mut()) != 0
            || libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, std::ptr::null_mut()) != 0
    };
    if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(number: i32) -> String {
        let text = message(number);
        String::from_utf8(text.bytes[NONE_LOST.len()..text.len].to_vec()).unwrap()
    }

    #[test]
    fn the_message_names_the_call() {
        let expected = format!(
            "skbudget: sandbox: forbidden system call execve (number {}): the process ends\n",
            libc::SYS_execve
        );
        assert_eq!(text(libc::SYS_execve as i32), expected);
        assert!(text(1_000_000_007).contains(" call (number 1000000007)"));
        assert!(text(0).contains("(number 0)"));
        assert!(text(-1).ends_with(": the process ends\n"));
    }
}

//! The one file of this package with `unsafe`: what neither std nor nix wraps.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::SigSet;

/// SO_MEMINFO: rmem_alloc, rcvbuf, wmem_alloc, sndbuf, fwd_alloc, wmem_queued, optmem, backlog, drops.
const MEMINFO_VARS: usize = 9;
const MEMINFO_RMEM_ALLOC: usize = 0;
const MEMINFO_WMEM_QUEUED: usize = 5;

/// Bytes the kernel holds in a socket's queues: `wmem_queued` and `rmem_alloc`.
pub(crate) fn socket_queued_bytes(socket: BorrowedFd<'_>) -> io::Result<(u32, u32)> {
    let mut vars = [0u32; MEMINFO_VARS];
    let mut len = size_of_val(&vars) as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes to `vars`, which is that long.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MEMINFO,
            vars.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((vars[MEMINFO_WMEM_QUEUED], vars[MEMINFO_RMEM_ALLOC]))
}

/// SIOCOUTQ: bytes between what the peer acknowledged and what was written, and one for a FIN.
pub(crate) fn socket_unacknowledged(socket: BorrowedFd<'_>) -> io::Result<u32> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the kernel writes one int.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(bytes.cast_unsigned()) }
}

/// TCP_WINDOW_CLAMP of a connected or connecting socket, bytes.
pub(crate) fn set_window_clamp(socket: BorrowedFd<'_>, bytes: u32) -> io::Result<()> {
    let value = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
    // SAFETY: the kernel reads one int.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_WINDOW_CLAMP,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// How long nothing was heard of a connection's peer: neither data nor an acknowledgement (TCP_INFO).
pub(crate) fn tcp_silence(socket: BorrowedFd<'_>) -> io::Result<Duration> {
    let mut info = std::mem::MaybeUninit::<libc::tcp_info>::zeroed();
    let mut len = size_of_val(&info) as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes to `info`, which is that long.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it was zeroed, and zeroes are a valid `tcp_info`, as is whatever the kernel wrote over them.
    let info = unsafe { info.assume_init() };
    Ok(Duration::from_millis(info.tcpi_last_data_recv.min(info.tcpi_last_ack_recv).into()))
}

/// Random bytes for the stack's secret.
pub(crate) fn random_u64() -> io::Result<u64> {
    let mut bytes = [0u8; 8];
    // SAFETY: the kernel writes at most `bytes.len()` bytes.
    let n = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    if n == bytes.len() as isize {
        Ok(u64::from_ne_bytes(bytes))
    } else {
        Err(io::Error::last_os_error())
    }
}

/// SIGCHLD as it is by default: whoever ignores it is not told how its children end.
pub(crate) fn notice_children() -> io::Result<()> {
    // SAFETY: no handler of ours is installed.
    let before = unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
    if before == libc::SIG_ERR { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Was this signal ignored by whoever started us, and is so since?
pub(crate) fn is_ignored(signal: u8) -> bool {
    // SAFETY: all-zero bytes are a valid sigaction: it is plain old data.
    let mut now: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: nothing is changed; the kernel's answer is written through the second pointer.
    let asked =
        unsafe { libc::sigaction(libc::c_int::from(signal), std::ptr::null(), &raw mut now) };
    asked == 0 && now.sa_sigaction == libc::SIG_IGN
}

/// As kill(2); by number, because real-time signals have no name.
pub(crate) fn send_signal(pid: libc::pid_t, signal: u8) -> io::Result<()> {
    // SAFETY: the arguments are numbers.
    let result = unsafe { libc::kill(pid, libc::c_int::from(signal)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A child that ended, was stopped or was continued, and how; `None`: no child did.
pub(crate) fn next_child() -> io::Result<Option<(libc::pid_t, ExitStatus)>> {
    let mut status = 0;
    let flags = libc::WNOHANG | libc::WUNTRACED | libc::WCONTINUED;
    loop {
        // SAFETY: the kernel writes one int through the pointer.
        let pid = unsafe { libc::waitpid(-1, &raw mut status, flags) };
        if pid > 0 {
            return Ok(Some((pid, ExitStatus::from_raw(status))));
        }
        let error = io::Error::last_os_error();
        match (pid, error.raw_os_error()) {
            (0, _) | (_, Some(libc::ECHILD)) => return Ok(None),
            (_, Some(libc::EINTR)) => {}
            _ => return Err(error),
        }
    }
}

/// Puts the calling thread, and all that it executes, under a seccomp filter. Where the privilege for it is missing,
/// under no_new_privs, too.
pub(crate) fn filter_syscalls(program: &[libc::sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        filter: program.as_ptr().cast_mut(),
    };
    let install = || {
        let mode = libc::c_ulong::from(libc::SECCOMP_MODE_FILTER);
        // SAFETY: the kernel reads the program, which is as long as its header has it.
        unsafe { libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const program) == 0 }
    };
    if install() {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    // SAFETY: the arguments are numbers.
    let unprivileged = error.raw_os_error() == Some(libc::EACCES)
        && unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 };
    if unprivileged && install() { Ok(()) } else { Err(error) }
}

/// Takes over a descriptor that the parent process passed by number.
///
/// # Errors
/// When no such descriptor is open.
pub(crate) fn inherited_fd(number: RawFd) -> io::Result<OwnedFd> {
    // It was kept open across our own exec only: whatever we start must not hold it.
    // SAFETY: sets one flag of a descriptor; a wrong number is an error.
    if number < 3 || unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: the descriptor is open, and the helper calls this once, before it opened anything itself.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Takes over a descriptor that arrived by SCM_RIGHTS.
pub(crate) fn received_fd(number: RawFd) -> OwnedFd {
    // SAFETY: the kernel installed the descriptor for the message just received; nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(number) }
}

/// Takes capability `number` out of what programs executed from now on can have.
pub(crate) fn drop_bounding(number: u32) -> io::Result<()> {
    // SAFETY: the arguments are numbers.
    let result =
        unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(number), 0, 0, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Empties the ambient set of the calling thread.
pub(crate) fn clear_ambient() -> io::Result<()> {
    let clear = libc::PR_CAP_AMBIENT_CLEAR_ALL as libc::c_ulong;
    // SAFETY: the arguments are numbers.
    let result = unsafe { libc::prctl(libc::PR_CAP_AMBIENT, clear, 0, 0, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Empties the inheritable set of the calling thread.
pub(crate) fn clear_inheritable() -> io::Result<()> {
    let mut sets = capabilities()?;
    sets.iter_mut().for_each(|set| set.inheritable = 0);
    set_capabilities(&sets)
}

/// Takes every capability from the calling thread.
pub(crate) fn clear_capabilities() -> io::Result<()> {
    set_capabilities(&[CapData::default(); 2])
}

/// linux/capability.h: the sets come in two halves of 32.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct CapData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

#[repr(C)]
struct CapHeader {
    version: u32,
    pid: libc::c_int,
}

/// _LINUX_CAPABILITY_VERSION_3, and the calling thread.
const CAP_HEADER: CapHeader = CapHeader { version: 0x2008_0522, pid: 0 };

fn capabilities() -> io::Result<[CapData; 2]> {
    let (mut header, mut sets) = (CAP_HEADER, [CapData::default(); 2]);
    // SAFETY: the kernel reads and writes one header and writes two sets: version 3 has two.
    let result = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, sets.as_mut_ptr()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(sets) }
}

fn set_capabilities(sets: &[CapData; 2]) -> io::Result<()> {
    let mut header = CAP_HEADER;
    // SAFETY: the kernel reads and writes one header and reads two sets: version 3 has two.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw mut header, sets.as_ptr()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// In the child, between fork and exec: keep `fds` across exec, start with `mask` blocked and `nofile` as limit.
pub(crate) fn prepare_child(
    command: &mut Command,
    fds: Vec<RawFd>,
    mask: SigSet,
    nofile: Option<(u64, u64)>,
) {
    let prepare = move || {
        for fd in &fds {
            // SAFETY: clears FD_CLOEXEC of a descriptor that is open in the child as it was in the parent.
            if unsafe { libc::fcntl(*fd, libc::F_SETFD, 0) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        mask.thread_set_mask()?;
        if let Some((soft, hard)) = nofile {
            setrlimit(Resource::RLIMIT_NOFILE, soft, hard)?;
        }
        Ok(())
    };
    // SAFETY: the closure allocates nothing and calls only async-signal-safe functions.
    unsafe { command.pre_exec(prepare) };
}

/// In the child, between fork and exec: out of reach of the caller's process group and terminal, and nothing that was
/// open is kept.
pub(crate) fn prepare_apart(command: &mut Command) {
    let prepare = || {
        // SAFETY: the arguments are numbers.
        if unsafe { libc::setpgid(0, 0) } < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: marks descriptors to be closed at exec. A kernel before 5.11 cannot, and then they stay open.
        unsafe {
            libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC);
        }
        Ok(())
    };
    // SAFETY: the closure allocates nothing and calls only async-signal-safe functions.
    unsafe { command.pre_exec(prepare) };
}

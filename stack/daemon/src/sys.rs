//! The only file of this package with `unsafe`: system calls that neither std nor nix wraps.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::SigSet;

/// Values in SO_MEMINFO: rmem_alloc, rcvbuf, wmem_alloc, sndbuf, fwd_alloc, wmem_queued, optmem, backlog, drops.
const MEMINFO_VARS: usize = 9;
const MEMINFO_RMEM_ALLOC: usize = 0;
const MEMINFO_WMEM_QUEUED: usize = 5;

/// Bytes that the kernel holds in a socket's queues: `wmem_queued`, `rmem_alloc` (SO_MEMINFO).
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

/// Returns free memory of the allocator to the kernel. The C library keeps for each thread what it has freed: without
/// this, what a large answer took stays in use once for each thread that has made one.
pub(crate) fn release_free_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the argument is a number; the allocator takes its own locks.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Number of the network namespace that the socket was made in. No other namespace gets it until the next boot
/// (SO_NETNS_COOKIE, Linux 5.14).
pub(crate) fn netns_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut cookie = 0u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes to `cookie`, which is that long.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(cookie)
}

/// Bytes written that the peer has not acknowledged; a FIN counts as one (SIOCOUTQ).
pub(crate) fn socket_unacknowledged(socket: BorrowedFd<'_>) -> io::Result<u32> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the kernel writes one int.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(bytes.cast_unsigned()) }
}

/// Columns and lines of a terminal (TIOCGWINSZ).
pub(crate) fn terminal_size(terminal: BorrowedFd<'_>) -> io::Result<(u16, u16)> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the kernel writes one `winsize`.
    let result = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok((size.ws_col, size.ws_row)) }
}

/// Sets TCP_WINDOW_CLAMP of a connected or connecting socket, bytes.
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

/// Time since the last segment from a connection's peer, data or acknowledgement (TCP_INFO).
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

/// ioctl(2) of a namespace: the user namespace that owns it (linux/nsfs.h).
const NS_GET_USERNS: libc::c_ulong = 0xb701;

/// The user namespace that owns a namespace. EPERM if it is neither that of this process nor within it.
pub(crate) fn namespace_owner(namespace: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // SAFETY: the ioctl has no argument; its result is a new descriptor or an error.
    let fd = unsafe { libc::ioctl(namespace.as_raw_fd(), NS_GET_USERNS) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new; it has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A random number for the stack's secret (getrandom).
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

/// Resets SIGCHLD to its default: a process that ignores it gets no exit status of its children.
pub(crate) fn notice_children() -> io::Result<()> {
    // SAFETY: no handler of ours is installed.
    let before = unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
    if before == libc::SIG_ERR { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Whether the signal is ignored, as inherited from the process that started this one.
pub(crate) fn is_ignored(signal: u8) -> bool {
    // SAFETY: all-zero bytes are a valid sigaction: it is plain old data.
    let mut now: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: nothing is changed; the kernel's answer is written through the second pointer.
    let asked =
        unsafe { libc::sigaction(libc::c_int::from(signal), std::ptr::null(), &raw mut now) };
    asked == 0 && now.sa_sigaction == libc::SIG_IGN
}

/// Signals that the caller may have ignored and that this program changes for itself: Rust's runtime ignores SIGPIPE
/// before `main`, and `notice_children` resets SIGCHLD.
const CHANGED: [u8; 2] = [libc::SIGPIPE as u8, libc::SIGCHLD as u8];

/// Those of `CHANGED` that were ignored at the start, as bits.
static IGNORED_AT_START: AtomicU64 = AtomicU64::new(0);

extern "C" fn note_ignored() {
    for signal in CHANGED.into_iter().filter(|signal| is_ignored(*signal)) {
        IGNORED_AT_START.fetch_or(1 << signal, Ordering::Relaxed);
    }
}

/// The C library calls it before `main`, where the caller's setting for SIGPIPE can still be read.
// SAFETY: the section is an array of such functions, and this one needs nothing that `main` sets up.
#[used]
#[unsafe(link_section = ".init_array")]
static BEFORE_MAIN: extern "C" fn() = note_ignored;

/// The signals that the process was started to ignore, of those that this program changes.
pub(crate) fn ignored_at_start() -> Vec<u8> {
    let ignored = IGNORED_AT_START.load(Ordering::Relaxed);
    CHANGED.into_iter().filter(|signal| ignored & (1 << signal) != 0).collect()
}

/// Prepares the program that replaces this process: it ignores these signals.
pub(crate) fn prepare_ignoring(command: &mut Command, signals: Vec<u8>) {
    let prepare = move || {
        for signal in &signals {
            // SAFETY: the arguments are numbers.
            unsafe { libc::signal(libc::c_int::from(*signal), libc::SIG_IGN) };
        }
        Ok(())
    };
    // SAFETY: the closure allocates nothing and calls only async-signal-safe functions. It runs after the standard
    // library has reset SIGPIPE.
    unsafe { command.pre_exec(prepare) };
}

/// Sends a signal, as kill(2). By number, because real-time signals have no name.
pub(crate) fn send_signal(pid: libc::pid_t, signal: u8) -> io::Result<()> {
    // SAFETY: the arguments are numbers.
    let result = unsafe { libc::kill(pid, libc::c_int::from(signal)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The next child that ended, stopped or continued, and its status; `None`: no child did.
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
            // No change to report, or no child at all.
            (0, _) | (_, Some(libc::ECHILD)) => return Ok(None),
            (_, Some(libc::EINTR)) => {}
            _ => return Err(error),
        }
    }
}

/// Installs a seccomp filter for the calling thread and all that it executes. Without the privilege for that,
/// no_new_privs is set first, which the kernel then demands.
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

/// Takes ownership of a descriptor that the parent process passed by number.
///
/// # Errors
/// When no such descriptor is open.
pub(crate) fn inherited_fd(number: RawFd) -> io::Result<OwnedFd> {
    // Only this exec was to keep it open: the processes started from here must not inherit it.
    // SAFETY: sets one flag of a descriptor; a wrong number is an error.
    if number < 3 || unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: the descriptor is open, and the helper calls this once, before it opened anything itself.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// The descriptors from 3 on that this process inherited and did not take ownership of. They are those that stay open
/// over an exec: every descriptor of this program is closed by one (FD_CLOEXEC).
pub(crate) fn inherited() -> io::Result<Vec<RawFd>> {
    let names = fs::read_dir("/proc/self/fd")?;
    let names = names.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let numbers = names.filter_map(|name| name.parse().ok());
    // SAFETY: the arguments are numbers; one that is not open is an error.
    let stays_open = |number: RawFd| unsafe { libc::fcntl(number, libc::F_GETFD) } == 0;
    Ok(numbers.filter(|number| *number > libc::STDERR_FILENO && stays_open(*number)).collect())
}

/// Closes descriptors listed by `inherited`.
pub(crate) fn close_inherited(numbers: &[RawFd]) {
    for number in numbers {
        // SAFETY: no object of this process owns the descriptor, or it would have FD_CLOEXEC.
        unsafe { libc::close(*number) };
    }
}

/// Takes ownership of a descriptor that arrived by SCM_RIGHTS.
pub(crate) fn received_fd(number: RawFd) -> OwnedFd {
    // SAFETY: the kernel installed the descriptor for the message just received; it has no other owner.
    unsafe { OwnedFd::from_raw_fd(number) }
}

/// Drops capability `number` from the bounding set of the calling thread: no program executed later can have it.
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

/// Drops the capabilities of the calling thread that are not in `keep`, by number.
pub(crate) fn keep_capabilities(keep: u64) -> io::Result<()> {
    let mut sets = capabilities()?;
    for (set, keep) in sets.iter_mut().zip([keep as u32, (keep >> u32::BITS) as u32]) {
        set.effective &= keep;
        set.permitted &= keep;
    }
    set_capabilities(&sets)
}

/// Drops every capability of the calling thread.
pub(crate) fn clear_capabilities() -> io::Result<()> {
    set_capabilities(&[CapData::default(); 2])
}

/// Half of the capability sets, 32 bits each (linux/capability.h).
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

/// _LINUX_CAPABILITY_VERSION_3; pid 0 is the calling thread.
const CAP_HEADER: CapHeader = CapHeader { version: 0x2008_0522, pid: 0 };

/// The capability sets of the calling thread.
fn capabilities() -> io::Result<[CapData; 2]> {
    let (mut header, mut sets) = (CAP_HEADER, [CapData::default(); 2]);
    // SAFETY: the kernel reads and writes one header and writes two sets: version 3 has two.
    let result = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, sets.as_mut_ptr()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(sets) }
}

/// Replaces the capability sets of the calling thread.
fn set_capabilities(sets: &[CapData; 2]) -> io::Result<()> {
    let mut header = CAP_HEADER;
    // SAFETY: the kernel reads and writes one header and reads two sets: version 3 has two.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw mut header, sets.as_ptr()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Prepares the child between fork and exec: keeps `fds` open, blocks the signals in `mask`, sets the limit `nofile`.
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

/// Prepares the child between fork and exec: moves it out of the caller's process group, so that signals of the
/// terminal do not reach it, and closes all inherited descriptors at exec.
pub(crate) fn prepare_apart(command: &mut Command) {
    let prepare = || {
        // SAFETY: the arguments are numbers.
        if unsafe { libc::setpgid(0, 0) } < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: marks descriptors to be closed at exec. A kernel before 5.11 returns an error and keeps them open.
        unsafe {
            libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC);
        }
        Ok(())
    };
    // SAFETY: the closure allocates nothing and calls only async-signal-safe functions.
    unsafe { command.pre_exec(prepare) };
}

/// The scheduling policy of the calling thread (SCHED_OTHER, SCHED_RR, ...).
pub(crate) fn scheduling_policy() -> io::Result<i32> {
    // SAFETY: the argument is a number; zero is the calling thread.
    match unsafe { libc::sched_getscheduler(0) } {
        policy if policy < 0 => Err(io::Error::last_os_error()),
        policy => Ok(policy),
    }
}

/// Sets the policy of the calling thread. `priority`: 0 for SCHED_OTHER, 1 to 99 for SCHED_RR.
pub(crate) fn set_scheduling_policy(policy: i32, priority: i32) -> io::Result<()> {
    let param = libc::sched_param { sched_priority: priority };
    // SAFETY: the kernel reads one `sched_param`, which outlives the call.
    if unsafe { libc::sched_setscheduler(0, policy, &raw const param) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

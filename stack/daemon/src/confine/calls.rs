//! System calls by number and name.

/// Number and name of each call.
macro_rules! calls {
    ($($call:ident)*) => {
        &[$((libc::$call, stringify!($call))),*]
    };
}

/// The calls of the relay's work, and of the threads that it starts. Those with conditions are in `super::filter`.
pub(super) const ALLOWED: &[(i64, &str)] = calls!(
    // The device, the capture file.
    SYS_read SYS_write SYS_readv SYS_writev SYS_ftruncate SYS_lseek
    // Sockets. The filter has conditions for socket(2).
    SYS_sendto SYS_sendmsg SYS_sendmmsg SYS_recvfrom SYS_recvmsg SYS_recvmmsg
    SYS_bind SYS_listen SYS_connect SYS_accept4 SYS_shutdown SYS_close
    SYS_getsockname SYS_getpeername SYS_getsockopt SYS_setsockopt
    // The event loops.
    SYS_epoll_create1 SYS_epoll_ctl SYS_epoll_pwait SYS_ppoll SYS_eventfd2 SYS_pipe2 SYS_fcntl SYS_dup SYS_dup3
    // Clocks that the kernel does not map into the process, and random numbers.
    SYS_clock_gettime SYS_clock_nanosleep SYS_nanosleep SYS_gettimeofday SYS_getrandom
    // Locks and memory.
    SYS_futex SYS_munmap SYS_mremap SYS_madvise SYS_brk
    // Threads and their ends.
    SYS_rt_sigprocmask SYS_rt_sigreturn SYS_sigaltstack SYS_restart_syscall
    SYS_getpid SYS_gettid SYS_geteuid SYS_sched_yield SYS_sched_getaffinity SYS_set_robust_list SYS_rseq
    SYS_membarrier SYS_exit SYS_exit_group
);

/// As [`ALLOWED`], where the machine has them.
#[cfg(target_arch = "x86_64")]
pub(super) const ALLOWED_HERE: &[(i64, &str)] = calls!(SYS_epoll_wait SYS_poll);
#[cfg(not(target_arch = "x86_64"))]
pub(super) const ALLOWED_HERE: &[(i64, &str)] = &[];

/// Calls that libraries make and whose failure they handle: they return EACCES, as under Landlock.
pub(super) const REFUSED: &[(i64, &str)] = calls!(
    // The C library reads the number of cores, for its allocator.
    SYS_openat SYS_openat2 SYS_statx SYS_newfstatat SYS_faccessat SYS_readlinkat SYS_getdents64 SYS_getcwd
    SYS_sched_setscheduler SYS_uname
);

/// As [`REFUSED`], where the machine has them.
#[cfg(target_arch = "x86_64")]
pub(super) const REFUSED_HERE: &[(i64, &str)] =
    calls!(SYS_open SYS_stat SYS_lstat SYS_fstat SYS_access SYS_readlink);
#[cfg(not(target_arch = "x86_64"))]
pub(super) const REFUSED_HERE: &[(i64, &str)] = calls!(SYS_fstat);

/// Calls that neither the relay nor its parent makes: they read other processes, load code into the kernel, change the
/// machine or its mounts, or accept connections.
pub(super) const FORBIDDEN: &[(i64, &str)] = calls!(
    SYS_ptrace SYS_process_vm_readv SYS_process_vm_writev SYS_pidfd_getfd SYS_kcmp
    SYS_bpf SYS_perf_event_open SYS_userfaultfd SYS_io_uring_setup SYS_io_uring_enter SYS_io_uring_register
    SYS_init_module SYS_finit_module SYS_delete_module SYS_kexec_load SYS_reboot SYS_swapon SYS_swapoff
    SYS_mount SYS_umount2 SYS_pivot_root SYS_chroot SYS_open_tree SYS_move_mount SYS_fsopen SYS_fsconfig SYS_fsmount
    SYS_keyctl SYS_add_key SYS_request_key SYS_personality SYS_acct SYS_quotactl SYS_syslog
    SYS_sethostname SYS_setdomainname SYS_settimeofday SYS_clock_settime SYS_adjtimex SYS_clock_adjtime
);

/// Calls of the relay that are allowed with some arguments only, and calls of its parent that an attacker of the relay
/// is most likely to try: for messages.
const OTHERS: &[(i64, &str)] = calls!(
    SYS_socket SYS_ioctl SYS_clone SYS_clone3 SYS_mmap SYS_mprotect SYS_prctl SYS_prlimit64 SYS_tgkill SYS_rt_sigaction
    SYS_execve SYS_execveat SYS_pidfd_open SYS_kill SYS_tkill SYS_setns SYS_unshare SYS_chdir
    SYS_memfd_create SYS_socketpair SYS_splice SYS_sendfile
    SYS_setuid SYS_setgid SYS_setresuid SYS_setresgid SYS_setgroups SYS_capset SYS_seccomp
    SYS_unlinkat SYS_renameat2 SYS_mkdirat SYS_linkat SYS_symlinkat SYS_fchmod SYS_fchown SYS_truncate
    SYS_wait4 SYS_waitid SYS_pread64 SYS_pwrite64 SYS_fsync SYS_shmget SYS_mq_open SYS_inotify_init1 SYS_timerfd_create
    SYS_signalfd4 SYS_getuid SYS_getgid SYS_sysinfo SYS_getrusage SYS_times SYS_sched_setaffinity
);

/// Name of a call, as the manual has it; `None`: none of those that are known here.
pub(super) fn name(number: i64) -> Option<&'static str> {
    let all = [ALLOWED, ALLOWED_HERE, REFUSED, REFUSED_HERE, FORBIDDEN, OTHERS];
    let found = all.iter().flat_map(|calls| calls.iter()).find(|(call, _)| *call == number);
    found.and_then(|(_, name)| name.strip_prefix("SYS_"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_named_as_in_the_manual_and_is_in_one_list() {
        assert_eq!(name(libc::SYS_execve), Some("execve"));
        assert_eq!(name(libc::SYS_read), Some("read"));
        assert_eq!(name(-1), None);
        let lists = [ALLOWED, ALLOWED_HERE, REFUSED, REFUSED_HERE, FORBIDDEN, OTHERS];
        let mut numbers: Vec<i64> = lists.concat().iter().map(|(number, _)| *number).collect();
        let all = numbers.len();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), all);
    }
}

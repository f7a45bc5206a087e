//! The seccomp filters of the relay, and the one of its parent. The kernel takes the strictest answer of all filters,
//! and remembers for which calls it is always "allowed": those cost no evaluation (Linux 5.11).

use std::collections::BTreeMap;
use std::io;

use seccompiler::SeccompCmpArgLen::Dword;
use seccompiler::SeccompCmpOp::{Eq, MaskedEq, Ne};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter,
};

use super::calls::{ALLOWED, ALLOWED_HERE, FORBIDDEN, REFUSED, REFUSED_HERE};

/// Calls with the arguments under which they match; no rule: always.
type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// The ioctls: non-blocking mode, bytes in a socket's send queue, and what is read of a device and set for it.
const IOCTLS: [u64; 6] = [
    libc::FIONBIO,
    libc::TIOCOUTQ,
    libc::TUNGETIFF,
    libc::TUNGETVNETHDRSZ,
    libc::TUNSETVNETHDRSZ,
    libc::TUNSETOFFLOAD,
];

/// clone(2) of a thread has these flags, that of a process does not.
const THREAD: u64 = (libc::CLONE_THREAD | libc::CLONE_SIGHAND | libc::CLONE_VM) as u64;

/// Names the mappings of the allocator; glibc does so where the kernel supports it.
const PR_SET_VMA: u64 = 0x5356_4d41;

/// Installs the filters of the relay for the calling thread and all that it starts.
pub(super) fn install() -> io::Result<()> {
    apply(programs().map_err(io::Error::other)?)
}

/// Installs the filter of the parent for the calling thread and all that it starts, the relay included.
pub(super) fn install_for_parent() -> io::Result<()> {
    apply(vec![program_of_parent().map_err(io::Error::other)?])
}

fn apply(programs: Vec<BpfProgram>) -> io::Result<()> {
    for program in programs {
        // It sets no_new_privs, without which the kernel lets only root install a filter.
        apply_filter(&program).map_err(|e| match e {
            seccompiler::Error::Prctl(e) | seccompiler::Error::Seccomp(e) => e,
            other => io::Error::other(other),
        })?;
    }
    Ok(())
}

/// The filters, the most permissive one last: it forbids the system call that installs another.
fn programs() -> Result<Vec<BpfProgram>, BackendError> {
    let errno = |errno: i32| SeccompAction::Errno(errno.cast_unsigned());
    let all = |calls: &[&[(i64, &str)]]| -> Rules {
        calls.concat().iter().map(|(number, _)| (*number, Vec::new())).collect()
    };
    let (refused, mut allowed) =
        (all(&[REFUSED, REFUSED_HERE]), all(&[ALLOWED, ALLOWED_HERE, REFUSED, REFUSED_HERE]));
    // Its flags are in memory, which a filter cannot read: the C library then takes clone(2).
    let clone3 = Rules::from([(libc::SYS_clone3, Vec::new())]);
    allowed.extend(clone3.clone());
    allowed.extend(conditional()?);
    [
        // The first two decide on a few calls, and leave the others to the last one.
        (refused, SeccompAction::Allow, errno(libc::EACCES)),
        (clone3, SeccompAction::Allow, errno(libc::ENOSYS)),
        (allowed, SeccompAction::Trap, SeccompAction::Allow),
    ]
    .into_iter()
    .map(|(rules, otherwise, matched)| {
        SeccompFilter::new(rules, otherwise, matched, arch()?)?.try_into()
    })
    .collect()
}

/// The filter of the parent: no call that only an attacker makes, no address family beyond those of its work.
fn program_of_parent() -> Result<BpfProgram, BackendError> {
    let mut rules: Rules = FORBIDDEN.iter().map(|(number, _)| (*number, Vec::new())).collect();
    let families = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];
    let other = families.iter().map(|family| SeccompCondition::new(0, Dword, Ne, *family as u64));
    rules.insert(libc::SYS_socket, vec![SeccompRule::new(other.collect::<Result<_, _>>()?)?]);
    SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Trap, arch()?)?.try_into()
}

/// Calls that are allowed with these arguments only.
fn conditional() -> Result<Rules, BackendError> {
    let when = |arg, op, value| SeccompCondition::new(arg, Dword, op, value);
    let one = |condition: SeccompCondition| SeccompRule::new(vec![condition]);
    let is = |arg, values: &[u64]| -> Result<Vec<SeccompRule>, BackendError> {
        values.iter().map(|value| one(when(arg, Eq, *value)?)).collect()
    };
    // No AF_UNIX: the relay has every such socket that it needs. No AF_NETLINK, no AF_PACKET.
    let families = [libc::AF_INET, libc::AF_INET6].map(|family| family as u64);
    // Code that an attacker writes to memory cannot run.
    let not_executable = || one(when(2, MaskedEq(libc::PROT_EXEC as u64), 0)?);
    let own = u64::from(std::process::id());
    Ok(Rules::from([
        (libc::SYS_socket, is(0, &families)?),
        (libc::SYS_ioctl, is(1, &IOCTLS)?),
        (libc::SYS_mmap, vec![not_executable()?]),
        (libc::SYS_mprotect, vec![not_executable()?]),
        (libc::SYS_clone, vec![one(when(0, MaskedEq(THREAD), THREAD)?)?]),
        (libc::SYS_prctl, is(0, &[libc::PR_SET_NAME as u64, PR_SET_VMA])?),
        // Reads limits; a null pointer in both halves: sets none.
        (libc::SYS_prlimit64, vec![one(SeccompCondition::new(2, QWORD, Eq, 0)?)?]),
        // A process that aborts sends itself a signal.
        (libc::SYS_tgkill, is(0, &[own])?),
        // The handler that reports forbidden calls stays.
        (libc::SYS_rt_sigaction, vec![one(when(0, Ne, libc::SIGSYS as u64)?)?]),
    ]))
}

/// An argument of 64 bits.
const QWORD: seccompiler::SeccompCmpArgLen = seccompiler::SeccompCmpArgLen::Qword;

fn arch() -> Result<TargetArch, BackendError> {
    std::env::consts::ARCH.try_into()
}

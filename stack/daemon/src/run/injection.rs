//! Prevents the command from typing into the caller's terminal, which it shares. The caller's shell would run what was
//! typed, outside of the container. TIOCSTI types a character; TIOCLINUX pastes a selection of the console.
//!
//! A seccomp filter refuses both requests, in every form of the system call.

use std::io;

use crate::sys;

/// System call numberings (`linux/audit.h`) of this architecture, and the numbers of ioctl(2) in each.
#[cfg(target_arch = "x86_64")]
const CALLS: &[(u32, &[u32])] = &[
    // x32 has the same numbering with a number of its own for ioctl; the filter masks its flag out.
    (0xc000_003e, &[16, 514]),
    // int 0x80, and 32-bit programs.
    (0x4000_0003, &[54]),
];
#[cfg(target_arch = "aarch64")]
const CALLS: &[(u32, &[u32])] = &[(0xc000_00b7, &[29]), (0x4000_0028, &[54])];
#[cfg(target_arch = "riscv64")]
const CALLS: &[(u32, &[u32])] = &[(0xc000_00f3, &[29]), (0x4000_00f3, &[29])];
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64")))]
const CALLS: &[(u32, &[u32])] = &[];

/// Flag in the number of an x32 system call.
const X32_FLAG: u32 = 0x4000_0000;

/// The requests of ioctl(2) that are refused.
const REFUSED: [u32; 2] = [libc::TIOCSTI as u32, libc::TIOCLINUX as u32];

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
/// The low half of the second argument: the kernel reads only 32 bits of a request.
const REQUEST: u32 = 24 + if cfg!(target_endian = "big") { 4 } else { 0 };

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const REFUSE: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
/// The result for a numbering that this architecture does not have.
const UNKNOWN: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const AND: u16 = (libc::BPF_ALU | libc::BPF_AND | libc::BPF_K) as u16;
const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

/// Installs the filter in this process. All processes that it starts inherit it.
pub(super) fn refuse() -> io::Result<()> {
    if CALLS.is_empty() {
        return Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "unsupported architecture: its system call numbers are unknown",
        ));
    }
    let named = |e: io::Error| {
        io::Error::new(e.kind(), format!("the required seccomp filter cannot be installed: {e}"))
    };
    sys::filter_syscalls(&filter()).map_err(named)
}

/// The program: for each numbering, a block that checks the call's number and then the request.
fn filter() -> Vec<libc::sock_filter> {
    let step = |code, k| libc::sock_filter { code, jt: 0, jf: 0, k };
    // Skips `distance` further steps unless the value is `k`.
    let unless = |k, distance| libc::sock_filter { code: EQUAL, jt: 0, jf: distance, k };
    // Refuse both requests, allow any other. Copied behind each number of ioctl.
    let mut check = vec![step(LOAD, REQUEST)];
    for request in REFUSED {
        check.extend([unless(request, 1), step(RETURN, REFUSE)]);
    }
    check.push(step(RETURN, ALLOW));
    // The architecture first: a call number means nothing without it.
    let mut filter = vec![step(LOAD, ARCH)];
    for (arch, numbers) in CALLS {
        let mut block = vec![step(LOAD, NUMBER), step(AND, !X32_FLAG)];
        for number in *numbers {
            block.push(unless(*number, check.len() as u8));
            block.extend_from_slice(&check);
        }
        block.push(step(RETURN, ALLOW));
        filter.push(unless(*arch, block.len() as u8));
        filter.extend(block);
    }
    filter.push(step(RETURN, UNKNOWN));
    filter
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Executes the filter as the kernel does. Returns its result.
    fn verdict(arch: u32, number: u32, request: u64) -> u32 {
        let filter = filter();
        let (mut at, mut value) = (0, 0);
        loop {
            let libc::sock_filter { code, jt, jf, k } = filter[at];
            at += 1;
            match code {
                LOAD => {
                    value = match k {
                        NUMBER => number,
                        ARCH => arch,
                        REQUEST => request as u32,
                        other => panic!("loads {other}"),
                    }
                }
                AND => value &= k,
                EQUAL => at += usize::from(if value == k { jt } else { jf }),
                RETURN => return k,
                other => panic!("step {other}"),
            }
        }
    }

    #[test]
    fn the_two_requests_are_refused_in_every_numbering_and_nothing_else_is() {
        for (arch, numbers) in CALLS {
            for number in *numbers {
                for request in REFUSED {
                    let high = u64::from(request) | 0xdead_beef_0000_0000;
                    for request in [u64::from(request), high] {
                        assert_eq!(verdict(*arch, *number, request), REFUSE);
                    }
                    assert_eq!(verdict(*arch, number | X32_FLAG, request.into()), REFUSE);
                    // A different system call with the same argument.
                    assert_eq!(verdict(*arch, number + 1, request.into()), ALLOW);
                }
                for request in [libc::TCGETS, libc::TIOCGPGRP, libc::TIOCSPGRP, libc::TIOCGWINSZ] {
                    assert_eq!(verdict(*arch, *number, request), ALLOW);
                }
            }
        }
        assert_eq!(verdict(0x1234, libc::SYS_ioctl as u32, 0), UNKNOWN);
    }
}

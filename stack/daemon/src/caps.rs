//! Capabilities: their names, the default set of a command, and how a process gives them up.

use std::io;

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use crate::sys;

/// Names in the order of the capabilities' numbers (linux/capability.h).
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// Bound of a loop over all numbers: `CapSet` holds 64 of them, the kernel has fewer.
const NUMBERS: u32 = 64;

/// A set of capabilities.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapSet(u64);

impl CapSet {
    /// The empty set.
    pub const NONE: Self = Self(0);
    /// Every capability.
    pub const ALL: Self = Self(u64::MAX);

    /// Docker's default set. None of them can configure a network.
    pub fn docker() -> Self {
        let names = [
            "CHOWN",
            "DAC_OVERRIDE",
            "FOWNER",
            "FSETID",
            "KILL",
            "SETGID",
            "SETUID",
            "SETPCAP",
            "NET_BIND_SERVICE",
            "NET_RAW",
            "SYS_CHROOT",
            "MKNOD",
            "AUDIT_WRITE",
            "SETFCAP",
        ];
        names.iter().filter_map(|name| Self::of(name)).fold(Self::NONE, Self::with)
    }

    /// The capabilities that act on a network.
    pub fn network() -> Self {
        let names = ["NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW"];
        names.iter().filter_map(|name| Self::of(name)).fold(Self::NONE, Self::with)
    }

    /// What the parent of the daemon needs: to make devices in namespaces of others, to bind low ports, to open the
    /// files that the operator names, and to start and end a process of another user.
    pub(crate) fn daemon() -> Self {
        let names = [
            "CHOWN",
            "DAC_OVERRIDE",
            "FOWNER",
            "KILL",
            "SETGID",
            "SETUID",
            "SETPCAP",
            "NET_BIND_SERVICE",
            "NET_ADMIN",
            // Opens /proc/PID/ns of a process with more capabilities.
            "SYS_PTRACE",
            // Enters and makes namespaces.
            "SYS_ADMIN",
        ];
        names.iter().filter_map(|name| Self::of(name)).fold(Self::NONE, Self::with)
    }

    /// Parses a name, in any case, with or without `CAP_`; `ALL` is the full set.
    pub fn parse(text: &str) -> Result<Self, String> {
        let upper = text.to_ascii_uppercase();
        if upper == "ALL" {
            return Ok(Self::ALL);
        }
        let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
        Self::of(name).ok_or_else(|| {
            format!(
                "no such capability: ALL and these names are allowed, with or without CAP_: {}",
                NAMES.join(", ")
            )
        })
    }

    /// The set of one capability, by its exact name.
    fn of(name: &str) -> Option<Self> {
        NAMES.iter().position(|known| *known == name).map(|number| Self(1 << number))
    }

    /// The union of both sets.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether both sets have a capability in common.
    pub fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

/// Takes every capability outside `keep` from the programs that this process executes from now on. The bounding set
/// limits those programs at once; the process itself keeps its capabilities until its next exec.
pub(crate) fn limit_to(keep: CapSet) -> io::Result<()> {
    for number in 0..NUMBERS {
        if keep.0 & 1 << number != 0 {
            continue;
        }
        match sys::drop_bounding(number) {
            // The kernel has no capability of this number, nor of a higher one.
            Err(e) if e.raw_os_error() == Some(Errno::EINVAL as i32) => break,
            other => other?,
        }
    }
    // Ambient and inheritable capabilities would survive an exec.
    sys::clear_ambient()?;
    sys::clear_inheritable()
}

/// Drops every capability outside `keep`, of the calling thread and of all that it starts and executes.
pub(crate) fn keep_only(keep: CapSet) -> io::Result<()> {
    // First: it needs CAP_SETPCAP, which a user without root lacks and has nothing to limit by.
    match limit_to(keep) {
        Err(e) if e.raw_os_error() == Some(Errno::EPERM as i32) => {}
        other => other?,
    }
    sys::keep_capabilities(keep.0)
}

/// Prevents this process, and all that it executes, from gaining capabilities. A process without CAP_SETPCAP may not
/// limit them (EPERM); it has none to pass on.
pub(crate) fn forbid_all() -> io::Result<()> {
    match limit_to(CapSet::NONE) {
        Err(e) if e.raw_os_error() == Some(Errno::EPERM as i32) => {}
        other => other?,
    }
    nix::sys::prctl::set_no_new_privs()?;
    Ok(())
}

/// Drops every capability of the calling thread.
pub(crate) fn drop_all() -> io::Result<()> {
    sys::clear_ambient()?;
    sys::clear_capabilities()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_as_people_write_them() {
        let admin = CapSet::parse("NET_ADMIN").unwrap();
        assert_eq!(admin, CapSet(1 << 12));
        for text in ["CAP_NET_ADMIN", "cap_net_admin", "net_admin", "Net_Admin"] {
            assert_eq!(CapSet::parse(text), Ok(admin), "{text}");
        }
        assert_eq!(CapSet::parse("checkpoint_restore"), Ok(CapSet(1 << 40)));
        assert_eq!(CapSet::parse("all"), Ok(CapSet::ALL));
        for bad in ["", "CAP_", "NET", "NET_ADMIN ", "CAP_CAP_CHOWN", "12"] {
            assert!(CapSet::parse(bad).unwrap_err().contains("SYS_ADMIN"), "{bad}");
        }
    }

    #[test]
    fn the_default_set_is_dockers_and_cannot_configure_a_network() {
        // As `docker run` shows it in CapBnd.
        assert_eq!(CapSet::docker(), CapSet(0xa804_25fb));
        assert!(!CapSet::docker().intersects(CapSet::parse("NET_ADMIN").unwrap()));
        assert!(CapSet::network().intersects(CapSet::parse("NET_RAW").unwrap()));
    }
}

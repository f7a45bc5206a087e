//! The process of the daemon, and the network that it made: what the kernel reports in /proc.

use std::fs;
use std::io;
use std::net::Ipv4Addr;

use crate::exit::Failure;

/// Whether the process runs under a real-time policy. `false` where that cannot be read.
pub(super) fn is_real_time(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|text| {
        // SCHED_FIFO and SCHED_RR.
        policy(&text).is_some_and(|policy| [1, 2].contains(&policy))
    })
}

/// The scheduling policy in a line of /proc/PID/stat (proc(5), field 41).
fn policy(stat: &str) -> Option<u32> {
    // The second field is the name, which may contain spaces and parentheses.
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_whitespace().nth(41 - 3)?.parse().ok()
}

/// Checks that the daemon reaches the servers, which are on the loopback of this process.
pub(super) fn check_network(pid: u32) -> Result<(), Failure> {
    let of = |process: &str| fs::read_link(format!("/proc/{process}/ns/net"));
    match (of(&pid.to_string()), of("self")) {
        (Ok(daemon), Ok(own)) if daemon != own => {
            let what = format!(
                "target daemon reaches the servers of loadgen over the loopback: run loadgen in the network namespace \
                 of the daemon (nsenter --net --target {pid})"
            );
            Err(Failure::Unavailable(what))
        }
        // Not permitted to read it: the run shows whether the servers are reached.
        _ => Ok(()),
    }
}

/// The IPv4 default gateway of the calling thread's network namespace.
pub(super) fn default_gateway() -> io::Result<Ipv4Addr> {
    let table = fs::read_to_string("/proc/thread-self/net/route")?;
    gateway(&table).ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no default route"))
}

/// The gateway of the default route in a table of the kernel: hexadecimal, in the order of the machine's bytes.
fn gateway(table: &str) -> Option<Ipv4Addr> {
    table.lines().skip(1).find_map(|line| {
        let mut fields = line.split_whitespace();
        let (destination, gateway) = (fields.nth(1)?, fields.next()?);
        let gateway = u32::from_str_radix(gateway, 16).ok().filter(|gateway| *gateway != 0)?;
        (destination == "00000000").then(|| Ipv4Addr::from(gateway.to_ne_bytes()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_is_the_41st_field() {
        let fields = |policy: &str| {
            let zeros = "0 ".repeat(37);
            format!("7 (a (b) c) S {zeros}{policy} 0 0\n")
        };
        assert_eq!(policy(&fields("2")), Some(2));
        assert_eq!(policy("7 (a) S 0"), None);
        // Of this test, which has chosen none.
        assert_eq!(policy(&fs::read_to_string("/proc/self/stat").unwrap()), Some(0));
    }

    #[test]
    fn the_gateway_is_that_of_the_default_route() {
        let hex = |ip: [u8; 4]| format!("{:08X}", u32::from_ne_bytes(ip));
        let line = |destination: String, gateway: String| {
            format!("tap0\t{destination}\t{gateway}\t0003\t0\t0\t0\t00000000\t0\t0\t0\n")
        };
        let mut table = "Iface\tDestination\tGateway \tFlags\n".to_owned();
        table += &line(hex([10, 0, 2, 0]), hex([0; 4]));
        assert_eq!(gateway(&table), None);
        table += &line(hex([0; 4]), hex([10, 0, 2, 2]));
        assert_eq!(gateway(&table), Some(Ipv4Addr::new(10, 0, 2, 2)));
    }

    #[test]
    fn this_process_has_its_own_network() {
        check_network(std::process::id()).unwrap();
        // A process that does not exist: it cannot be read.
        check_network(i32::MAX as u32).unwrap();
    }
}

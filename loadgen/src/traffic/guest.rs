//! Counters of the kernel in the namespace: they distinguish a stall caused by lost frames from one caused by memory.

use std::collections::BTreeMap;
use std::fs;

/// Names of the counters to report; missing ones and zeros are omitted.
const WANTED: &[&str] = &[
    "RetransSegs",
    "TCPTimeouts",
    "TCPLossProbes",
    "TCPFastRetrans",
    "TCPSlowStartRetrans",
    "TCPSpuriousRTOs",
    "TCPFromZeroWindowAdv",
    "TCPToZeroWindowAdv",
    "TCPWinProbe",
    "TCPRcvQDrop",
    "PruneCalled",
    "RcvPruned",
    "OfoPruned",
    "TCPOFODrop",
    "TCPZeroWindowDrop",
    "TCPAbortOnMemory",
    "TCPMemoryPressures",
    "TCPBacklogDrop",
];

/// Counters of the calling thread's namespace.
pub(super) fn counters() -> BTreeMap<String, u64> {
    let mut all = BTreeMap::new();
    for file in ["snmp", "netstat"] {
        // `thread-self`: only this thread has entered the namespace.
        let text = fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap_or_default();
        all.extend(named(&text).filter(|(n, v)| WANTED.contains(&n.as_str()) && *v > 0));
    }
    let dev = fs::read_to_string("/proc/thread-self/net/dev").unwrap_or_default();
    if let Some(dropped) = tx_dropped(&dev, skbudget::attach::DEVICE_NAME).filter(|d| *d > 0) {
        all.insert("DeviceTxDropped".to_owned(), dropped);
    }
    all
}

/// Parses pairs of lines: names, then values, both after the same first word.
fn named(text: &str) -> impl Iterator<Item = (String, u64)> {
    let lines: Vec<&str> = text.lines().collect();
    let pairs: Vec<(String, u64)> = lines
        .chunks_exact(2)
        .flat_map(|pair| {
            let names = pair[0].split_whitespace().skip(1);
            names.zip(pair[1].split_whitespace().skip(1))
        })
        .filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?)))
        .collect();
    pairs.into_iter()
}

/// Column 12 of /proc/net/dev.
fn tx_dropped(text: &str, device: &str) -> Option<u64> {
    let line = text.lines().find_map(|l| l.trim().strip_prefix(device)?.strip_prefix(':'))?;
    line.split_whitespace().nth(11)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_tables_are_read() {
        let text = "Tcp: RtoMin RetransSegs\nTcp: 200 7\nUdp: InErrors\nUdp: 0\n";
        assert_eq!(named(text).find(|(n, _)| n == "RetransSegs").map(|p| p.1), Some(7));
        // Receive and transmit have eight columns each; the twelfth is the transmit drops.
        let dev = "  tap0: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n    lo: 0\n";
        assert_eq!(tx_dropped(dev, "tap0"), Some(12));
        assert_eq!(tx_dropped(dev, "eth0"), None);
    }
}

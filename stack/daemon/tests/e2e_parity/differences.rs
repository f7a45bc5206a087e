//! The answers of our stack that differ from the kernel's, and why.

/// The IP version over which a difference shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Over {
    Both,
    V4,
    V6,
}

impl Over {
    pub(crate) fn holds_for(self, v6: bool) -> bool {
        match self {
            Self::Both => true,
            Self::V4 => !v6,
            Self::V6 => v6,
        }
    }
}

/// IP version, script, our answer, the kernel's answer, and the reason.
pub(crate) const DIFFERENCES: &[(Over, &str, &str, &str, &str)] = &[
    (Over::Both, "no flag to a listener", "RA 0/0", "nothing", NOT_KNOWN_YET),
    (Over::Both, "FIN to a listener", "RA 0/1", "nothing", NOT_KNOWN_YET),
    (Over::Both, "FIN, PSH and URG to a listener", "RA 0/1", "nothing", NOT_KNOWN_YET),
    (
        Over::Both,
        "overlapping segments",
        "A 1/1 | A 1/1 | A 1/9 | server \"abcdefgh\"",
        "A 1/1 | A 1/1 | A 1/9 | server \"abcdEFgh\"",
        "where segments overlap and differ, our stack keeps the later data, because it stores bytes in place as they \
         arrive; the kernel keeps the earlier out-of-order data. RFC 9293 does not specify copies that differ",
    ),
    (
        Over::Both,
        "urgent data",
        "A 1/6 | server \"abcde\"",
        "A 1/6 | server \"abde\"",
        "urgent data is relayed inline, as RFC 6093 section 6 recommends; the kernel removes the byte from the stream \
         unless SO_OOBINLINE is set",
    ),
    (
        Over::Both,
        "the server closes, the guest still sends",
        "FA 1/1 | A 2/6, RA 2/6 | R 2",
        "FA 1/1 | R 2 | R 2",
        "a relay cannot distinguish close(2) from shutdown(2) before it writes: the guest's first data is accepted \
         and acknowledged, then the host's reset follows",
    ),
    (Over::V4, "three times the same ACK", "A 1/1 +1460 | nothing", AS_WRITTEN, REPACKETIZED),
    (Over::V6, "three times the same ACK", "A 1/1 +1440 | nothing", AS_WRITTEN, REPACKETIZED),
    (
        Over::V4,
        "a SYN whose TCP header is split over two fragments",
        "nothing",
        "SA 0/1",
        "a first fragment without the whole TCP header serves to evade filters, and no link needs one (RFC 1858 \
         section 3): dropped and counted, as many routers do",
    ),
    (
        Over::V6,
        "a SYN whose TCP header is split over two fragments",
        "nothing",
        "ICMPv6 4/3",
        "dropped and counted; the parameter problem that RFC 7112 section 5 recommends is not sent: a sender that \
         splits headers does so on purpose",
    ),
];

const AS_WRITTEN: &str = "A 1/1 +1000 | nothing";
const REPACKETIZED: &str = "our stack repacketizes retransmitted data into full-sized segments; the kernel keeps the \
                            boundaries of its program's writes";
const NOT_KNOWN_YET: &str = "our stack learns from a connect on the host whether a port has a listener, and only a SYN \
                             starts one: a segment of no connection is answered as at a closed port";

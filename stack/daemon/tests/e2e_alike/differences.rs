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
        "of two copies that differ the later one stands, since bytes are put where they belong as they come; the \
         kernel keeps the earlier one of what is out of order. RFC 9293 says nothing of copies that differ",
    ),
    (
        Over::Both,
        "urgent data",
        "A 1/6 | server \"abcde\"",
        "A 1/6 | server \"abde\"",
        "urgent data is relayed in its place, as RFC 6093 section 6 wants it; the kernel takes the byte out of the \
         stream unless its program asked for SO_OOBINLINE",
    ),
    (
        Over::Both,
        "the server is gone, the guest goes on",
        "FA 1/1 | A 2/6, RA 2/6 | R 2",
        "FA 1/1 | R 2 | R 2",
        "a relay cannot tell close(2) from shutdown(2) before it has written: what the guest said first was taken \
         and acknowledged, and the host's reset follows",
    ),
    (Over::V4, "three times the same ACK", "A 1/1 +1460 | nothing", AS_WRITTEN, REPACKETIZED),
    (Over::V6, "three times the same ACK", "A 1/1 +1440 | nothing", AS_WRITTEN, REPACKETIZED),
    (
        Over::V4,
        "a SYN whose header is cut in two",
        "nothing",
        "SA 0/1",
        "a first fragment without the whole TCP header is what filters are deceived with, and no link is so narrow \
         (RFC 1858 section 3): dropped and counted, as many routers do",
    ),
    (
        Over::V6,
        "a SYN whose header is cut in two",
        "nothing",
        "ICMPv6 4/3",
        "dropped and counted; the parameter problem that RFC 7112 section 5 recommends is not sent: whoever cuts \
         headers knows it",
    ),
];

const AS_WRITTEN: &str = "A 1/1 +1000 | nothing";
const REPACKETIZED: &str = "what is sent again is cut anew, in segments as large as they may be; the kernel keeps the \
                            pieces that its program wrote";
const NOT_KNOWN_YET: &str = "whether somebody listens is known when the host was asked, and only a SYN is a reason to \
                             ask: what is for no connection is answered as at a closed port";

//! Where our stack answers otherwise than the kernel, and why.

/// Script, our answer, the kernel's, and the reason.
pub(crate) const DIFFERENCES: &[(&str, &str, &str, &str)] = &[
    ("no flag to a listener", "RA 0/0", "nothing", NOT_KNOWN_YET),
    ("FIN to a listener", "RA 0/1", "nothing", NOT_KNOWN_YET),
    ("FIN, PSH and URG to a listener", "RA 0/1", "nothing", NOT_KNOWN_YET),
    (
        "overlapping segments",
        "A 1/1 | A 1/1 | A 1/9 | server \"abcdefgh\"",
        "A 1/1 | A 1/1 | A 1/9 | server \"abcdEFgh\"",
        "of two copies that differ the later one stands, since bytes are put where they belong as they come; the \
         kernel keeps the earlier one of what is out of order. RFC 9293 says nothing of copies that differ",
    ),
    (
        "urgent data",
        "A 1/6 | server \"abcde\"",
        "A 1/6 | server \"abde\"",
        "urgent data is relayed in its place, as RFC 6093 section 6 wants it; the kernel takes the byte out of the \
         stream unless its program asked for SO_OOBINLINE",
    ),
    (
        "the server is gone, the guest goes on",
        "FA 1/1 | A 2/6, RA 2/6 | R 2",
        "FA 1/1 | R 2 | R 2",
        "a relay cannot tell close(2) from shutdown(2) before it has written: what the guest said first was taken \
         and acknowledged, and the host's reset follows",
    ),
];

const NOT_KNOWN_YET: &str = "whether somebody listens is known when the host was asked, and only a SYN is a reason to \
                             ask: what is for no connection is answered as at a closed port";

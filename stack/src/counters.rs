//! One reason, one counter. Memory counters are the budget's (by member); these are the stack's own.

macro_rules! stats {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {
        /// Everything the stack counts apart from memory. Names Linux has are spelled as Linux spells them.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(usize)]
        pub(crate) enum Stat { $($(#[$doc])* $name),+ }

        const NAMES: &[&str] = &[$(stringify!($name)),+];
    };
}

stats! {
    /// Ethernet header cut short.
    DropShortFrame,
    /// Neither ARP nor IPv4 nor IPv6.
    DropEtherType,
    DropArp,
    /// IPv6 is off.
    DropIpv6,
    DropIpv6Header,
    /// Extension headers that are cut short, out of place or too many.
    DropIpv6Extension,
    /// An option that asks to be understood or the packet to be dropped.
    DropIpv6Option,
    /// A routing header with segments left.
    DropIpv6Routing,
    /// Neighbour discovery that did not come from this link, or is not the guest's to say.
    DropNdp,
    DropIpv4Header,
    DropIpv4Checksum,
    /// A fragment that can be a part of nothing.
    DropFragment,
    /// A fragment that says what another one said (RFC 5722), and all that belong to its datagram.
    DropFragmentOverlap,
    /// A fragment that cuts a transport header in two, or pieces too many.
    DropFragmentTiny,
    /// No room for a fragment.
    DropFragmentMemory,
    /// A datagram some of whose fragments were marked and others could not be (RFC 3168 section 5.3).
    DropFragmentEcn,
    /// Datagrams made whole from fragments; given up as some of it never came.
    ReasmOKs,
    ReasmTimeout,
    /// A source address that is not the container's.
    DropSource,
    /// Multicast, broadcast, loopback or the container itself.
    DropDestination,
    DropProtocol,
    DropTcpHeader,
    DropTcpChecksum,
    DropIcmp,
    DropUdp,
    /// UDP answered with port unreachable.
    UdpUnreachable,
    /// ICMP answers beyond the rate limit.
    IcmpRateLimited,
    IcmpEchoAnswered,
    ArpAnswered,
    NdpAnswered,
    RouterAdverts,
    /// Router solicitations beyond one in three seconds.
    RouterSolicitsIgnored,
    /// The guest's word on the path's MTU: taken, not believed.
    PathMtuLowered,
    PathMtuIgnored,
    /// No flow index left.
    FlowTableFull,
    /// Parked SYN forgotten: timed out or the table was full.
    ParkedExpired,
    PassiveOpens,
    ActiveOpens,
    HostConnectFailed,
    OutRsts,
    EstabResets,
    /// Segments outside the window, answered with a rate-limited ACK.
    OutOfWindow,
    TCPChallengeACK,
    TCPACKSkippedChallenge,
    PAWSEstab,
    /// An ACK of what was never sent.
    AckUnsent,
    DelayedACKs,
    RetransSegs,
    TCPTimeouts,
    TCPFastRetrans,
    /// Fast recoveries, by how the loss was seen.
    TCPSackRecovery,
    TCPRenoRecovery,
    /// Recoveries that were for nothing, by what showed it.
    TCPTSUndo,
    TCPDSACKUndo,
    TCPSpuriousRTOs,
    TCPDSACKRecv,
    TCPLossProbes,
    /// Segments of flows that speak ECN whose packets came marked.
    InCEPkts,
    /// Windows that went down for the guest's word on marks.
    TCPECNReduced,
    TCPWinProbe,
    TCPKeepAlive,
    /// Keep-alive probes of the guest's, and those of them for which the peer was asked first.
    GuestKeepAlive,
    GuestKeepAliveRelayed,
    TCPAbortOnTimeout,
    /// Flows whose guest was gone and whose host took nothing for too long, and the bytes of them that were
    /// acknowledged to the guest and not by the host's peer.
    OrphansGivenUp,
    OrphanBytesLost,
    TW,
    /// The device took no frame; it is sent again.
    DeviceFull,
}

/// The array behind the enum.
#[derive(Debug, Clone)]
pub(crate) struct Stats([u64; NAMES.len()]);

impl Default for Stats {
    fn default() -> Self {
        Self([0; NAMES.len()])
    }
}

impl Stats {
    pub(crate) fn add(&mut self, stat: Stat) {
        self.add_n(stat, 1);
    }

    pub(crate) fn add_n(&mut self, stat: Stat, n: u64) {
        self.0[stat as usize] += n;
    }

    pub(crate) fn get(&self, stat: Stat) -> u64 {
        self.0[stat as usize]
    }

    pub(crate) fn named(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        NAMES.iter().copied().zip(self.0.iter().copied())
    }
}

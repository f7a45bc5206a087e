//! Protocol and drop counters: one reason, one counter. Memory counters are the budget's, by member.

macro_rules! stats {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {
        /// Everything the stack counts apart from memory. A counter that Linux has too is spelled as there.
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
    /// Connections, datagrams and echo requests that a rule refused.
    ReachDenied,
    /// IPv6 is off.
    DropIpv6,
    DropIpv6Header,
    /// Extension headers that are cut short, out of place or too many.
    DropIpv6Extension,
    /// An unknown option of a type that requires the packet to be dropped (RFC 8200 section 4.2).
    DropIpv6Option,
    /// A routing header with segments left.
    DropIpv6Routing,
    /// Neighbour discovery that crossed a router, is malformed, or is a router's to send.
    DropNdp,
    DropIpv4Header,
    DropIpv4Checksum,
    /// A fragment that cannot belong to any datagram.
    DropFragment,
    /// A fragment that overlaps another (RFC 5722), and all others of its datagram.
    DropFragmentOverlap,
    /// A fragment that splits a transport header, or one too many.
    DropFragmentTiny,
    /// No room for a fragment.
    DropFragmentMemory,
    /// A datagram with some fragments CE-marked and others not ECN-capable (RFC 3168 section 5.3).
    DropFragmentEcn,
    /// Datagrams reassembled; datagrams dropped because a fragment was missing for too long.
    ReasmOKs,
    ReasmTimeout,
    /// A source address that is not the container's.
    DropSource,
    /// A destination that is multicast, broadcast, loopback or the container itself.
    DropDestination,
    DropProtocol,
    DropTcpHeader,
    DropTcpChecksum,
    DropIcmp,
    /// A datagram with a wrong length, or without a source port.
    DropUdp,
    DropUdpChecksum,
    /// UDP answered with port or host unreachable by the stack itself.
    UdpUnreachable,
    /// Datagrams answered with time exceeded: their hop limit ended here.
    IpHopLimitExceeded,
    /// Datagrams that host sockets took, and those passed to the guest.
    UdpOutDatagrams,
    UdpInDatagrams,
    /// Datagrams without a route on the host, or too large for its path.
    UdpOutErrors,
    /// Datagrams dropped: a host socket's send buffer was full; its receive buffer or the guest's device was.
    UdpSndbufErrors,
    UdpRcvbufErrors,
    /// Datagrams from addresses that the guest had not sent to.
    UdpFiltered,
    /// ICMP errors of the host's network passed to the guest.
    UdpErrorsRelayed,
    /// Questions of the guest that the forwarder took; queries sent to name servers, answers passed to the guest, and
    /// questions that no name server answered.
    DnsQuestions,
    DnsQueries,
    DnsAnswers,
    DnsFailed,
    /// Questions dropped: malformed, and repeated while they were under way.
    DnsMalformed,
    DnsRepeated,
    /// Questions answered with SERVFAIL at once: no name server, too many under way, or no memory.
    DnsRefused,
    /// Questions for names of other containers, answered here.
    DnsSiblings,
    /// Datagrams from name servers that answer no question.
    DnsUnmatched,
    /// Malformed messages of DHCP and DHCPv6 clients, and those for another server.
    DropDhcp,
    /// Answers to DHCP and DHCPv6 clients: with the address or only with options, and without the address: refusals.
    DhcpAnswered,
    DhcpRefused,
    /// Leases that clients returned; addresses that clients reported to be in use.
    DhcpReleased,
    DhcpDeclined,
    /// Messages beyond the rate limit of DHCP.
    DhcpRateLimited,
    UdpMappingsOpened,
    UdpMappingsExpired,
    /// Mappings that ended early, because a new one needed their room.
    UdpMappingsEvicted,
    /// Datagrams dropped because their mapping got no memory or no socket.
    UdpMappingsRefused,
    /// ICMP messages that the rate limit suppressed.
    IcmpRateLimited,
    IcmpEchoAnswered,
    /// Echo requests that host sockets took, and replies passed to the guest.
    IcmpOutEchos,
    IcmpInEchoReps,
    /// Echo requests without a route, and those that the host does not allow (ping_group_range).
    IcmpEchoUnreachable,
    IcmpEchoProhibited,
    ArpAnswered,
    NdpAnswered,
    RouterAdverts,
    /// Router solicitations beyond one in three seconds.
    RouterSolicitsIgnored,
    /// Packet Too Big reports of the guest: used, and ignored.
    PathMtuLowered,
    PathMtuIgnored,
    /// The flow table is full.
    FlowTableFull,
    /// Times that a client of a published port had to wait for room, and clients reset because no port of their address
    /// was free for them.
    AcceptsDelayed,
    AcceptsNoPort,
    /// SYNs dropped from the queue because the guest did not retransmit them in time.
    SynExpired,
    PassiveOpens,
    ActiveOpens,
    HostConnectFailed,
    /// Connections to addresses of the subnet that no container has, or one that this container does not see.
    SiblingUnreachable,
    OutRsts,
    EstabResets,
    /// Segments outside the window, answered with a rate-limited ACK.
    OutOfWindow,
    TCPChallengeACK,
    TCPACKSkippedChallenge,
    PAWSEstab,
    /// ACKs of data that was never sent.
    AckUnsent,
    DelayedACKs,
    RetransSegs,
    TCPTimeouts,
    TCPFastRetrans,
    /// Fast recoveries, by the way the loss was detected.
    TCPSackRecovery,
    TCPRenoRecovery,
    /// Recoveries that proved spurious, by the evidence.
    TCPTSUndo,
    TCPDSACKUndo,
    TCPSpuriousRTOs,
    TCPDSACKRecv,
    TCPLossProbes,
    /// Segments of ECN flows that arrived CE-marked.
    InCEPkts,
    /// Congestion window reductions because of ECN-Echo.
    TCPECNReduced,
    TCPWinProbe,
    TCPKeepAlive,
    /// Keep-alive probes of the guest, and those for which the stack probed the host's peer first.
    GuestKeepAlive,
    GuestKeepAliveRelayed,
    TCPAbortOnTimeout,
    /// Flows reset with undelivered data, without progress or with their container, and their bytes that were
    /// acknowledged to the guest but not by the host's peer.
    OrphansGivenUp,
    OrphanBytesLost,
    TW,
    /// Frames that the device refused; they are sent again.
    DeviceFull,
}

/// The counters, indexed by [`Stat`].
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

    /// Name and value of each counter, in the order of the enum.
    pub(crate) fn named(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        NAMES.iter().copied().zip(self.0.iter().copied())
    }
}

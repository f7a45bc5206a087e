//! States of RFC 9293 section 3.3.2, as seen from the stack, and all transitions as one table.
//!
//! The container's kernel is the peer. LISTEN has no object: a SYN to any address creates a flow. The stack answers the
//! SYN only after the host side has connected (`Connecting`), so that the guest sees the real outcome. TIME-WAIT is not
//! a state of a flow but a small entry in a separate table (`flow/time_wait.rs`).

/// State of the TCP connection with the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum State {
    /// The guest's SYN waits while the host side connects.
    Connecting,
    /// Our SYN was sent, for a connection to a published port.
    SynSent,
    /// Our SYN-ACK was sent, or is due.
    SynRcvd,
    /// Data flows both ways.
    Established,
    /// Our FIN was sent.
    FinWait1,
    /// Our FIN is acknowledged.
    FinWait2,
    /// The guest's FIN arrived.
    CloseWait,
    /// Both FINs were sent before either was acknowledged.
    Closing,
    /// The guest's FIN arrived, then ours was sent.
    LastAck,
    /// Both FINs are acknowledged; the flow becomes a TIME-WAIT entry.
    TimeWait,
    /// Our FIN in LAST-ACK is acknowledged: the flow is removed.
    Closed,
}

/// What can move a flow from state to state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Cause {
    /// The host side connected: the SYN is answered.
    HostConnected,
    /// SYN-ACK (in SYN-SENT), or the ACK of our SYN-ACK.
    SynAcked,
    /// A SYN without ACK in SYN-SENT: simultaneous open.
    SynCrossed,
    /// Our FIN is sent.
    SendFin,
    /// Our FIN is acknowledged.
    FinAcked,
    /// The guest's FIN is in order.
    FinReceived,
}

impl State {
    /// The transition table; `None` if the cause has no effect in this state.
    pub(crate) fn next(self, cause: Cause) -> Option<Self> {
        use Cause as C;
        Some(match (self, cause) {
            (Self::Connecting, C::HostConnected) => Self::SynRcvd,
            (Self::SynSent, C::SynAcked) | (Self::SynRcvd, C::SynAcked) => Self::Established,
            (Self::SynSent, C::SynCrossed) => Self::SynRcvd,
            (Self::Established | Self::SynRcvd, C::SendFin) => Self::FinWait1,
            (Self::CloseWait, C::SendFin) => Self::LastAck,
            (Self::FinWait1, C::FinAcked) => Self::FinWait2,
            (Self::Closing, C::FinAcked) => Self::TimeWait,
            (Self::LastAck, C::FinAcked) => Self::Closed,
            (Self::Established | Self::SynRcvd, C::FinReceived) => Self::CloseWait,
            (Self::FinWait1, C::FinReceived) => Self::Closing,
            (Self::FinWait2, C::FinReceived) => Self::TimeWait,
            _ => return None,
        })
    }

    /// The name that `ss` prints.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Connecting => "CONNECTING",
            Self::SynSent => "SYN-SENT",
            Self::SynRcvd => "SYN-RECV",
            Self::Established => "ESTAB",
            Self::FinWait1 => "FIN-WAIT-1",
            Self::FinWait2 => "FIN-WAIT-2",
            Self::CloseWait => "CLOSE-WAIT",
            Self::Closing => "CLOSING",
            Self::LastAck => "LAST-ACK",
            Self::TimeWait => "TIME-WAIT",
            Self::Closed => "CLOSED",
        }
    }

    /// The guest may send data in this state.
    pub(crate) fn receives(self) -> bool {
        matches!(self, Self::Established | Self::FinWait1 | Self::FinWait2)
    }

    /// Data may be sent or retransmitted in this state.
    pub(crate) fn sends(self) -> bool {
        matches!(
            self,
            Self::Established | Self::CloseWait | Self::FinWait1 | Self::Closing | Self::LastAck
        )
    }

    /// The handshake is complete.
    pub(crate) fn synchronized(self) -> bool {
        !matches!(self, Self::Connecting | Self::SynSent | Self::SynRcvd | Self::Closed)
    }
}

#[cfg(test)]
mod tests {
    use super::{Cause, State};

    #[test]
    fn every_transition() {
        use State as S;
        let states = [
            S::Connecting,
            S::SynSent,
            S::SynRcvd,
            S::Established,
            S::FinWait1,
            S::FinWait2,
            S::CloseWait,
            S::Closing,
            S::LastAck,
            S::TimeWait,
            S::Closed,
        ];
        let causes = [
            Cause::HostConnected,
            Cause::SynAcked,
            Cause::SynCrossed,
            Cause::SendFin,
            Cause::FinAcked,
            Cause::FinReceived,
        ];
        let mut table = String::new();
        for s in states {
            for c in causes {
                if let Some(next) = s.next(c) {
                    table += &format!("{} {c:?} {}\n", s.name(), next.name());
                }
            }
        }
        let expected = "\
CONNECTING HostConnected SYN-RECV
SYN-SENT SynAcked ESTAB
SYN-SENT SynCrossed SYN-RECV
SYN-RECV SynAcked ESTAB
SYN-RECV SendFin FIN-WAIT-1
SYN-RECV FinReceived CLOSE-WAIT
ESTAB SendFin FIN-WAIT-1
ESTAB FinReceived CLOSE-WAIT
FIN-WAIT-1 FinAcked FIN-WAIT-2
FIN-WAIT-1 FinReceived CLOSING
FIN-WAIT-2 FinReceived TIME-WAIT
CLOSE-WAIT SendFin LAST-ACK
CLOSING FinAcked TIME-WAIT
LAST-ACK FinAcked CLOSED
";
        assert_eq!(table, expected);
    }
}

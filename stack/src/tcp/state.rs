//! States of RFC 9293 section 3.3.2, as seen from the stack, and the transitions it makes, as one table.
//!
//! The container's kernel is the peer. LISTEN has no object: a SYN for any address makes a flow. Before the SYN is
//! answered the host side is asked (`Connecting`), so that what the guest learns is true. TIME-WAIT is not a state of
//! a flow but an entry of 64 bytes in a table of its own.

/// State of a flow's TCP towards the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum State {
    /// The guest's SYN is held while the host side connects.
    Connecting,
    /// Our SYN is out (a published port was connected to).
    SynSent,
    /// The guest's SYN is answered.
    SynRcvd,
    Established,
    /// Our FIN is out.
    FinWait1,
    /// Our FIN is acknowledged.
    FinWait2,
    /// The guest's FIN came.
    CloseWait,
    /// FINs crossed.
    Closing,
    /// The guest's FIN came, then ours went out.
    LastAck,
    TimeWait,
    Closed,
}

/// What can move a flow from state to state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Cause {
    /// The host side is connected: the SYN is answered.
    HostConnected,
    /// SYN-ACK (in SYN-SENT) or the ACK of our SYN-ACK.
    SynAcked,
    /// A SYN without ACK in SYN-SENT.
    SynCrossed,
    /// We send FIN.
    SendFin,
    /// Our FIN is acknowledged.
    FinAcked,
    /// The guest's FIN is in order.
    FinReceived,
}

impl State {
    /// The transition table; `None` where the cause means nothing in that state.
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

    /// The name `ss` prints.
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

    /// Data of the guest is taken.
    pub(crate) fn receives(self) -> bool {
        matches!(self, Self::Established | Self::FinWait1 | Self::FinWait2)
    }

    /// Data may be sent, first or again.
    pub(crate) fn sends(self) -> bool {
        matches!(
            self,
            Self::Established | Self::CloseWait | Self::FinWait1 | Self::Closing | Self::LastAck
        )
    }

    /// The handshake is behind us.
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

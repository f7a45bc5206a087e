//! Host sockets that follow a script. Bytes are functions of their position in the stream.

use std::collections::BTreeMap;
use std::io::{IoSlice, IoSliceMut};
use std::net::SocketAddr;
use std::time::Duration;

use skbudget_stack::{Close, FlowId, Host, HostCaps, HostError};

/// The guest's byte at a sequence number.
pub(super) fn guest_byte(seq: u32) -> u8 {
    (seq.wrapping_mul(0x9e37_79b1) >> 24) as u8
}

/// The host's byte at a position of its stream.
pub(super) fn host_byte(at: u32) -> u8 {
    (at.wrapping_mul(0x85eb_ca6b) >> 23) as u8
}

#[derive(Debug, Default)]
pub(super) struct Sock {
    pub(super) outcome: Option<Result<(), HostError>>,
    /// Bytes it still has for the guest, and bytes read from it so far.
    pub(super) says: u32,
    said: u32,
    pub(super) ends: bool,
    pub(super) broken: Option<HostError>,
    /// The error was returned by an operation or by `connect_outcome`.
    told: bool,
    /// Bytes that the socket's peer does not acknowledge.
    pub(super) kept: u64,
    /// Bytes received from the guest and not compared yet, and the number of those compared.
    pub(super) heard: Vec<u8>,
    pub(super) compared: u32,
    pub(super) room: usize,
    shut: bool,
    asked: bool,
}

impl Sock {
    pub(super) fn new(outcome: Option<Result<(), HostError>>) -> Self {
        Self { outcome, room: 1 << 16, ..Self::default() }
    }
}

#[derive(Debug, Default)]
pub(super) struct ScriptHost {
    pub(super) socks: BTreeMap<FlowId, Sock>,
    /// Error that the next connect(2) returns.
    pub(super) connect: Option<HostError>,
}

impl ScriptHost {
    fn sock(&mut self, flow: FlowId) -> &mut Sock {
        self.socks.get_mut(&flow).expect("a socket that was opened and not closed")
    }
}

impl Host for ScriptHost {
    fn connect(&mut self, flow: FlowId, _: SocketAddr, _: HostCaps) -> Result<(), HostError> {
        let sock = Sock::new(None);
        assert!(self.socks.insert(flow, sock).is_none(), "an id is used once");
        match self.connect.take() {
            Some(e) => Err(e),
            None => Ok(()),
        }
    }

    fn connect_outcome(&mut self, flow: FlowId) -> Option<Result<(), HostError>> {
        self.sock(flow).outcome
    }

    fn write(&mut self, flow: FlowId, parts: &[IoSlice<'_>]) -> Result<usize, HostError> {
        let sock = self.sock(flow);
        assert!(!sock.shut, "a write after shutdown");
        if let Some(e) = sock.broken {
            // As a Linux socket: the error once, then EPIPE.
            return Err(if std::mem::replace(&mut sock.told, true) {
                HostError::ResetAfterEnd
            } else {
                e
            });
        }
        let mut n = 0;
        for part in parts {
            let take = part.len().min(sock.room);
            sock.heard.extend_from_slice(&part[..take]);
            sock.room -= take;
            n += take;
        }
        if n == 0 { Err(HostError::WouldBlock) } else { Ok(n) }
    }

    fn read(&mut self, flow: FlowId, parts: &mut [IoSliceMut<'_>]) -> Result<usize, HostError> {
        let sock = self.sock(flow);
        if sock.says == 0 {
            return match sock.broken {
                _ if sock.ends => Ok(0),
                Some(e) if !std::mem::replace(&mut sock.told, true) => Err(e),
                Some(_) => Ok(0),
                None => Err(HostError::WouldBlock),
            };
        }
        let mut n = 0;
        for to in parts.iter_mut().flat_map(|part| part.iter_mut()) {
            if sock.says == 0 {
                break;
            }
            *to = host_byte(sock.said);
            sock.said = sock.said.wrapping_add(1);
            sock.says -= 1;
            n += 1;
        }
        Ok(n)
    }

    fn shutdown_write(&mut self, flow: FlowId) {
        let sock = self.sock(flow);
        assert!(!sock.shut, "shut down once");
        sock.shut = true;
    }

    fn unacknowledged(&mut self, flow: FlowId) -> u64 {
        let sock = self.sock(flow);
        if sock.broken.is_some() { 0 } else { sock.kept }
    }

    fn set_caps(&mut self, flow: FlowId, _: HostCaps) {
        self.sock(flow);
    }

    fn lower_caps(&mut self, flow: FlowId, caps: HostCaps) -> HostCaps {
        self.sock(flow);
        caps
    }

    fn keep_alive(&mut self, flow: FlowId, every: Duration) {
        assert!(every >= Duration::from_secs(1), "the kernel refuses less");
        self.sock(flow);
    }

    fn ask_peer(&mut self, flow: FlowId) {
        let sock = self.sock(flow);
        sock.asked = !sock.asked;
    }

    /// Every second probe is answered at once, the others never.
    fn silence(&mut self, flow: FlowId) -> Option<Duration> {
        let sock = self.sock(flow);
        Some(if sock.asked { Duration::ZERO } else { Duration::MAX })
    }

    fn close(&mut self, flow: FlowId, _: Close) {
        assert!(self.socks.remove(&flow).is_some(), "closed once");
    }
}

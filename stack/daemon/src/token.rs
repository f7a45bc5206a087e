//! What an event of the poll is about, packed into its token.
//!
//! `| seat 16 | kind 2 | generation 22 | index 24 |`. The generation is cut: a late event for a dead flow could be
//! taken for one of the flow 2^22 generations later in the same slot, and only within one batch of events.

use mio::Token;
use skbudget_stack::FlowId;

const INDEX_BITS: u32 = 24;
const GENERATION_BITS: u32 = 22;
const KIND_SHIFT: u32 = INDEX_BITS + GENERATION_BITS;
const SEAT_SHIFT: u32 = KIND_SHIFT + 2;

const INDEX_MASK: u64 = (1 << INDEX_BITS) - 1;
const GENERATION_MASK: u64 = (1 << GENERATION_BITS) - 1;

const KIND_FLOW: u64 = 0;
const KIND_DEVICE: u64 = 1;
const KIND_LISTENER: u64 = 2;
const KIND_WAKER: u64 = 3;

/// Most flows of one container.
pub(crate) const FLOWS_MAX: u32 = 1 << INDEX_BITS;

const _: () = assert!(usize::BITS >= 64, "tokens hold a seat, a generation and an index");

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Flow,
    Device,
    /// A published port: which of the container's.
    Listener(u32),
    Waker,
}

pub(crate) const WAKER: Token = Token((KIND_WAKER << KIND_SHIFT) as usize);

pub(crate) fn flow(seat: u16, flow: FlowId) -> Token {
    debug_assert!(flow.index < FLOWS_MAX, "flow index {} beyond the token", flow.index);
    let generation = u64::from(flow.generation) & GENERATION_MASK;
    pack(seat, KIND_FLOW, generation << INDEX_BITS | u64::from(flow.index))
}

pub(crate) fn device(seat: u16) -> Token {
    pack(seat, KIND_DEVICE, 0)
}

pub(crate) fn listener(seat: u16, index: u32) -> Token {
    pack(seat, KIND_LISTENER, u64::from(index))
}

pub(crate) fn seat(token: Token) -> u16 {
    (token.0 as u64 >> SEAT_SHIFT) as u16
}

pub(crate) fn kind(token: Token) -> Kind {
    match token.0 as u64 >> KIND_SHIFT & 3 {
        KIND_FLOW => Kind::Flow,
        KIND_DEVICE => Kind::Device,
        KIND_LISTENER => Kind::Listener(flow_index(token)),
        _ => Kind::Waker,
    }
}

pub(crate) fn flow_index(token: Token) -> u32 {
    (token.0 as u64 & INDEX_MASK) as u32
}

fn pack(seat: u16, kind: u64, rest: u64) -> Token {
    Token((u64::from(seat) << SEAT_SHIFT | kind << KIND_SHIFT | rest) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_in_comes_out() {
        let id = FlowId { index: FLOWS_MAX - 1, generation: 7 };
        let t = flow(u16::MAX, id);
        assert_eq!((seat(t), kind(t), flow_index(t)), (u16::MAX, Kind::Flow, id.index));
        assert_ne!(t, flow(u16::MAX, FlowId { generation: 8, ..id }));
        assert_eq!((seat(device(3)), kind(device(3))), (3, Kind::Device));
        assert_eq!(kind(listener(3, 9)), Kind::Listener(9));
        assert_eq!(kind(WAKER), Kind::Waker);
    }
}

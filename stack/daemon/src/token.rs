//! Packs the subject of a poll event into its token.
//!
//! `| container 16 | kind 4 | generation 20 | index 24 |`. The generation is truncated: a late event of a closed flow
//! could be taken for one of the flow 2^20 generations later at the same index, but only within one batch of events.

use mio::Token;
use skbudget_stack::{DatagramId, FlowId};

const INDEX_BITS: u32 = 24;
const GENERATION_BITS: u32 = 20;
const KIND_BITS: u32 = 4;
const KIND_SHIFT: u32 = INDEX_BITS + GENERATION_BITS;
const CONTAINER_SHIFT: u32 = KIND_SHIFT + KIND_BITS;

const INDEX_MASK: u64 = (1 << INDEX_BITS) - 1;
const GENERATION_MASK: u64 = (1 << GENERATION_BITS) - 1;
const KIND_MASK: u64 = (1 << KIND_BITS) - 1;

const KIND_FLOW: u64 = 0;
const KIND_DEVICE: u64 = 1;
const KIND_LISTENER: u64 = 2;
const KIND_WAKER: u64 = 3;
const KIND_DATAGRAM: u64 = 4;

/// Maximum number of flows of one container.
pub(crate) const FLOWS_MAX: u32 = 1 << INDEX_BITS;

const _: () = assert!(CONTAINER_SHIFT + u16::BITS == usize::BITS, "the fields fill a token");
const _: () = assert!(KIND_DATAGRAM <= KIND_MASK, "every kind fits its bits");

/// What an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The host socket of a flow.
    Flow,
    /// The host socket of a mapping.
    Datagram,
    /// The container's TAP.
    Device,
    /// A published port, by its index in the container.
    Listener(u32),
    /// Another thread sent a command or released memory at the host level.
    Waker,
}

/// The token of the worker's waker.
pub(crate) const WAKER: Token = Token((KIND_WAKER << KIND_SHIFT) as usize);

/// The token of a flow's host socket.
pub(crate) fn flow(container: u16, flow: FlowId) -> Token {
    debug_assert!(flow.index < FLOWS_MAX, "flow index {} beyond the token", flow.index);
    let generation = u64::from(flow.generation) & GENERATION_MASK;
    pack(container, KIND_FLOW, generation << INDEX_BITS | u64::from(flow.index))
}

/// The token of a mapping's host socket.
pub(crate) fn datagram(container: u16, id: DatagramId) -> Token {
    let generation = u64::from(id.generation) & GENERATION_MASK;
    pack(container, KIND_DATAGRAM, generation << INDEX_BITS | u64::from(id.index))
}

/// The token of a container's device.
pub(crate) fn device(container: u16) -> Token {
    pack(container, KIND_DEVICE, 0)
}

/// The token of a published port.
pub(crate) fn listener(container: u16, index: u32) -> Token {
    pack(container, KIND_LISTENER, u64::from(index))
}

/// The container's index.
pub(crate) fn container(token: Token) -> u16 {
    (token.0 as u64 >> CONTAINER_SHIFT) as u16
}

/// The kind of event.
pub(crate) fn kind(token: Token) -> Kind {
    match token.0 as u64 >> KIND_SHIFT & KIND_MASK {
        KIND_FLOW => Kind::Flow,
        KIND_DATAGRAM => Kind::Datagram,
        KIND_DEVICE => Kind::Device,
        KIND_LISTENER => Kind::Listener(flow_index(token)),
        _ => Kind::Waker,
    }
}

/// The flow's index, or the published port's.
pub(crate) fn flow_index(token: Token) -> u32 {
    (token.0 as u64 & INDEX_MASK) as u32
}

fn pack(container: u16, kind: u64, rest: u64) -> Token {
    Token((u64::from(container) << CONTAINER_SHIFT | kind << KIND_SHIFT | rest) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_field_changes_another() {
        // The largest value of each field: a bit of one in another would change the kind or the container.
        let id = FlowId { index: FLOWS_MAX - 1, generation: u32::MAX };
        for index in [0, 1, u16::MAX] {
            let all = [flow(index, id), device(index), listener(index, FLOWS_MAX - 1)];
            assert_eq!(all.map(container), [index; 3]);
            assert_eq!(all.map(kind), [Kind::Flow, Kind::Device, Kind::Listener(FLOWS_MAX - 1)]);
        }
        // The generation is truncated to its bits and wraps.
        let wrapped = FlowId { generation: 1 << GENERATION_BITS, ..id };
        assert_eq!(flow(0, wrapped), flow(0, FlowId { generation: 0, ..id }));
    }

    #[test]
    fn what_goes_in_comes_out() {
        let id = FlowId { index: FLOWS_MAX - 1, generation: 7 };
        let t = flow(u16::MAX, id);
        assert_eq!((container(t), kind(t), flow_index(t)), (u16::MAX, Kind::Flow, id.index));
        assert_ne!(t, flow(u16::MAX, FlowId { generation: 8, ..id }));
        assert_eq!((container(device(3)), kind(device(3))), (3, Kind::Device));
        assert_eq!(kind(listener(3, 9)), Kind::Listener(9));
        assert_eq!(kind(WAKER), Kind::Waker);
    }
}

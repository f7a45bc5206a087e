//! A search for idle credit, on the container's own lists.

use std::io::{IoSlice, IoSliceMut};
use std::net::SocketAddr;

use skbudget_controller::{Budget, BudgetConfig, Limits, Rules, SockLimits};

pub(super) mod flows;

use super::*;
use crate::io::datagram::DatagramHost;
use crate::io::{Device, Host, HostCaps, HostError};
use crate::queue::chunk::ChunkPool;
use crate::vnet::VnetHdr;

/// Both ends of a flow that moves no data: a host socket without any, and a device that drops every frame.
struct Silent;

/// Without datagram sockets.
impl DatagramHost for Silent {}

impl Host for Silent {
    fn connect(&mut self, _: FlowId, _: SocketAddr, _: HostCaps) -> Result<(), HostError> {
        Ok(())
    }
    fn connect_outcome(&mut self, _: FlowId) -> Option<Result<(), HostError>> {
        Some(Ok(()))
    }
    fn write(&mut self, _: FlowId, _: &[IoSlice<'_>]) -> Result<usize, HostError> {
        Err(HostError::WouldBlock)
    }
    fn read(&mut self, _: FlowId, _: &mut [IoSliceMut<'_>]) -> Result<usize, HostError> {
        Err(HostError::WouldBlock)
    }
    fn shutdown_write(&mut self, _: FlowId) {}
    fn unacknowledged(&mut self, _: FlowId) -> u64 {
        0
    }
    fn set_caps(&mut self, _: FlowId, _: HostCaps) {}
    fn lower_caps(&mut self, _: FlowId, caps: HostCaps) -> HostCaps {
        caps
    }
    fn close(&mut self, _: FlowId, _: Close) {}
}

impl Device for Silent {
    fn send(&mut self, _: &VnetHdr, _: &[IoSlice<'_>]) -> bool {
        true
    }
}

/// A flow that waits for memory may be idle itself. It is out of the table while it is served, and stays on the list.
#[test]
fn a_search_for_idle_credit_keeps_the_entry_of_the_served_flow() {
    let limits = Limits::from_bytes(16 << 20, None, None).unwrap();
    let (rules, sock) = (Rules::Strict, SockLimits::default());
    let config = BudgetConfig { rules, limits, sock, min_bytes: 0, weight: 100 };
    let mut budget = Budget::new(config, None).unwrap();
    let member = budget.add_member(0).unwrap();
    let config = ContainerConfig::new(1500, false, Some(16 << 20), [1, 2]);
    let mut container = Container::new(config, member);
    let mut pool = ChunkPool::new();
    let mut cx = Ctx {
        now: Instant::from_millis(1),
        budget: &mut budget,
        pool: &mut pool,
        host: &mut Silent,
        device: &mut Silent,
    };
    // An ARP request teaches the guest's hardware address: without it no SYN is sent, and no window opened.
    let mut arp = [&[0xff; 6][..], &[2, 0, 0, 0, 0, 1], &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]].concat();
    arp.extend([2, 0, 0, 0, 0, 1, 10, 0, 2, 100]);
    arp.extend([0, 0, 0, 0, 0, 0, 10, 0, 2, 2]);
    container.on_frame(&mut cx, &VnetHdr::default(), &arp);
    let peer = SocketAddr::from(([192, 0, 2, 9], 5555));
    assert!(container.on_accept(&mut cx, 80, peer, 0).is_ok());
    while container.turn(&mut cx) {}
    // Long enough to be idle.
    cx.now = Instant::from_millis(2500);
    while container.turn(&mut cx) {}
    let entries = container.idle.idle();
    assert_eq!((entries.len(), container.flows.len()), (1, 1));
    let flow = container.flows.take(entries[0].1.index).unwrap();
    let credit = flow.ledger.credit();
    assert!(!container.demote(&mut cx, u64::MAX, Budget::headroom, Some(&flow)));
    assert_eq!(container.idle.idle(), entries);
    container.flows.put(flow);
    // For another one its credit is released.
    container.demote(&mut cx, u64::MAX, Budget::headroom, None);
    assert!(container.idle.idle().is_empty());
    let flow = container.flows.take(entries[0].1.index).unwrap();
    assert!(flow.ledger.credit() < credit);
    container.flows.put(flow);
    container.abort_all(&mut cx);
}

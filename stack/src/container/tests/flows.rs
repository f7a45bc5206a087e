//! Flows for the tests of the container's lists.

use std::net::SocketAddr;

use skbudget_controller::{Budget, Instant, MemberId};

use crate::config::ContainerConfig;
use crate::flow::table::FlowTable;
use crate::flow::{Flow, HostSide};
use crate::io::{FlowId, HostCaps};
use crate::queue::tests::SIZES;
use crate::tcp::{Link, Tcb};
use crate::test_budget::Setting;
use crate::wire::addresses::Tuple;
use crate::wire::seq::Seq;

/// A flow table with a budget that its ledgers belong to.
pub(crate) struct TestFlows {
    pub(in crate::container) table: FlowTable,
    budget: Budget,
    member: MemberId,
}

impl TestFlows {
    pub(in crate::container) fn new() -> Self {
        let mut budget = Setting::Linux.budget();
        let member = budget.add_member(0).unwrap();
        Self { table: FlowTable::new(64, [1, 2]), budget, member }
    }

    /// Opens a flow at this time, with a retransmission timer as its deadline.
    pub(in crate::container) fn open(&mut self, now: Instant) -> FlowId {
        let id = self.table.reserve().unwrap();
        let address = |port| SocketAddr::from(([10, 0, 2, 100], port));
        let config = ContainerConfig::new(1500, false, None, [1, 2]);
        let tcb = Tcb::active(Link::new(&config, false, 1 << 20), Seq(0), 0, now);
        let ledger = self.budget.admit(self.member, &SIZES, now).unwrap();
        let side = HostSide::new(
            crate::flow::Far::Host(address(1)),
            HostCaps { rcvbuf: 0, sndbuf: 0 },
            true,
        );
        let tuple = Tuple::new(address(80), address(1000 + id.index as u16));
        self.table.insert(Flow::new(id, tuple, tcb, side, ledger, now));
        id
    }

    /// Calls `work` with a flow that is taken from the table meanwhile.
    pub(in crate::container) fn with<T>(
        &mut self,
        id: FlowId,
        work: impl FnOnce(&mut Flow) -> T,
    ) -> T {
        let mut flow = self.table.take(id.index).unwrap();
        let result = work(&mut flow);
        self.table.put(flow);
        result
    }

    /// Ends a flow.
    pub(in crate::container) fn end(&mut self, id: FlowId) {
        let flow = self.table.take(id.index).unwrap();
        self.table.release(&flow);
        self.budget.release(flow.ledger, Instant::default());
    }

    /// Ends all flows.
    pub(in crate::container) fn end_all(mut self) {
        for id in self.table.iter().map(|flow| flow.id).collect::<Vec<_>>() {
            self.end(id);
        }
    }
}

//! Lists flows in parts: a turn reads a bounded part of a container's tables.

use skbudget_controller::{Instant, Rules};

use super::Worker;
use crate::flows::{Cursor, FlowPart};
use crate::types::DaemonError;

/// Places of a table that one command reads. A place costs at most 0.3 us, and a turn executes 16 commands.
const PLACES: u32 = 128;

impl Worker {
    /// A part of the container's flows, or of its mappings.
    pub(super) fn flows(
        &self,
        name: &str,
        from: Cursor,
        now: Instant,
    ) -> Result<FlowPart, DaemonError> {
        let index = self.find(name)?;
        let slot = self.containers[index].as_ref();
        let slot = slot.ok_or_else(|| DaemonError::NoSuchContainer(name.to_owned()))?;
        let rules = self.budgets[slot.budget].as_ref().map_or(Rules::Strict, |o| o.budget.rules());
        // Filled by one of the two tables below.
        let part = FlowPart { flows: Vec::new(), mappings: Vec::new(), next: None, rules, now };
        Ok(match from {
            Cursor::Flows(place) => {
                let (flows, next) = slot.stack.flows_from(place, PLACES);
                // The mappings follow the flows.
                let next = next.map_or(Cursor::Mappings(0), Cursor::Flows);
                FlowPart { flows, next: Some(next), ..part }
            }
            Cursor::Mappings(place) => {
                let (mappings, next) = slot.stack.mappings_from(place, PLACES);
                FlowPart { mappings, next: next.map(Cursor::Mappings), ..part }
            }
        })
    }
}

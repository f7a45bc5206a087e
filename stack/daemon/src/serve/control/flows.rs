//! Lists the flows of a container.

use super::{Control, failed};
use crate::api::ApiError;
use crate::flows::{Cursor, FlowList, FlowQuery, FlowReport, LIMIT_MAX, SCHEMA};

impl Control {
    /// The flows that the query selects, up to its limit. The worker reads a bounded part of its tables at a time; what
    /// is selected of it is decided here.
    pub(in crate::serve) fn flows(
        &self,
        name: &str,
        query: &FlowQuery,
    ) -> Result<FlowList, ApiError> {
        let limit = query.limit.unwrap_or(LIMIT_MAX) as usize;
        let (mut flows, mut next) = (Vec::new(), query.after.or(Some(Cursor::START)));
        while let Some(from) = next {
            let part = self.daemon.flow_part(name, from).map_err(|e| failed(&e))?;
            for (flow, behind) in part.reports().filter(|(flow, _)| query.selects(flow)) {
                flows.push(flow);
                // The flows behind may be many, or none: the next answer shows it.
                if flows.len() == limit {
                    return Ok(list(name, flows, Some(behind)));
                }
            }
            next = part.next;
        }
        Ok(list(name, flows, None))
    }
}

/// The answer with these flows.
fn list(name: &str, flows: Vec<FlowReport>, next: Option<Cursor>) -> FlowList {
    FlowList { schema: SCHEMA.to_owned(), container: name.to_owned(), flows, next }
}

//! The memory that is charged: chunks, and the queues of a flow that consist of them.

pub mod chunk;
pub(crate) mod ranges;
pub(crate) mod receive;
pub(crate) mod send;
#[cfg(test)]
pub(crate) mod tests;

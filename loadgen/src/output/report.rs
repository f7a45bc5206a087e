//! Renderings of a result, each from the result alone.

pub(crate) mod charts;
pub(crate) mod explain;
pub(crate) mod html;
mod method;
pub(crate) mod pick;
pub(crate) mod svg;
pub(crate) mod table;

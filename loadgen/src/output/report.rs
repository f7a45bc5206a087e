//! Renderings of a result, each from the result alone.

pub mod charts;
pub mod explain;
pub mod html;
mod method;
pub mod pick;
pub mod svg;
pub mod table;

//! Renderings of a result. All of them read the result alone.

pub mod explain;
pub mod html;
pub mod pick;
pub mod svg;
pub mod table;

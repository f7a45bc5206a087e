//! What a command leaves: files in a locked folder, and lines on the terminal. Everything is rendered from the result.

pub mod export;
pub(crate) mod folder;
pub(crate) mod report;
pub(crate) mod terminal;

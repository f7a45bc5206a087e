//! A meter above the container (group, host), shared by workers.

use alloc::sync::Arc;

use crate::limits::LimitError;

/// How a level is made. Pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LevelConfig {
    pub low: u64,
    pub soft: u64,
    /// Hard maximum; `u64::MAX` = no limit.
    pub hard: u64,
}

/// One atomic meter. Parent chain at most three long (with the container: four levels).
#[derive(Debug)]
pub struct Level {
    _parent: Option<Arc<Self>>,
}

impl Level {
    pub fn new(_config: LevelConfig, _parent: Option<Arc<Self>>) -> Result<Arc<Self>, LimitError> {
        todo!()
    }
}

//! placeholder
pub(crate) struct World;
impl World {
    pub(crate) fn new(_seed: u64) -> Self {
        Self
    }
    pub(crate) fn run(self, _ops: usize) -> Vec<String> {
        Vec::new()
    }
}

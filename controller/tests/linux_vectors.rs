//! The numbered vectors of the linux rules (`controller/docs/kernel.md`): 1 to 61, 65 to 89 and the
//! facts 82, 83, 90; 91 to 102 for the composite limit and the shares. 62 to 64 describe per-CPU
//! batching, which does not exist here.

#[path = "linux_vectors/composite.rs"]
mod composite;
#[path = "linux_vectors/container.rs"]
mod container;
#[path = "linux_vectors/facts.rs"]
mod facts;
#[path = "linux_vectors/ladder.rs"]
mod ladder;
#[path = "linux_vectors/sizes.rs"]
mod sizes;

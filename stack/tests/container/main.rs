//! One container's stack between a scripted guest and a scripted host: what it says, and when.

mod admission;
mod close;
mod data;
mod handshake;
mod loss;
mod malformed;
mod peer;
mod probe;
mod publish;
mod recovery;
mod reorder;
mod rig;
mod window;
mod wire;
mod wrap;

//! One container's stack between a scripted guest and a scripted host: what it says, and when.

mod handshake;
mod peer;
mod rig;
mod wire;

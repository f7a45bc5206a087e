//! One container's stack between a scripted guest and a scripted host: what it says, and when.

mod data;
mod handshake;
mod loss;
mod peer;
mod rig;
mod window;
mod wire;

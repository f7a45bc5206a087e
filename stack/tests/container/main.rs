//! One container's stack between a scripted guest and a scripted host: what it says, and when.

mod admission;
mod close;
mod data;
mod fragments;
mod handshake;
mod ipv6;
mod loss;
mod malformed;
mod ndp;
mod peer;
mod probe;
mod publish;
mod recovery;
mod reorder;
mod rig;
mod window;
mod wire;
mod wrap;

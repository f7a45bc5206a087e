//! One container's stack between a scripted guest and a scripted host: what it says, and when.

mod admission;
mod attack;
mod close;
mod cwnd;
mod data;
mod ecn;
mod fragments;
mod handshake;
mod ipv6;
mod keepalive;
mod loss;
mod malformed;
mod ndp;
mod paws;
mod peer;
mod persist;
mod probe;
mod publish;
mod recovery;
mod reorder;
mod reset;
mod rig;
mod undo;
mod window;
mod wire;
mod wrap;

//! Testbeds around the daemon: namespaces, devices, cables with faults, attackers, neighbours and terminals. Tests of
//! the package `skbudget` and the benches share them; most need root and /dev/net/tun.

pub mod cable;
pub mod flood_rig;
pub mod hostile;
pub mod neighbour;
pub mod network;
pub mod pty;
pub mod relay;
pub mod streams;

//! Testbeds around the daemon: namespaces, devices, cables with faults, attackers and neighbours. Tests of the package
//! `skbudget` and the benches share them; all need root and /dev/net/tun.

pub mod cable;
pub mod flood_rig;
pub mod hostile;
pub mod neighbour;
pub mod network;
pub mod relay;
pub mod streams;

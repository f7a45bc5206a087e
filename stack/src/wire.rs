//! Bytes to values and back: parses what the guest sends, emits what it receives. Nothing here holds a charge but
//! [`reassembly`], whose fragments the container charges.

pub(crate) mod addresses;
pub(crate) mod arp;
pub(crate) mod configure;
pub(crate) mod domains;
pub(crate) mod emit;
pub(crate) mod icmp;
pub(crate) mod ipv6;
pub(crate) mod ndp;
pub(crate) mod noroute;
pub(crate) mod parse;
pub(crate) mod reassembly;
pub(crate) mod segment;
pub(crate) mod seq;
pub(crate) mod udp;

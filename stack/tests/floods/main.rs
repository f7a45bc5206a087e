//! Guests that attack, and many honest clients: memory stays below the hard limit at every step, a neighbour below the
//! same host level is not affected, and nothing is left behind. All in virtual time, where CPU costs nothing: these
//! tests show memory, windows and timers, not CPU.

mod clients;
mod scene;

mod datagrams;
mod hostile;
mod many_clients;

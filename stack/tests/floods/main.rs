//! Guests that attack, and crowds: memory stays below the hard limit at every step, a neighbour on the same host
//! meter does not notice, and nothing is left behind. All in virtual time, where CPU costs nothing: what these show is
//! memory, windows and timers; what they cannot show is CPU.

mod attack;
mod crowd;
mod raw;
mod scene;

mod attacks;
mod crowds;

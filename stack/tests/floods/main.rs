//! Guests that attack, and crowds: memory stays below the hard limit at every step, a neighbour below the same host
//! level is not affected, and nothing is left behind. All in virtual time, where CPU costs nothing: these tests show
//! memory, windows and timers, not CPU.

mod attack;
mod crowd;
mod raw;
mod scene;

mod attacks;
mod crowds;

//! A small world that still starves: seconds in a debug build.

pub(crate) const SMALL: &[&str] = &[
    "victims=1",
    "stuff=60",
    "hoard=20",
    "hog-hard=4MiB",
    "victim-hard=2MiB",
    "rate=100Mbit",
    "hog-rate=1Gbit",
    "probe-rate=2000",
    "response=128",
    "solo=1s",
    "contended=1s",
    "recovery=200ms",
    "guest-buffer=64KiB",
];

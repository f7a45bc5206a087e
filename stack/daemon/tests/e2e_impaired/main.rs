//! The kernel's TCP in a container, behind a cable that drops, reorders and duplicates, against our stack. Every byte
//! arrives in both directions, with each congestion control of the kernel, with and without SACK and timestamps.
//! Nothing here depends on speed; goodput is measured by `cargo bench -p skbudget-benches --bench impaired`.
//! `cargo test -p skbudget --test e2e_impaired -- --ignored --test-threads=1 --nocapture`.

mod path_mtu;
mod transfers;

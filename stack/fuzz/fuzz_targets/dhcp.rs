#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| skbudget_sim::fuzz::dhcp(input));

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tcpguard_stack_fuzz::segments(data));

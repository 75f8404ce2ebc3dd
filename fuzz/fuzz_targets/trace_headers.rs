#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| agent_fuzz::trace_headers::run(data));

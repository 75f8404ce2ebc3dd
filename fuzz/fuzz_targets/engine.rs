#![no_main]

use agent_fuzz::engine::{self, mutate};
use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};

/// Bytes by which a damaged part of a record may grow.
const GROWTH: usize = 64;

fuzz_target!(|data: &[u8]| engine::run(data));

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    let recording = data.get(..size).unwrap_or_default();
    let changed = mutate::mutate(recording, max_size, seed, &mut |bytes| {
        let before = bytes.len();
        bytes.resize(before + GROWTH, 0);
        let after = fuzzer_mutate(bytes, before, before + GROWTH);
        bytes.truncate(after);
    });
    let length = changed.len().min(max_size);
    if let (Some(to), Some(from)) = (data.get_mut(..length), changed.get(..length)) {
        to.copy_from_slice(from);
    }
    length
});

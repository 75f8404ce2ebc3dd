//! The longer mode of tests that repeat something.

use std::env;

/// `EBPF_AGENT_SOAK_FACTOR` multiplies how often; 1 without it.
///
/// # Panics
/// When it is no number.
#[must_use]
pub fn factor() -> u64 {
    let given = env::var("EBPF_AGENT_SOAK_FACTOR").ok();
    given.map_or(1, |text| text.parse().expect("a number of times"))
}

//! What to do with a test that needs root, without root.

use std::{env, fs, os::unix::fs::MetadataExt};

/// Whether this process runs as root: the owner of its own `/proc` entry is its effective user.
pub fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|metadata| metadata.uid() == 0)
}

/// True for root. Otherwise says so in a line that the test runner counts, and the test returns;
/// with `REQUIRE_ROOT=1` it fails instead, so that nothing is skipped unnoticed.
#[expect(
    clippy::print_stderr,
    reason = "the line is read by people and counted by CI"
)]
pub fn root_or_skip(test: &str) -> bool {
    if is_root() {
        return true;
    }
    assert!(
        env::var("REQUIRE_ROOT").as_deref() != Ok("1"),
        "{test}: needs root"
    );
    eprintln!("skipped: needs root: {test}");
    false
}

/// Returns from the calling test when it is not run by root; see [`root_or_skip`].
#[macro_export]
macro_rules! require_root {
    () => {
        if !$crate::privilege::root_or_skip(&format!(
            "{} (line {})",
            std::thread::current().name().unwrap_or(module_path!()),
            line!()
        )) {
            return;
        }
    };
}

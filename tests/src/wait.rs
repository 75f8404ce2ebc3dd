//! Waiting for something to become true, never for time to pass.

use std::{
    thread,
    time::{Duration, Instant},
};

/// Long enough for a start or a flush on a busy machine or an emulated one; only failures take it.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// How often a condition is looked at.
const INTERVAL: Duration = Duration::from_millis(5);

/// Polls until there is a value, or `None` when `within` has passed.
pub fn poll_until<T>(within: Duration, mut poll: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + within;
    loop {
        if let Some(value) = poll() {
            return Some(value);
        }
        if Instant::now() > deadline {
            return None;
        }
        thread::sleep(INTERVAL);
    }
}

/// Polls until there is a value; panics with `what` when [`PATIENCE`] has run out.
pub fn wait_for<T>(what: &str, poll: impl FnMut() -> Option<T>) -> T {
    poll_until(PATIENCE, poll).unwrap_or_else(|| panic!("waited {PATIENCE:?} in vain for {what}"))
}

/// As [`wait_for`], for a condition without a value.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    wait_for(what, || condition().then_some(()));
}

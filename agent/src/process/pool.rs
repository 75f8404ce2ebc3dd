//! Threads that are workers of a pool by their name. Pure.

/// Beginnings of names (`/proc/PID/task/TID/comm`, 15 bytes) of threads that take one request at a
/// time from a queue, although they also read from sockets that their server's reactor polls.
///
/// - Puma names its workers `puma srv tp 001` (5.0 and newer; before, `puma threadpool`), and its
///   reactor `puma reactor`.
const WORKERS: [&str; 2] = ["puma srv tp ", "puma threadpool"];

/// Whether a thread of this name works for one request at a time.
pub fn is_worker(name: &str) -> bool {
    WORKERS.iter().any(|worker| name.starts_with(worker))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names as Puma 5.6 gives them.
    #[test]
    fn workers_and_reactors() {
        assert!(is_worker("puma srv tp 001"));
        for other in ["puma reactor", "puma srv", "ruby", "puma 5.6.5 (tcp:"] {
            assert!(!is_worker(other), "{other}");
        }
    }
}

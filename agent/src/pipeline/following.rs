//! EDGE: whose threads are watched for work that they hand to each other.

use std::collections::BTreeSet;

use crate::{event::ProcessId, kernel::hand_off::HandOffHooks};

/// The hooks are attached while there is anyone to watch.
pub(super) struct Following {
    hooks: HandOffHooks,
    followed: BTreeSet<u32>,
    /// The kernel refused the hooks, which was said.
    is_refused: bool,
}

impl Following {
    pub(super) const fn new(hooks: HandOffHooks) -> Self {
        Self {
            hooks,
            followed: BTreeSet::new(),
            is_refused: false,
        }
    }

    /// Attaches the hooks, if that is not done yet. Returns whether they can be had.
    pub(super) fn follow(&mut self, process: ProcessId) -> bool {
        if self.is_refused {
            return false;
        }
        if let Err(error) = self.hooks.attach() {
            let reason = format!("{error:#}");
            tracing::warn!(reason, "work handed from thread to thread is not followed");
            self.is_refused = true;
            return false;
        }
        tracing::info!(
            pid = process.pid,
            "threads hand work to each other: followed"
        );
        self.followed.insert(process.pid)
    }

    /// The process is followed no more, or has ended.
    pub(super) fn leave(&mut self, process: ProcessId) {
        if self.followed.remove(&process.pid) {
            tracing::info!(pid = process.pid, "threads are followed no more");
            if self.followed.is_empty() {
                self.hooks.detach();
            }
        }
    }
}

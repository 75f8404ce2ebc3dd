//! Temporary directories that vanish with their owner.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU32, Ordering},
};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A directory that is removed on drop. Anyone may enter it: nginx workers run as another user.
#[derive(Debug)]
pub struct TempDir {
    path: PathBuf,
}

impl TempDir {
    pub fn new(name: &str) -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = env::temp_dir().join(format!("agent-tests-{}-{number}-{name}", process::id()));
        fs::create_dir(&path).expect("a fresh directory under the temporary one");
        Self { path }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        // What is left when this fails is small, and the test's own verdict matters more.
        let _ = fs::remove_dir_all(&self.path);
    }
}

//! Tests that need root: what to do without it, and which run beside each other.

use std::{
    env,
    fs::{self, File},
    os::unix::fs::MetadataExt,
};

use crate::process::target_directory;

/// Whether this process runs as root: the owner of its own `/proc` entry is its effective user.
pub fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|metadata| metadata.uid() == 0)
}

/// What a test bears beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Company {
    /// Other tests: it traces what it started itself, by pid.
    Others,
    /// None: it traces by the name of a program, which others run too, or needs the processors for
    /// itself.
    Nobody,
}

/// The right to run, until dropped.
#[derive(Debug)]
pub struct Permit {
    _lock: File,
}

impl Permit {
    /// Waits for it. Tests take turns by a lock between threads and processes. To get there, all
    /// pass the same gate one by one: a test that waits to be alone keeps later ones behind it.
    fn take(company: Company) -> Self {
        let open = |name: &str| {
            let target = target_directory();
            fs::create_dir_all(&target).expect("the build directory");
            File::create(target.join(name)).expect("a lock file")
        };
        let (gate, lock) = (open("tests-gate.lock"), open("tests.lock"));
        gate.lock().expect("whoever is in the gate goes on");
        match company {
            Company::Others => lock.lock_shared(),
            Company::Nobody => lock.lock(),
        }
        .expect("other tests end");
        Self { _lock: lock }
    }
}

/// For root, once it is this test's turn. Otherwise says so in a line that the test runner counts,
/// and the test returns; with `REQUIRE_ROOT=1` it fails instead, so that nothing is skipped
/// unnoticed.
#[expect(
    clippy::print_stderr,
    reason = "the line is read by people and counted by CI"
)]
pub fn permit_or_skip(test: &str, company: Company) -> Option<Permit> {
    if is_root() {
        return Some(Permit::take(company));
    }
    assert!(
        env::var("REQUIRE_ROOT").as_deref() != Ok("1"),
        "{test}: needs root"
    );
    eprintln!("skipped: needs root: {test}");
    None
}

/// Returns from the calling test when it is not run by root, and lets it run beside others, or
/// `alone`; see [`permit_or_skip`] and [`Company`].
#[macro_export]
macro_rules! require_root {
    () => {
        $crate::require_root!(@Others);
    };
    (alone) => {
        $crate::require_root!(@Nobody);
    };
    (@$company:ident) => {
        let name = format!(
            "{} (line {})",
            std::thread::current().name().unwrap_or(module_path!()),
            line!()
        );
        let company = $crate::privilege::Company::$company;
        let Some(_permit) = $crate::privilege::permit_or_skip(&name, company) else {
            return;
        };
    };
}

//! Every target holds for every seed, and for every input that once broke it.

use std::{fs, path::Path};

use agent_fuzz::{TARGETS, seeds};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The vectors of the parsers, the recordings of the replay tests and the examples.
#[test]
fn seeds_hold() {
    for target in TARGETS {
        let seeds = seeds::of(target.name, &root().join("..")).expect("the files of the workspace");
        assert!(!seeds.is_empty(), "{} has no seeds", target.name);
        for seed in seeds {
            (target.run)(&seed);
        }
    }
}

/// Inputs that fuzzing found, `regressions/TARGET/*`, by names that say what was wrong.
#[test]
fn regressions_hold() {
    let mut seen = 0;
    for directory in fs::read_dir(root().join("regressions")).expect("committed inputs") {
        let directory = directory.expect("a directory that is listed").path();
        let name = directory.file_name().unwrap_or_default();
        let target = TARGETS.iter().find(|target| name == target.name);
        let target = target.unwrap_or_else(|| panic!("{} is no target", name.display()));
        for input in fs::read_dir(&directory).expect("a directory of inputs") {
            let input = fs::read(input.expect("a file that is listed").path());
            (target.run)(&input.expect("a readable input"));
            seen += 1;
        }
    }
    assert!(seen > 0, "no input at all");
}

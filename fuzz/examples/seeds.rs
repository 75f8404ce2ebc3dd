//! Writes the seeds of every target to `DIRECTORY/TARGET/`, and says the targets' names.
#![expect(clippy::print_stdout, reason = "the names are read by the caller")]

use std::{env, fs, io, path::PathBuf};

use agent_fuzz::{TARGETS, seeds};

fn main() -> io::Result<()> {
    let directory = env::args_os().nth(1).map(PathBuf::from);
    let directory = directory.ok_or_else(|| io::Error::other("usage: seeds DIRECTORY"))?;
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    for target in TARGETS {
        let place = directory.join(target.name);
        fs::create_dir_all(&place)?;
        for (number, seed) in seeds::of(target.name, &root)?.iter().enumerate() {
            fs::write(place.join(format!("{number:03}")), seed)?;
        }
        println!("{}", target.name);
    }
    Ok(())
}

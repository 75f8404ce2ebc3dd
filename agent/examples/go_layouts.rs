//! Prints what the agent finds in Go programs, and the row of `process::binary::layout` that the
//! debugging information of each makes: `cargo run -p agent --example go_layouts -- PROGRAM...`
#![expect(
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a tool: reads files and prints"
)]

use std::{env, fs::File};

use agent::process::binary;
use object::read::ReadCache;

fn main() -> anyhow::Result<()> {
    for path in env::args().skip(1) {
        let cache = ReadCache::new(File::open(&path)?);
        println!("{path}: {:?}", binary::analyse(&cache)?);
        if let Some((version, offsets)) = binary::measured_offsets(&cache)? {
            println!("{version}: {offsets:?}");
        }
    }
    Ok(())
}

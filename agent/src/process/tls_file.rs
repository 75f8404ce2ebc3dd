//! EDGE: the TLS library in a file that a process has mapped.
#![expect(
    clippy::disallowed_methods,
    reason = "edge: reads programs and their symbols"
)]

use std::{fs::File, path::Path};

use anyhow::Result;
use object::read::ReadCache;

use super::binary::tls::{self, FoundBy, TlsLibrary, separate};

/// Where distributions put symbols, in the process's file system and in the agent's own.
const SYMBOLS: &str = "usr/lib/debug";

/// `None`: there is no TLS library that is known in it. Symbols in a file of their own are looked
/// for where it has none.
pub fn library(pid: u32, file: &ReadCache<File>) -> Result<Option<TlsLibrary>> {
    let found = tls::find(file)?;
    if found
        .as_ref()
        .is_some_and(|library| library.found_by == FoundBy::Symbols)
    {
        return Ok(found);
    }
    Ok(by_separate_symbols(pid, file).or(found))
}

fn by_separate_symbols(pid: u32, file: &ReadCache<File>) -> Option<TlsLibrary> {
    let path = Path::new(SYMBOLS).join(separate::path(file)?);
    let root = format!("/proc/{pid}/root");
    [root.as_str(), "/"].into_iter().find_map(|root| {
        let path = Path::new(root).join(&path);
        let symbols = ReadCache::new(File::open(&path).ok()?);
        match separate::find(file, &symbols) {
            Ok(found) => found,
            Err(error) => {
                let path = path.display().to_string();
                tracing::warn!(pid, path, %error, "symbols not used");
                None
            }
        }
    })
}

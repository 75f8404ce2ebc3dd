//! EDGE: the TLS library in a file that a process has mapped.
#![expect(
    clippy::disallowed_methods,
    reason = "edge: reads programs and their symbols, and where those are"
)]

use std::{
    env, fs,
    fs::File,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use object::read::ReadCache;
use rustix::fs::OFlags;

use super::binary::tls::{self, FoundBy, TlsLibrary, separate};

/// Names the directory of symbols that were put into files of their own.
const DIRECTORY: &str = "EBPF_AGENT_DEBUG_FILE_DIRECTORY";

/// Where distributions have it.
const USUAL_DIRECTORY: &str = "/usr/lib/debug";

/// A file in anyone's file system: opening what is not one may block for ever.
pub fn open(path: &Path) -> Result<File> {
    let is_file = |metadata: fs::Metadata| metadata.is_file();
    ensure!(fs::metadata(path).is_ok_and(is_file), "it is no file");
    let mut options = File::options();
    // It may have been replaced meanwhile.
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = options.read(true).custom_flags(flags).open(path);
    let file = file.context("cannot open it")?;
    ensure!(file.metadata().is_ok_and(is_file), "it is no file");
    Ok(file)
}

/// `None`: there is no TLS library that is known in it. Symbols in a file of their own are looked
/// for where it has none.
pub fn library(file: &ReadCache<File>) -> Result<Option<TlsLibrary>> {
    let found = tls::find(file)?;
    let has_symbols = |library: &TlsLibrary| library.found_by == FoundBy::Symbols;
    if found.as_ref().is_some_and(has_symbols) {
        return Ok(found);
    }
    Ok(by_separate_symbols(file).or(found))
}

fn by_separate_symbols(file: &ReadCache<File>) -> Option<TlsLibrary> {
    let directory = env::var_os(DIRECTORY).filter(|directory| !directory.is_empty());
    let directory = directory.map_or_else(|| USUAL_DIRECTORY.into(), PathBuf::from);
    let path = directory.join(separate::path(file)?);
    let symbols = ReadCache::new(open(&path).ok()?);
    match separate::find(file, &symbols) {
        Ok(found) => found,
        Err(error) => {
            let path = path.display().to_string();
            tracing::warn!(path, %error, "symbols not used");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    /// What would block whoever opens it, and what is no file at all, is refused at once.
    #[test]
    fn only_files_are_opened() {
        let directory = env::temp_dir().join(format!("tls-file-{}", std::process::id()));
        fs::create_dir(&directory).expect("a directory");
        let (fifo, file) = (directory.join("fifo"), directory.join("file"));
        mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR, 0).expect("a FIFO");
        fs::write(&file, "x").expect("a file");
        let opened =
            [&fifo, &directory, &directory.join("none"), &file].map(|path| open(path).is_ok());
        fs::remove_dir_all(&directory).expect("it is ours");
        assert_eq!(opened, [false, false, false, true]);
    }
}

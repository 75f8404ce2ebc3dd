//! Symbols that were put into a file of their own (`objcopy --only-keep-debug`, packages like
//! `openssl-dbgsym`). Pure.
//!
//! That file belongs to a program whose build id it has. It may come from anyone who can write to
//! a container, and other containers may share the program: an address counts only where the
//! program's own table for unwinding says that a function begins.

use std::fmt::Write as _;

use object::read::ReadRef;

use super::{
    super::{Unreadable, elf::Elf, unwind::Unwinding},
    FUNCTIONS, FoundBy, Library, Probes, TlsLibrary, find_rustls, library, look_up, points_of,
};

/// Name, kind and what is before the id of the note (`NT_GNU_BUILD_ID`), elf(5).
const NOTE: &[u8] = b"\x03\0\0\0GNU\0";
const NOTE_AT: usize = 8;

/// Shorter ones are nobody's; what linkers write has 8 (fast) to 32 (SHA-256) bytes.
const SHORTEST: usize = 4;

/// Where a program's symbols are, below `/usr/lib/debug`; `None`: it has no build id.
pub fn path<'data, R: ReadRef<'data>>(data: R) -> Option<String> {
    let file = Elf::open(data).ok()?;
    let (first, rest) = build_id(&file)?.split_first()?;
    let mut path = format!(".build-id/{first:02x}/");
    for byte in rest {
        write!(path, "{byte:02x}").ok()?;
    }
    path.push_str(".debug");
    Some(path)
}

fn build_id<'data, R: ReadRef<'data>>(file: &Elf<R>) -> Option<&'data [u8]> {
    let note = file.contents(file.section(".note.gnu.build-id")?).ok()?;
    let id = note.get(NOTE_AT..)?.strip_prefix(NOTE)?;
    (id.len() >= SHORTEST).then_some(id)
}

/// A TLS library in a program, by the symbols in another file; `None` where that is not the
/// program's, or names none.
pub fn find<'data, 'symbols, R, S>(data: R, symbols: S) -> Result<Option<TlsLibrary>, Unreadable>
where
    R: ReadRef<'data>,
    S: ReadRef<'symbols>,
{
    let (file, symbols) = (Elf::open(data)?, Elf::open(symbols)?);
    let id = build_id(&file);
    if id.is_none() || id != build_id(&symbols) {
        return Ok(None);
    }
    let Some((library, probes)) = named(&symbols)? else {
        return Ok(None);
    };
    let functions = Unwinding::open(&file)?;
    let is_function = |address| functions.beginning(&file, address) == Some(address);
    if !probes.iter().all(|(_, address)| is_function(*address)) {
        return Err(Unreadable::Unsupported("separate symbols"));
    }
    Ok(Some(TlsLibrary {
        library,
        found_by: FoundBy::SeparateSymbols,
        points: points_of(&file, &probes)?,
    }))
}

fn named<'data, R: ReadRef<'data>>(file: &Elf<R>) -> Result<Option<(Library, Probes)>, Unreadable> {
    let mut found: Vec<Option<u64>> = vec![None; FUNCTIONS.len()];
    look_up(file, ".symtab", ".strtab", &mut found)?;
    let Some(library) = library(&found) else {
        let probes = find_rustls(file)?;
        return Ok(probes.map(|probes| (Library::Rustls, probes)));
    };
    let functions = FUNCTIONS.iter().zip(found);
    let probes = functions.filter_map(|(function, address)| Some((function.programs, address?)));
    let probes = probes.flat_map(|(programs, address)| {
        let probe = move |program: &&'static str| (*program, address);
        programs.iter().map(probe)
    });
    Ok(Some((library, probes.collect())))
}

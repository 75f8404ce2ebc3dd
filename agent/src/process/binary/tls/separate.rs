//! Symbols that were put into a file of their own (`objcopy --only-keep-debug`, packages like
//! `openssl-dbgsym`). Pure.
//!
//! That file belongs to a program whose build id it has, and an address in it counts only where the
//! program's own table for unwinding says that a function begins. That still is not proof enough to
//! take the file from whoever can write to a container: other containers may run the same program.

use std::{fmt::Write as _, ops::RangeInclusive};

use object::read::ReadRef;

use super::{
    super::{Unreadable, elf::Elf, unwind::Unwinding},
    FUNCTIONS, FoundBy, Library, Probes, TlsLibrary, find_rustls, library, look_up, points_of,
    probes,
};

/// Bytes of a build id: fast linkers write 8, SHA-256 has 32.
const ID_BYTES: RangeInclusive<usize> = 4..=64;

/// Where a program's symbols are, below a directory for them (gdb's `debug-file-directory`);
/// `None`: it has no build id.
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
    id(file.contents(file.section(".note.gnu.build-id")?).ok()?)
}

/// Of a note: lengths of name and id, its kind (`NT_GNU_BUILD_ID`), the name, the id; elf(5).
fn id(note: &[u8]) -> Option<&[u8]> {
    let rest = note.strip_prefix(&[4, 0, 0, 0])?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let rest = rest.strip_prefix(b"\x03\0\0\0GNU\0")?;
    let id = rest.get(..u32::from_le_bytes(*length) as usize)?;
    ID_BYTES.contains(&id.len()).then_some(id)
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
    Ok(Some((library, probes(&found))))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A build id is what the note says it is, of a sensible length, and nothing else.
    #[test]
    fn build_ids() {
        let note_of = |kind: &[u8; 4], length: u32, id: &[u8]| {
            let length = length.to_le_bytes();
            [&[4, 0, 0, 0], length.as_slice(), kind, b"GNU\0", id].concat()
        };
        let note = |length, id: &[u8]| note_of(&[3, 0, 0, 0], length, id);
        assert_eq!(id(&note(4, b"abcd")), Some(b"abcd".as_slice()));
        assert_eq!(id(&note(4, b"abcdefgh")), Some(b"abcd".as_slice()));
        assert_eq!(id(&note(64, &[7; 64])), Some([7; 64].as_slice()));
        for damaged in [
            note(0, b""),
            note(3, b"abc"),
            note(5, b"abcd"),
            note(65, &[7; 65]),
            note(u32::MAX, &[7; 64]),
            note_of(&[1, 0, 0, 0], 4, b"abcd"),
        ] {
            assert_eq!(id(&damaged), None, "{damaged:?}");
        }
        let whole = note(4, b"abcd");
        for end in 0..whole.len() {
            assert_eq!(id(&whole[..end]), None, "{end}");
        }
    }
}

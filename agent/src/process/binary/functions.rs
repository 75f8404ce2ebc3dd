//! Where a Go function is: the table that Go needs for its own stack traces, `.gopclntab`, which
//! stripping leaves in place. Format: `runtime/symtab.go` and `cmd/link/internal/ld/pcln.go` of Go.
//!
//! ```text
//! header   magic u32, 0, 0, instruction quantum u8, pointer size u8,
//!          then words: functions, files, text start (Go 1.18 to 1.25), offsets from the header of
//!          names, compile units, files, pc tables, functions
//! functions  (entry u32, offset u32) each, entry from text start, offset from this table to
//! _func      entry u32, name u32 (offset into names), ...
//! ```

use memchr::memmem;
use object::read::ReadRef;

use super::{
    Unreadable,
    elf::{Elf, Section},
};

/// Go 1.18 and 1.19; Go 1.20 and newer. Older ones are refused: before 1.17 arguments went by the
/// stack.
const MAGICS: [u32; 2] = [0xffff_fff0, 0xffff_fff1];

/// Bytes of the header up to the offset of the function table.
const HEADER_BYTES: u64 = 72;

/// Of moduledata, where its own section (Go 1.26) holds it: `minpc`, the first function.
/// `runtime/symtab.go`: a pointer, six slices of three words, and one word stand before it.
const MODULE_FIRST_FUNCTION: u64 = 8 + 6 * 24 + 8;

/// The function table of one program.
pub(super) struct Functions<'data> {
    names: &'data [u8],
    /// Entries, then what they point to.
    table: &'data [u8],
    count: usize,
    text_starts: Vec<u64>,
}

/// A function's entry, by each of the possible starts of the text, best first.
pub(super) struct Found {
    pub(super) entries: Vec<u64>,
    /// Bytes up to where the next function begins; 0 where none does.
    pub(super) size: u64,
}

impl<'data> Functions<'data> {
    pub(super) fn open<R: ReadRef<'data>>(file: &Elf<R>) -> Result<Self, Unreadable> {
        const WHAT: &str = "function table";
        let section = file
            .section_ending(".gopclntab")
            .ok_or(Unreadable::Absent(WHAT))?;
        let header = file.part(section, 0, HEADER_BYTES)?;
        let magic = word32(header, 0).ok_or(Unreadable::Malformed(WHAT))?;
        if !MAGICS.contains(&magic) {
            return Err(Unreadable::Unsupported(WHAT));
        }
        if header.get(7) != Some(&8) {
            return Err(Unreadable::Malformed(WHAT));
        }
        let field = |index: usize| word64(header, 8 + index * 8).unwrap_or(u64::MAX);
        let (names, units, functions) = (field(3), field(4), field(7));
        let table = file.part(section, functions, section.size.saturating_sub(functions))?;
        let count = field(0) as usize;
        if count > table.len() / 8 {
            return Err(Unreadable::Malformed(WHAT));
        }
        let first = word32(table, 0).unwrap_or(0);
        Ok(Self {
            names: file.part(section, names, units.saturating_sub(names))?,
            table,
            count,
            text_starts: text_starts(file, section, u64::from(first)),
        })
    }

    /// `None`: the program has no such function.
    pub(super) fn find(&self, name: &str) -> Option<Found> {
        let wanted = [b"\0", name.as_bytes(), b"\0"].concat();
        let name = memmem::find(self.names, &wanted)? as u32 + 1;
        let (index, entry) = (0..self.count).find_map(|index| {
            let entry = word32(self.table, index * 8)?;
            let function = word32(self.table, index * 8 + 4)? as usize;
            (word32(self.table, function.checked_add(4)?)? == name).then_some((index, entry))
        })?;
        // Behind the last one stands where it ends.
        let next = word32(self.table, (index + 1) * 8).unwrap_or(entry);
        Some(Found {
            size: next.saturating_sub(entry).into(),
            entries: self
                .text_starts
                .iter()
                .map(|start| start.saturating_add(u64::from(entry)))
                .collect(),
        })
    }
}

/// What the entries may count from. With C code linked in, the text section begins before Go's
/// text; without a relocation, a position-independent program's header does not say.
fn text_starts<'data, R: ReadRef<'data>>(
    file: &Elf<R>,
    table: &Section,
    first_function: u64,
) -> Vec<u64> {
    let in_header = file
        .word(table.address.saturating_add(24))
        .filter(|start| *start != 0);
    let in_module = file
        .section_ending(".go.module")
        .and_then(|module| file.word(module.address.saturating_add(MODULE_FIRST_FUNCTION)))
        .map(|first| first.saturating_sub(first_function));
    let section = file.section(".text").map(|text| text.address);
    [in_header, in_module, section]
        .into_iter()
        .flatten()
        .collect()
}

fn word32(bytes: &[u8], at: usize) -> Option<u32> {
    let word = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(word.try_into().ok()?))
}

fn word64(bytes: &[u8], at: usize) -> Option<u64> {
    let word = bytes.get(at..at.checked_add(8)?)?;
    Some(u64::from_le_bytes(word.try_into().ok()?))
}

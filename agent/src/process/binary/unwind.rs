//! Where functions begin, by the table that unwinds stacks, which stripped programs keep. Pure.
//!
//! `.eh_frame_hdr` has a sorted table of functions and of their entries in `.eh_frame` (Linux
//! Standard Base 5.0, core, sections 10.6.1 and 10.6.2). Covered is the one encoding that linkers
//! write; not covered are entries of 4 GiB and more.

use std::ops::Range;

use object::read::ReadRef;

use super::{Unreadable, elf::Elf};

/// Version 1, then encodings: of the address of `.eh_frame` (4 bytes, relative), of the count (4
/// bytes) and of the table (4 bytes, relative to this section).
const HEADER: [u8; 4] = [1, 0x1b, 0x03, 0x3b];
const ROW_BYTES: usize = 8;

pub(super) struct Unwinding<'data> {
    address: u64,
    rows: &'data [[u8; ROW_BYTES]],
}

impl<'data> Unwinding<'data> {
    pub(super) fn open<R: ReadRef<'data>>(file: &Elf<R>) -> Result<Self, Unreadable> {
        const ABSENT: Unreadable = Unreadable::Absent("table of functions");
        let section = file.section(".eh_frame_hdr").ok_or(ABSENT)?;
        let contents = file.contents(section)?;
        let rest = contents.strip_prefix(&HEADER);
        let rest = rest.ok_or(Unreadable::Unsupported("table of functions"))?;
        let (_, rest) = rest.split_first_chunk::<4>().ok_or(ABSENT)?;
        let (count, rest) = rest.split_first_chunk::<4>().ok_or(ABSENT)?;
        let (rows, _) = rest.as_chunks();
        let rows = rows.get(..u32::from_le_bytes(*count) as usize);
        Ok(Self {
            address: section.address,
            rows: rows.ok_or(Unreadable::Truncated("table of functions"))?,
        })
    }

    /// Address of the function that has an instruction at this one. `None` where there is none,
    /// and where it is part of a function that the compiler put somewhere else.
    pub(super) fn beginning<R: ReadRef<'data>>(&self, file: &Elf<R>, address: u64) -> Option<u64> {
        Some(self.function(file, address)?.start)
    }

    /// As [`Self::beginning`], all addresses of the function.
    pub(super) fn function<R: ReadRef<'data>>(
        &self,
        file: &Elf<R>,
        address: u64,
    ) -> Option<Range<u64>> {
        let behind = self
            .rows
            .partition_point(|row| self.begins(*row).is_some_and(|begins| begins <= address));
        let row = self.rows.get(behind.checked_sub(1)?)?;
        let beginning = self.begins(*row)?;
        let entry = file.at_address(self.relative(*row, 4)?, ENTRY_BYTES).ok()?;
        let function = beginning..beginning.checked_add(word(entry, 12)?.into())?;
        (function.contains(&address) && begins_whole(entry)).then_some(function)
    }

    fn begins(&self, row: [u8; ROW_BYTES]) -> Option<u64> {
        self.relative(row, 0)
    }

    fn relative(&self, row: [u8; ROW_BYTES], at: usize) -> Option<u64> {
        let distance = word(&row, at)?.cast_signed();
        self.address.checked_add_signed(distance.into())
    }
}

/// Of an entry: its length, the distance of what is common to many, the function's distance and
/// length, the length of additions, and the first instruction of the unwinder.
const ENTRY_BYTES: u64 = 18;

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let word = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(word.try_into().ok()?))
}

/// Whether the stack is at the first instruction as a call leaves it. Rare paths that a compiler
/// moves away begin with the frame that they were in, which is said right there; a function says
/// something of its frame only behind an instruction, or never.
fn begins_whole(entry: &[u8]) -> bool {
    // DWARF 5, section 7.24.
    const NOTHING: u8 = 0;
    const ADVANCE_1: u8 = 2;
    const ADVANCE_2: u8 = 3;
    const ADVANCE: u8 = 0x40;
    const ADVANCE_LAST: u8 = 0x7f;
    let [.., additions, first] = entry else {
        return false;
    };
    *additions == 0
        && matches!(
            *first,
            NOTHING | ADVANCE_1 | ADVANCE_2 | ADVANCE..=ADVANCE_LAST
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ends of entries as compilers wrote them: a function with a frame, one without, and a rare
    /// path that was moved away (`DW_CFA_def_cfa_offset` first).
    #[test]
    fn beginnings() {
        for (end, expected) in [
            ([0, 0x44], true),
            ([0, 0], true),
            ([0, 0x0e], false),
            ([4, 0x44], false),
        ] {
            let mut entry = vec![0; ENTRY_BYTES as usize - 2];
            entry.extend(end);
            assert_eq!(begins_whole(&entry), expected, "{end:x?}");
        }
    }
}

//! Offsets of structure fields from debugging information, where it was kept (DWARF 4 and 5).

use gimli::{AttributeValue, Dwarf, DwarfSections, EndianSlice, LittleEndian, UnitHeader};
use object::read::ReadRef;

use super::{
    elf::Elf,
    layout::{FIELDS, Offsets},
};

/// Bytes of debugging information looked at, decompressed. A large program has some 50 MB; it is
/// read once for each binary that no table knows.
const INFORMATION_BYTES: u64 = 128 << 20;

type Bytes<'a> = EndianSlice<'a, LittleEndian>;

/// `None` when there is none, or not of all that is needed.
pub(super) fn offsets<'data, R: ReadRef<'data>>(file: &Elf<R>) -> Option<Offsets> {
    let sections = DwarfSections::load(|id| {
        use gimli::SectionId as S;
        let wanted = matches!(id, S::DebugInfo | S::DebugAbbrev | S::DebugStr);
        let contents = wanted.then(|| file.decompressed(id.name(), INFORMATION_BYTES));
        Ok::<_, gimli::Error>(contents.flatten().unwrap_or_default())
    })
    .ok()?;
    let dwarf = sections.borrow(|section| EndianSlice::new(section, LittleEndian));
    let mut found = [None; FIELDS.len()];
    let mut headers = dwarf.units();
    while let Ok(Some(header)) = headers.next() {
        // What was found before a malformed unit still holds.
        let _ = look_through(&dwarf, &header, &mut found);
        if found.iter().all(Option::is_some) {
            break;
        }
    }
    Offsets::of(found)
}

fn look_through(
    dwarf: &Dwarf<Bytes<'_>>,
    unit: &UnitHeader<Bytes<'_>>,
    found: &mut [Option<u32>; FIELDS.len()],
) -> gimli::Result<()> {
    let abbreviations = unit.abbreviations(&dwarf.debug_abbrev)?;
    let mut entries = unit.entries(&abbreviations);
    // The structure whose members come now, and its depth.
    let mut inside: Option<(&str, isize)> = None;
    while let Some(entry) = entries.next_dfs()? {
        let depth = entry.depth();
        if inside.is_some_and(|(_, outer)| depth <= outer) {
            inside = None;
        }
        let name = |value: Option<AttributeValue<_>>| {
            value.and_then(|value| value.string_value(&dwarf.debug_str))
        };
        match (entry.tag(), inside) {
            (gimli::DW_TAG_structure_type, _) => {
                let name = name(entry.attr_value(gimli::DW_AT_name));
                inside = FIELDS
                    .iter()
                    .find(|(of, _)| name.is_some_and(|name| name.slice() == of.as_bytes()))
                    .map(|(of, _)| (*of, depth));
            }
            (gimli::DW_TAG_member, Some((structure, outer))) if depth == outer + 1 => {
                let name = name(entry.attr_value(gimli::DW_AT_name));
                let place = FIELDS.iter().position(|(of, field)| {
                    *of == structure && name.is_some_and(|name| name.slice() == field.as_bytes())
                });
                if let Some(slot) = place.and_then(|place| found.get_mut(place)) {
                    let offset = entry.attr_value(gimli::DW_AT_data_member_location);
                    *slot = offset
                        .and_then(|offset| offset.udata_value())
                        .and_then(|offset| u32::try_from(offset).ok());
                }
            }
            _ => {}
        }
    }
    Ok(())
}

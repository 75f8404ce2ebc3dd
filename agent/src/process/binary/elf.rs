//! The parts of an ELF file that are asked for, and no more: binaries are hundreds of megabytes.
//! 64-bit and little-endian only (System V ABI, AMD64 supplement).

use flate2::read::ZlibDecoder;
use object::{LittleEndian as LE, elf, read::ReadRef};
use std::io::Read as _;

use super::Unreadable;

/// Bytes read of one section at most. The largest ones of the largest Go programs (their function
/// tables) are some 50 MB.
const SECTION_BYTES: u64 = 256 << 20;

/// Program and section headers looked at; Go programs have some 10 and 40.
const HEADERS: u64 = 512;

/// One section's place.
#[derive(Clone, Debug)]
pub(super) struct Section {
    pub(super) name: Vec<u8>,
    pub(super) address: u64,
    pub(super) size: u64,
    offset: u64,
    is_compressed: bool,
    has_bytes: bool,
}

#[derive(Clone, Copy, Debug)]
struct Segment {
    address: u64,
    memory_size: u64,
    offset: u64,
    file_size: u64,
}

/// An opened ELF file; `R` reads its bytes.
pub(super) struct Elf<R> {
    data: R,
    pub(super) sections: Vec<Section>,
    segments: Vec<Segment>,
    /// It may be loaded at any address (`ET_DYN`).
    pub(super) is_position_independent: bool,
}

impl<'data, R: ReadRef<'data>> Elf<R> {
    pub(super) fn open(data: R) -> Result<Self, Unreadable> {
        let header: &elf::FileHeader64<LE> = data.read_at(0).map_err(|()| Unreadable::NotElf)?;
        let ident = &header.e_ident;
        if ident.magic != elf::ELFMAG
            || ident.class != elf::ELFCLASS64
            || ident.data != elf::ELFDATA2LSB
            || header.e_machine.get(LE) != elf::EM_X86_64
        {
            return Err(Unreadable::NotElf);
        }
        let mut opened = Self {
            data,
            sections: Vec::new(),
            segments: Vec::new(),
            is_position_independent: header.e_type.get(LE) == elf::ET_DYN,
        };
        let count = u64::from(header.e_phnum.get(LE)).min(HEADERS) as usize;
        let programs: &[elf::ProgramHeader64<LE>] =
            opened.slice("program headers", header.e_phoff.get(LE), count)?;
        opened.segments = programs
            .iter()
            .filter(|program| program.p_type.get(LE) == elf::PT_LOAD)
            .map(|program| Segment {
                address: program.p_vaddr.get(LE),
                memory_size: program.p_memsz.get(LE),
                offset: program.p_offset.get(LE),
                file_size: program.p_filesz.get(LE),
            })
            .collect();
        let count = u64::from(header.e_shnum.get(LE)).min(HEADERS) as usize;
        let sections: &[elf::SectionHeader64<LE>] =
            opened.slice("section headers", header.e_shoff.get(LE), count)?;
        opened.name_sections(sections, usize::from(header.e_shstrndx.get(LE)))?;
        Ok(opened)
    }

    fn name_sections(
        &mut self,
        headers: &[elf::SectionHeader64<LE>],
        names: usize,
    ) -> Result<(), Unreadable> {
        let Some(names) = headers.get(names) else {
            return Ok(());
        };
        let names = self.bytes(
            "section names",
            names.sh_offset.get(LE),
            names.sh_size.get(LE),
        )?;
        self.sections = headers
            .iter()
            .map(|header| {
                let name = names.get(header.sh_name.get(LE) as usize..);
                let name = name.and_then(|rest| rest.split(|byte| *byte == 0).next());
                Section {
                    name: name.unwrap_or_default().to_vec(),
                    address: header.sh_addr.get(LE),
                    size: header.sh_size.get(LE),
                    offset: header.sh_offset.get(LE),
                    is_compressed: header.sh_flags.get(LE) & u64::from(elf::SHF_COMPRESSED) != 0,
                    has_bytes: header.sh_type.get(LE) != elf::SHT_NOBITS,
                }
            })
            .collect();
        Ok(())
    }

    pub(super) fn section(&self, name: &str) -> Option<&Section> {
        self.sections
            .iter()
            .find(|section| section.name == name.as_bytes() && section.has_bytes)
    }

    /// The first section whose name ends so: linkers put `.data.rel.ro` before Go's own names.
    pub(super) fn section_ending(&self, name: &str) -> Option<&Section> {
        self.sections
            .iter()
            .find(|section| section.name.ends_with(name.as_bytes()) && section.has_bytes)
    }

    /// A section's bytes as they are in the file.
    pub(super) fn contents(&self, section: &Section) -> Result<&'data [u8], Unreadable> {
        self.bytes("section", section.offset, section.size)
    }

    /// A section that is a table of records of one type.
    pub(super) fn records<T: object::Pod>(
        &self,
        what: &'static str,
        section: &Section,
    ) -> Result<&'data [T], Unreadable> {
        let count = section.size as usize / size_of::<T>();
        self.slice(what, section.offset, count)
    }

    /// Part of a section.
    pub(super) fn part(
        &self,
        section: &Section,
        from: u64,
        length: u64,
    ) -> Result<&'data [u8], Unreadable> {
        let is_inside = from
            .checked_add(length)
            .is_some_and(|end| end <= section.size);
        if !is_inside {
            return Err(Unreadable::Truncated("section"));
        }
        self.bytes("section", section.offset.saturating_add(from), length)
    }

    /// A section's contents with compression undone, at most `limit` bytes of them: `None` for
    /// more, or where the section is absent.
    pub(super) fn decompressed(&self, name: &str, limit: u64) -> Option<Vec<u8>> {
        const HEADER_BYTES: usize = size_of::<elf::CompressionHeader64<LE>>();
        if let Some(section) = self.section(name) {
            let raw = self.contents(section).ok()?;
            if !section.is_compressed {
                return (raw.len() as u64 <= limit).then(|| raw.to_vec());
            }
            let header: &elf::CompressionHeader64<LE> = raw.read_at(0).ok()?;
            let is_zlib = header.ch_type.get(LE) == elf::ELFCOMPRESS_ZLIB;
            return is_zlib
                .then(|| inflate(raw.get(HEADER_BYTES..)?, limit))
                .flatten();
        }
        // Before SHF_COMPRESSED: `.zdebug_info`, "ZLIB", the size in eight bytes, the stream.
        let old = format!(".z{}", name.strip_prefix('.')?);
        let raw = self.contents(self.section(&old)?).ok()?;
        inflate(raw.strip_prefix(b"ZLIB")?.get(8..)?, limit)
    }

    /// Bytes at an address of the loaded program, as they are in the file.
    pub(super) fn at_address(&self, address: u64, length: u64) -> Result<&'data [u8], Unreadable> {
        let offset = self
            .file_offset(address)
            .ok_or(Unreadable::Truncated("address"))?;
        self.bytes("address", offset, length)
    }

    /// Where in the file the byte at this address is.
    pub(super) fn file_offset(&self, address: u64) -> Option<u64> {
        self.segments.iter().find_map(|segment| {
            let distance = address.checked_sub(segment.address)?;
            (distance < segment.file_size).then(|| segment.offset.checked_add(distance))?
        })
    }

    /// Address of the program's first byte, and the one behind its last.
    pub(super) fn image(&self) -> (u64, u64) {
        let start = self.segments.iter().map(|segment| segment.address).min();
        let end = self
            .segments
            .iter()
            .map(|segment| segment.address.saturating_add(segment.memory_size))
            .max();
        (start.unwrap_or(0), end.unwrap_or(0))
    }

    /// The 8-byte word at an address once the program is loaded: in a position-independent program
    /// the linker may leave it to a relocation. Relative to the load address, then.
    pub(super) fn word(&self, address: u64) -> Option<u64> {
        let stored = self.at_address(address, 8).ok()?;
        let stored = u64::from_le_bytes(stored.try_into().ok()?);
        if stored != 0 || !self.is_position_independent {
            return Some(stored);
        }
        let section = self
            .section(".rela.dyn")
            .or_else(|| self.section(".rela"))?;
        let count = section.size as usize / size_of::<elf::Rela64<LE>>();
        let relocations: &[elf::Rela64<LE>] =
            self.slice("relocations", section.offset, count).ok()?;
        relocations
            .iter()
            .find(|relocation| relocation.r_offset.get(LE) == address)
            .filter(|relocation| {
                relocation.r_info.get(LE) & 0xffff_ffff == u64::from(elf::R_X86_64_RELATIVE)
            })
            .map(|relocation| relocation.r_addend.get(LE) as u64)
    }

    fn bytes(
        &self,
        what: &'static str,
        offset: u64,
        length: u64,
    ) -> Result<&'data [u8], Unreadable> {
        self.check(what, offset, length)?;
        self.data
            .read_bytes_at(offset, length)
            .map_err(|()| Unreadable::Truncated(what))
    }

    fn slice<T: object::Pod>(
        &self,
        what: &'static str,
        offset: u64,
        count: usize,
    ) -> Result<&'data [T], Unreadable> {
        self.check(
            what,
            offset,
            (count as u64).saturating_mul(size_of::<T>() as u64),
        )?;
        self.data
            .read_slice_at(offset, count)
            .map_err(|()| Unreadable::Truncated(what))
    }

    /// Before anything is allocated for it.
    fn check(&self, what: &'static str, offset: u64, length: u64) -> Result<(), Unreadable> {
        let file = self.data.len().map_err(|()| Unreadable::Truncated(what))?;
        let is_inside = offset.checked_add(length).is_some_and(|end| end <= file);
        if !is_inside {
            return Err(Unreadable::Truncated(what));
        }
        if length > SECTION_BYTES {
            return Err(Unreadable::TooLarge(what));
        }
        Ok(())
    }
}

fn inflate(stream: &[u8], limit: u64) -> Option<Vec<u8>> {
    let mut contents = Vec::new();
    let length = ZlibDecoder::new(stream)
        .take(limit.saturating_add(1))
        .read_to_end(&mut contents)
        .ok()?;
    (length as u64 <= limit).then_some(contents)
}

//! What is read off the code and the constants of a program without symbols. Pure.

use memchr::{memchr2_iter, memmem};
use object::read::ReadRef;

use super::super::{
    Unreadable,
    elf::{Elf, Section},
};

/// An eBPF program and the address that it is put on.
pub(super) type Probe = (&'static str, u64);

/// Bytes of the instruction that loads an address relative to the next one.
pub(super) const LOAD_BYTES: usize = 7;

/// Bytes of the two instructions that may be between those with the name and the file.
const BETWEEN_BYTES: usize = 12;

/// Loads an address into a register, relative to the next instruction or as it is.
pub(super) struct Load {
    pub(super) relative: [u8; 3],
    pub(super) absolute: u8,
}

/// Of a file what is loaded and does not change.
pub(super) struct Parts<'data> {
    pub(super) constants: Bytes<'data>,
    pub(super) code: Bytes<'data>,
}

impl<'data> Parts<'data> {
    /// `None` where the file lacks one of them.
    pub(super) fn of<R: ReadRef<'data>>(file: &Elf<R>) -> Result<Option<Self>, Unreadable> {
        let sections = (file.section(".rodata"), file.section(".text"));
        let (Some(constants), Some(code)) = sections else {
            return Ok(None);
        };
        let part = |section: &Section| {
            Ok(Bytes {
                address: section.address,
                bytes: file.contents(section)?,
            })
        };
        Ok(Some(Self {
            constants: part(constants)?,
            code: part(code)?,
        }))
    }
}

/// Part of the program at its address.
pub(super) struct Bytes<'data> {
    pub(super) address: u64,
    pub(super) bytes: &'data [u8],
}

impl Bytes<'_> {
    /// Addresses of this string, whole.
    pub(super) fn strings(&self, text: &str) -> Vec<u64> {
        let bounded = [b"\0", text.as_bytes(), b"\0"].concat();
        memmem::find_iter(self.bytes, &bounded)
            .map(|at| self.address.saturating_add(at as u64 + 1))
            .collect()
    }

    /// Addresses of strings that end so, each from its own beginning.
    pub(super) fn strings_ending(&self, end: &[u8]) -> Vec<u64> {
        memmem::find_iter(self.bytes, end)
            .filter_map(|at| {
                let before = memchr::memrchr(0, self.bytes.get(..at)?)?;
                Some(self.address.saturating_add(before as u64 + 1))
            })
            .collect()
    }

    /// Where one of these addresses is loaded into a register.
    pub(super) fn loads(&self, load: &Load, addresses: &[u64]) -> impl Iterator<Item = usize> {
        let mut found: Vec<usize> = memmem::find_iter(self.bytes, &load.relative)
            .filter(|at| {
                let target = self.relative(*at, LOAD_BYTES);
                target.is_some_and(|target| addresses.contains(&target))
            })
            .collect();
        for address in addresses {
            let Ok(address) = u32::try_from(*address) else {
                continue;
            };
            let mut instruction = vec![load.absolute];
            instruction.extend(address.to_le_bytes());
            found.extend(memmem::find_iter(self.bytes, &instruction));
        }
        found.sort_unstable();
        found.into_iter()
    }

    /// Whether one of these addresses is loaded within the same report.
    pub(super) fn loads_near(&self, at: usize, load: &Load, addresses: &[u64]) -> bool {
        let from = at.saturating_sub(BETWEEN_BYTES + LOAD_BYTES);
        let to = (at + 2 * LOAD_BYTES + BETWEEN_BYTES).min(self.bytes.len());
        let near = Bytes {
            address: self.address.saturating_add(from as u64),
            bytes: self.bytes.get(from..to).unwrap_or_default(),
        };
        near.loads(load, addresses).next().is_some()
    }

    /// Where a function that begins here is called, or jumped to as the last thing of another.
    pub(super) fn calls(&self, beginning: u64) -> impl Iterator<Item = usize> {
        const CALL: u8 = 0xe8;
        const JUMP: u8 = 0xe9;
        const BYTES: usize = 5;
        memchr2_iter(CALL, JUMP, self.bytes)
            .filter(move |at| self.relative(*at, BYTES) == Some(beginning))
    }

    /// What an instruction of this length refers to, whose last four bytes are a distance from
    /// the next one.
    fn relative(&self, at: usize, length: usize) -> Option<u64> {
        let end = at.checked_add(length)?;
        let distance = self.bytes.get(end.checked_sub(4)?..end)?;
        let distance = i32::from_le_bytes(distance.try_into().ok()?);
        let next = self.address.checked_add(end as u64)?;
        next.checked_add_signed(distance.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names are whole strings; a file is known by the end of its path, wherever it was built.
    #[test]
    fn constants() {
        let constants = Bytes {
            address: 0x100,
            bytes: b"\0SSL_new\0xSSL_new\0SSL_new_\0../ssl/ssl_lib.c\0",
        };
        assert_eq!(constants.strings("SSL_new"), [0x101]);
        assert_eq!(constants.strings_ending(b"ssl_lib.c\0"), [0x11b]);
    }

    /// A call and a jump count, backwards too; other distances do not.
    #[test]
    fn calls() {
        let code = Bytes {
            address: 0x1000,
            bytes: &[
                0x90, 0xe8, 0xfb, 0xff, 0xff, 0xff, 0xe9, 0xf6, 0xff, 0xff, 0xff,
            ],
        };
        assert_eq!(code.calls(0x1001).collect::<Vec<_>>(), [1, 6]);
        assert_eq!(code.calls(0x1000).next(), None);
    }
}

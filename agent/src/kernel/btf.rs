//! The kernel's own type information: offsets of structure members, and which names exist.
//!
//! aya-obj reads BTF for relocation but does not list members, and eBPF in Rust has no CO-RE field
//! relocations; hence this walker over the raw format (Documentation/bpf/btf.rst). Pure.
#![deny(clippy::indexing_slicing)]

use std::collections::BTreeSet;

use thiserror::Error;

#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("the kernel's BTF is malformed at byte {0}")]
pub struct Malformed(usize);

/// Kinds of types, btf.rst section 2.2.
mod kind {
    pub(super) const INT: u32 = 1;
    pub(super) const ARRAY: u32 = 3;
    pub(super) const STRUCT: u32 = 4;
    pub(super) const UNION: u32 = 5;
    pub(super) const ENUM: u32 = 6;
    pub(super) const FORWARD: u32 = 7;
    pub(super) const TYPEDEF: u32 = 8;
    pub(super) const VOLATILE: u32 = 9;
    pub(super) const CONST: u32 = 10;
    pub(super) const RESTRICT: u32 = 11;
    pub(super) const FUNC: u32 = 12;
    pub(super) const FUNC_PROTO: u32 = 13;
    pub(super) const VAR: u32 = 14;
    pub(super) const DATASEC: u32 = 15;
    pub(super) const DECL_TAG: u32 = 17;
    pub(super) const TYPE_TAG: u32 = 18;
    pub(super) const ENUM64: u32 = 19;
}

const MAGIC: u16 = 0xeb9f;
const VERSION: u8 = 1;
const HEADER_BYTES: usize = 24;
const TYPE_BYTES: usize = 12;
const MEMBER_BYTES: usize = 12;
const ENUMERATOR_BYTES: usize = 8;
/// Anonymous members and modifiers nest a few levels deep; more means a loop.
const DEPTH: u32 = 32;

/// Raw BTF with the place of each type. Names are looked up by a walk over all types, a millisecond
/// each: an index of some 100,000 names would cost megabytes for a few dozen questions.
pub struct KernelTypes {
    data: Vec<u8>,
    strings: usize,
    /// Position of each type by id; id 0 is void.
    types: Vec<u32>,
}

impl KernelTypes {
    pub fn parse(data: Vec<u8>) -> Result<Self, Malformed> {
        let mut types = Self {
            data,
            strings: 0,
            types: vec![0],
        };
        if types.word(0)? & 0xffff != u32::from(MAGIC) {
            return Err(Malformed(0));
        }
        let header = types.word(4)? as usize;
        let start = header + types.word(8)? as usize;
        let end = start + types.word(12)? as usize;
        types.strings = header + types.word(16)? as usize;
        types.index(start, end)?;
        Ok(types)
    }

    fn index(&mut self, start: usize, end: usize) -> Result<(), Malformed> {
        let mut at = start;
        while at < end {
            let (kind, count, _) = self.info(at)?;
            let extra = match kind {
                kind::INT | kind::VAR | kind::DECL_TAG => 4,
                kind::ARRAY => 12,
                kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => count * MEMBER_BYTES,
                kind::ENUM | kind::FUNC_PROTO => count * ENUMERATOR_BYTES,
                _ => 0,
            };
            self.types
                .push(u32::try_from(at).map_err(|_| Malformed(at))?);
            at += TYPE_BYTES + extra;
        }
        Ok(())
    }

    /// As much of it as it takes to find functions and typedefs by name: the same ids, everything
    /// else a type without members. Fully parsed, the members are some 100,000 small pieces of
    /// memory, from which malloc of glibc keeps megabytes.
    pub fn names(&self) -> Result<Vec<u8>, Malformed> {
        const OTHER: u32 = kind::FORWARD << 24;
        let strings = self.data.get(self.strings..).ok_or(Malformed(0))?;
        let length = |bytes: usize| u32::try_from(bytes).map_err(|_| Malformed(0));
        let types = length((self.types.len() - 1) * TYPE_BYTES)?;
        let mut names = Vec::with_capacity(HEADER_BYTES + types as usize + strings.len());
        names.extend(MAGIC.to_le_bytes());
        names.extend([VERSION, 0]);
        for word in [HEADER_BYTES as u32, 0, types, types, length(strings.len())?] {
            names.extend(word.to_le_bytes());
        }
        for &at in self.types.iter().skip(1) {
            let at = at as usize;
            let (name, info) = match self.info(at)? {
                (kind @ (kind::FUNC | kind::TYPEDEF), ..) => (self.word(at)?, kind << 24),
                _ => (0, OTHER),
            };
            for word in [name, info, 0] {
                names.extend(word.to_le_bytes());
            }
        }
        names.extend(strings);
        Ok(names)
    }

    /// Whether the kernel has this function with type information.
    pub fn has_function(&self, name: &str) -> bool {
        self.find(kind::FUNC, name).is_some()
    }

    /// Whether BTF programs can attach to this tracepoint: it has a `btf_trace_` typedef.
    pub fn has_tracepoint(&self, name: &str) -> bool {
        self.find(kind::TYPEDEF, &format!("btf_trace_{name}"))
            .is_some()
    }

    /// Whether eBPF programs of some type may call this helper, named without `bpf_`.
    pub fn has_helper(&self, name: &str) -> bool {
        let wanted = format!("BPF_FUNC_{name}");
        // The enumeration has no name of its own on kernels before 5.18.
        self.types.iter().skip(1).any(|&at| {
            let at = at as usize;
            let Ok((kind::ENUM, count, _)) = self.info(at) else {
                return false;
            };
            (0..count).any(|index| {
                self.word(at + TYPE_BYTES + index * ENUMERATOR_BYTES)
                    .is_ok_and(|name| self.string(name) == Ok(&wanted))
            })
        })
    }

    /// Id of the first type of this kind and name.
    fn find(&self, wanted: u32, name: &str) -> Option<u32> {
        let place = self.types.iter().skip(1).position(|&at| {
            let at = at as usize;
            self.info(at).is_ok_and(|(kind, ..)| kind == wanted)
                && self.word(at).and_then(|text| self.string(text)) == Ok(name)
        })?;
        u32::try_from(place + 1).ok()
    }

    /// Byte offset of `struct.member.member`; `None` where this kernel has no such member, or where
    /// it is a bit field.
    pub fn offset(&self, path: &str) -> Option<u32> {
        let mut parts = path.split('.');
        let mut id = self.find(kind::STRUCT, parts.next()?)?;
        let mut bits = 0;
        for member in parts {
            let mut seen = BTreeSet::new();
            let (offset, member_type) = self.member(id, member, DEPTH, &mut seen).ok()??;
            bits = offset.checked_add(bits)?;
            id = member_type;
        }
        (bits % 8 == 0).then_some(bits / 8)
    }

    /// Size of a structure in bytes.
    pub fn size(&self, name: &str) -> Option<u32> {
        let id = self.find(kind::STRUCT, name)?;
        let at = *self.types.get(id as usize)? as usize;
        self.word(at + 8).ok()
    }

    /// Bit offset and type of a member, looking through anonymous members. Each structure is looked
    /// into once: in malformed information they may contain each other.
    fn member(
        &self,
        id: u32,
        name: &str,
        depth: u32,
        seen: &mut BTreeSet<u32>,
    ) -> Result<Option<(u32, u32)>, Malformed> {
        if !seen.insert(id) {
            return Ok(None);
        }
        let at = self.resolve(id)?;
        let (kind, count, has_bit_sizes) = self.info(at)?;
        if !matches!(kind, kind::STRUCT | kind::UNION) || depth == 0 {
            return Ok(None);
        }
        for index in 0..count {
            let member = at + TYPE_BYTES + index * MEMBER_BYTES;
            let (member_name, member_type) = (self.word(member)?, self.word(member + 4)?);
            let mut offset = self.word(member + 8)?;
            if has_bit_sizes {
                offset &= 0x00ff_ffff;
            }
            if member_name == 0 {
                if let Some((inner, found)) = self.member(member_type, name, depth - 1, seen)? {
                    return Ok(offset.checked_add(inner).map(|offset| (offset, found)));
                }
            } else if self.string(member_name)? == name {
                return Ok(Some((offset, member_type)));
            }
        }
        Ok(None)
    }

    /// Position of a type behind typedefs and qualifiers.
    fn resolve(&self, mut id: u32) -> Result<usize, Malformed> {
        for _ in 0..DEPTH {
            let at = *self.types.get(id as usize).ok_or(Malformed(0))? as usize;
            match self.info(at)?.0 {
                kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => {
                    id = self.word(at + 8)?;
                }
                _ => return Ok(at),
            }
        }
        Err(Malformed(0))
    }

    /// Kind, number of members and whether member offsets carry bit sizes.
    fn info(&self, at: usize) -> Result<(u32, usize, bool), Malformed> {
        let info = self.word(at + 4)?;
        Ok((
            (info >> 24) & 0x1f,
            (info & 0xffff) as usize,
            info >> 31 == 1,
        ))
    }

    fn word(&self, at: usize) -> Result<u32, Malformed> {
        self.data
            .get(at..at + 4)
            .and_then(|bytes| bytes.try_into().ok())
            .map(u32::from_le_bytes)
            .ok_or(Malformed(at))
    }

    fn string(&self, offset: u32) -> Result<&str, Malformed> {
        let at = self.strings + offset as usize;
        let rest = self.data.get(at..).ok_or(Malformed(at))?;
        let length = rest
            .iter()
            .position(|byte| *byte == 0)
            .ok_or(Malformed(at))?;
        rest.get(..length)
            .and_then(|name| str::from_utf8(name).ok())
            .ok_or(Malformed(at))
    }
}

#[cfg(test)]
mod tests {
    use aya::{Btf, Endianness};

    use super::*;

    /// Scenario: `struct outer { int a; struct { int b; union { int c; }; }; unsigned d : 3; }` in
    /// hand-made BTF. Guarantee: offsets through anonymous members; no offset for a bit field.
    fn sample() -> Vec<u8> {
        let strings = b"\0int\0outer\0a\0b\0c\0d\0sock_send\0btf_trace_x\0";
        let name = |wanted: &str| {
            let text = [b"\0", wanted.as_bytes(), b"\0"].concat();
            strings
                .windows(text.len())
                .position(|part| part == text)
                .expect("in table") as u32
                + 1
        };
        let mut types: Vec<u32> = Vec::new();
        types.extend([name("int"), kind::INT << 24, 4, 32]); // 1
        types.extend([0, kind::UNION << 24 | 1, 4, name("c"), 1, 0]); // 2
        types.extend([0, kind::STRUCT << 24 | 2, 8, name("b"), 1, 0, 0, 2, 32]); // 3
        types.extend([name("outer"), 1 << 31 | kind::STRUCT << 24 | 3, 16]); // 4
        types.extend([name("a"), 1, 0, 0, 3, 32, name("d"), 1, 3 << 24 | 0x61]);
        types.extend([name("sock_send"), kind::FUNC << 24, 0]); // 5
        types.extend([name("btf_trace_x"), kind::TYPEDEF << 24, 1]); // 6
        let types: Vec<u8> = types.iter().flat_map(|word| word.to_le_bytes()).collect();
        let mut data = vec![0x9f, 0xeb, 1, 0];
        for word in [
            24,
            0,
            types.len() as u32,
            types.len() as u32,
            strings.len() as u32,
        ] {
            data.extend(word.to_le_bytes());
        }
        data.extend(types);
        data.extend(strings);
        data
    }

    #[test]
    fn finds_members_through_anonymous_ones() {
        let types = KernelTypes::parse(sample()).expect("well-formed");
        assert_eq!(types.offset("outer.a"), Some(0));
        assert_eq!(types.offset("outer.b"), Some(4));
        assert_eq!(types.offset("outer.c"), Some(8));
        assert_eq!(types.offset("outer.d"), None);
        assert_eq!(types.offset("outer.e"), None);
        assert_eq!(types.offset("inner.a"), None);
        assert_eq!(types.size("outer"), Some(16));
        assert!(types.has_function("sock_send") && !types.has_function("outer"));
        assert!(types.has_tracepoint("x") && !types.has_tracepoint("y"));
    }

    /// Functions and typedefs are found under the same ids, nothing else is, and aya reads it.
    #[test]
    fn names_keep_their_ids() {
        let types = KernelTypes::parse(sample()).expect("well-formed");
        let names = types.names().expect("well-formed");
        assert!(Btf::parse(&names, Endianness::Little).is_ok());
        let again = KernelTypes::parse(names).expect("well-formed");
        assert_eq!(again.find(kind::FUNC, "sock_send"), Some(5));
        assert_eq!(again.find(kind::TYPEDEF, "btf_trace_x"), Some(6));
        assert_eq!(again.find(kind::STRUCT, "outer"), None);
    }

    #[test]
    fn truncated_type_information_is_an_error_or_less_but_never_a_panic() {
        let data = sample();
        for length in 0..data.len() {
            if let Ok(types) = KernelTypes::parse(data[..length].to_vec()) {
                let _ = (types.offset("outer.c"), types.names());
            }
        }
    }
}

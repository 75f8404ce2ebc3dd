//! A tolerant HPACK decoder: RFC 7541, <https://www.rfc-editor.org/rfc/rfc7541>.
//!
//! An observer may come late or miss bytes, and then does not know what the dynamic table holds.
//! A strict decoder fails there, and with every block after. This one goes on:
//!
//! - An entry that is not known gives a field that is not known; the rest of the block is read.
//! - Indices count from the newest entry, so entries made after joining are right at once. What is
//!   behind them is not known, and stays so until the sender makes it anew.
//! - Entries are not evicted by the sender's table size, which an observer may have missed, but far
//!   behind it ([`KNOWN_BYTES`], [`UNKNOWN_BYTES`]): a valid block never refers to what the sender
//!   has evicted, so keeping too much is harmless. A size of 0 empties the table.
//! - A block of which bytes are missing made an unknown number of entries: [`Decoder::restart`]
//!   forgets the table, as on a fresh join.
//!
//! Only names and values that matter to a span are kept ([`Name`]).

use std::collections::VecDeque;

use super::field::{Name, STATIC};
use super::huffman;
use crate::protocol::reader::Reader;

/// Bytes of entries kept, by the measure of section 4.1, while the sender's bound is the default
/// of 4,096: twice that.
const KNOWN_BYTES: usize = 2 * 4_096;

/// Bytes kept when the sender's bound was not seen: browsers ask for 65,536, servers for less.
const UNKNOWN_BYTES: usize = 64 * 1024;

/// Bounds above this are not followed.
const MOST_BYTES: usize = 256 * 1024;

/// What an entry costs beyond its name and value (section 4.1).
const ENTRY_OVERHEAD: usize = 32;

/// Values longer than this are passed over: paths and user agents are shorter.
const VALUE_LIMIT: usize = 16 * 1024;

/// How the sender's table began to be watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Join {
    /// From its first entry on.
    Whole,
    /// Some time after.
    Late,
}

/// How far a block could be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    Whole,
    /// It ended within a field, or is not HPACK from some byte on.
    Cut,
}

#[derive(Debug)]
pub(super) struct Decoder {
    /// Newest first: index 62 is the front (section 2.3.3).
    entries: VecDeque<Entry>,
    bytes: usize,
    limit: usize,
    /// The sender's table may have entries behind those that are known.
    lacks_entries: bool,
    name_scratch: Vec<u8>,
    value_scratch: Vec<u8>,
}

#[derive(Debug)]
struct Entry {
    name: Name,
    /// `None` when it is not known, or of no interest.
    value: Option<Box<[u8]>>,
    bytes: usize,
}

/// A string of section 5.2.
#[derive(Clone, Copy)]
enum Text<'a> {
    Plain(&'a [u8]),
    Coded(&'a [u8]),
}

/// Whether a literal becomes an entry.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Indexing {
    Incremental,
    Without,
}

impl Decoder {
    pub(super) fn new(join: Join) -> Self {
        Self {
            entries: VecDeque::new(),
            bytes: 0,
            limit: match join {
                Join::Whole => KNOWN_BYTES,
                Join::Late => UNKNOWN_BYTES,
            },
            lacks_entries: join == Join::Late,
            name_scratch: Vec::new(),
            value_scratch: Vec::new(),
        }
    }

    /// The receiver allows the sender a table of this size (`SETTINGS_HEADER_TABLE_SIZE`).
    pub(super) fn allow(&mut self, bytes: u32) {
        let twice = usize::try_from(bytes).unwrap_or(MOST_BYTES) * 2;
        self.limit = self.limit.max(twice.min(MOST_BYTES));
    }

    /// Whether the sender may refer to entries that were not seen. Not any more when it emptied its
    /// table, or has filled all that it may have with others since.
    pub(super) const fn lacks_entries(&self) -> bool {
        self.lacks_entries
    }

    /// An unknown number of entries was missed.
    pub(super) fn restart(&mut self) {
        self.entries.clear();
        self.bytes = 0;
        self.limit = self.limit.max(UNKNOWN_BYTES);
        self.lacks_entries = true;
    }

    /// Reads a block, or the beginning of one; `take` gets each field, with `None` for a value
    /// that is not known. After [`Reading::Cut`] the table is as after [`Self::restart`].
    pub(super) fn decode(
        &mut self,
        block: &[u8],
        mut take: impl FnMut(Name, Option<&[u8]>),
    ) -> Reading {
        let mut reader = Reader::new(block);
        while let Some(first) = reader.peek() {
            let read = if first & 0x80 != 0 {
                self.indexed(&mut reader, &mut take)
            } else if first & 0x40 != 0 {
                self.literal(&mut reader, Indexing::Incremental, &mut take)
            } else if first & 0x20 != 0 {
                integer(&mut reader, 5).map(|size| self.resize(size))
            } else {
                // Without indexing, and never indexed: the same to a reader.
                self.literal(&mut reader, Indexing::Without, &mut take)
            };
            if read.is_none() {
                self.restart();
                return Reading::Cut;
            }
        }
        Reading::Whole
    }

    /// Section 6.1.
    fn indexed(
        &mut self,
        reader: &mut Reader<'_>,
        take: &mut impl FnMut(Name, Option<&[u8]>),
    ) -> Option<()> {
        let index = integer(reader, 7)?;
        if let Some((name, value)) = STATIC.get(index.checked_sub(1)?) {
            take(*name, Some(value));
        } else if let Some(entry) = self.entries.get(index - STATIC.len() - 1) {
            // What is of no interest has no value, which is no lack of knowledge.
            let value = entry.value.as_deref();
            take(
                entry.name,
                value.or((entry.name == Name::Other).then_some(&[])),
            );
        } else {
            take(Name::Unknown, None);
        }
        Some(())
    }

    /// Sections 6.2.1 to 6.2.3.
    fn literal(
        &mut self,
        reader: &mut Reader<'_>,
        indexing: Indexing,
        take: &mut impl FnMut(Name, Option<&[u8]>),
    ) -> Option<()> {
        let prefix = match indexing {
            Indexing::Incremental => 6,
            Indexing::Without => 4,
        };
        let index = integer(reader, prefix)?;
        let (mut name, name_length) = if index == 0 {
            let text = text(reader)?;
            let name = text.resolve(&mut self.name_scratch);
            (name.map_or(Name::Other, Name::of), text.length())
        } else {
            (self.name(index), 0)
        };
        let text = text(reader)?;
        let length = text.length();
        let matters = name != Name::Other;
        let value = matters
            .then(|| text.resolve(&mut self.value_scratch))
            .flatten();
        if name == Name::Unknown
            && let Some(value) = value
        {
            name = Name::inferred(value);
        }
        take(name, value.or((!matters).then_some(&[])));
        if indexing == Indexing::Incremental {
            let entry = Entry {
                name,
                value: value.map(Box::from),
                bytes: name_length + length + ENTRY_OVERHEAD,
            };
            self.insert(entry);
        }
        Some(())
    }

    /// The name of an entry of either table.
    fn name(&self, index: usize) -> Name {
        match STATIC.get(index - 1) {
            Some((name, _)) => *name,
            None => self
                .entries
                .get(index - STATIC.len() - 1)
                .map_or(Name::Unknown, |entry| entry.name),
        }
    }

    fn insert(&mut self, entry: Entry) {
        self.bytes += entry.bytes;
        self.entries.push_front(entry);
        while self.bytes > self.limit {
            let Some(oldest) = self.entries.pop_back() else {
                return;
            };
            self.bytes -= oldest.bytes;
            self.lacks_entries = false;
        }
    }

    /// Section 6.3.
    fn resize(&mut self, size: usize) {
        if size == 0 {
            self.entries.clear();
            self.bytes = 0;
            self.lacks_entries = false;
        }
        self.allow(u32::try_from(size).unwrap_or(u32::MAX));
    }
}

impl<'a> Text<'a> {
    /// Bytes of it as they stand: of a coded string fewer than it has.
    fn length(self) -> usize {
        match self {
            Self::Plain(bytes) => bytes.len(),
            // No code is longer than 30 bits, but those of text are about 6.
            Self::Coded(coded) => coded.len(),
        }
    }

    /// `None` when it is too long, or not what it says.
    fn resolve<'s>(self, scratch: &'s mut Vec<u8>) -> Option<&'s [u8]>
    where
        'a: 's,
    {
        match self {
            Self::Plain(bytes) => (bytes.len() <= VALUE_LIMIT).then_some(bytes),
            Self::Coded(coded) if coded.len() > VALUE_LIMIT => None,
            Self::Coded(coded) => {
                scratch.clear();
                huffman::decode(coded, scratch)?;
                Some(scratch)
            }
        }
    }
}

/// An integer with a prefix of `bits` (section 5.1). `None` when it is cut, or larger than any
/// length or index that makes sense.
fn integer(reader: &mut Reader<'_>, bits: u32) -> Option<usize> {
    const LIMIT: usize = 1 << 28;
    let &[first] = reader.take(1) else {
        return None;
    };
    let mask = (1_usize << bits) - 1;
    let mut value = usize::from(first) & mask;
    if value < mask {
        return Some(value);
    }
    let mut shift = 0;
    loop {
        let &[byte] = reader.take(1) else {
            return None;
        };
        value += usize::from(byte & 0x7f) << shift;
        if value > LIMIT || shift > 28 {
            return None;
        }
        if byte & 0x80 == 0 {
            return Some(value);
        }
        shift += 7;
    }
}

fn text<'a>(reader: &mut Reader<'a>) -> Option<Text<'a>> {
    let is_coded = reader.peek()? & 0x80 != 0;
    let length = integer(reader, 7)?;
    let bytes = reader.take(length);
    if bytes.len() < length {
        return None;
    }
    Some(if is_coded {
        Text::Coded(bytes)
    } else {
        Text::Plain(bytes)
    })
}

#[cfg(test)]
mod tests;

//! Fields of a header block by their lengths: RFC 7541, sections 5 and 6.

use super::{
    ENTRY_OVERHEAD, FIELD, NAME, NAME_BYTES, NAME_END, NAME_LENGTH, NOT_UNDERSTOOD, OutgoingFrames,
    Reached, VALUE_LENGTH, said,
};
use crate::injection::InjectionOutcome;

/// The last index of the static table, and no less than any of its fields counts and any of its
/// names is long: RFC 7541, appendix A.
const STATIC_INDEX: u32 = 61;
pub(super) const STATIC_SIZE: u32 = 64;
const STATIC_NAME: u32 = 27;

/// `traceparent` in Huffman's code, and its first eight bytes without, as words of a message.
pub(super) const CODED_NAME: u64 =
    u64::from_le_bytes([0x4d, 0x83, 0x21, 0x6b, 0x1d, 0x85, 0xa9, 0x3f]);
const PLAIN_NAME: u64 = u64::from_le_bytes(*b"tracepar");
pub(super) const PLAIN_NAME_END: u64 = u64::from_le_bytes(*b"ent\0\0\0\0\0");
const CODED_NAME_BYTES: u32 = 8;

impl OutgoingFrames {
    /// RFC 7541, section 6.
    #[inline(always)]
    pub(super) fn field(&mut self, word: u64) -> Reached {
        let first = word as u8;
        let (index, _) = integer(word, prefix(word));
        if first & 0x80 == 0 && first & 0x60 == 0x20 {
            // The size of the table changes; only before the first field.
            return if self.said & said::FIELDS == 0 {
                self.block_end()
            } else {
                NOT_UNDERSTOOD
            };
        }
        if index > STATIC_INDEX && self.largest == 0 {
            return NOT_UNDERSTOOD;
        }
        self.said |= said::FIELDS;
        let (known, name) = if index > STATIC_INDEX {
            (self.largest, self.longest_name)
        } else {
            (STATIC_SIZE, STATIC_NAME)
        };
        if first & 0x80 != 0 {
            if index == 0 {
                return NOT_UNDERSTOOD;
            }
            self.size = self.size.saturating_add(known);
            return self.block_end();
        }
        self.said &= !said::INDEXED;
        if first & 0x40 != 0 {
            self.said |= said::INDEXED;
        }
        if index == 0 {
            self.field_size = ENTRY_OVERHEAD;
            self.state = NAME_LENGTH;
        } else {
            self.field_size = ENTRY_OVERHEAD.saturating_add(name);
            if name > self.longest_name && self.said & said::INDEXED != 0 {
                self.longest_name = name;
            }
            self.state = VALUE_LENGTH;
        }
        self.block_end()
    }

    #[inline(always)]
    pub(super) fn name_length(&mut self, word: u64) -> Reached {
        let (length, _) = integer(word, 0x7f);
        if length > self.left {
            return NOT_UNDERSTOOD;
        }
        let is_coded = word & 0x80 != 0;
        let decoded = decoded(length, is_coded);
        self.field_size = self.field_size.saturating_add(decoded);
        if decoded > self.longest_name && self.said & said::INDEXED != 0 {
            self.longest_name = decoded;
        }
        self.said &= !said::CODED;
        if is_coded {
            self.said |= said::CODED;
        }
        let wanted = if is_coded {
            CODED_NAME_BYTES
        } else {
            NAME_BYTES
        };
        if length == wanted {
            self.state = NAME;
            return Reached::Nothing;
        }
        self.state = VALUE_LENGTH;
        self.string = length;
        self.block_end()
    }

    #[inline(always)]
    pub(super) fn name(&mut self, word: u64) -> Reached {
        self.state = VALUE_LENGTH;
        if self.said & said::CODED != 0 {
            return if word == CODED_NAME {
                self.found()
            } else {
                self.block_end()
            };
        }
        if word == PLAIN_NAME {
            self.state = NAME_END;
        } else {
            self.string = NAME_BYTES - 8;
        }
        Reached::Nothing
    }

    /// The name is `traceparent`. In the table it may be meant by later blocks in ways that are not
    /// followed.
    #[inline(always)]
    pub(super) fn found(&mut self) -> Reached {
        if self.said & said::INDEXED != 0 {
            return Reached::Refused(InjectionOutcome::Propagates);
        }
        self.said |= said::TRACEPARENT;
        self.block_end()
    }

    #[inline(always)]
    pub(super) fn value_length(&mut self, word: u64) -> Reached {
        let (length, _) = integer(word, 0x7f);
        if length > self.left {
            return NOT_UNDERSTOOD;
        }
        let decoded = decoded(length, word & 0x80 != 0);
        self.field_size = self.field_size.saturating_add(decoded);
        self.size = self.size.saturating_add(self.field_size);
        if self.said & said::INDEXED != 0 && self.field_size > self.largest {
            self.largest = self.field_size;
        }
        self.state = FIELD;
        self.string = length;
        self.block_end()
    }
}

/// Bytes of an integer at most: more than two million is no length.
pub(super) const INTEGER_BYTES: u32 = 4;

/// The bits of a field's first byte that are its index's: RFC 7541, section 6.
#[inline(always)]
pub(super) const fn prefix(word: u64) -> u32 {
    let first = word as u8;
    if first & 0x80 != 0 {
        0x7f
    } else if first & 0x40 != 0 {
        0x3f
    } else if first & 0x20 != 0 {
        0x1f
    } else {
        0x0f
    }
}

/// An integer and its bytes: RFC 7541, section 5.1. Where bytes are missing, which are 0 then, it
/// has more than there are. One that is longer than [`INTEGER_BYTES`] has a byte more.
#[inline(always)]
pub(super) const fn integer(word: u64, mask: u32) -> (u32, u32) {
    let first = word as u32 & mask;
    if first < mask {
        return (first, 1);
    }
    let second = (word >> 8) as u32 & 0xff;
    let mut value = mask + (second & 0x7f);
    if second < 0x80 {
        return (value, 2);
    }
    let third = (word >> 16) as u32 & 0xff;
    value += (third & 0x7f) << 7;
    if third < 0x80 {
        return (value, 3);
    }
    let fourth = (word >> 24) as u32 & 0xff;
    value += (fourth & 0x7f) << 14;
    if fourth < 0x80 {
        return (value, 4);
    }
    (value, INTEGER_BYTES + 1)
}

/// Bytes of a string behind Huffman's code, at most: its shortest codes have five bits.
#[inline(always)]
const fn decoded(length: u32, is_coded: bool) -> u32 {
    if is_coded {
        length.saturating_mul(8) / 5
    } else {
        length
    }
}

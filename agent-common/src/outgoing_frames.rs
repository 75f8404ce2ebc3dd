//! Frames of HTTP/2 that a client sends, read to the end of each request's header block: the only
//! place where a field can be added without a second look at what was said before.
//! <https://www.rfc-editor.org/rfc/rfc9113>, <https://www.rfc-editor.org/rfc/rfc7541>
//!
//! A literal that is not indexed (RFC 7541, section 6.2.3) leaves the peer's table as it is, so it
//! may stand behind whatever a block says. That a block is one is proven field by field: strings
//! are skipped by their length, and it must end where a field ends. On the way a name that is
//! `traceparent` is found: a table holds it only after it was a literal once, and there are only
//! two ways to write it, because Huffman's code has one form for each string and is padded with
//! ones.
//!
//! The walk is here, and not beside the hooks, so that it can be run on bytes in tests. It goes in
//! steps of one token each, of at most eight bytes, which may come in pieces. What it does not
//! understand ends it for good.
//!
//! | state | token |
//! |---|---|
//! | [`HEAD`] | length, type and flags of a frame |
//! | [`STREAM`] | its stream |
//! | [`PAD`] | length of the padding |
//! | [`PRIORITY`] | dependency and weight |
//! | [`FIELD`] | what kind of field, and its index |
//! | [`NAME_LENGTH`] | length of a name |
//! | [`NAME`] | eight bytes of a name as long as `traceparent` |
//! | [`NAME_END`] | its last three, where it is not coded |
//! | [`VALUE_LENGTH`] | length of a value |

#![expect(
    clippy::inline_always,
    reason = "a call between BPF functions costs a stack frame of the 512 bytes they share"
)]

mod block;

use self::block::{INTEGER_BYTES, PLAIN_NAME_END, integer, prefix};
use crate::{injection::InjectionOutcome, wire};

/// Bytes of the field: kind, length and name, length and value.
pub const FIELD_BYTES: u32 = 1 + 1 + NAME_BYTES + 1 + VALUE_BYTES;

const _: () = assert!(
    FIELD_BYTES != crate::injection::HEADER_BYTES,
    "they tell one from another"
);

const NAME_BYTES: u32 = 11;

/// Bytes of a `traceparent` of version 00.
const VALUE_BYTES: u32 = 55;

/// The field before its value: a literal that is never indexed, with a new name, neither string
/// coded (RFC 7541, sections 6.2.3 and 5.2).
pub const FIELD_BEGIN: [u8; 14] = *b"\x10\x0btraceparent\x37";

/// What the peer counts for the field: RFC 9113, section 6.5.2.
const FIELD_SIZE: u32 = NAME_BYTES + VALUE_BYTES + ENTRY_OVERHEAD;

const ENTRY_OVERHEAD: u32 = 32;

/// What a client sends first: RFC 9113, section 3.4.
pub const PREFACE: [u8; 24] = *b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Largest frame that every peer takes: `SETTINGS_MAX_FRAME_SIZE` is not less.
const FRAME_BYTES: u32 = 16 * 1024;

/// Requests of one message that get a field: with 64 calls at a time some 20 share one. Each costs
/// a copy of what stands before it.
const AT_ONCE: u32 = 64;

/// Frames remembered that may have been sent in part.
const MARKS: usize = 8;

pub const HEAD: u8 = 0;
const STREAM: u8 = 1;
const PAD: u8 = 2;
const PRIORITY: u8 = 3;
const FIELD: u8 = 4;
const NAME_LENGTH: u8 = 5;
const NAME: u8 = 6;
const NAME_END: u8 = 7;
const VALUE_LENGTH: u8 = 8;

/// Types of frames: RFC 9113, section 6.
mod kind {
    pub(super) const DATA: u8 = 0;
    pub(super) const HEADERS: u8 = 1;
    pub(super) const PRIORITY: u8 = 2;
    pub(super) const RST_STREAM: u8 = 3;
    pub(super) const SETTINGS: u8 = 4;
    pub(super) const PUSH_PROMISE: u8 = 5;
    pub(super) const PING: u8 = 6;
    pub(super) const GOAWAY: u8 = 7;
    pub(super) const WINDOW_UPDATE: u8 = 8;
    pub(super) const CONTINUATION: u8 = 9;
}

/// Flags of frames.
mod flag {
    pub(super) const ACK: u8 = 0x01;
    pub(super) const END_HEADERS: u8 = 0x04;
    pub(super) const PADDED: u8 = 0x08;
    pub(super) const PRIORITY: u8 = 0x20;
    /// Those of HEADERS.
    pub(super) const OF_HEADERS: u8 = 0x2d;
}

/// Bits of [`OutgoingFrames::said`].
mod said {
    /// The field being read goes into the peer's table.
    pub(super) const INDEXED: u8 = 1 << 0;
    /// The name being read is coded.
    pub(super) const CODED: u8 = 1 << 1;
    /// The block has a `traceparent`.
    pub(super) const TRACEPARENT: u8 = 1 << 2;
    /// The block has fields.
    pub(super) const FIELDS: u8 = 1 << 3;
    /// Its frame began in this message.
    pub(super) const WHOLE: u8 = 1 << 4;
    /// Its stream is new.
    pub(super) const NEW: u8 = 1 << 5;
}

wire! {
    /// The payload of a frame that is skipped.
    pub struct Mark {
        /// Position of the first byte.
        pub begin: u64,
        pub length: u64,
    }
}

wire! {
    /// Where a client is in what it sends.
    pub struct OutgoingFrames {
        /// Bytes of a token whose rest is still to come, the first one lowest.
        pub word: u64,
        /// The last frames that were skipped.
        pub marks: [Mark; MARKS],
        /// Bytes walked so far, with the preface.
        pub walked: u64,
        /// How many frames were skipped.
        pub marked: u32,
        /// In the current message: the first byte of the frame in progress.
        pub frame_at: u32,
        /// Bytes of the frame's payload.
        pub length: u32,
        /// Bytes of a header block that are still to come, behind those of `word`.
        pub left: u32,
        /// Bytes of a string in it that are not looked at.
        pub string: u32,
        /// Bytes behind a block, or of another frame, that are not looked at.
        pub skip: u32,
        pub padding: u32,
        /// The frame's stream, and the highest one of a request.
        pub stream: u32,
        pub highest: u32,
        /// What the block's fields count at most, and the field being read: RFC 9113, section
        /// 6.5.2.
        pub size: u32,
        pub field_size: u32,
        /// The largest field, and the longest name, that went into the peer's table.
        pub largest: u32,
        pub longest_name: u32,
        /// Settings of the peer that the client has acknowledged.
        pub acknowledged: u32,
        /// Requests of the current message that got a field.
        pub at_once: u32,
        pub held: u8,
        pub state: u8,
        pub kind: u8,
        pub flags: u8,
        /// Bits of [`said`].
        pub said: u8,
        /// 1: its own settings were sent, which come first.
        pub has_begun: u8,
        pub reserved: [u8; 6],
    }
}

wire! {
    /// What a server says of itself, as far as it was seen.
    pub struct PeerSettings {
        /// Frames of settings that were seen.
        pub seen: u32,
        /// What a list of fields may count at most; [`UNLIMITED`] where it does not say.
        pub list_limit: u32,
    }
}

pub const UNLIMITED: u32 = u32::MAX;

/// `SETTINGS_MAX_HEADER_LIST_SIZE`: RFC 9113, section 6.5.2.
pub const MAX_HEADER_LIST_SIZE: u16 = 6;

/// What a step has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reached {
    Nothing,
    /// The end of a request's block: a field may be added before the next byte.
    Request,
    /// What is not understood, or cannot be followed any further.
    Refused(InjectionOutcome),
}

/// A step: bytes of the message that it has read, and what it has come to.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    pub used: u32,
    pub reached: Reached,
}

impl OutgoingFrames {
    /// Behind the preface.
    pub const BEGIN: Self = Self {
        word: 0,
        marks: [Mark {
            begin: 0,
            length: 0,
        }; MARKS],
        walked: PREFACE.len() as u64,
        marked: 0,
        frame_at: 0,
        length: 0,
        left: 0,
        string: 0,
        skip: 0,
        padding: 0,
        stream: 0,
        highest: 0,
        size: 0,
        field_size: 0,
        largest: 0,
        longest_name: 0,
        acknowledged: 0,
        at_once: 0,
        held: 0,
        state: HEAD,
        kind: 0,
        flags: 0,
        said: 0,
        has_begun: 0,
        reserved: [0; 6],
    };

    /// A message comes next.
    #[inline(always)]
    pub const fn begin_message(&mut self) {
        self.said &= !said::WHOLE;
        self.at_once = 0;
    }

    /// The last bytes of the message before will be sent again; false where it is not known what
    /// they are.
    #[inline(always)]
    pub fn take_back(&mut self, unsent: u32) -> bool {
        if unsent == 0 {
            return true;
        }
        let target = self.walked.wrapping_sub(u64::from(unsent));
        let mut index = 0;
        while index < MARKS {
            let mark = self.marks[index];
            let inside = target.wrapping_sub(mark.begin);
            if mark.begin > 0 && inside <= mark.length {
                self.skip = (mark.length - inside) as u32;
                self.walked = target;
                self.state = HEAD;
                self.left = 0;
                self.string = 0;
                self.held = 0;
                self.word = 0;
                return true;
            }
            index += 1;
        }
        false
    }

    /// One step over a message: `bytes` are the next eight, the first one lowest, of `there` that
    /// are left of it; at `at`.
    #[inline(always)]
    pub fn step(&mut self, bytes: u64, there: u32, at: u32) -> Step {
        if self.skip > 0 {
            let used = smaller(self.skip, there);
            self.skip -= used;
            self.walked += u64::from(used);
            return Step {
                used,
                reached: Reached::Nothing,
            };
        }
        if self.string > 0 {
            let used = smaller(self.string, there);
            self.string -= used;
            self.left -= used;
            self.walked += u64::from(used);
            return Step {
                used,
                reached: self.block_end(),
            };
        }
        if self.state == HEAD && self.held == 0 {
            self.frame_at = at;
            self.said |= said::WHOLE;
        }
        self.token(bytes, there)
    }

    /// Whether the next step reads a frame's first byte.
    #[inline(always)]
    #[must_use]
    pub const fn is_at_frame(&self) -> bool {
        self.skip == 0 && self.string == 0 && self.state == HEAD && self.held == 0
    }

    /// Whether the next step looks at bytes, and does not only count them.
    #[inline(always)]
    #[must_use]
    pub const fn looks(&self) -> bool {
        self.skip == 0 && self.string == 0
    }

    #[inline(always)]
    fn token(&mut self, bytes: u64, there: u32) -> Step {
        let held = u32::from(self.held);
        let is_block = self.state >= PAD;
        let mut fresh = smaller(there, 8 - held);
        if is_block {
            fresh = smaller(fresh, self.left);
        }
        let word = self.word | (first(bytes, fresh) << ((held * 8) & 63));
        let total = held + fresh;
        let length = self.token_length(word);
        if length > total {
            // The rest comes with the next message; not where the block ends.
            if is_block {
                self.left -= fresh;
                if self.left == 0 {
                    return refused(fresh);
                }
            }
            self.word = word;
            self.held = total as u8;
            self.walked += u64::from(fresh);
            return Step {
                used: fresh,
                reached: Reached::Nothing,
            };
        }
        // What was held did not suffice before.
        let used = length.wrapping_sub(held);
        if is_block {
            self.left -= used;
        }
        self.walked += u64::from(used);
        self.word = 0;
        self.held = 0;
        let word = first(word, length);
        Step {
            used,
            reached: self.read(word, length),
        }
    }

    /// Bytes of the token that begins with this word, of which not all may be there; more than
    /// eight for one that is too long.
    #[inline(always)]
    const fn token_length(&self, word: u64) -> u32 {
        match self.state {
            HEAD | PRIORITY => 5,
            STREAM => 4,
            PAD => 1,
            NAME => 8,
            NAME_END => 3,
            FIELD => integer(word, prefix(word)).1,
            _ => integer(word, 0x7f).1,
        }
    }

    /// Acts on a token.
    #[inline(always)]
    fn read(&mut self, word: u64, length: u32) -> Reached {
        match self.state {
            HEAD => {
                self.length = u32::from_be(word as u32) >> 8;
                self.kind = (word >> 24) as u8;
                self.flags = (word >> 32) as u8;
                self.state = STREAM;
                Reached::Nothing
            }
            STREAM => self.frame(u32::from_be(word as u32)),
            PAD => {
                self.padding = word as u32;
                if self.padding > self.left {
                    return NOT_UNDERSTOOD;
                }
                self.left -= self.padding;
                self.begin_block()
            }
            PRIORITY => {
                self.state = FIELD;
                self.block_end()
            }
            _ if length > INTEGER_BYTES && self.state != NAME => NOT_UNDERSTOOD,
            FIELD => self.field(word),
            NAME_LENGTH => self.name_length(word),
            NAME => self.name(word),
            NAME_END => {
                self.state = VALUE_LENGTH;
                if word == PLAIN_NAME_END {
                    return self.found();
                }
                self.block_end()
            }
            _ => self.value_length(word),
        }
    }

    /// The nine bytes before a frame were read.
    #[inline(always)]
    fn frame(&mut self, stream: u32) -> Reached {
        self.stream = stream;
        self.state = HEAD;
        let is_settings = self.kind == kind::SETTINGS && self.flags & flag::ACK == 0;
        if (self.has_begun == 0 && !is_settings) || !self.is_valid() {
            return NOT_UNDERSTOOD;
        }
        self.has_begun = 1;
        if self.kind == kind::HEADERS {
            return self.headers();
        }
        if self.kind == kind::SETTINGS && !is_settings {
            self.acknowledged = self.acknowledged.saturating_add(1);
        }
        self.skip = self.length;
        let place = self.marked as usize & (MARKS - 1);
        self.marks[place] = Mark {
            begin: self.walked,
            length: self.length.into(),
        };
        self.marked = self.marked.wrapping_add(1);
        Reached::Nothing
    }

    /// Whether its length and its stream fit its type, and a client may send it.
    #[inline(always)]
    const fn is_valid(&self) -> bool {
        let is_ours = self.stream & 0x8000_0001 == 1;
        match self.kind {
            kind::DATA | kind::HEADERS => is_ours,
            kind::PRIORITY => self.length == 5 && self.stream != 0,
            kind::RST_STREAM => self.length == 4 && self.stream != 0,
            kind::SETTINGS => {
                let is_empty = self.flags & flag::ACK == 0 || self.length == 0;
                self.stream == 0 && self.length.is_multiple_of(6) && is_empty
            }
            kind::PUSH_PROMISE | kind::CONTINUATION => false,
            kind::PING => self.length == 8 && self.stream == 0,
            kind::GOAWAY => self.length >= 8 && self.stream == 0,
            kind::WINDOW_UPDATE => self.length == 4,
            // Of an extension (section 5.5).
            _ => true,
        }
    }

    #[inline(always)]
    fn headers(&mut self) -> Reached {
        if self.flags & flag::END_HEADERS == 0 {
            return Reached::Refused(InjectionOutcome::Continued);
        }
        self.said &= said::WHOLE;
        if self.stream > self.highest {
            self.highest = self.stream;
            self.said |= said::NEW;
        }
        self.left = self.length;
        self.padding = 0;
        self.size = 0;
        if self.flags & flag::PADDED != 0 {
            self.state = PAD;
            return if self.left == 0 {
                NOT_UNDERSTOOD
            } else {
                Reached::Nothing
            };
        }
        self.begin_block()
    }

    #[inline(always)]
    fn begin_block(&mut self) -> Reached {
        if self.flags & flag::PRIORITY != 0 {
            self.state = PRIORITY;
            return if self.left < 5 {
                NOT_UNDERSTOOD
            } else {
                Reached::Nothing
            };
        }
        self.state = FIELD;
        self.block_end()
    }

    /// Whether the block has ended, which it may only behind a field.
    #[inline(always)]
    fn block_end(&mut self) -> Reached {
        if self.left > 0 {
            return Reached::Nothing;
        }
        if self.state != FIELD || self.said & said::FIELDS == 0 {
            return NOT_UNDERSTOOD;
        }
        self.state = HEAD;
        self.skip = self.padding;
        if self.said & said::NEW != 0 {
            Reached::Request
        } else {
            Reached::Nothing
        }
    }

    /// What becomes of the request whose block has just ended.
    #[inline(always)]
    #[must_use]
    pub const fn judge(&self, peer: Option<PeerSettings>) -> InjectionOutcome {
        if self.said & said::TRACEPARENT != 0 {
            return InjectionOutcome::AlreadyPresent;
        }
        if self.said & said::WHOLE == 0 {
            return InjectionOutcome::FrameInPieces;
        }
        let has_unknown_flags = self.flags & !flag::OF_HEADERS != 0;
        if self.length + FIELD_BYTES > FRAME_BYTES || has_unknown_flags {
            return InjectionOutcome::FrameFull;
        }
        let Some(peer) = peer else {
            return InjectionOutcome::SettingsAwaited;
        };
        if peer.seen == 0 || self.acknowledged > peer.seen {
            return InjectionOutcome::SettingsAwaited;
        }
        if self.size.saturating_add(FIELD_SIZE) > peer.list_limit {
            return InjectionOutcome::ListTooLong;
        }
        if self.at_once >= AT_ONCE {
            return InjectionOutcome::TooManyAtOnce;
        }
        InjectionOutcome::Injected
    }

    /// A field was added: the frame's new length, as its first three bytes say it, lowest first.
    #[inline(always)]
    #[must_use]
    pub const fn grown(&self) -> [u8; 3] {
        let [_, high, middle, low] = (self.length + FIELD_BYTES).to_be_bytes();
        [high, middle, low]
    }
}

const NOT_UNDERSTOOD: Reached = Reached::Refused(InjectionOutcome::NotHttp);

#[inline(always)]
const fn refused(used: u32) -> Step {
    Step {
        used,
        reached: NOT_UNDERSTOOD,
    }
}

/// The first bytes of a word.
#[inline(always)]
const fn first(word: u64, count: u32) -> u64 {
    if count >= 8 {
        word
    } else {
        word & ((1 << (count * 8)) - 1)
    }
}

#[inline(always)]
const fn smaller(one: u32, other: u32) -> u32 {
    if one < other { one } else { other }
}

#[cfg(feature = "user")]
mod user {
    #[expect(
        unsafe_code,
        reason = "aya reads and writes map values and globals by Pod"
    )]
    // SAFETY: repr(C), integers only, no padding (IntoBytes is derived), any bit pattern valid.
    unsafe impl aya::Pod for super::PeerSettings {}
}

#[cfg(any(test, feature = "user"))]
pub mod rehearsal;
#[cfg(test)]
mod tests;

//! The nine bytes before each frame: RFC 9113, sections 4.1 and 6.

use super::smaller;

/// A frame that is not longer is kept whole: to skip it would cost more, and messages of gRPC that
/// share a frame can be counted.
const SHORT_FRAME: u32 = 256;

/// Largest frame that is believed before frames were seen (`SETTINGS_MAX_FRAME_SIZE`, default).
const PLAUSIBLE_BYTES: u32 = 16 * 1024;

/// Bytes of longer DATA that are kept: the length of its padding, and the flag and length before a
/// message of gRPC.
const DATA_KEPT: u32 = 6;

/// Bytes of one head that are kept, as user space does (`HEAD_LIMIT`).
const HEAD_KEPT: u32 = 64 * 1024;

pub(super) mod kind {
    pub(in super::super) const DATA: u8 = 0;
    pub(in super::super) const HEADERS: u8 = 1;
    pub(in super::super) const PRIORITY: u8 = 2;
    pub(in super::super) const RST_STREAM: u8 = 3;
    pub(in super::super) const SETTINGS: u8 = 4;
    pub(in super::super) const PUSH_PROMISE: u8 = 5;
    pub(in super::super) const PING: u8 = 6;
    pub(in super::super) const GOAWAY: u8 = 7;
    pub(in super::super) const WINDOW_UPDATE: u8 = 8;
    pub(in super::super) const CONTINUATION: u8 = 9;
}

/// RFC 9113, sections 4.1 and 6.
#[derive(Clone, Copy)]
pub(super) struct Header {
    pub(super) length: u32,
    kind: u8,
    flags: u8,
    /// With the reserved bit above it.
    stream: u32,
}

const END_STREAM: u8 = 1;

impl Header {
    #[inline(always)]
    pub(super) const fn of(word: u64, last: u8) -> Self {
        let word = u64::from_be(word);
        Self {
            length: (word >> 40) as u32,
            kind: (word >> 32) as u8,
            flags: (word >> 24) as u8,
            stream: (word as u32) << 8 | last as u32,
        }
    }

    /// Its length and its stream fit its type.
    #[inline(always)]
    pub(super) const fn is_valid(self) -> bool {
        let on_stream = self.stream & 0x7fff_ffff != 0;
        match self.kind {
            kind::DATA | kind::HEADERS | kind::PUSH_PROMISE | kind::CONTINUATION => on_stream,
            kind::PRIORITY => on_stream && self.length == 5,
            kind::RST_STREAM => on_stream && self.length == 4,
            kind::SETTINGS => !on_stream && self.length.is_multiple_of(6),
            kind::PING => !on_stream && self.length == 8,
            kind::GOAWAY => !on_stream && self.length >= 8,
            kind::WINDOW_UPDATE => self.length == 4,
            // Of an extension (section 5.5).
            _ => true,
        }
    }

    /// As frames usually are: few other bytes look so.
    #[inline(always)]
    pub(super) const fn is_plausible(self) -> bool {
        let known_flags = match self.kind {
            kind::DATA => 0x09,
            kind::HEADERS => 0x2d,
            kind::PUSH_PROMISE => 0x0c,
            kind::CONTINUATION => 0x04,
            kind::SETTINGS | kind::PING => 0x01,
            _ => 0,
        };
        self.is_valid()
            && self.kind <= kind::CONTINUATION
            && self.flags & !known_flags == 0
            && self.length <= PLAUSIBLE_BYTES
            && self.stream < 1 << 27
    }

    /// Bytes of the payload that are wanted.
    #[inline(always)]
    pub(super) const fn kept(self) -> u32 {
        if self.length <= SHORT_FRAME {
            return self.length;
        }
        match self.kind {
            kind::DATA => DATA_KEPT,
            kind::HEADERS
            | kind::SETTINGS
            | kind::PUSH_PROMISE
            | kind::GOAWAY
            | kind::CONTINUATION => smaller(self.length, HEAD_KEPT),
            _ => 0,
        }
    }

    /// The stream, if this is a head on one that a client opens; 0 otherwise.
    #[inline(always)]
    pub(super) const fn opened(self) -> u32 {
        if self.kind == kind::HEADERS && self.stream & 1 == 1 {
            self.stream & 0x7fff_ffff
        } else {
            0
        }
    }

    #[inline(always)]
    pub(super) const fn ends_stream(self) -> u8 {
        let carries = self.kind <= kind::HEADERS;
        (carries && self.flags & END_STREAM != 0) as u8
    }
}

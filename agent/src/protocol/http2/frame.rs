//! Frame headers: RFC 9113, section 4.1 and 6, <https://www.rfc-editor.org/rfc/rfc9113>.
//!
//! ```text
//!  0               1               2               3
//! +-----------------------------------------------+
//! |                 Length (24)                   |
//! +---------------+---------------+---------------+
//! |   Type (8)    |   Flags (8)   |
//! +-+-------------+---------------+-------------------------------+
//! |R|                 Stream Identifier (31)                      |
//! +=+=============================================================+
//! |                   Frame Payload (0...)                      ...
//! +---------------------------------------------------------------+
//! ```

use crate::protocol::Flow;

pub(super) const HEADER_BYTES: usize = 9;

/// What a client sends first (section 3.4).
pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// `SETTINGS_MAX_FRAME_SIZE` until a receiver says otherwise (section 6.5.2).
pub(super) const DEFAULT_MAX_FRAME: u32 = 16_384;

/// The largest value that setting can have.
pub(super) const LARGEST_FRAME: u32 = (1 << 24) - 1;

pub(super) mod flags {
    /// DATA and HEADERS.
    pub(in super::super) const END_STREAM: u8 = 0x1;
    /// SETTINGS and PING.
    pub(in super::super) const ACK: u8 = 0x1;
    /// HEADERS, `PUSH_PROMISE` and CONTINUATION.
    pub(in super::super) const END_HEADERS: u8 = 0x4;
    /// DATA, HEADERS and `PUSH_PROMISE`.
    pub(in super::super) const PADDED: u8 = 0x8;
    /// HEADERS.
    pub(in super::super) const PRIORITY: u8 = 0x20;
}

/// Evidence below this is none: the most common frames with large lengths and identifiers have a
/// little more.
const FRAME_BITS: u32 = 34;

/// No connection has had 67 million requests, unless its stream is known.
const UNLIKELY_STREAM: u32 = 1 << 27;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FrameKind {
    Data,
    Headers,
    Priority,
    RstStream,
    Settings,
    PushPromise,
    Ping,
    GoAway,
    WindowUpdate,
    Continuation,
    /// Of an extension: skipped (section 5.5).
    Unknown,
}

impl FrameKind {
    const fn of(kind: u8) -> Self {
        match kind {
            0 => Self::Data,
            1 => Self::Headers,
            2 => Self::Priority,
            3 => Self::RstStream,
            4 => Self::Settings,
            5 => Self::PushPromise,
            6 => Self::Ping,
            7 => Self::GoAway,
            8 => Self::WindowUpdate,
            9 => Self::Continuation,
            _ => Self::Unknown,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FrameHeader {
    /// Bytes of the payload.
    pub(super) length: u32,
    pub(super) kind: FrameKind,
    pub(super) flags: u8,
    pub(super) stream: u32,
}

impl FrameHeader {
    pub(super) fn parse(bytes: [u8; HEADER_BYTES]) -> Self {
        let [l0, l1, l2, kind, flags, s0, s1, s2, s3] = bytes;
        Self {
            length: u32::from_be_bytes([0, l0, l1, l2]),
            kind: FrameKind::of(kind),
            flags,
            // The highest bit is reserved and ignored.
            stream: u32::from_be_bytes([s0 & 0x7f, s1, s2, s3]),
        }
    }

    pub(super) const fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    pub(super) const fn ends_stream(&self) -> bool {
        matches!(self.kind, FrameKind::Data | FrameKind::Headers) && self.has(flags::END_STREAM)
    }

    /// Whether a frame may look like this: its length and its stream fit its type.
    pub(super) const fn is_valid(&self, longest: u32) -> bool {
        let on_stream = self.stream != 0;
        let fits = match self.kind {
            FrameKind::Data
            | FrameKind::Headers
            | FrameKind::Continuation
            | FrameKind::PushPromise => on_stream,
            FrameKind::Priority => on_stream && self.length == 5,
            FrameKind::RstStream => on_stream && self.length == 4,
            FrameKind::Settings => {
                !on_stream
                    && self.length.is_multiple_of(6)
                    && !(self.has(flags::ACK) && self.length > 0)
            }
            FrameKind::Ping => !on_stream && self.length == 8,
            FrameKind::GoAway => !on_stream && self.length >= 8,
            FrameKind::WindowUpdate => self.length == 4,
            FrameKind::Unknown => true,
        };
        fits && self.length <= longest
    }

    /// Flags that mean something for this type.
    const fn known_flags(&self) -> u8 {
        match self.kind {
            FrameKind::Data => flags::END_STREAM | flags::PADDED,
            FrameKind::Headers => {
                flags::END_STREAM | flags::END_HEADERS | flags::PADDED | flags::PRIORITY
            }
            FrameKind::PushPromise => flags::END_HEADERS | flags::PADDED,
            FrameKind::Continuation => flags::END_HEADERS,
            FrameKind::Settings | FrameKind::Ping => flags::ACK,
            _ => 0,
        }
    }

    /// How much speaks for these nine bytes being a frame header and not any other nine bytes:
    /// the bits that random bytes would have to hit. 0 when they are none.
    fn evidence(&self, reserved_bit: bool, is_open: &dyn Fn(u32) -> bool) -> u32 {
        let known_flags = self.known_flags();
        let is_impossible = reserved_bit
            || self.kind == FrameKind::Unknown
            || self.flags & !known_flags != 0
            || !self.is_valid(LARGEST_FRAME)
            || self.is_unlikely(is_open(self.stream));
        if is_impossible {
            return 0;
        }
        let length = match self.kind {
            FrameKind::Priority
            | FrameKind::RstStream
            | FrameKind::Ping
            | FrameKind::WindowUpdate => 24,
            FrameKind::Settings if self.has(flags::ACK) => 24,
            // A multiple of six, some settings at most.
            FrameKind::Settings => 18,
            _ => self.length.leading_zeros().saturating_sub(8),
        };
        let stream = match self.stream {
            0 => 32,
            id if is_open(id) => 26,
            // Small numbers are likelier than large ones, and those of clients are odd.
            id => id.leading_zeros().min(24) + (id & 1),
        };
        let bits = 8 + length + (8 - known_flags.count_ones()) + stream;
        if bits < FRAME_BITS { 0 } else { bits }
    }

    /// Forms that the rules allow and nobody sends, but that other bytes often have: messages are
    /// full of zeros. Large frames are believed of open streams only. Pushed streams, which have
    /// even identifiers, are next to extinct.
    const fn is_unlikely(&self, is_open: bool) -> bool {
        let is_of_server = self.stream.is_multiple_of(2);
        let carries = matches!(
            self.kind,
            FrameKind::Data | FrameKind::Headers | FrameKind::Continuation
        );
        let is_empty = match self.kind {
            FrameKind::Data => self.length == 0 && !self.has(flags::END_STREAM),
            FrameKind::Headers | FrameKind::Continuation => {
                self.length == 0 || (self.length < 256 && !self.has(flags::END_HEADERS))
            }
            _ => false,
        };
        let is_large = self.length > DEFAULT_MAX_FRAME || self.stream >= UNLIKELY_STREAM;
        is_empty || (carries && is_of_server) || (is_large && !is_open)
    }
}

/// More evidence than this is not gathered: what looks like frames at many places, as a body made
/// of frames does, must not cost more for it.
const MOST_BITS: u32 = 512;

/// How much speaks for frames that follow each other from the first of these bytes on, in bits:
/// 0 as soon as one frame is impossible. What is cut at the end says nothing.
pub(super) fn evidence(flow: Flow, bytes: &[u8], is_open: &dyn Fn(u32) -> bool) -> u32 {
    let mut rest = bytes;
    let mut total = 0_u32;
    while let Some((header, payload)) = rest.split_first_chunk::<HEADER_BYTES>() {
        let [.., reserved, _, _, _] = *header;
        let header = FrameHeader::parse(*header);
        let bits = header.evidence(reserved & 0x80 != 0, is_open);
        if bits == 0 {
            return 0;
        }
        total = total.saturating_add(bits + block_evidence(flow, &header, payload));
        let length = usize::try_from(header.length).unwrap_or(usize::MAX);
        match payload.split_at_checked(length) {
            Some((_, next)) if total < MOST_BITS => rest = next,
            _ => break,
        }
    }
    total.min(MOST_BITS)
}

/// Whether these bytes could be cut from the beginning of a frame header of usual length.
pub(super) fn may_begin(bytes: &[u8]) -> bool {
    let is_short = bytes.len() < HEADER_BYTES;
    let fits = |(at, byte): (usize, &u8)| match at {
        0 => *byte == 0,
        3 => *byte <= 9,
        _ => true,
    };
    is_short && bytes.iter().enumerate().all(fits)
}

/// The flow of which the first head among these frames is, where its first field tells.
pub(super) fn head_flow(bytes: &[u8]) -> Option<Flow> {
    let mut rest = bytes;
    while let Some((header, payload)) = rest.split_first_chunk::<HEADER_BYTES>() {
        let header = FrameHeader::parse(*header);
        if header.kind == FrameKind::Headers {
            let prefix = usize::from(header.has(flags::PADDED))
                + if header.has(flags::PRIORITY) { 5 } else { 0 };
            if let Some(flow) = payload.get(prefix).copied().and_then(flow_of_field) {
                return Some(flow);
            }
        }
        let length = usize::try_from(header.length).unwrap_or(usize::MAX);
        let (_, next) = payload.split_at_checked(length)?;
        rest = next;
    }
    None
}

/// A head usually begins with a field of its flow: `:method`, `:scheme`, `:path` or `:authority`
/// of a request, `:status` of a response. One field of 32 in 256 bytes.
fn block_evidence(flow: Flow, header: &FrameHeader, payload: &[u8]) -> u32 {
    let plain = header.kind == FrameKind::Headers
        && !header.has(flags::PADDED)
        && !header.has(flags::PRIORITY);
    match payload.first() {
        Some(first) if plain && flow_of_field(*first) == Some(flow) => 4,
        _ => 0,
    }
}

/// Which flow's head begins with this byte of HPACK: an entry 1 to 7 or 8 to 14 of the static
/// table, indexed, or its name with a literal value.
const fn flow_of_field(first: u8) -> Option<Flow> {
    match first {
        0x81..=0x87 | 0x41..=0x47 | 0x01..=0x07 | 0x11..=0x17 => Some(Flow::Request),
        0x88..=0x8e | 0x48..=0x4e | 0x08..=0x0e => Some(Flow::Response),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE_OPEN: &dyn Fn(u32) -> bool = &|_| false;

    /// Frames that follow each other are evidence; a byte in the wrong place is none.
    #[test]
    fn frames_that_follow_each_other_are_evidence() {
        let frames = [
            &b"\0\0\x01\x01\x04\0\0\0\x03\x88"[..],
            b"\0\0\x02\0\x01\0\0\0\x03ok",
        ]
        .concat();
        let whole = evidence(Flow::Response, &frames, NONE_OPEN);
        assert!(whole > 90, "{whole}");
        let first = evidence(Flow::Response, &frames[..10], NONE_OPEN);
        assert!(first > 48 && first < whole, "{first}");
        for at in 1..9 {
            let shifted = evidence(Flow::Response, &frames[at..], NONE_OPEN);
            assert!(shifted < 48, "at {at}: {shifted}");
        }
    }

    /// Text, zeros, TLS records and the line protocols are no frames.
    #[test]
    fn other_bytes_are_no_evidence() {
        for other in [
            &b"HTTP/1.1 200 OK\r\n"[..],
            b"GET / HTTP/1.1\r\nHost: a\r\n",
            &[0; 64],
            &[0xff; 64],
            b"\x17\x03\x03\x00\x40\x00\x00\x00\x00\x00\x00\x00",
            b"\x4a\x00\x00\x00\x0a8.0.36\0\x08\0\0\0",
            b"R\0\0\0\x08\0\0\0\0",
            b"\0\0\0\x20\0\x12\0\x04\0\0\0\x01",
        ] {
            assert_eq!(evidence(Flow::Request, other, NONE_OPEN), 0, "{other:?}");
        }
    }

    /// Section 6: each type has its own rules of length and stream.
    #[test]
    fn types_have_their_rules() {
        let header = |kind: u8, length: u8, flags: u8, stream: u8| {
            FrameHeader::parse([0, 0, length, kind, flags, 0, 0, 0, stream])
                .is_valid(DEFAULT_MAX_FRAME)
        };
        for (kind, length, flags, stream, valid) in [
            (0, 9, 0, 1, true),
            (0, 9, 0, 0, false),
            (1, 9, 4, 0, false),
            (2, 5, 0, 1, true),
            (2, 6, 0, 1, false),
            (3, 4, 0, 1, true),
            (3, 4, 0, 0, false),
            (4, 12, 0, 0, true),
            (4, 13, 0, 0, false),
            (4, 6, 1, 0, false),
            (4, 0, 1, 0, true),
            (4, 6, 0, 1, false),
            (6, 8, 0, 0, true),
            (6, 7, 0, 0, false),
            (7, 8, 0, 0, true),
            (7, 7, 0, 0, false),
            (8, 4, 0, 0, true),
            (8, 5, 0, 0, false),
            (9, 9, 4, 0, false),
            (0x10, 9, 0xff, 0, true),
        ] {
            assert_eq!(
                header(kind, length, flags, stream),
                valid,
                "{kind} {length} {flags} {stream}"
            );
        }
    }
}

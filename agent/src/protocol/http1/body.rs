//! How far a message body reaches: lengths, chunks, closes, and what a hole leaves of them.
//!
//! RFC 9112, sections 6 and 7.1. States, and what a hole of `n` bytes does to them:
//!
//! | state        | ends by                          | hole                                      |
//! |--------------|----------------------------------|-------------------------------------------|
//! | `Length`     | counting                         | counted                                   |
//! | chunk data   | counting, then CR LF             | counted; more than CR LF after it: lost |
//! | chunk framing| size 0, trailers, an empty line  | lost                                      |
//! | `Lost`       | CR LF `0` CR LF CR LF, turn, close | stays lost                              |
//! | `UntilTurn`  | the next request's turn, close   | stays                                     |
//! | `UntilClose` | close                            | stays                                     |

use crate::protocol::reader::Reader;

/// How a head says its body is delimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    Empty,
    Length(u64),
    Chunked,
    UntilClose,
    /// The head contradicts itself or was not seen whole.
    Unknown,
}

#[derive(Clone, Debug)]
pub(super) struct Body {
    state: State,
    /// Payload bytes that passed.
    size: u64,
    /// Framing was lost on the way, so `size` is not all.
    is_uncounted: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Length(u64),
    /// In a chunk's size; `digits` were read.
    Size {
        value: u64,
        digits: u8,
    },
    /// After the size, up to the line end.
    Extension {
        value: u64,
    },
    Data(u64),
    /// After a chunk's data: its line end.
    DataEnd,
    Trailer {
        is_empty: bool,
    },
    /// The last seven bytes, to find the last chunk.
    Lost {
        window: u64,
    },
    UntilTurn,
    UntilClose,
    Done,
}

/// The end of a chunked body without trailers, with the line end of the chunk before it.
const LAST_CHUNK: u64 = u64::from_be_bytes(*b"\0\r\n0\r\n\r\n");
const WINDOW: u64 = (1 << 56) - 1;

/// What closes a body that has not ended by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Openness {
    /// This many bytes are missing.
    Bytes(u64),
    /// More must come, how much is not known.
    More,
    /// A close is an end as good as any.
    Close,
    /// A close or the next request's turn is.
    TurnOrClose,
}

impl Openness {
    pub(super) const fn ends_by_close(self) -> bool {
        matches!(self, Self::Close | Self::TurnOrClose)
    }
}

impl Body {
    pub(super) fn new(framing: Framing) -> Self {
        let state = match framing {
            Framing::Empty | Framing::Length(0) => State::Done,
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::Size {
                value: 0,
                digits: 0,
            },
            Framing::UntilClose => State::UntilClose,
            Framing::Unknown => State::UntilTurn,
        };
        Self {
            state,
            size: 0,
            is_uncounted: false,
        }
    }

    /// A chunked body whose beginning was not seen.
    pub(super) const fn lost_in_chunks() -> Self {
        Self {
            state: State::Lost { window: 0 },
            size: 0,
            is_uncounted: true,
        }
    }

    pub(super) fn is_done(&self) -> bool {
        self.state == State::Done
    }

    pub(super) fn openness(&self) -> Openness {
        match self.state {
            State::Length(remaining) => Openness::Bytes(remaining),
            State::UntilClose => Openness::Close,
            State::Lost { .. } | State::UntilTurn => Openness::TurnOrClose,
            _ => Openness::More,
        }
    }

    /// Payload bytes so far, where all of them could be counted.
    pub(super) fn size(&self) -> Option<u64> {
        let is_known = !self.is_uncounted && self.state != State::UntilTurn;
        is_known.then_some(self.size)
    }

    /// Follows `data` and says how many bytes of it belong to the body.
    pub(super) fn feed(&mut self, data: &[u8]) -> usize {
        let mut reader = Reader::new(data);
        while !reader.is_empty() && !self.is_done() {
            self.step(&mut reader);
            self.note_loss();
        }
        data.len() - reader.rest().len()
    }

    /// Follows `length` bytes that were not captured and says how many belong to the body.
    pub(super) fn skip(&mut self, length: u64) -> u64 {
        let used = self.skip_in_state(length);
        self.note_loss();
        used
    }

    fn note_loss(&mut self) {
        self.is_uncounted |= matches!(self.state, State::Lost { .. });
    }

    fn skip_in_state(&mut self, length: u64) -> u64 {
        match self.state {
            State::Length(remaining) => {
                let used = remaining.min(length);
                self.state = State::Length(remaining - used);
                self.size += used;
                if remaining == used {
                    self.state = State::Done;
                }
                used
            }
            State::Data(remaining) => {
                self.state = match length.checked_sub(remaining) {
                    None => State::Data(remaining - length),
                    // Nothing but CR LF may follow a chunk's data.
                    Some(0 | 1) => State::DataEnd,
                    Some(2) => State::Size {
                        value: 0,
                        digits: 0,
                    },
                    Some(_) => State::Lost { window: 0 },
                };
                self.size = self.size.saturating_add(length.min(remaining));
                length
            }
            State::UntilClose => {
                self.size = self.size.saturating_add(length);
                length
            }
            State::Done => 0,
            State::UntilTurn => length,
            _ if length == 0 => 0,
            _ => {
                self.state = State::Lost { window: 0 };
                length
            }
        }
    }

    fn step(&mut self, reader: &mut Reader<'_>) {
        self.state = match self.state {
            State::Length(remaining) => match self.take_data(reader, remaining) {
                0 => State::Done,
                remaining => State::Length(remaining),
            },
            State::Data(remaining) => match self.take_data(reader, remaining) {
                0 => State::DataEnd,
                remaining => State::Data(remaining),
            },
            State::UntilClose | State::UntilTurn => {
                self.take_data(reader, u64::MAX);
                self.state
            }
            State::Extension { value } => skip_line(reader, |is_ended| match (is_ended, value) {
                (false, _) => State::Extension { value },
                (true, 0) => State::Trailer { is_empty: true },
                (true, size) => State::Data(size),
            }),
            State::Size { .. } | State::DataEnd | State::Trailer { .. } | State::Lost { .. } => {
                reader
                    .take(1)
                    .first()
                    .map_or(self.state, |&byte| self.framing_byte(byte))
            }
            State::Done => State::Done,
        };
    }

    /// One byte where each counts.
    fn framing_byte(&self, byte: u8) -> State {
        let lost = State::Lost {
            window: u64::from(byte),
        };
        match self.state {
            State::Size { value, digits } => match (char::from(byte).to_digit(16), digits) {
                (Some(digit), 0..16) => State::Size {
                    value: value << 4 | u64::from(digit),
                    digits: digits + 1,
                },
                (None, 1..) if byte == b'\n' && value == 0 => State::Trailer { is_empty: true },
                (None, 1..) if byte == b'\n' => State::Data(value),
                (None, 1..) if matches!(byte, b'\r' | b' ' | b'\t' | b';') => {
                    State::Extension { value }
                }
                _ => lost,
            },
            State::DataEnd => match byte {
                b'\r' => State::DataEnd,
                b'\n' => State::Size {
                    value: 0,
                    digits: 0,
                },
                _ => lost,
            },
            State::Trailer { is_empty } => match byte {
                b'\n' if is_empty => State::Done,
                b'\n' => State::Trailer { is_empty: true },
                b'\r' => State::Trailer { is_empty },
                _ => State::Trailer { is_empty: false },
            },
            State::Lost { window } => {
                let window = (window << 8 | u64::from(byte)) & WINDOW;
                if window == LAST_CHUNK {
                    State::Done
                } else {
                    State::Lost { window }
                }
            }
            other => other,
        }
    }

    /// Reads payload, and says how much of `limit` is still to come.
    fn take_data(&mut self, reader: &mut Reader<'_>, limit: u64) -> u64 {
        let taken = reader
            .take(usize::try_from(limit).unwrap_or(usize::MAX))
            .len() as u64;
        self.size = self.size.saturating_add(taken);
        limit - taken
    }
}

/// Skips to after the next line feed, or to the end; `next` is told which.
fn skip_line(reader: &mut Reader<'_>, next: impl Fn(bool) -> State) -> State {
    next(
        reader.take_line().is_some() || {
            reader.take(usize::MAX);
            false
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunked() -> Body {
        Body::new(Framing::Chunked)
    }

    /// Extensions, upper case sizes, bare line feeds and trailers all end where they should.
    #[test]
    fn follows_chunks() {
        for body in [
            "3\r\nabc\r\n0\r\n\r\n",
            "3;name=\"v\"\r\nabc\r\n0\r\n\r\n",
            "0003 \nabc\n0\n\n",
            "1\r\na\r\n2\r\nbc\r\n0\r\nA: b\r\nC: d\r\n\r\n",
            "A\r\n0123456789\r\n0;x\r\nB: \r\n\r\n",
        ] {
            let mut whole = chunked();
            let more = format!("{body}HTTP/1.1");
            assert_eq!(whole.feed(more.as_bytes()), body.len(), "{body:?}");
            assert!(whole.is_done(), "{body:?}");
            let mut byte_by_byte = chunked();
            for byte in body.as_bytes() {
                assert!(!byte_by_byte.is_done(), "{body:?}");
                byte_by_byte.feed(&[*byte]);
            }
            assert!(byte_by_byte.is_done(), "{body:?}");
            assert_eq!(whole.size(), byte_by_byte.size(), "{body:?}");
        }
    }

    /// A hole in chunk data is counted, with its line end if that is in it too.
    #[test]
    fn a_hole_in_chunk_data_loses_nothing() {
        for swallowed in 0..=2 {
            let mut body = chunked();
            body.feed(b"1000\r\nab");
            assert_eq!(body.skip(0xffe + swallowed), 0xffe + swallowed);
            let rest = b"\r\n0\r\n\r\n"
                .get(swallowed as usize..)
                .expect("two bytes at most");
            // After one of the two the line feed is still expected.
            assert_eq!(body.feed(rest), rest.len());
            assert!(body.is_done(), "{swallowed} swallowed");
            assert_eq!(body.size(), Some(0x1000));
        }
    }

    /// A hole that swallowed framing ends by the last chunk alone, and its size is unknown.
    #[test]
    fn a_hole_over_framing_waits_for_the_last_chunk() {
        let mut body = chunked();
        body.feed(b"10\r\nab");
        body.skip(1000);
        assert_eq!(body.openness(), Openness::TurnOrClose);
        assert_eq!(body.size(), None);
        body.feed(b"0\r\n\r\n");
        assert!(
            !body.is_done(),
            "without the line end before it, it may be data"
        );
        body.feed(b"x\r\n0\r\n\r\n");
        assert!(body.is_done());
        assert_eq!(body.size(), None);
    }

    /// Sizes that are no numbers, or too large, are lost framing and not a panic.
    #[test]
    fn nonsense_is_lost_framing() {
        for nonsense in ["x", "\r\n", ";", "11111111111111111\r\n", "3\r\nabcd"] {
            let mut body = chunked();
            body.feed(nonsense.as_bytes());
            assert_eq!(body.openness(), Openness::TurnOrClose, "{nonsense:?}");
        }
    }
}

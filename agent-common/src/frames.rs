//! Frames of HTTP/2 by their lengths: which bytes of a connection are worth copying.
//!
//! A connection of many streams has no turns. What must be seen of it are the nine bytes before
//! each frame and all of the frames that say something; the content of messages is skipped by its
//! length, across any number of socket calls. <https://www.rfc-editor.org/rfc/rfc9113#section-4.1>
//!
//! The walk is here, and not beside the hooks, so that it can be run on bytes in tests: the kernel
//! half gives it a [`Call`] that reads a program's memory. It goes in steps of bounded work, one
//! frame or one piece of memory each, and keeps everything in [`Walk`], outside registers, so that
//! the verifier sees the same state at the beginning of each step.
//!
//! What is written are pieces: [`PIECE_HEAD_BYTES`] that say where in the call a piece begins and
//! how long it is, then its bytes.
//!
//! | trust | meaning |
//! |---|---|
//! | [`SEEKING`] | a call may begin with a frame; all bytes are kept |
//! | 1, 2 | so many frames in a row were plausible |
//! | [`SURE`] | frames are skipped by their length |
//! | [`ASTRAY`] | no frame begins where one should; the next call is looked at anew |
//!
//! Nothing depends on this being right but what is copied: user space has the positions, and walks
//! the frames by itself.

#![expect(
    clippy::inline_always,
    reason = "a call between BPF functions costs a stack frame of the 512 bytes they share"
)]

mod header;

use self::header::Header;
use crate::wire;

/// Length, type, flags and stream.
pub const HEADER_BYTES: u32 = 9;

/// What a client sends first; the first eight bytes tell (RFC 9113, section 3.4).
pub const PREFACE_BYTES: u32 = 24;
pub const PREFACE_WORD: [u8; 8] = *b"PRI * HT";

/// Bytes copied at once: more cost more where a large frame follows, fewer cost steps.
pub const BLOCK_BYTES: u32 = 1024;

/// Bytes kept of a call in which no frame begins where one should.
const ASTRAY_KEPT: u32 = 12 * 1024;

/// Before the bytes of a piece: its offset in the call and its length, each a `u32`.
pub const PIECE_HEAD_BYTES: u32 = 8;

pub const SEEKING: u8 = 0;
pub const SURE: u8 = 3;
pub const ASTRAY: u8 = 4;

wire! {
    /// Where one direction of a connection is among its frames.
    pub struct FrameFlow {
        /// The last bytes, right aligned: `held` of them begin a frame header.
        pub partial: u64,
        /// Bytes of the frame in progress that are still to come.
        pub ahead: u32,
        /// The first of those that are to be copied.
        pub keep: u32,
        pub held: u8,
        pub trust: u8,
        /// 1: the frame in progress ends its stream.
        pub ends: u8,
        pub reserved: u8,
        /// The highest stream of a client that a head was seen of; 0: none. They are numbered one
        /// after the other by odd numbers (RFC 9113, section 5.1.1), so it counts them, whatever
        /// becomes of what was copied.
        pub highest_stream: u32,
    }
}

wire! {
    /// Both directions of a connection.
    pub struct FrameState {
        pub inbound: FrameFlow,
        pub outbound: FrameFlow,
        /// [`FOLLOWED`] or [`LEFT_ALONE`].
        pub following: u32,
        pub reserved: u32,
    }
}

pub const FOLLOWED: u32 = 0;
/// It speaks something else, after all.
pub const LEFT_ALONE: u32 = 1;

impl FrameFlow {
    /// A call may begin with a frame.
    pub const SEEKING: Self = Self {
        partial: 0,
        ahead: 0,
        keep: 0,
        held: 0,
        trust: SEEKING,
        ends: 0,
        reserved: 0,
        highest_stream: 0,
    };

    /// A frame begins after `ahead` bytes.
    #[must_use]
    pub const fn sure(ahead: u32) -> Self {
        Self {
            ahead,
            keep: ahead,
            trust: SURE,
            ..Self::SEEKING
        }
    }

    /// The next call may begin with a frame; what was counted stays.
    #[inline(always)]
    const fn seek(&mut self) {
        *self = Self {
            highest_stream: self.highest_stream,
            ..Self::SEEKING
        };
    }

    /// All of a call of `moved` bytes lies within a frame, after what is wanted of it.
    #[inline(always)]
    #[must_use]
    pub const fn passes(&self, moved: u32) -> bool {
        self.trust == SURE && self.keep == 0 && self.ahead > moved
    }

    /// Bytes passed that could not be read.
    #[inline(always)]
    pub const fn pass_unread(&mut self, moved: u32) {
        if self.trust == SURE && self.ahead >= moved {
            self.ahead -= moved;
            self.keep = self.keep.saturating_sub(moved);
        } else {
            self.seek();
        }
    }
}

impl FrameState {
    pub const SEEKING: Self = Self {
        inbound: FrameFlow::SEEKING,
        outbound: FrameFlow::SEEKING,
        following: FOLLOWED,
        reserved: 0,
    };

    /// The highest stream that either direction had a head of; 0: none.
    #[must_use]
    pub const fn highest_stream(&self) -> u32 {
        let (inbound, outbound) = (self.inbound.highest_stream, self.outbound.highest_stream);
        if inbound > outbound {
            inbound
        } else {
            outbound
        }
    }
}

/// The bytes of a socket call, and room for those that are kept.
pub trait Call {
    /// Address and length of a piece of memory; `None` when it cannot be read.
    fn buffer(&self, index: u32) -> Option<(u64, u64)>;
    /// Copies bytes of a piece of memory; at most [`BLOCK_BYTES`].
    fn copy(&self, to: u32, from: u64, length: u32) -> bool;
    /// Kept bytes at this place, in the order of memory.
    fn word(&self, at: u32) -> u64;
    fn byte(&self, at: u32) -> u8;
    fn put(&self, at: u32, word: u64);
    /// Writes a record with the first `kept` bytes of the room: pieces of the call's bytes from
    /// `from` on, `covered` in all.
    fn write(&self, from: u32, covered: u32, kept: u32);
}

/// How far a walk over one call is.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Walk {
    pub flow: FrameFlow,
    /// Where in memory the next byte is.
    base: u64,
    /// Bytes of the call left in that piece of memory, and behind it.
    left: u32,
    behind: u32,
    next_buffer: u32,
    /// Bytes of the call that were copied or skipped.
    taken: u32,
    /// Of those, the ones that were written in records before.
    written: u32,
    /// Where the room's last piece begins, and in the call.
    piece: u32,
    piece_from: u32,
    /// Bytes of the room in use, and those among them that were walked.
    filled: u32,
    walked: u32,
    /// Capacity of the room; a block must fit behind what is below it.
    room: u32,
    /// 1: a stream's end was among the skipped bytes.
    ended: u32,
    /// 1: the flow was sure, and no frame began where one should.
    pub went_astray: u32,
}

/// What to do after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    Step,
    Finish,
    /// Memory could not be read.
    Unreadable,
}

impl Walk {
    /// Before it begins.
    #[must_use]
    pub const fn blank() -> Self {
        Self {
            flow: FrameFlow::SEEKING,
            base: 0,
            left: 0,
            behind: 0,
            next_buffer: 0,
            taken: 0,
            written: 0,
            piece: 0,
            piece_from: 0,
            filled: 0,
            walked: 0,
            room: 0,
            ended: 0,
            went_astray: 0,
        }
    }

    /// Begins at the first of `moved` bytes.
    #[inline(always)]
    pub fn begin<C: Call>(&mut self, call: &C, flow: FrameFlow, moved: u32, room: u32) {
        *self = Self {
            flow,
            base: 0,
            left: 0,
            behind: moved,
            next_buffer: 0,
            taken: 0,
            written: 0,
            piece: 0,
            piece_from: 0,
            filled: PIECE_HEAD_BYTES,
            walked: PIECE_HEAD_BYTES - smaller(u32::from(flow.held), PIECE_HEAD_BYTES),
            room,
            ended: 0,
            went_astray: 0,
        };
        call.put(0, flow.partial);
    }

    /// One frame, or one piece of memory.
    #[inline(always)]
    pub fn step<C: Call>(&mut self, call: &C) -> Next {
        if self.flow.ahead > 0 || self.filled - self.walked < HEADER_BYTES {
            if self.left == 0 {
                if self.behind == 0 {
                    return Next::Finish;
                }
                let Some((base, length)) = call.buffer(self.next_buffer) else {
                    return Next::Unreadable;
                };
                self.next_buffer += 1;
                self.base = base;
                self.left = if length < u64::from(self.behind) {
                    length as u32
                } else {
                    self.behind
                };
                self.behind -= self.left;
            }
            if self.flow.ahead > 0 && self.flow.keep == 0 {
                if self.flow.trust != SURE {
                    return Next::Finish;
                }
                self.skip(call);
                return Next::Step;
            }
            if !self.fetch(call) {
                return Next::Unreadable;
            }
        }
        if self.flow.ahead == 0 && self.filled - self.walked >= HEADER_BYTES {
            self.header(call);
        }
        Next::Step
    }

    /// Passes over bytes that are not wanted.
    #[inline(always)]
    fn skip<C: Call>(&mut self, call: &C) {
        self.close(call);
        let count = smaller(self.flow.ahead, self.left);
        self.flow.ahead -= count;
        self.base += u64::from(count);
        self.left -= count;
        self.taken += count;
        self.piece_from = self.taken;
        if self.flow.ahead == 0 && self.flow.ends == 1 {
            self.ended = 1;
        }
    }

    /// Ends the room's last piece, unless it is empty.
    #[inline(always)]
    fn close<C: Call>(&mut self, call: &C) {
        let length = self.filled - self.piece - PIECE_HEAD_BYTES;
        if length > 0 {
            let offset = self.piece_from - self.written;
            call.put(self.piece, u64::from(length) << 32 | u64::from(offset));
            self.piece = self.filled;
            self.filled += PIECE_HEAD_BYTES;
            self.walked = self.filled;
            self.piece_from = self.taken;
        }
    }

    #[inline(always)]
    fn fetch<C: Call>(&mut self, call: &C) -> bool {
        if self.filled + PIECE_HEAD_BYTES + BLOCK_BYTES > self.room {
            self.make_room(call);
        }
        let count = smaller(self.left, BLOCK_BYTES);
        if !call.copy(self.filled, self.base, count) {
            return false;
        }
        self.filled += count;
        self.base += u64::from(count);
        self.left -= count;
        self.taken += count;
        self.consume();
        true
    }

    /// Writes what there is; a header that is cut stays.
    #[inline(always)]
    fn make_room<C: Call>(&mut self, call: &C) {
        let held = self.filled - self.walked;
        let partial = call.word(self.filled - PIECE_HEAD_BYTES);
        self.close(call);
        call.write(self.written, self.taken - self.written, self.piece);
        self.written = self.taken;
        self.piece = 0;
        self.piece_from = self.taken;
        self.filled = PIECE_HEAD_BYTES;
        self.walked = PIECE_HEAD_BYTES - held;
        call.put(0, partial);
    }

    /// Walks over bytes of the frame in progress. What is not wanted of a frame that has just begun
    /// is given back: it came with the last piece of memory, together with the frame's header.
    #[inline(always)]
    fn consume(&mut self) {
        let there = self.filled - self.walked;
        let count = smaller(self.flow.ahead, there);
        if self.flow.keep < count {
            let excess = there - self.flow.keep;
            self.filled -= excess;
            self.base -= u64::from(excess);
            self.left += excess;
            self.taken -= excess;
            self.walked = self.filled;
            self.flow.ahead -= self.flow.keep;
            self.flow.keep = 0;
        } else {
            self.walked += count;
            self.flow.ahead -= count;
            self.flow.keep -= count;
        }
    }

    #[inline(always)]
    fn header<C: Call>(&mut self, call: &C) {
        let header = Header::of(call.word(self.walked), call.byte(self.walked + 8));
        self.walked += HEADER_BYTES;
        let is_frame = if self.flow.trust == SURE {
            header.is_valid()
        } else {
            header.is_plausible()
        };
        if is_frame {
            if self.flow.trust < SURE {
                self.flow.trust += 1;
            }
            self.flow.ahead = header.length;
            self.flow.keep = if self.flow.trust == SURE {
                header.kept()
            } else {
                header.length
            };
            self.flow.ends = header.ends_stream();
            let stream = header.opened();
            if self.flow.trust == SURE && stream > self.flow.highest_stream {
                self.flow.highest_stream = stream;
            }
        } else {
            if self.flow.trust == SURE {
                self.went_astray = 1;
            }
            self.flow.trust = ASTRAY;
            self.flow.ahead = u32::MAX;
            self.flow.keep = ASTRAY_KEPT;
            self.flow.ends = 0;
        }
        self.consume();
    }

    /// Whether bytes are left: the walk took as many steps as it may.
    #[inline(always)]
    #[must_use]
    pub const fn is_unfinished(&self) -> bool {
        self.left > 0 || self.behind > 0
    }

    /// Whether, behind [`Self::finish`], the room begins with a piece that is the call's first.
    #[inline(always)]
    #[must_use]
    pub const fn has_first_piece(&self) -> bool {
        self.piece > 0 && self.written == 0
    }

    /// It ends before the call's last byte: the next call is looked at anew.
    #[inline(always)]
    pub const fn give_up(&mut self) {
        self.flow.trust = ASTRAY;
    }

    /// Writes what is left to write, and says where the flow is then.
    #[inline(always)]
    pub fn finish<C: Call>(&mut self, call: &C, moved: u32) {
        let held = self.filled - self.walked;
        let partial = call.word(self.filled - PIECE_HEAD_BYTES);
        self.close(call);
        if self.piece > 0 || self.ended == 1 {
            call.write(self.written, moved - self.written, self.piece);
        }
        match self.flow.trust {
            ASTRAY | SEEKING => self.flow.seek(),
            trust => {
                // The last frame ends with the call: no coincidence.
                if self.flow.ahead == 0 && held == 0 && trust < SURE {
                    self.flow.trust = SURE;
                }
                self.flow.held = held as u8;
                self.flow.partial = partial;
            }
        }
    }
}

#[inline(always)]
const fn smaller(one: u32, other: u32) -> u32 {
    if one < other { one } else { other }
}

#[cfg(test)]
mod tests;

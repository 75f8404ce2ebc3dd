//! One direction of a connection: where we are in it. Pure.

/// What lies between the place we are at and bytes that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step<'a> {
    /// They follow.
    Next(&'a [u8]),
    /// So many bytes were not captured before them.
    Gap { length: u64, then: &'a [u8] },
    /// All of them were there before.
    Known,
}

/// Position of the next byte; `None` until the first one was seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stream {
    next: Option<u64>,
}

impl Stream {
    /// Where the next byte will stand.
    pub fn position(self) -> u64 {
        self.next.unwrap_or(0)
    }

    /// Begins at `position` unless it has begun: bytes before the first ones seen are not a gap
    /// but the time before the agent.
    pub fn begin_at(&mut self, position: u64) {
        self.next.get_or_insert(position);
    }

    /// Places bytes that begin at `position`; afterwards the stream stands behind them.
    pub fn place<'a>(&mut self, position: u64, bytes: &'a [u8]) -> Step<'a> {
        let next = *self.next.get_or_insert(position);
        let end = position.saturating_add(bytes.len() as u64);
        if position > next {
            self.next = Some(end);
            return Step::Gap {
                length: position - next,
                then: bytes,
            };
        }
        if end <= next && !bytes.is_empty() {
            return Step::Known;
        }
        self.next = Some(end.max(next));
        let known = usize::try_from(next - position).unwrap_or(usize::MAX);
        Step::Next(bytes.get(known..).unwrap_or_default())
    }

    /// Moves on to `position`; returns how many bytes are passed over.
    pub fn advance_to(&mut self, position: u64) -> u64 {
        let next = *self.next.get_or_insert(position);
        self.next = Some(next.max(position));
        position.saturating_sub(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_follow_each_other() {
        let mut stream = Stream::default();
        stream.begin_at(0);
        assert_eq!(stream.place(0, b"abc"), Step::Next(b"abc"));
        assert_eq!(stream.place(3, b"de"), Step::Next(b"de"));
        assert_eq!(stream.position(), 5);
    }

    #[test]
    fn a_hole_is_told_and_passed() {
        let mut stream = Stream::default();
        assert_eq!(
            stream.place(10, b"ab"),
            Step::Next(b"ab"),
            "before the agent is no hole"
        );
        assert_eq!(
            stream.place(20, b"cd"),
            Step::Gap {
                length: 8,
                then: b"cd"
            }
        );
        assert_eq!(stream.advance_to(30), 8);
        assert_eq!(stream.advance_to(25), 0);
        assert_eq!(stream.position(), 30);
    }

    #[test]
    fn bytes_are_handed_on_once() {
        let mut stream = Stream::default();
        stream.begin_at(0);
        assert_eq!(stream.place(0, b"abcdef"), Step::Next(b"abcdef"));
        assert_eq!(stream.place(2, b"cd"), Step::Known);
        assert_eq!(stream.place(4, b"efgh"), Step::Next(b"gh"));
        assert_eq!(stream.position(), 8);
    }
}

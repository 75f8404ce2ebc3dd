//! A bounded cursor over captured bytes: the only place below `protocol` that slices its input.
//!
//! Every operation answers with what there is; running past the end is an answer, not a panic.

/// Bytes not read yet.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub const fn rest(&self) -> &'a [u8] {
        self.rest
    }

    pub const fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub fn peek(&self) -> Option<u8> {
        self.rest.first().copied()
    }

    /// The next `count` bytes, or as many as there are.
    pub fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = split(self.rest, count);
        self.rest = rest;
        taken
    }

    /// The longest run of bytes that `accepts`.
    pub fn take_while(&mut self, accepts: impl Fn(u8) -> bool) -> &'a [u8] {
        let count = self.rest.iter().position(|&byte| !accepts(byte));
        self.take(count.unwrap_or(self.rest.len()))
    }

    /// The bytes up to the next line feed, without it and without a carriage return before it.
    /// `None`, and nothing read, when there is no line feed.
    pub fn take_line(&mut self) -> Option<&'a [u8]> {
        let feed = memchr::memchr(b'\n', self.rest)?;
        let line = self.take(feed);
        self.take(1);
        Some(line.strip_suffix(b"\r").unwrap_or(line))
    }

    /// The bytes before the next `separator`, which is read too; all that is left when there is
    /// none.
    pub fn take_until(&mut self, separator: u8) -> &'a [u8] {
        let found = memchr::memchr(separator, self.rest);
        let taken = self.take(found.unwrap_or(self.rest.len()));
        self.take(1);
        taken
    }
}

/// `bytes` cut in two after `count`, or at its end when it is shorter.
pub fn split(bytes: &[u8], count: usize) -> (&[u8], &[u8]) {
    bytes.split_at_checked(count).unwrap_or((bytes, &[]))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever is asked for, a reader gives what there is and then nothing.
    #[test]
    fn reads_no_further_than_its_input() {
        let mut reader = Reader::new(b"abc");
        assert_eq!(reader.take(2), b"ab");
        assert_eq!(reader.take(usize::MAX), b"c");
        assert_eq!(reader.take(1), b"");
        assert_eq!(reader.take_until(b'x'), b"");
        assert_eq!(reader.take_line(), None);
        assert_eq!(reader.peek(), None);
    }

    /// Lines end in LF or CRLF; what has no line feed is left in place.
    #[test]
    fn takes_whole_lines_only() {
        let mut reader = Reader::new(b"one\r\ntwo\n\r\nthree\r");
        assert_eq!(reader.take_line(), Some(&b"one"[..]));
        assert_eq!(reader.take_line(), Some(&b"two"[..]));
        assert_eq!(reader.take_line(), Some(&b""[..]));
        assert_eq!(reader.take_line(), None);
        assert_eq!(reader.rest(), b"three\r");
    }
}

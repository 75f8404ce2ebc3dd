//! Which Go made a program: section `.go.buildinfo`, see `debug/buildinfo` in Go's source.
//!
//! ```text
//!  0   "\xff Go buildinf:"
//! 14   pointer size     15   flags: 1 big-endian, 2 the strings follow
//! 16   address of the version (a Go string: address, length), unless they follow
//! 32   length of the version as a varint, the version, the same of the module list
//! ```

use object::read::ReadRef;

use super::{Unreadable, elf::Elf};

const MAGIC: &[u8] = b"\xff Go buildinf:";
const HEADER_BYTES: u64 = 32;
const STRINGS_FOLLOW: u8 = 2;

/// A version is a line at most.
const VERSION_BYTES: u64 = 256;

/// A release of Go: 1.`minor`.`patch`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Release {
    pub minor: u16,
    pub patch: u16,
}

impl Release {
    /// `None` for development versions and those with experiments (`X:`), whose structures may
    /// differ from the release's.
    pub fn parse(version: &str) -> Option<Self> {
        let mut words = version.split_whitespace();
        let numbers = words.next()?.strip_prefix("go1.")?;
        if words.any(|word| word.starts_with("X:")) {
            return None;
        }
        // A distribution's suffix, as in `go1.22.1-custom`, says nothing of what was changed.
        let (minor, patch) = numbers.split_once('.').unwrap_or((numbers, "0"));
        Some(Self {
            minor: minor.parse().ok()?,
            patch: patch.parse().ok()?,
        })
    }
}

/// The version, as `go version` would print it; `None`: not a Go program.
pub(super) fn version<'data, R: ReadRef<'data>>(
    file: &Elf<R>,
) -> Result<Option<String>, Unreadable> {
    let Some(section) = file.section(".go.buildinfo") else {
        return Ok(None);
    };
    let Ok(header) = file.part(section, 0, HEADER_BYTES) else {
        return Ok(None);
    };
    if !header.starts_with(MAGIC) {
        return Ok(None);
    }
    let flags = header.get(15).copied().unwrap_or(0);
    let text = if flags & STRINGS_FOLLOW != 0 {
        let length = section.size.saturating_sub(HEADER_BYTES).min(VERSION_BYTES);
        inline(file.part(section, HEADER_BYTES, length)?)
    } else {
        pointed(file, section.address)
    };
    let text = text.ok_or(Unreadable::Malformed("build information"))?;
    Ok(Some(String::from_utf8_lossy(text).into_owned()))
}

/// A varint of at most two bytes, and so many bytes.
fn inline(bytes: &[u8]) -> Option<&[u8]> {
    let (length, rest) = match bytes {
        [one @ 0..0x80, rest @ ..] => (usize::from(*one), rest),
        [low, high @ 0..0x80, rest @ ..] => {
            (usize::from(*low & 0x7f) | usize::from(*high) << 7, rest)
        }
        _ => return None,
    };
    rest.get(..length)
}

/// Go 1.17 and older.
fn pointed<'data, R: ReadRef<'data>>(file: &Elf<R>, header: u64) -> Option<&'data [u8]> {
    let string = file.word(header.checked_add(16)?)?;
    let text = file.word(string)?;
    let length = file.word(string.checked_add(8)?)?;
    (length <= VERSION_BYTES)
        .then(|| file.at_address(text, length).ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases() {
        let release = |minor, patch| Some(Release { minor, patch });
        let table = [
            ("go1.22.10", release(22, 10)),
            ("go1.21", release(21, 0)),
            ("go1.19.8 (Debian)", release(19, 8)),
            ("go1.24.1 X:nocoverageredesign", None),
            ("devel go1.28-8c1fa1a", None),
            ("go1.23rc1", None),
            ("go1.22.1-custom", None),
            ("", None),
        ];
        for (text, expected) in table {
            assert_eq!(Release::parse(text), expected, "{text}");
        }
    }

    #[test]
    fn inline_strings() {
        assert_eq!(inline(b"\x08go1.22.3rest"), Some(&b"go1.22.3"[..]));
        let long = [&[0x81, 0x01][..], &[b'x'; 129]].concat();
        assert_eq!(inline(&long).map(<[u8]>::len), Some(129));
        assert_eq!(inline(b"\x08go1"), None);
        assert_eq!(inline(b""), None);
    }
}

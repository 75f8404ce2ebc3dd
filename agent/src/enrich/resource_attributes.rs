//! `OTEL_RESOURCE_ATTRIBUTES`: `key=value` pairs with commas between them. Pure.
//!
//! Source: OpenTelemetry specification, resource/sdk.md, "Specifying resource information via an
//! environment variable": keys and values are percent-encoded as in W3C Baggage, and the whole
//! value is discarded when any of it cannot be decoded.

use thiserror::Error;

#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Malformed {
    #[error("{0:?} is not `key=value`")]
    NotAPair(String),
    #[error("{0:?} is not percent-encoded UTF-8")]
    Encoding(String),
}

/// Pairs in order. An empty pair, as after a last comma, is passed over.
pub fn parse(text: &str) -> Result<Vec<(String, String)>, Malformed> {
    let mut attributes = Vec::new();
    for pair in text
        .split(',')
        .map(str::trim)
        .filter(|pair| !pair.is_empty())
    {
        let not_a_pair = || Malformed::NotAPair(pair.to_owned());
        let (key, value) = pair.split_once('=').ok_or_else(not_a_pair)?;
        let key = decode(key.trim())?;
        if key.is_empty() {
            return Err(not_a_pair());
        }
        attributes.push((key, decode(value.trim())?));
    }
    Ok(attributes)
}

fn decode(text: &str) -> Result<String, Malformed> {
    let malformed = || Malformed::Encoding(text.to_owned());
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let mut digit = || bytes.next().and_then(|byte| char::from(byte).to_digit(16));
        let (high, low) = digit().zip(digit()).ok_or_else(malformed)?;
        decoded.push((high * 16 + low) as u8);
    }
    String::from_utf8(decoded).map_err(|_| malformed())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pairs, blanks and percent-encoding; anything wrong spoils the whole.
    #[test]
    fn values() {
        let pairs = |pairs: &[(&str, &str)]| {
            Ok(pairs
                .iter()
                .map(|&(key, value)| (key.to_owned(), value.to_owned()))
                .collect())
        };
        let table = [
            ("", pairs(&[])),
            ("a=1", pairs(&[("a", "1")])),
            (" a = 1 , b=2,", pairs(&[("a", "1"), ("b", "2")])),
            ("a=", pairs(&[("a", "")])),
            ("a=x=y", pairs(&[("a", "x=y")])),
            ("a=1%2C2%3d3", pairs(&[("a", "1,2=3")])),
            ("k%20k=%C3%A9", pairs(&[("k k", "\u{e9}")])),
            ("a=1,b", Err(Malformed::NotAPair("b".to_owned()))),
            ("=1", Err(Malformed::NotAPair("=1".to_owned()))),
            ("a=%2", Err(Malformed::Encoding("%2".to_owned()))),
            ("a=%zz", Err(Malformed::Encoding("%zz".to_owned()))),
            ("a=%ff", Err(Malformed::Encoding("%ff".to_owned()))),
        ];
        for (text, expected) in table {
            assert_eq!(parse(text), expected, "{text:?}");
        }
    }
}

//! Secrets out of URLs, before anything is kept for export. Pure.
//!
//! Semantic conventions, docs/registry/attributes/url.md: user information and the values of
//! [`SENSITIVE_QUERY_KEYS`] give way to `REDACTED`; the keys stay.

use std::borrow::Cow;

const REDACTED: &str = "REDACTED";

/// Query keys whose values are never exported; case counts.
pub const SENSITIVE_QUERY_KEYS: [&str; 7] = [
    "X-Amz-Signature",
    "X-Amz-Credential",
    "X-Amz-Security-Token",
    "AWSAccessKeyId",
    "Signature",
    "sig",
    "X-Goog-Signature",
];

/// A query (what follows `?`) without the values of sensitive keys.
pub fn query(query: &str) -> Cow<'_, str> {
    if !query.split('&').any(is_sensitive) {
        return Cow::Borrowed(query);
    }
    let mut clean = String::with_capacity(query.len());
    for (index, pair) in query.split('&').enumerate() {
        if index > 0 {
            clean.push('&');
        }
        match pair.split_once('=') {
            Some((key, _)) if is_sensitive(pair) => {
                clean.push_str(key);
                clean.push('=');
                clean.push_str(REDACTED);
            }
            _ => clean.push_str(pair),
        }
    }
    Cow::Owned(clean)
}

fn is_sensitive(pair: &str) -> bool {
    pair.split_once('=')
        .is_some_and(|(key, value)| !value.is_empty() && SENSITIVE_QUERY_KEYS.contains(&key))
}

/// An absolute URL without user information and without the values of sensitive query keys.
pub fn url(url: &str) -> Cow<'_, str> {
    let (before_query, query_part) = match url.split_once('?') {
        Some((before, after)) => (before, Some(after)),
        None => (url, None),
    };
    let user = user_information(before_query);
    let clean_query = query_part.map(query);
    if user.is_none() && !matches!(clean_query, Some(Cow::Owned(_))) {
        return Cow::Borrowed(url);
    }
    let mut clean = String::with_capacity(url.len() + REDACTED.len());
    match user {
        Some((before, user, after)) => {
            clean.push_str(before);
            clean.push_str(REDACTED);
            if user.contains(':') {
                clean.push(':');
                clean.push_str(REDACTED);
            }
            clean.push('@');
            clean.push_str(after);
        }
        None => clean.push_str(before_query),
    }
    if let Some(query) = clean_query {
        clean.push('?');
        clean.push_str(&query);
    }
    Cow::Owned(clean)
}

/// What stands before, in and after the user information of a URL that has some (RFC 3986,
/// section 3.2.1). The last `@` of the authority counts, so that a password with an unescaped
/// one does not leak its end.
fn user_information(url: &str) -> Option<(&str, &str, &str)> {
    let authority = url.find("//")? + 2;
    let (before, rest) = url.split_at_checked(authority)?;
    let end = rest.find(['/', '#']).unwrap_or(rest.len());
    let at = rest.get(..end)?.rfind('@')?;
    let (user, after) = rest.split_at_checked(at)?;
    Some((before, user, after.strip_prefix('@')?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of sensitive keys go, keys, order and everything else stay.
    #[test]
    fn redacts_sensitive_query_values() {
        assert_eq!(query("a=1&sig=abc&b=2"), "a=1&sig=REDACTED&b=2");
        assert_eq!(query("Signature=x%3D&sig"), "Signature=REDACTED&sig");
        assert_eq!(query("SIG=a&signature=b"), "SIG=a&signature=b");
        assert!(matches!(query("a=1&b"), Cow::Borrowed("a=1&b")));
        for key in SENSITIVE_QUERY_KEYS {
            assert_eq!(query(&format!("{key}=secret")), format!("{key}=REDACTED"));
        }
    }

    /// User information goes from the authority alone.
    #[test]
    fn redacts_user_information() {
        assert_eq!(url("http://u:p@h/x"), "http://REDACTED:REDACTED@h/x");
        assert_eq!(url("http://u@h:81"), "http://REDACTED@h:81");
        assert_eq!(url("http://u:p@ss@h/"), "http://REDACTED:REDACTED@h/");
        assert_eq!(url("http://h/a@b?c=d@e"), "http://h/a@b?c=d@e");
        assert_eq!(
            url("http://u:p@h?sig=1"),
            "http://REDACTED:REDACTED@h?sig=REDACTED"
        );
        assert!(matches!(url("http://h/x?y=z"), Cow::Borrowed(_)));
    }
}

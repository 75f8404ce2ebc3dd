//! Propagation headers: W3C Trace Context level 2, <https://www.w3.org/TR/trace-context-2/>.
//!
//! Covered: `traceparent` of version 00 and of later versions as section 3.2.3 asks, `tracestate`
//! carried as it came within the bounds of section 3.3.1. Not covered: B3, Jaeger, baggage.

use opentelemetry::{SpanId, TraceId};

use super::RemoteContext;
use crate::protocol::TraceHeaders;

/// Longest `tracestate` that is carried on; section 3.3.1.5 asks for at least 512.
const STATE_BYTES: usize = 2048;

const VERSION_00_LENGTH: usize = 55;

/// The context a request carries, when it is valid.
pub fn extract(headers: &TraceHeaders) -> Option<RemoteContext> {
    let mut context = parse_traceparent(headers.traceparent.as_deref()?.trim())?;
    if let Some(state) = headers.tracestate.as_deref()
        && state.len() <= STATE_BYTES
    {
        state.trim().clone_into(&mut context.state);
    }
    Some(context)
}

/// `version "-" trace-id "-" parent-id "-" trace-flags`, lower-case hexadecimal.
fn parse_traceparent(text: &str) -> Option<RemoteContext> {
    if !text.is_ascii() || text.len() < VERSION_00_LENGTH {
        return None;
    }
    let mut parts = text.split('-');
    let version = hexadecimal(parts.next()?, 2)?;
    let trace_id = parts.next().and_then(|part| hexadecimal(part, 32))?;
    let span_id = parts.next().and_then(|part| hexadecimal(part, 16))?;
    let flags = parts.next().and_then(|part| hexadecimal(part, 2))?;
    // Version 00 ends here; later ones may go on after a dash; ff is forbidden.
    if version == 0xff || (version == 0 && text.len() != VERSION_00_LENGTH) {
        return None;
    }
    if trace_id == 0 || span_id == 0 {
        return None;
    }
    Some(RemoteContext {
        trace_id: TraceId::from(trace_id),
        span_id: SpanId::from(u64::try_from(span_id).ok()?),
        flags: u8::try_from(flags).ok()?,
        state: String::new(),
    })
}

fn hexadecimal(text: &str, digits: usize) -> Option<u128> {
    let is_lower_hexadecimal = text.len() == digits
        && text
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if is_lower_hexadecimal {
        u128::from_str_radix(text, 16).ok()
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALID: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn of(traceparent: &str) -> Option<RemoteContext> {
        let traceparent = Some(traceparent.to_owned());
        extract(&TraceHeaders {
            traceparent,
            tracestate: Some("rojo=1".to_owned()),
        })
    }

    /// The example of section 3.2.
    #[test]
    fn a_valid_header_is_read() {
        let context = of(VALID).expect("valid");
        assert_eq!(
            context.trace_id.to_string(),
            "4bf92f3577b34da6a3ce929d0e0e4736"
        );
        assert_eq!(context.span_id.to_string(), "00f067aa0ba902b7");
        assert_eq!(context.flags, 1);
        assert_eq!(context.state, "rojo=1");
    }

    /// Section 3.2.2 and 3.2.3: what must not be used.
    #[test]
    fn invalid_headers_are_no_context() {
        for invalid in [
            "",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0g",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "0-4bf92f3577b34da6a3ce929d0e0e47360-00f067aa0ba902b7-01",
            "\u{e9}0-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ] {
            assert_eq!(of(invalid), None, "{invalid}");
        }
    }

    #[test]
    fn later_versions_may_say_more() {
        let later = of("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00-what-more");
        assert_eq!(later.expect("valid").flags, 0);
    }

    #[test]
    fn every_truncation_is_no_context() {
        for length in 0..VALID.len() {
            assert_eq!(of(&VALID[..length]), None);
        }
    }
}

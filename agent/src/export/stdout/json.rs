//! One span as one line of JSON. Pure.
//!
//! Fields, always all of them and in this order:
//!
//! | field            | value                                                               |
//! |------------------|---------------------------------------------------------------------|
//! | `trace_id`       | 32 hexadecimal digits                                               |
//! | `span_id`        | 16 hexadecimal digits                                               |
//! | `parent_span_id` | 16 hexadecimal digits, or null for a root                           |
//! | `name`           | string                                                              |
//! | `kind`           | `server` or `client`                                                |
//! | `start`, `end`   | RFC 3339 in UTC with nanoseconds                                    |
//! | `duration_ms`    | number                                                              |
//! | `status`         | `{"code": "unset"}` or `{"code": "error", "message": string}`       |
//! | `attributes`     | object; values are strings, numbers, booleans or arrays of strings  |
//! | `resource`       | object, as `attributes`                                             |
//! | `links`          | array of `{"trace_id", "span_id", "attributes"}`                    |

use std::io;

use serde::{Serialize, Serializer, ser::SerializeMap as _};

use crate::span::{Attribute, Kind, Link, Span, Status, Value};

pub fn write_line(span: &Span, out: &mut Vec<u8>) -> io::Result<()> {
    serde_json::to_writer(&mut *out, &Line::from(span))?;
    out.push(b'\n');
    Ok(())
}

#[derive(Serialize)]
struct Line<'a> {
    trace_id: String,
    span_id: String,
    parent_span_id: Option<String>,
    name: &'a str,
    kind: &'static str,
    start: String,
    end: String,
    duration_ms: f64,
    status: StatusLine<'a>,
    attributes: Attributes<'a>,
    resource: Attributes<'a>,
    links: Vec<LinkLine<'a>>,
}

#[derive(Serialize)]
struct StatusLine<'a> {
    code: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<&'a str>,
}

#[derive(Serialize)]
struct LinkLine<'a> {
    trace_id: String,
    span_id: String,
    attributes: Attributes<'a>,
}

impl<'a> From<&'a Span> for Line<'a> {
    fn from(span: &'a Span) -> Self {
        Self {
            trace_id: span.trace_id.to_string(),
            span_id: span.span_id.to_string(),
            parent_span_id: span.parent.map(|parent| parent.span_id.to_string()),
            name: &span.name,
            kind: match span.kind {
                Kind::Server => "server",
                Kind::Client => "client",
            },
            start: rfc3339(span.start_ns),
            end: rfc3339(span.end_ns),
            duration_ms: span.end_ns.saturating_sub(span.start_ns) as f64 / 1e6,
            status: match &span.status {
                Status::Unset => StatusLine {
                    code: "unset",
                    message: None,
                },
                Status::Error(message) => StatusLine {
                    code: "error",
                    message: Some(message),
                },
            },
            attributes: Attributes(&span.attributes),
            resource: Attributes(&span.resource.attributes),
            links: span.links.iter().map(LinkLine::from).collect(),
        }
    }
}

impl<'a> From<&'a Link> for LinkLine<'a> {
    fn from(link: &'a Link) -> Self {
        Self {
            trace_id: link.trace_id.to_string(),
            span_id: link.span_id.to_string(),
            attributes: Attributes(&link.attributes),
        }
    }
}

struct Attributes<'a>(&'a [Attribute]);

impl Serialize for Attributes<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for Attribute { key, value } in self.0 {
            match value {
                Value::String(text) => map.serialize_entry(key, text.as_str())?,
                Value::Int(number) => map.serialize_entry(key, number)?,
                Value::Double(number) => map.serialize_entry(key, number)?,
                Value::Bool(flag) => map.serialize_entry(key, flag)?,
                Value::StringArray(texts) => map.serialize_entry(key, texts)?,
            }
        }
        map.end()
    }
}

/// Nanoseconds since the Unix epoch as a date and time in UTC.
fn rfc3339(ns: u64) -> String {
    let (seconds, nanos) = (ns / 1_000_000_000, ns % 1_000_000_000);
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanos:09}Z")
}

/// Year, month and day of a day since 1970-01-01 in the Gregorian calendar. Counts from 1 March
/// of year 0, so that the leap day is the last of its year, in eras of 400 years (146,097 days).
fn civil(days: u64) -> (u64, u64, u64) {
    const MARCH_0000_TO_EPOCH: u64 = 719_468;
    let days = days + MARCH_0000_TO_EPOCH;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    // Months from March on are 31, 30, 31, 30, 31 days long in turn: 153 days in five.
    let month = (5 * day + 2) / 153;
    let day_of_month = day - (153 * month + 2) / 5 + 1;
    let (month, carry) = if month < 10 {
        (month + 3, 0)
    } else {
        (month - 9, 1)
    };
    (era * 400 + year + carry, month, day_of_month)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::tests::{checkout, remote_span};

    /// The whole line, so that a change of order or form is seen.
    #[test]
    fn a_line_has_all_fields_in_order() {
        let mut out = vec![];
        write_line(&remote_span(), &mut out).expect("a Vec takes all");
        let expected = concat!(
            r#"{"trace_id":"4bf92f3577b34da6a3ce929d0e0e4736","span_id":"00f067aa0ba902b7","#,
            r#""parent_span_id":"1122334455667788","name":"GET /cart/{id}","kind":"server","#,
            r#""start":"2026-11-21T12:00:00.000000001Z","end":"2026-11-21T12:00:00.012500001Z","#,
            r#""duration_ms":12.5,"status":{"code":"error","message":"quote \" and \n line"},"#,
            r#""attributes":{"http.request.method":"GET","http.response.status_code":500,"#,
            r#""x.double":1.5,"x.bool":true,"x.array":["a","b"]},"#,
            r#""resource":{"service.name":"cart","process.pid":42},"#,
            r#""links":[{"trace_id":"000000000000000000000000000000aa","#,
            r#""span_id":"00000000000000bb","attributes":{"ebpf_agent.link.reason":"thread"}}]}"#,
            "\n"
        );
        assert_eq!(String::from_utf8(out).expect("JSON is UTF-8"), expected);
    }

    /// A root has a null parent, and every line parses.
    #[test]
    fn lines_parse() {
        let mut out = vec![];
        let spans = checkout();
        for span in &spans {
            write_line(span, &mut out).expect("a Vec takes all");
        }
        let text = String::from_utf8(out).expect("JSON is UTF-8");
        let lines: Vec<serde_json::Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect();
        assert_eq!(lines.len(), spans.len());
        assert!(lines[0]["parent_span_id"].is_null());
        assert_eq!(lines[1]["status"], serde_json::json!({ "code": "unset" }));
    }

    /// Dates around leap days and centuries, as `date -u -d @SECONDS` gives them.
    #[test]
    fn dates() {
        let table = [
            (0, "1970-01-01T00:00:00.000000000Z"),
            (951_782_399, "2000-02-28T23:59:59.000000000Z"),
            (951_782_400, "2000-02-29T00:00:00.000000000Z"),
            (951_868_800, "2000-03-01T00:00:00.000000000Z"),
            (1_709_251_199, "2024-02-29T23:59:59.000000000Z"),
            (1_735_689_599, "2024-12-31T23:59:59.000000000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000000000Z"),
        ];
        for (seconds, expected) in table {
            assert_eq!(rfc3339(seconds * 1_000_000_000), expected);
        }
        assert_eq!(rfc3339(u64::MAX), "2554-07-21T23:34:33.709551615Z");
    }
}

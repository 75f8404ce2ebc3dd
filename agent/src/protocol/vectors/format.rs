//! Reads a vector's text and writes what came out; a README beside the vectors says the format.

use std::fmt::Write as _;

use crate::protocol::{EndCause, Flow, Progress};
use crate::span::{Kind, Status, Value};

#[derive(Clone, Debug)]
pub(in crate::protocol) struct Vector {
    pub(in crate::protocol) kind: Kind,
    pub(in crate::protocol) complete: bool,
    pub(in crate::protocol) steps: Vec<Step>,
    pub(in crate::protocol) expected: String,
}

#[derive(Clone, Debug)]
pub(in crate::protocol) struct Step {
    pub(in crate::protocol) flow: Flow,
    pub(in crate::protocol) time_ns: u64,
    /// Only of a whole input: the rest of a split one does not begin a turn.
    pub(in crate::protocol) turn_start: bool,
    pub(in crate::protocol) what: What,
}

#[derive(Clone, Debug)]
pub(in crate::protocol) enum What {
    Bytes(Vec<u8>),
    Skip(u64, [u8; 8]),
    End(EndCause),
}

pub(in crate::protocol) fn parse(text: &str) -> Vector {
    let (input, expected) = text
        .split_once("\nexpect\n")
        .expect("a vector has an expect line");
    let mut vector = Vector {
        kind: Kind::Server,
        complete: true,
        steps: Vec::new(),
        expected: expected.to_owned(),
    };
    for line in input.lines() {
        if let Some(written) = line.strip_prefix("  ") {
            let bytes = bytes(written);
            match &mut vector.steps.last_mut().expect("bytes follow a flow").what {
                What::Bytes(data) => data.extend(bytes),
                What::Skip(_, tail) => *tail = right_aligned(&bytes),
                What::End(_) => panic!("an end has no bytes"),
            }
        } else if line.starts_with(['<', '>']) {
            let step = parse_step(line, vector.steps.last());
            vector.steps.push(step);
        } else {
            match line {
                "kind: server" => vector.kind = Kind::Server,
                "kind: client" => vector.kind = Kind::Client,
                "older: yes" => vector.complete = false,
                _ => assert!(line.starts_with('#'), "not understood: {line}"),
            }
        }
    }
    vector
}

fn parse_step(line: &str, before: Option<&Step>) -> Step {
    let words: Vec<&str> = line.split(' ').collect();
    let flow = if words[0] == ">" {
        Flow::Request
    } else {
        Flow::Response
    };
    let what = match words[2..] {
        [] => What::Bytes(Vec::new()),
        ["skip", length] => skipped(length, &[]),
        ["skip", length, tail] => skipped(length, &hexadecimal(tail)),
        ["end", cause] => What::End(match cause {
            "closed" => EndCause::Closed,
            "reset" => EndCause::Reset,
            "timed_out" => EndCause::TimedOut,
            "unobserved" => EndCause::Unobserved,
            _ => panic!("no cause: {line}"),
        }),
        _ => panic!("not understood: {line}"),
    };
    let turn_start = before.is_none_or(|before| before.flow != flow);
    Step {
        flow,
        time_ns: words[1].parse().expect("a time"),
        turn_start,
        what,
    }
}

fn skipped(length: &str, tail: &[u8]) -> What {
    What::Skip(length.parse().expect("a length"), right_aligned(tail))
}

fn right_aligned(known: &[u8]) -> [u8; 8] {
    let mut tail = [0; 8];
    tail[8 - known.len()..].copy_from_slice(known);
    tail
}

/// Text in quotes, or hexadecimal digits.
fn bytes(written: &str) -> Vec<u8> {
    let quoted = written.strip_prefix('"');
    match quoted.and_then(|rest| rest.strip_suffix('"')) {
        Some(quoted) => unescape(quoted),
        None => hexadecimal(written),
    }
}

fn unescape(quoted: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut characters = quoted.chars();
    while let Some(character) = characters.next() {
        if character != '\\' {
            bytes.push(u8::try_from(character).expect("vectors are ASCII"));
            continue;
        }
        bytes.push(match characters.next() {
            Some('r') => b'\r',
            Some('n') => b'\n',
            Some('x') => {
                let digits: String = characters.by_ref().take(2).collect();
                u8::from_str_radix(&digits, 16).expect("two hexadecimal digits")
            }
            Some(other) => u8::try_from(other).expect("vectors are ASCII"),
            None => panic!("a lone backslash"),
        });
    }
    bytes
}

fn hexadecimal(digits: &str) -> Vec<u8> {
    digits
        .as_bytes()
        .chunks(2)
        .map(|pair| {
            let pair = str::from_utf8(pair).expect("vectors are ASCII");
            u8::from_str_radix(pair, 16).expect("two hexadecimal digits")
        })
        .collect()
}

pub(in crate::protocol) fn render(text: &mut String, progress: &Progress) {
    let line = match progress {
        Progress::RequestStarted {
            exchange,
            position,
            time_ns,
            ..
        } => {
            format!("started {exchange} at {position}, {time_ns}")
        }
        Progress::RequestHead { exchange, headers } => {
            let mut line = format!("head {exchange}");
            if let Some(traceparent) = &headers.traceparent {
                write!(line, " traceparent {traceparent}").expect("a string takes all");
            }
            if let Some(tracestate) = &headers.tracestate {
                write!(line, " tracestate {tracestate}").expect("a string takes all");
            }
            line
        }
        Progress::ResponseStarted { exchange, time_ns } => {
            format!("response {exchange}, {time_ns}")
        }
        Progress::Finished {
            exchange,
            start_ns,
            end_ns,
            details,
        } => {
            let status = match &details.status {
                Status::Unset => "unset".to_owned(),
                Status::Error(description) if description.is_empty() => "error".to_owned(),
                Status::Error(description) => format!("error {description}"),
            };
            let name = &details.name;
            let mut lines = format!("finished {exchange} {name} {start_ns}..{end_ns} {status}");
            for attribute in &details.attributes {
                let value = match &attribute.value {
                    Value::String(value) => value.escape_debug().to_string(),
                    Value::Int(value) => value.to_string(),
                    Value::Double(value) => format!("{value:e}"),
                    Value::StringArray(values) => values.join(", "),
                    Value::Bool(value) => value.to_string(),
                };
                write!(lines, "\n  {}: {value}", attribute.key).expect("a string takes all");
            }
            lines
        }
    };
    writeln!(text, "{line}").expect("a string takes all");
}

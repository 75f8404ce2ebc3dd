//! Reads a vector's text and writes what came out; the README beside the vectors says the format.

use std::fmt::Write as _;

use crate::protocol::{EndCause, Flow, Progress};
use crate::span::{Kind, Status, Value};

#[derive(Clone, Debug)]
pub(super) struct Vector {
    pub(super) kind: Kind,
    pub(super) complete: bool,
    pub(super) steps: Vec<Step>,
    pub(super) expected: String,
}

#[derive(Clone, Debug)]
pub(super) struct Step {
    pub(super) flow: Flow,
    pub(super) time_ns: u64,
    pub(super) what: What,
}

#[derive(Clone, Debug)]
pub(super) enum What {
    Bytes(Vec<u8>),
    Skip(u64, [u8; 8]),
    End(EndCause),
}

pub(super) fn parse(text: &str) -> Vector {
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
        if let Some(digits) = line.strip_prefix("  ") {
            match &mut vector.steps.last_mut().expect("bytes follow a flow").what {
                What::Bytes(data) => data.extend(bytes(digits)),
                _ => panic!("only captured inputs have bytes"),
            }
        } else if line.starts_with(['<', '>']) {
            vector.steps.push(step(line));
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

fn step(line: &str) -> Step {
    let words: Vec<&str> = line.split(' ').collect();
    let flow = if words[0] == ">" {
        Flow::Request
    } else {
        Flow::Response
    };
    let what = match words[2..] {
        [] => What::Bytes(Vec::new()),
        ["skip", length, tail] => {
            let known = bytes(tail);
            let mut tail = [0; 8];
            tail[8 - known.len()..].copy_from_slice(&known);
            What::Skip(length.parse().expect("a length"), tail)
        }
        ["end", cause] => What::End(match cause {
            "closed" => EndCause::Closed,
            "reset" => EndCause::Reset,
            "timed_out" => EndCause::TimedOut,
            "unobserved" => EndCause::Unobserved,
            _ => panic!("no cause: {line}"),
        }),
        _ => panic!("not understood: {line}"),
    };
    Step {
        flow,
        time_ns: words[1].parse().expect("a time"),
        what,
    }
}

fn bytes(digits: &str) -> Vec<u8> {
    digits
        .as_bytes()
        .chunks(2)
        .map(|pair| {
            let pair = str::from_utf8(pair).expect("vectors are ASCII");
            u8::from_str_radix(pair, 16).expect("two hexadecimal digits")
        })
        .collect()
}

pub(super) fn render(text: &mut String, progress: &Progress) {
    let line = match progress {
        Progress::RequestStarted {
            exchange,
            position,
            time_ns,
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
                Status::Unset => "unset",
                Status::Error(_) => "error",
            };
            let name = &details.name;
            let mut lines = format!("finished {exchange} {name} {start_ns}..{end_ns} {status}");
            for attribute in &details.attributes {
                let value = match &attribute.value {
                    Value::String(value) => value.escape_debug().to_string(),
                    Value::Int(value) => value.to_string(),
                    Value::Double(value) => format!("{value:e}"),
                    other => panic!("no attribute is {other:?}"),
                };
                write!(lines, "\n  {}: {value}", attribute.key).expect("a string takes all");
            }
            lines
        }
    };
    writeln!(text, "{line}").expect("a string takes all");
}

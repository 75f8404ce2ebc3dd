//! Reads a vector's text; the README beside the vectors says the format.

use crate::protocol::{EndCause, Flow};
use crate::span::Kind;

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
    /// Only of a whole input: the rest of a split one does not begin a turn.
    pub(super) turn_start: bool,
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
        if let Some(quoted) = line
            .strip_prefix("  \"")
            .and_then(|rest| rest.strip_suffix('"'))
        {
            let bytes = unescape(quoted);
            match &mut vector.steps.last_mut().expect("bytes follow a flow").what {
                What::Bytes(data) => data.extend(bytes),
                What::Skip(_, tail) => {
                    let from = tail.len() - bytes.len();
                    tail[from..].copy_from_slice(&bytes);
                }
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
        ["skip", length] => What::Skip(length.parse().expect("a length"), [0; 8]),
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

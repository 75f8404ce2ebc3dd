//! Runs `vectors/`: see the README there for the format and where the bytes come from.

mod format;

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};

use crate::protocol::detect::{Detection, Opening, detect};
use crate::protocol::{Address, EndCause, Endpoint, Flow, Input, Progress, Session, Standing};
use crate::span::{Kind, Status, Value};

use format::{Step, Vector, What, parse};

macro_rules! vectors {
    ($($name:literal)*) => {
        &[$(($name, include_str!(concat!("vectors/", $name, ".txt")))),*]
    };
}

const VECTORS: &[(&str, &str)] = vectors! {
    "bad_request"
    "bare_line_feeds"
    "chunked_extensions"
    "chunked_request"
    "chunked_slow"
    "chunked_trailers"
    "chunked_webrick"
    "client_cut_in_body"
    "client_cut_in_head"
    "client_gives_up"
    "client_gives_up_in_body"
    "client_reset"
    "close_delimited"
    "connect"
    "continue"
    "continue_refused"
    "continue_refused_body_sent"
    "continue_refused_keep_alive"
    "cut_before_response"
    "cut_chunked_client"
    "cut_length"
    "duplicate_fields"
    "early_hints"
    "early_response"
    "empty_lines_before"
    "expectation_failed"
    "folded_field"
    "forwarded"
    "half_close"
    "head"
    "hole_in_pipeline"
    "hole_in_request_head"
    "hole_in_response_head"
    "hole_over_chunk_framing"
    "hole_over_status_line"
    "http10_keep_alive"
    "http10_python"
    "http11_python"
    "idle_timeout_response"
    "ipv6_host"
    "keep_alive"
    "keep_alive_client"
    "large_headers"
    "large_upload"
    "long_chunked"
    "long_response"
    "long_response_client"
    "many_packets"
    "memcached"
    "methods"
    "no_content"
    "not_http_line"
    "not_modified"
    "not_modified_with_length"
    "older_mid_request"
    "older_mid_response"
    "older_response_first"
    "one_byte_first"
    "options_asterisk"
    "pipelining"
    "pipelining_node"
    "processing"
    "proxy_absolute"
    "redis_inline"
    "reset_by_server"
    "server_error"
    "smtp"
    "timed_out"
    "tls_hello"
    "traceparent"
    "transfer_encoding_and_length"
    "two_traceparents"
    "unobserved_response"
    "unobserved_response_end"
    "upgrade"
};

const CAUSES: [EndCause; 4] = [
    EndCause::Closed,
    EndCause::Reset,
    EndCause::TimedOut,
    EndCause::Unobserved,
];

fn endpoint(vector: &Vector) -> Endpoint {
    let address = |last, port| Address::Inet {
        ip: IpAddr::V4(Ipv4Addr::new(10, 0, 0, last)),
        port,
    };
    let (local, peer) = match vector.kind {
        Kind::Server => (address(1, 8080), address(2, 50_000)),
        Kind::Client => (address(2, 50_000), address(1, 8080)),
    };
    Endpoint {
        kind: vector.kind,
        local,
        peer,
        complete: vector.complete,
        encrypted: false,
    }
}

/// Feeds a session as the connection tracker does, keeping positions.
struct Feeder {
    session: Box<dyn Session>,
    positions: [u64; 2],
    progress: Vec<Progress>,
}

impl Feeder {
    fn new(vector: &Vector) -> Self {
        let session = super::session(endpoint(vector));
        Self {
            session,
            positions: [0; 2],
            progress: Vec::new(),
        }
    }

    fn feed(&mut self, step: &Step) {
        let position = &mut self.positions[usize::from(step.flow == Flow::Response)];
        let time_ns = step.time_ns;
        let input = match &step.what {
            What::Bytes(data) => {
                let start = *position;
                *position += data.len() as u64;
                let turn_start = step.turn_start;
                Input::Bytes {
                    data,
                    position: start,
                    time_ns,
                    turn_start,
                }
            }
            What::Skip(length, tail) => {
                let start = *position;
                *position = start.saturating_add(*length);
                Input::Skipped {
                    length: *length,
                    position: start,
                    last_ns: time_ns,
                    tail: *tail,
                }
            }
            What::End(cause) => Input::End {
                cause: *cause,
                time_ns,
            },
        };
        self.session.handle(step.flow, input);
        self.progress
            .extend(std::iter::from_fn(|| self.session.poll()));
    }
}

fn run(vector: &Vector) -> Vec<Progress> {
    let mut feeder = Feeder::new(vector);
    vector.steps.iter().for_each(|step| feeder.feed(step));
    feeder.progress
}

/// Everything a vector says comes out: the verdict, then the progress.
fn output(vector: &Vector) -> String {
    let mut text = String::new();
    match detection(vector) {
        Detection::Undecided => return "undecided\n".to_owned(),
        Detection::Unrecognised => return "unrecognised\n".to_owned(),
        Detection::Found { protocol, kind } => {
            let kind = format!("{kind:?}").to_lowercase();
            writeln!(text, "detected {} {kind}", protocol.name).expect("a string takes all");
        }
    }
    let mut feeder = Feeder::new(vector);
    vector.steps.iter().for_each(|step| feeder.feed(step));
    feeder
        .progress
        .iter()
        .for_each(|progress| render(&mut text, progress));
    if feeder.session.standing() != Standing::Going {
        text.push_str("over\n");
    }
    text
}

/// As the tracker asks: after every input, with what each direction began with, or on an older
/// connection with what its latest turn did.
fn detection(vector: &Vector) -> Detection {
    let mut flows = [Vec::new(), Vec::new()];
    let mut last = Detection::Undecided;
    for step in &vector.steps {
        let What::Bytes(data) = &step.what else {
            continue;
        };
        let flow = &mut flows[usize::from(step.flow == Flow::Response)];
        if step.turn_start && !vector.complete {
            flow.clear();
        }
        flow.extend(data);
        let [requests, responses] = &flows;
        let (inbound, outbound) = match vector.kind {
            Kind::Server => (requests, responses),
            Kind::Client => (responses, requests),
        };
        last = detect(Opening {
            inbound,
            outbound,
            kind: None,
            complete: vector.complete,
        });
        if let Detection::Found { .. } = last {
            break;
        }
        if vector.complete && matches!(last, Detection::Unrecognised) {
            break;
        }
    }
    last
}

fn render(text: &mut String, progress: &Progress) {
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
                line.push_str(" traceparent ");
                line.push_str(traceparent);
            }
            if let Some(tracestate) = &headers.tracestate {
                line.push_str(" tracestate ");
                line.push_str(tracestate);
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
            let mut lines = format!(
                "finished {exchange} {} {start_ns}..{end_ns} {status}",
                details.name
            );
            for attribute in &details.attributes {
                let value = match &attribute.value {
                    Value::String(value) => value.escape_debug().to_string(),
                    Value::Int(value) => value.to_string(),
                    other => panic!("no HTTP attribute is {other:?}"),
                };
                write!(lines, "\n  {}: {value}", attribute.key).expect("a string takes all");
            }
            lines
        }
    };
    writeln!(text, "{line}").expect("a string takes all");
}

/// What holds for every input: each exchange starts once, finishes once, in the order that the
/// contract gives, and ends no earlier than it started.
fn check_invariants(name: &str, progress: &[Progress]) {
    // Stage and start of each exchange.
    let mut exchanges: Vec<(u8, u64)> = Vec::new();
    for step in progress {
        let (exchange, next) = match step {
            Progress::RequestStarted {
                exchange, time_ns, ..
            } => {
                exchanges.push((0, *time_ns));
                assert_eq!(
                    *exchange + 1,
                    exchanges.len() as u64,
                    "{name}: numbered in order"
                );
                (exchange, 1)
            }
            Progress::RequestHead { exchange, .. } => (exchange, 2),
            Progress::ResponseStarted { exchange, .. } => (exchange, 3),
            Progress::Finished { exchange, .. } => (exchange, 4),
        };
        let known = exchanges.get_mut(*exchange as usize);
        let (stage, start) = known.unwrap_or_else(|| panic!("{name}: {exchange} never started"));
        assert!(
            *stage < next,
            "{name}: exchange {exchange} from stage {stage} to {next}"
        );
        *stage = next;
        if let Progress::Finished {
            start_ns, end_ns, ..
        } = step
        {
            assert_eq!(start_ns, start, "{name}: one start");
            assert!(end_ns >= start_ns, "{name}: ends before it starts");
        }
    }
    assert!(
        exchanges.iter().all(|(stage, _)| *stage == 4),
        "{name}: all finish: {progress:?}"
    );
}

fn end_both(feeder: &mut Feeder, cause: EndCause, time_ns: u64) {
    for flow in [Flow::Request, Flow::Response] {
        feeder.feed(&Step {
            flow,
            time_ns,
            turn_start: false,
            what: What::End(cause),
        });
    }
}

/// Ends the connection, whatever is still open in it.
fn run_to_end(vector: &Vector, cause: EndCause) -> Vec<Progress> {
    let mut feeder = Feeder::new(vector);
    vector.steps.iter().for_each(|step| feeder.feed(step));
    let last_ns = vector.steps.last().map_or(0, |step| step.time_ns);
    end_both(&mut feeder, cause, last_ns + 1);
    feeder.progress
}

/// The input at `index` cut into pieces of `size` bytes, all of the same time.
fn split_step(vector: &Vector, index: usize, cut: impl Fn(&[u8]) -> Vec<Vec<u8>>) -> Vector {
    let mut split = vector.clone();
    let step = split.steps.remove(index);
    let What::Bytes(data) = &step.what else {
        return vector.clone();
    };
    for (nth, piece) in cut(data).into_iter().enumerate() {
        let turn_start = step.turn_start && nth == 0;
        let piece = Step {
            turn_start,
            what: What::Bytes(piece),
            ..step
        };
        split.steps.insert(index + nth, piece);
    }
    split
}

/// A vector's bytes give the spans it says.
#[test]
fn vectors_as_they_are() {
    let mut wrong = String::new();
    for (name, text) in VECTORS {
        let vector = parse(text);
        let actual = output(&vector);
        if actual != vector.expected {
            write!(wrong, "=== {name}\n{actual}").expect("a string takes all");
        }
        if !matches!(detection(&vector), Detection::Found { .. }) {
            assert_eq!(
                run_to_end(&vector, EndCause::Closed),
                [],
                "{name}: nothing is invented"
            );
        }
    }
    assert!(
        wrong.is_empty(),
        "these came out otherwise, as follows:\n{wrong}"
    );
}

/// Where the bytes were cut into calls makes no difference.
#[test]
fn vectors_split_at_every_byte() {
    for (name, text) in VECTORS {
        let vector = parse(text);
        let expected = run(&vector);
        for (index, step) in vector.steps.iter().enumerate() {
            let What::Bytes(data) = &step.what else {
                continue;
            };
            for at in 1..data.len() {
                let split = split_step(&vector, index, |data| {
                    let (left, right) = data.split_at(at);
                    vec![left.to_vec(), right.to_vec()]
                });
                assert_eq!(run(&split), expected, "{name}: input {index} split at {at}");
            }
            let single = split_step(&vector, index, |data| {
                data.iter().map(|byte| vec![*byte]).collect()
            });
            assert_eq!(
                run(&single),
                expected,
                "{name}: input {index} in single bytes"
            );
        }
    }
}

/// A connection may end after any byte, in any way: every exchange still finishes, once.
#[test]
fn vectors_truncated_at_every_byte() {
    for (name, text) in VECTORS {
        let vector = parse(text);
        for index in 0..vector.steps.len() {
            let What::Bytes(data) = &vector.steps[index].what else {
                continue;
            };
            for length in 0..data.len() {
                let mut cut = vector.clone();
                cut.steps.truncate(index + 1);
                cut.steps[index].what = What::Bytes(data[..length].to_vec());
                let cause = CAUSES[length % CAUSES.len()];
                check_invariants(name, &run_to_end(&cut, cause));
            }
        }
    }
}

/// Damaged bytes, lost, repeated and swapped inputs, holes anywhere: no panic, and every exchange
/// that started finishes, once.
#[test]
fn vectors_corrupted() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for (name, text) in VECTORS {
        let vector = parse(text);
        for round in 0..300 {
            let mut corrupted = vector.clone();
            for _ in 0..=random.below(3) {
                corrupt(&mut corrupted, &mut random);
            }
            let progress = run_to_end(&corrupted, CAUSES[round % CAUSES.len()]);
            check_invariants(name, &progress);
        }
    }
}

fn corrupt(vector: &mut Vector, random: &mut Random) {
    if vector.steps.is_empty() {
        return;
    }
    let index = random.below(vector.steps.len());
    let step = &mut vector.steps[index];
    match (random.below(6), &mut step.what) {
        (0, _) => drop(vector.steps.remove(index)),
        (1, _) => {
            let repeated = vector.steps[index].clone();
            vector.steps.insert(index, repeated);
        }
        (2, _) => step.flow = step.flow.opposite(),
        (3, What::Bytes(data)) => {
            let mut tail = [0; 8];
            let known = random.below(9).min(data.len());
            tail[8 - known..].copy_from_slice(&data[data.len() - known..]);
            step.what = What::Skip(data.len() as u64, tail);
        }
        (_, What::Bytes(data)) if !data.is_empty() => {
            for _ in 0..=random.below(4) {
                let at = random.below(data.len());
                data[at] = random.below(256) as u8;
            }
        }
        _ => step.turn_start = !step.turn_start,
    }
}

/// Xorshift (Marsaglia 2003): the same sequence in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }
}

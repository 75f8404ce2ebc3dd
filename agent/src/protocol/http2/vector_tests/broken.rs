//! Vectors that are cut, damaged, joined late and full of holes.

use std::collections::BTreeMap;

use super::{NAME, VECTORS, is_tried};
use crate::protocol::vectors::{
    CAUSES, Feeder, Random, Step, Vector, What, check_invariants, corrupt, end_both, feed,
    feed_to_end, parse, protocol,
};
use crate::protocol::{EndCause, ExchangeNumber, Flow, Progress};
use crate::span::{Details, Value, attribute};

fn run_to_end(vector: &Vector, cause: EndCause) -> Vec<Progress> {
    feed_to_end(vector, NAME, cause)
}

/// A connection may end after any byte, in any way: every exchange still finishes, once.
#[test]
fn vectors_truncated_at_every_byte() {
    for (name, text) in VECTORS {
        let vector = parse(text);
        if name.contains("upgrade") {
            continue;
        }
        for index in 0..vector.steps.len() {
            let What::Bytes(data) = &vector.steps[index].what else {
                continue;
            };
            for length in (0..data.len()).filter(|at| is_tried(data, *at)) {
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
        if name.contains("upgrade") {
            continue;
        }
        for round in 0..300 {
            let mut corrupted = vector.clone();
            corrupted.complete = round % 3 != 0;
            for _ in 0..=random.below(3) {
                corrupt(&mut corrupted, &mut random);
            }
            let mut feeder = Feeder::new(&corrupted, protocol(NAME));
            for step in &corrupted.steps {
                feeder.feed(step);
            }
            end_both(&mut feeder, CAUSES[round % CAUSES.len()], 1_000_000);
            check_invariants(name, &feeder.progress);
        }
    }
}

/// What a span says that could be wrong, by the position at which its request begins.
type Facts = BTreeMap<u64, Vec<(String, String)>>;

const FACTS: [&str; 8] = [
    attribute::URL_PATH,
    attribute::URL_FULL,
    attribute::URL_QUERY,
    attribute::RPC_METHOD,
    attribute::HTTP_REQUEST_METHOD,
    attribute::HTTP_RESPONSE_STATUS_CODE,
    attribute::HTTP_RESPONSE_BODY_SIZE,
    attribute::RPC_RESPONSE_STATUS_CODE,
];

fn facts(progress: &[Progress]) -> Facts {
    let mut positions: BTreeMap<ExchangeNumber, u64> = BTreeMap::new();
    let mut facts = Facts::new();
    for step in progress {
        match step {
            Progress::RequestStarted {
                exchange, position, ..
            } => {
                positions.insert(*exchange, *position);
            }
            Progress::RequestHead { exchange, headers } => {
                if let Some(traceparent) = &headers.traceparent {
                    let position = positions[exchange];
                    let fact = ("traceparent".to_owned(), traceparent.clone());
                    facts.entry(position).or_default().push(fact);
                }
            }
            Progress::ResponseStarted { .. } => {}
            Progress::Finished {
                exchange, details, ..
            } => {
                let position = positions[exchange];
                facts.entry(position).or_default().extend(said(details));
            }
        }
    }
    facts
}

fn said(details: &Details) -> impl Iterator<Item = (String, String)> {
    details
        .attributes
        .iter()
        .filter(|attribute| FACTS.contains(&attribute.key.as_ref()))
        .map(|attribute| {
            let value = match &attribute.value {
                Value::String(value) => value.to_string(),
                other => format!("{other:?}"),
            };
            (attribute.key.to_string(), value)
        })
}

/// Nothing of these spans is other than it was on the whole connection. A query or a body may be
/// read of a request that was whole; a request that never was is not made up.
fn check_nothing_wrong(name: &str, whole: &Facts, part: &Facts) {
    for (position, facts) in part {
        let Some(known) = whole.get(position) else {
            panic!("{name}: no request begins at {position}: {facts:?}");
        };
        for fact in facts {
            assert!(
                known.contains(fact) || is_of_call(known, fact) || is_part_of_url(known, fact),
                "{name}: the request at {position} has {known:?}, not {fact:?}"
            );
        }
    }
}

/// Path and query stand alone where the host is not known.
fn is_part_of_url(known: &[(String, String)], (key, value): &(String, String)) -> bool {
    let Some((_, full)) = known.iter().find(|(key, _)| key == attribute::URL_FULL) else {
        return false;
    };
    let (before_query, query) = full.split_once('?').unwrap_or((full, ""));
    match key.as_str() {
        attribute::URL_PATH => before_query.ends_with(&format!("18080{value}")),
        attribute::URL_QUERY => value == query,
        _ => false,
    }
}

/// A call that is not known to be one is a request of HTTP, which says less and is not wrong.
fn is_of_call(known: &[(String, String)], (key, value): &(String, String)) -> bool {
    let method = known.iter().find(|(key, _)| key == attribute::RPC_METHOD);
    let Some((_, method)) = method else {
        return false;
    };
    match key.as_str() {
        attribute::HTTP_REQUEST_METHOD => value == "POST",
        attribute::HTTP_RESPONSE_STATUS_CODE => value == "Int(200)",
        attribute::URL_PATH | attribute::URL_FULL => value.ends_with(&format!("/{method}")),
        attribute::HTTP_RESPONSE_BODY_SIZE => true,
        _ => false,
    }
}

/// Vectors of which all bytes are HTTP/2 and were captured.
fn whole_vectors() -> impl Iterator<Item = (&'static str, Vector)> {
    VECTORS
        .iter()
        .filter(|(name, _)| !name.contains("upgrade") && *name != "not_a_server")
        .map(|(name, text)| (*name, parse(text)))
        .filter(|(_, vector)| {
            let is_captured = |step: &Step| !matches!(step.what, What::Skip(..));
            vector.complete && vector.steps.iter().all(is_captured)
        })
}

/// Where frames begin in one flow.
fn frame_starts(vector: &Vector, flow: Flow) -> Vec<usize> {
    let mut bytes = Vec::new();
    for step in vector.steps.iter().filter(|step| step.flow == flow) {
        if let What::Bytes(data) = &step.what {
            bytes.extend_from_slice(data);
        }
    }
    let mut starts = Vec::new();
    let mut at = if flow == Flow::Request { 24 } else { 0 };
    while at + 9 <= bytes.len() {
        starts.push(at);
        let length = u32::from_be_bytes([0, bytes[at], bytes[at + 1], bytes[at + 2]]);
        at += 9 + length as usize;
    }
    starts
}

/// The vector as an agent sees it that comes when so many bytes of each flow have passed.
fn joined(vector: &Vector, passed: [usize; 2]) -> (Feeder, Vec<Step>) {
    let mut late = vector.clone();
    late.complete = false;
    let mut left = passed;
    let mut steps = Vec::new();
    for step in &late.steps {
        let left = &mut left[usize::from(step.flow == Flow::Response)];
        let mut step = step.clone();
        if let What::Bytes(data) = &mut step.what {
            let cut = (*left).min(data.len());
            *left -= cut;
            data.drain(..cut);
            if data.is_empty() {
                continue;
            }
        }
        steps.push(step);
    }
    let mut feeder = Feeder::new(&late, protocol(NAME));
    feeder.positions = passed.map(|count| count as u64);
    (feeder, steps)
}

/// Scenario: the agent comes between any two frames of a connection. Guarantee: what spans say is
/// right, and requests that begin later are all there where their frames can be told.
#[test]
fn vectors_joined_late_at_each_frame() {
    let mut found = 0;
    let mut expected = 0;
    for (name, vector) in whole_vectors() {
        let whole = facts(&run_to_end(&vector, EndCause::Unobserved));
        let responses = frame_starts(&vector, Flow::Response);
        for start in frame_starts(&vector, Flow::Request) {
            for nth in [0, responses.len() / 2, responses.len().saturating_sub(1)] {
                let passed = [start, responses.get(nth).copied().unwrap_or_default()];
                let (mut feeder, steps) = joined(&vector, passed);
                for step in &steps {
                    feeder.feed(step);
                }
                end_both(&mut feeder, EndCause::Unobserved, 1_000_000);
                check_invariants(name, &feeder.progress);
                let part = facts(&feeder.progress);
                check_nothing_wrong(name, &whole, &part);
                found += part.len();
                expected += whole.range(start as u64..).count();
            }
        }
    }
    assert!(
        found * 100 >= expected * 99,
        "{found} of {expected} requests after joining"
    );
}

/// Scenario: the agent comes at any byte, also within a frame. Guarantee: nothing wrong.
#[test]
fn vectors_joined_late_at_any_byte() {
    let mut random = Random(77);
    for (name, vector) in whole_vectors() {
        let whole = facts(&run_to_end(&vector, EndCause::Unobserved));
        let length = |flow| -> usize {
            let of_flow = vector.steps.iter().filter(|step| step.flow == flow);
            of_flow
                .map(|step| match &step.what {
                    What::Bytes(data) => data.len(),
                    _ => 0,
                })
                .sum()
        };
        let lengths = [length(Flow::Request), length(Flow::Response)];
        for _ in 0..200 {
            let passed = lengths.map(|length| random.below(length + 1));
            let (mut feeder, steps) = joined(&vector, passed);
            for step in &steps {
                feeder.feed(step);
            }
            end_both(&mut feeder, EndCause::Closed, 1_000_000);
            check_invariants(name, &feeder.progress);
            check_nothing_wrong(name, &whole, &facts(&feeder.progress));
        }
    }
}

/// Cuts a hole of `length` bytes into a flow at `from`.
fn with_hole(vector: &Vector, flow: Flow, from: usize, length: usize) -> Vector {
    let mut holed = vector.clone();
    holed.steps.clear();
    let mut at = 0;
    for step in &vector.steps {
        let What::Bytes(data) = &step.what else {
            holed.steps.push(step.clone());
            continue;
        };
        if step.flow != flow {
            holed.steps.push(step.clone());
            continue;
        }
        let hole =
            from.clamp(at, at + data.len()) - at..(from + length).clamp(at, at + data.len()) - at;
        at += data.len();
        let pieces = [
            What::Bytes(data[..hole.start].to_vec()),
            What::Skip(hole.len() as u64, [0; 8]),
            What::Bytes(data[hole.end..].to_vec()),
        ];
        for what in pieces {
            let is_empty = match &what {
                What::Bytes(data) => data.is_empty(),
                What::Skip(length, _) => *length == 0,
                What::End(_) => false,
            };
            if !is_empty {
                holed.steps.push(Step { what, ..*step });
            }
        }
    }
    holed
}

/// Scenario: bytes of DATA were not captured. Guarantee: nothing changes but counts of messages.
#[test]
fn holes_in_content_cost_nothing() {
    let without_counts = |progress: Vec<Progress>| -> Vec<Progress> {
        let strip = |mut step: Progress| {
            if let Progress::Finished { details, .. } = &mut step {
                let is_count = |key: &str| {
                    key == attribute::RPC_REQUEST_MESSAGES
                        || key == attribute::RPC_RESPONSE_MESSAGES
                };
                details.attributes.retain(|known| !is_count(&known.key));
            }
            step
        };
        progress.into_iter().map(strip).collect()
    };
    let mut holes = 0;
    for (name, vector) in whole_vectors() {
        let expected = without_counts(feed(&vector, NAME).progress);
        for flow in [Flow::Request, Flow::Response] {
            let bytes: Vec<u8> = vector
                .steps
                .iter()
                .filter(|step| step.flow == flow)
                .filter_map(|step| match &step.what {
                    What::Bytes(data) => Some(data.clone()),
                    _ => None,
                })
                .flatten()
                .collect();
            for start in frame_starts(&vector, flow) {
                let length =
                    u32::from_be_bytes([0, bytes[start], bytes[start + 1], bytes[start + 2]]);
                let is_plain_data = bytes[start + 3] == 0 && bytes[start + 4] & 8 == 0;
                if !is_plain_data || length == 0 {
                    continue;
                }
                for cut in [0, 1, length as usize / 2] {
                    let cut_vector =
                        with_hole(&vector, flow, start + 9 + cut, length as usize - cut);
                    let actual = without_counts(feed(&cut_vector, NAME).progress);
                    assert_eq!(actual, expected, "{name}: a hole of DATA at {start}");
                    holes += 1;
                }
            }
        }
    }
    assert!(holes > 200, "{holes} holes were tried");
}

/// Scenario: any bytes were not captured. Guarantee: nothing that is said is wrong.
#[test]
fn holes_anywhere_make_nothing_wrong() {
    let mut random = Random(4_242);
    for (name, vector) in whole_vectors() {
        let whole = facts(&run_to_end(&vector, EndCause::Unobserved));
        for _ in 0..300 {
            let mut holed = vector.clone();
            for _ in 0..=random.below(2) {
                let flow = [Flow::Request, Flow::Response][random.below(2)];
                let from = 24 + random.below(2_000);
                holed = with_hole(&holed, flow, from, 1 + random.below(300));
            }
            let mut feeder = Feeder::new(&holed, protocol(NAME));
            for step in &holed.steps {
                feeder.feed(step);
            }
            end_both(&mut feeder, EndCause::Unobserved, 1_000_000);
            check_invariants(name, &feeder.progress);
            check_nothing_wrong(name, &whole, &facts(&feeder.progress));
        }
    }
}

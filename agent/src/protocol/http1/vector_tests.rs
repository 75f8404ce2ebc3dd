//! Runs `vectors/`: see the README there for the format and where the bytes come from.

use crate::protocol::detect::Detection;
use crate::protocol::vectors::{
    CAUSES, Feeder, Random, Vector, Vectors, What, check_invariants, corrupt, detection, differing,
    end_both, parse, protocol, split_step, vectors,
};
use crate::protocol::{EndCause, Progress};

const VECTORS: Vectors = vectors! {
    "bad_request"
    "bare_line_feeds"
    "calls"
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
    "events"
    "events_left"
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
    "websocket"
    "websocket_client"
};

/// As the registry has it.
const NAME: &str = "http";

/// What a session of HTTP/1 says, whatever the bytes are.
fn feed(vector: &Vector) -> Feeder {
    let mut feeder = Feeder::new(vector, protocol(NAME));
    vector.steps.iter().for_each(|step| feeder.feed(step));
    feeder
}

fn run(vector: &Vector) -> Vec<Progress> {
    feed(vector).progress
}

/// Ends the connection, whatever is still open in it.
fn run_to_end(vector: &Vector, cause: EndCause) -> Vec<Progress> {
    let mut feeder = feed(vector);
    let last_ns = vector.steps.last().map_or(0, |step| step.time_ns);
    end_both(&mut feeder, cause, last_ns + 1);
    feeder.progress
}

/// A vector's bytes give the spans it says.
#[test]
fn vectors_as_they_are() {
    let wrong = differing(VECTORS, NAME);
    assert!(
        wrong.is_empty(),
        "these came out otherwise, as follows:\n{wrong}"
    );
    for (name, text) in VECTORS {
        let vector = parse(text);
        if !matches!(detection(&vector), Detection::Found { .. }) {
            let progress = run_to_end(&vector, EndCause::Closed);
            assert_eq!(progress, [], "{name}: nothing is invented");
        }
    }
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
                let (left, right) = data.split_at(at);
                let split = split_step(&vector, index, &[left, right]);
                assert_eq!(run(&split), expected, "{name}: input {index} split at {at}");
            }
            let single: Vec<&[u8]> = data.chunks(1).collect();
            let progress = run(&split_step(&vector, index, &single));
            assert_eq!(progress, expected, "{name}: input {index} in single bytes");
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

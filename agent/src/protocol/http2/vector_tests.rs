//! Runs `vectors/`: see the README there for the format and where the bytes come from.

mod broken;

use crate::protocol::vectors::{Vectors, What, differing, feed, parse, split_step, vectors};

const VECTORS: Vectors = vectors! {
    "curl_nginx"
    "curl_upgrade"
    "go"
    "go_client"
    "grpc_js_client"
    "grpcio"
    "grpcio_client"
    "grpcio_deadline"
    "grpcio_deadline_client"
    "grpcio_parallel"
    "h2load"
    "h2load_client"
    "httpx_node"
    "httpx_python_h2"
    "hyper"
    "nghttp2_client"
    "nghttp2_concurrent"
    "nghttp2_padding_trailers"
    "nghttp2_push"
    "nghttp2_table_size"
    "nghttp2_upgrade"
    "node_big_capture"
    "node_big_small_capture"
    "node_cancel"
    "node_close"
    "node_early"
    "node_events"
    "node_goaway"
    "node_mixed"
    "node_mixed_client"
    "node_push"
    "node_reset"
    "node_websocket"
    "not_a_server"
    "tonic_client"
};

/// As the registry has it.
const NAME: &str = "http2";

/// Every place of a short input; of a long one (repeated requests, bodies) the first and every
/// seventh, which meets each byte of a frame header in some frame.
fn is_tried(data: &[u8], at: usize) -> bool {
    data.len() < 400 || at < 200 || at.is_multiple_of(7)
}

/// A vector's bytes give the spans it says.
#[test]
fn vectors_as_they_are() {
    let wrong = differing(VECTORS, NAME);
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
        let expected = feed(&vector, NAME).progress;
        for (index, step) in vector.steps.iter().enumerate() {
            let What::Bytes(data) = &step.what else {
                continue;
            };
            for at in (1..data.len()).filter(|at| is_tried(data, *at)) {
                let (left, right) = data.split_at(at);
                let split = split_step(&vector, index, &[left, right]);
                let progress = feed(&split, NAME).progress;
                assert_eq!(progress, expected, "{name}: input {index} split at {at}");
            }
            let single: Vec<&[u8]> = data.chunks(1).collect();
            let progress = feed(&split_step(&vector, index, &single), NAME).progress;
            assert_eq!(progress, expected, "{name}: input {index} in single bytes");
        }
    }
}

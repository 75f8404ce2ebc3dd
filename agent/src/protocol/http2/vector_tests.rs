//! Runs `vectors/`: see the README there for the format and where the bytes come from.

mod broken;
mod format;

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};

use crate::protocol::detect::{Detection, Opening, detect};
use crate::protocol::{
    Address, Endpoint, Flow, Input, Progress, Protocol, REGISTRY, Session, Shortfall, Standing,
};
use crate::span::Kind;

use format::{Step, Vector, What, parse, render};

macro_rules! vectors {
    ($($name:literal)*) => {
        &[$(($name, include_str!(concat!("vectors/", $name, ".txt")))),*]
    };
}

const VECTORS: &[(&str, &str)] = vectors! {
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

fn protocol(name: &str) -> &'static Protocol {
    REGISTRY
        .iter()
        .find(|protocol| protocol.name == name)
        .expect("a row of the registry")
}

/// Feeds a session as the connection tracker does, keeping positions and following an upgrade.
struct Feeder {
    endpoint: Endpoint,
    session: Box<dyn Session>,
    positions: [u64; 2],
    progress: Vec<Progress>,
    shortfall: Shortfall,
}

impl Feeder {
    fn new(vector: &Vector, protocol: &Protocol) -> Self {
        let endpoint = endpoint(vector);
        Self {
            session: (protocol.session)(endpoint.clone()),
            endpoint,
            positions: [0; 2],
            progress: Vec::new(),
            shortfall: Shortfall::default(),
        }
    }

    fn feed(&mut self, step: &Step) {
        let position = &mut self.positions[usize::from(step.flow == Flow::Response)];
        let time_ns = step.time_ns;
        let start = *position;
        let input = match &step.what {
            What::Bytes(data) => {
                *position += data.len() as u64;
                Input::Bytes {
                    data,
                    position: start,
                    time_ns,
                    turn_start: false,
                }
            }
            What::Skip(length, tail) => {
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
        self.collect();
        if let Some(successor) = self.session.take_successor() {
            self.session = (protocol(successor.protocol).session)(self.endpoint.clone());
            let input = Input::Bytes {
                data: &successor.rest,
                position: successor.position,
                time_ns,
                turn_start: false,
            };
            self.session.handle(step.flow, input);
            self.collect();
        }
    }

    fn collect(&mut self) {
        self.progress
            .extend(std::iter::from_fn(|| self.session.poll()));
        let shortfall = self.session.take_shortfall();
        self.shortfall.exchanges += shortfall.exchanges;
        self.shortfall.late_joins += shortfall.late_joins;
    }
}

/// What a vector's own protocol says of it.
fn feed(vector: &Vector) -> Feeder {
    let protocol = match detection(vector) {
        Detection::Found { protocol, .. } => protocol,
        _ => protocol("http2"),
    };
    let mut feeder = Feeder::new(vector, protocol);
    vector.steps.iter().for_each(|step| feeder.feed(step));
    feeder
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
    let feeder = feed(vector);
    feeder
        .progress
        .iter()
        .for_each(|progress| render(&mut text, progress));
    if feeder.shortfall.exchanges > 0 {
        writeln!(text, "missed {}", feeder.shortfall.exchanges).expect("a string takes all");
    }
    if feeder.shortfall.late_joins > 0 {
        text.push_str("late\n");
    }
    if feeder.session.standing() != Standing::Going {
        text.push_str("over\n");
    }
    text
}

/// As the tracker asks: after every input, with what each direction began with, or on an older
/// connection with what its latest turn did.
fn detection(vector: &Vector) -> Detection {
    let mut flows = [Vec::new(), Vec::new()];
    let mut before = None;
    let mut last = Detection::Undecided;
    for step in &vector.steps {
        let What::Bytes(data) = &step.what else {
            continue;
        };
        let flow = &mut flows[usize::from(step.flow == Flow::Response)];
        if before != Some(step.flow) && !vector.complete {
            flow.clear();
        }
        before = Some(step.flow);
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
        let is_final = match last {
            Detection::Found { .. } => true,
            Detection::Unrecognised => vector.complete,
            Detection::Undecided => false,
        };
        if is_final {
            break;
        }
    }
    last
}

/// Every place of a short input; of a long one (repeated requests, bodies) the first and every
/// seventh, which meets each byte of a frame header in some frame.
fn is_tried(data: &[u8], at: usize) -> bool {
    data.len() < 400 || at < 200 || at.is_multiple_of(7)
}

/// The input at `index` cut into pieces, all of the same time.
fn split_step(vector: &Vector, index: usize, pieces: &[&[u8]]) -> Vector {
    let mut split = vector.clone();
    let step = split.steps.remove(index);
    for (nth, piece) in pieces.iter().enumerate() {
        let piece = Step {
            what: What::Bytes(piece.to_vec()),
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
        let expected = feed(&vector).progress;
        for (index, step) in vector.steps.iter().enumerate() {
            let What::Bytes(data) = &step.what else {
                continue;
            };
            for at in (1..data.len()).filter(|at| is_tried(data, *at)) {
                let (left, right) = data.split_at(at);
                let split = split_step(&vector, index, &[left, right]);
                let progress = feed(&split).progress;
                assert_eq!(progress, expected, "{name}: input {index} split at {at}");
            }
            let single: Vec<&[u8]> = data.chunks(1).collect();
            let progress = feed(&split_step(&vector, index, &single)).progress;
            assert_eq!(progress, expected, "{name}: input {index} in single bytes");
        }
    }
}

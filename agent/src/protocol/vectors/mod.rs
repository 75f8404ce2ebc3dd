//! What the tests of all protocols share that run vectors: bytes of real connections, and what a
//! session must say of them. A protocol's `vectors/README.md` says the format.

mod format;

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};

use crate::protocol::detect::{Detection, Opening, detect};
use crate::protocol::{
    Address, EndCause, Endpoint, Flow, Input, Progress, Protocol, REGISTRY, Session, Shortfall,
    Standing,
};
use crate::span::Kind;

use format::render;
pub(super) use format::{Step, Vector, What, parse};

/// Names of files without their ending, and what is in them.
macro_rules! vectors {
    ($($name:literal)*) => {
        &[$(($name, include_str!(concat!("vectors/", $name, ".txt")))),*]
    };
}
pub(super) use vectors;

pub(super) type Vectors = &'static [(&'static str, &'static str)];

pub(super) const CAUSES: [EndCause; 4] = [
    EndCause::Closed,
    EndCause::Reset,
    EndCause::TimedOut,
    EndCause::Unobserved,
];

pub(super) fn protocol(name: &str) -> &'static Protocol {
    REGISTRY
        .iter()
        .find(|protocol| protocol.name == name)
        .expect("a row of the registry")
}

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

/// Feeds a session as the connection tracker does, keeping positions and following an upgrade.
pub(super) struct Feeder {
    endpoint: Endpoint,
    session: Box<dyn Session>,
    pub(super) positions: [u64; 2],
    pub(super) progress: Vec<Progress>,
    shortfall: Shortfall,
}

impl Feeder {
    pub(super) fn new(vector: &Vector, protocol: &Protocol) -> Self {
        let endpoint = endpoint(vector);
        Self {
            session: (protocol.session)(endpoint.clone()),
            endpoint,
            positions: [0; 2],
            progress: Vec::new(),
            shortfall: Shortfall::default(),
        }
    }

    pub(super) fn feed(&mut self, step: &Step) {
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
                    turn_start: step.turn_start,
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

/// What a vector's own protocol says of it; `name` where it is none of ours.
pub(super) fn feed(vector: &Vector, name: &str) -> Feeder {
    let protocol = match detection(vector) {
        Detection::Found { protocol, .. } => protocol,
        _ => protocol(name),
    };
    let mut feeder = Feeder::new(vector, protocol);
    vector.steps.iter().for_each(|step| feeder.feed(step));
    feeder
}

/// As [`feed`], and then the connection ends, whatever is still open in it.
pub(super) fn feed_to_end(vector: &Vector, name: &str, cause: EndCause) -> Vec<Progress> {
    let mut feeder = feed(vector, name);
    let last_ns = vector.steps.last().map_or(0, |step| step.time_ns);
    end_both(&mut feeder, cause, last_ns + 1);
    feeder.progress
}

/// Everything a vector says comes out: the verdict, then the progress.
fn output(vector: &Vector, name: &str) -> String {
    let mut text = String::new();
    match detection(vector) {
        Detection::Undecided => return "undecided\n".to_owned(),
        Detection::Unrecognised => return "unrecognised\n".to_owned(),
        Detection::Found { protocol, kind } => {
            let kind = format!("{kind:?}").to_lowercase();
            writeln!(text, "detected {} {kind}", protocol.name).expect("a string takes all");
        }
    }
    let feeder = feed(vector, name);
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

/// Those of which something else comes out than they say, with what does; empty where none is.
pub(super) fn differing(vectors: Vectors, name: &str) -> String {
    let mut wrong = String::new();
    for (file, text) in vectors {
        let vector = parse(text);
        let actual = output(&vector, name);
        if actual != vector.expected {
            write!(wrong, "=== {file}\n{actual}").expect("a string takes all");
        }
    }
    wrong
}

/// As the tracker asks: after every input, with what each direction began with, or on an older
/// connection with what its latest turn did.
pub(super) fn detection(vector: &Vector) -> Detection {
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

/// What holds for every input: each exchange starts once, finishes once, in the order that the
/// contract gives, and ends no earlier than it started.
pub(super) fn check_invariants(name: &str, progress: &[Progress]) {
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

pub(super) fn end_both(feeder: &mut Feeder, cause: EndCause, time_ns: u64) {
    // A session that has ended on the way is asked no more by the tracker.
    for flow in [Flow::Request, Flow::Response] {
        feeder.feed(&Step {
            flow,
            time_ns,
            turn_start: false,
            what: What::End(cause),
        });
    }
}

/// The input at `index` cut into pieces, all of the same time.
pub(super) fn split_step(vector: &Vector, index: usize, pieces: &[&[u8]]) -> Vector {
    let mut split = vector.clone();
    let step = split.steps.remove(index);
    for (nth, piece) in pieces.iter().enumerate() {
        let piece = Step {
            turn_start: step.turn_start && nth == 0,
            what: What::Bytes(piece.to_vec()),
            ..step
        };
        split.steps.insert(index + nth, piece);
    }
    split
}

pub(super) fn corrupt(vector: &mut Vector, random: &mut Random) {
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
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }
}

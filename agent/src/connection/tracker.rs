//! One connection, from its first byte to its end. Pure.

use std::collections::VecDeque;

use crate::{
    connection::{
        Observation, Origin,
        stream::{Step, Stream},
    },
    event::{ClosingStep, Data, Direction, DirectionState, Endpoints, ProcessId, Role, Unit},
    protocol::{
        Address, Awaited, EndCause, Endpoint, Flow, Input, Session,
        detect::{self, Detection, Opening},
    },
    span::Kind,
};

/// errno of a connection that timed out, `include/uapi/asm-generic/errno.h`.
const ETIMEDOUT: u32 = 110;

/// A broken connection may still hand bytes to its program that arrived before it broke; they are
/// waited for this long.
const ABORT_GRACE_NS: u64 = 1_000_000_000;

/// One input in owned form, kept until the protocol is known.
#[derive(Debug)]
enum Kept {
    Bytes { data: Vec<u8>, turn_start: bool, origin: Origin },
    Skipped { direction: Direction, length: u64, position: u64, last_ns: u64, tail: [u8; 8] },
}

/// The first bytes of both directions, while it is open what they are.
#[derive(Debug, Default)]
struct Undecided {
    kept: Vec<Kept>,
    inbound: Vec<u8>,
    outbound: Vec<u8>,
    turns: usize,
}

enum Understanding {
    Undecided(Undecided),
    Speaks { session: Box<dyn Session>, kind: Kind },
    /// None of our protocols, or no longer one.
    Opaque,
}

/// A connection of a traced process.
pub struct Connection {
    pub process: ProcessId,
    /// The thread that used it last.
    pub unit: Unit,
    pub endpoints: Endpoints,
    /// When it was last heard of.
    pub last_ns: u64,
    role: Role,
    complete: bool,
    unix_path: Option<String>,
    inbound: Stream,
    outbound: Stream,
    understanding: Understanding,
    remote_closed_first: bool,
    ended: [bool; 2],
    aborted: Option<(EndCause, u64)>,
    observations: VecDeque<Observation>,
}

impl Connection {
    pub fn new(unit: Unit, endpoints: Endpoints, role: Role, now_ns: u64) -> Self {
        Self {
            process: unit.process,
            unit,
            endpoints,
            last_ns: now_ns,
            role,
            complete: false,
            unix_path: None,
            inbound: Stream::default(),
            outbound: Stream::default(),
            understanding: Understanding::Undecided(Undecided::default()),
            remote_closed_first: false,
            ended: [false; 2],
            aborted: None,
            observations: VecDeque::new(),
        }
    }

    /// The path its named end is bound to.
    pub fn set_unix_path(&mut self, path: Option<String>) {
        self.unix_path = path;
    }

    /// What was learned, oldest first. Call until `None` after each `handle_*`.
    pub fn poll(&mut self) -> Option<Observation> {
        self.observations.pop_front()
    }

    /// Which end we are, where it is known.
    pub fn kind(&self) -> Option<Kind> {
        match self.role {
            Role::Server => Some(Kind::Server),
            Role::Client => Some(Kind::Client),
            Role::Unknown => None,
        }
    }

    /// Whether the session waits for an end that only the kernel's counts can show.
    pub fn is_waiting(&self) -> bool {
        match &self.understanding {
            Understanding::Speaks { session, .. } => [Flow::Request, Flow::Response]
                .into_iter()
                .any(|flow| session.awaited(flow).is_some()),
            _ => false,
        }
    }

    /// What the session waits for from the peer of this direction.
    pub fn awaited(&self, direction: Direction) -> Option<Awaited> {
        match &self.understanding {
            Understanding::Speaks { session, kind } => session.awaited(flow(*kind, direction)),
            _ => None,
        }
    }

    /// A socket call moved bytes, or found the end of the stream.
    pub fn handle_data(&mut self, data: &Data<'_>, time_ns: u64) {
        self.last_ns = self.last_ns.max(time_ns);
        self.unit = data.unit;
        self.process = data.unit.process;
        self.endpoints = data.endpoints;
        self.complete |= data.complete;
        if data.complete {
            self.inbound.begin_at(0);
            self.outbound.begin_at(0);
        }
        if self.role == Role::Unknown {
            self.role = data.role;
        }
        let origin = Origin {
            unit: data.unit,
            direction: data.direction,
            non_blocking: data.non_blocking,
            time_ns,
            tcp_sequence: data.tcp_sequence,
            position: data.position,
        };
        if data.end_of_stream {
            self.catch_up(data.direction, &data.other_flow, Some(origin));
            self.end(data.direction, EndCause::Closed, time_ns);
            return;
        }
        if data.turn_start {
            self.catch_up(data.direction.opposite(), &data.other_flow, Some(origin));
        }
        self.handle_bytes(data, origin);
        let uncaptured = u64::from(data.original_length).saturating_sub(data.bytes.len() as u64);
        if uncaptured > 0 {
            let end = data.position + u64::from(data.original_length);
            let flowed = DirectionState { position: end, last_ns: time_ns, tail: data.tail };
            self.catch_up(data.direction, &flowed, Some(origin));
        }
    }

    fn handle_bytes(&mut self, data: &Data<'_>, origin: Origin) {
        let bytes = match self.stream(data.direction).place(data.position, data.bytes) {
            Step::Known => return,
            Step::Next(bytes) => bytes,
            Step::Gap { length, then } => {
                self.feed_skipped(Kept::Skipped {
                    direction: data.direction,
                    length,
                    position: data.position - length,
                    // Some time before these bytes: when is not known, and does not matter to
                    // a message that goes on.
                    last_ns: origin.time_ns,
                    tail: [0; 8],
                });
                then
            }
        };
        if bytes.is_empty() {
            return;
        }
        let skipped = (data.bytes.len() - bytes.len()) as u64;
        let origin = Origin {
            position: origin.position + skipped,
            tcp_sequence: origin.sequence_at(origin.position + skipped),
            ..origin
        };
        self.feed_bytes(bytes, data.turn_start, origin);
    }

    /// A step towards the end, with all that flowed.
    pub fn handle_closing(
        &mut self,
        step: ClosingStep,
        error: u32,
        flowed: [&DirectionState; 2],
        time_ns: u64,
    ) {
        self.last_ns = self.last_ns.max(time_ns);
        self.handle_counts(flowed);
        match step {
            ClosingStep::RemoteClosed => self.remote_closed_first = true,
            ClosingStep::LocalClosed => self.end(Direction::Outbound, EndCause::Closed, time_ns),
            ClosingStep::Aborted => {
                let cause =
                    if error == ETIMEDOUT { EndCause::TimedOut } else { EndCause::Reset };
                self.aborted.get_or_insert((cause, time_ns));
            }
            ClosingStep::Destroyed => {
                let (cause, at_ns) = self.aborted.unwrap_or((EndCause::Closed, time_ns));
                self.end_both(cause, at_ns);
            }
        }
    }

    /// How far both directions have come, `[inbound, outbound]`, from the kernel's own counts.
    pub fn handle_counts(&mut self, [inbound, outbound]: [&DirectionState; 2]) {
        // The direction that moved first is told first.
        if inbound.last_ns <= outbound.last_ns {
            self.catch_up(Direction::Inbound, inbound, None);
            self.catch_up(Direction::Outbound, outbound, None);
        } else {
            self.catch_up(Direction::Outbound, outbound, None);
            self.catch_up(Direction::Inbound, inbound, None);
        }
    }

    /// Time passes: a broken connection is given up when its last bytes must have come.
    pub fn handle_tick(&mut self, now_ns: u64) {
        if let Some((cause, at_ns)) = self.aborted
            && now_ns.saturating_sub(at_ns) > ABORT_GRACE_NS
        {
            self.end_both(cause, at_ns);
        }
    }

    /// Whether it broke and is yet to be given up.
    pub fn is_breaking(&self) -> bool {
        self.aborted.is_some() && self.ended != [true; 2]
    }

    /// The connection is no longer watched, whatever becomes of it.
    pub fn handle_lost(&mut self, now_ns: u64) {
        self.end_both(EndCause::Unobserved, now_ns);
    }

    fn end_both(&mut self, cause: EndCause, at_ns: u64) {
        let order = if self.remote_closed_first {
            [Direction::Inbound, Direction::Outbound]
        } else {
            [Direction::Outbound, Direction::Inbound]
        };
        for direction in order {
            self.end(direction, cause, at_ns);
        }
    }

    fn end(&mut self, direction: Direction, cause: EndCause, time_ns: u64) {
        let [inbound, outbound] = &mut self.ended;
        let ended = match direction {
            Direction::Inbound => inbound,
            Direction::Outbound => outbound,
        };
        if std::mem::replace(ended, true) {
            return;
        }
        if let Understanding::Speaks { session, kind } = &mut self.understanding {
            session.handle(flow(*kind, direction), Input::End { cause, time_ns });
            self.collect(None);
        }
    }

    /// Tells of bytes that flowed without being captured.
    fn catch_up(&mut self, direction: Direction, flowed: &DirectionState, origin: Option<Origin>) {
        let position = self.stream(direction).position();
        let length = self.stream(direction).advance_to(flowed.position);
        if length > 0 {
            let (last_ns, tail) = (flowed.last_ns, flowed.tail);
            self.feed_skipped(Kept::Skipped { direction, length, position, last_ns, tail });
            self.collect(origin);
        }
    }

    fn stream(&mut self, direction: Direction) -> &mut Stream {
        match direction {
            Direction::Inbound => &mut self.inbound,
            Direction::Outbound => &mut self.outbound,
        }
    }

    fn feed_skipped(&mut self, skipped: Kept) {
        match &mut self.understanding {
            Understanding::Speaks { session, kind } => {
                hand_over(session.as_mut(), *kind, &skipped);
                self.collect(None);
            }
            Understanding::Undecided(undecided) => undecided.kept.push(skipped),
            Understanding::Opaque => {}
        }
    }

    fn feed_bytes(&mut self, data: &[u8], turn_start: bool, origin: Origin) {
        match &mut self.understanding {
            Understanding::Opaque => {}
            Understanding::Speaks { session, kind } => {
                let input = Input::Bytes {
                    data,
                    position: origin.position,
                    time_ns: origin.time_ns,
                    turn_start,
                };
                session.handle(flow(*kind, origin.direction), input);
                self.collect(Some(origin));
            }
            Understanding::Undecided(_) => self.decide(data, turn_start, origin),
        }
    }

    /// Adds bytes to what is known of the beginning, and asks what it is.
    fn decide(&mut self, data: &[u8], turn_start: bool, origin: Origin) {
        let kind = self.kind();
        let complete = self.complete;
        let Understanding::Undecided(undecided) = &mut self.understanding else { return };
        undecided.add(data, turn_start, origin, complete);
        let opening = Opening {
            inbound: &undecided.inbound,
            outbound: &undecided.outbound,
            kind,
            complete,
        };
        match detect::detect(opening) {
            Detection::Found { protocol, kind } => {
                let kept = std::mem::take(&mut undecided.kept);
                self.role = match kind {
                    Kind::Server => Role::Server,
                    Kind::Client => Role::Client,
                };
                self.understanding = Understanding::Speaks {
                    session: (protocol.session)(self.endpoint(kind)),
                    kind,
                };
                self.replay(kept, kind);
            }
            Detection::Undecided if undecided.is_worth_more() => {}
            Detection::Unrecognised if !complete && undecided.turns < detect::TURNS => {}
            Detection::Undecided | Detection::Unrecognised => {
                self.understanding = Understanding::Opaque;
            }
        }
    }

    fn replay(&mut self, kept: Vec<Kept>, kind: Kind) {
        for input in kept {
            let Understanding::Speaks { session, .. } = &mut self.understanding else { return };
            hand_over(session.as_mut(), kind, &input);
            self.collect(match input {
                Kept::Bytes { origin, .. } => Some(origin),
                Kept::Skipped { .. } => None,
            });
        }
    }

    /// Takes what the session learned; notes when it is over.
    fn collect(&mut self, origin: Option<Origin>) {
        let Understanding::Speaks { session, .. } = &mut self.understanding else { return };
        while let Some(progress) = session.poll() {
            self.observations.push_back(Observation { progress, origin });
        }
        if session.is_over() {
            self.understanding = Understanding::Opaque;
        }
    }

    fn endpoint(&self, kind: Kind) -> Endpoint {
        let (local, peer) = match self.endpoints {
            Endpoints::Inet { local, remote, .. } => (
                Address::Inet { ip: local.0, port: local.1 },
                Address::Inet { ip: remote.0, port: remote.1 },
            ),
            Endpoints::Unix { .. } => {
                let named = Address::Unix { path: self.unix_path.clone().unwrap_or_default() };
                let unnamed = Address::Unix { path: String::new() };
                match kind {
                    Kind::Server => (named, unnamed),
                    Kind::Client => (unnamed, named),
                }
            }
        };
        Endpoint { kind, local, peer, complete: self.complete }
    }
}

impl Undecided {
    fn add(&mut self, data: &[u8], turn_start: bool, origin: Origin, complete: bool) {
        self.turns += usize::from(turn_start);
        if turn_start && !complete {
            // In the middle of a conversation only the latest turn can begin a message.
            self.kept.retain(|kept| kept.direction() != origin.direction);
            self.beginning(origin.direction).clear();
        }
        let beginning = self.beginning(origin.direction);
        let room = detect::LIMIT.saturating_sub(beginning.len());
        beginning.extend_from_slice(data.get(..data.len().min(room)).unwrap_or_default());
        self.kept.push(Kept::Bytes { data: data.to_vec(), turn_start, origin });
    }

    fn beginning(&mut self, direction: Direction) -> &mut Vec<u8> {
        match direction {
            Direction::Inbound => &mut self.inbound,
            Direction::Outbound => &mut self.outbound,
        }
    }

    fn is_worth_more(&self) -> bool {
        self.inbound.len() < detect::LIMIT
            && self.outbound.len() < detect::LIMIT
            && self.turns < detect::TURNS
    }
}

impl Kept {
    const fn direction(&self) -> Direction {
        match self {
            Self::Bytes { origin, .. } => origin.direction,
            Self::Skipped { direction, .. } => *direction,
        }
    }
}

fn hand_over(session: &mut dyn Session, kind: Kind, input: &Kept) {
    match input {
        Kept::Bytes { data, turn_start, origin } => session.handle(
            flow(kind, origin.direction),
            Input::Bytes {
                data,
                position: origin.position,
                time_ns: origin.time_ns,
                turn_start: *turn_start,
            },
        ),
        Kept::Skipped { direction, length, position, last_ns, tail } => session.handle(
            flow(kind, *direction),
            Input::Skipped {
                length: *length,
                position: *position,
                last_ns: *last_ns,
                tail: *tail,
            },
        ),
    }
}

/// The flow a direction carries, seen from this end.
const fn flow(kind: Kind, direction: Direction) -> Flow {
    match (kind, direction) {
        (Kind::Server, Direction::Inbound) | (Kind::Client, Direction::Outbound) => Flow::Request,
        (Kind::Server, Direction::Outbound) | (Kind::Client, Direction::Inbound) => Flow::Response,
    }
}

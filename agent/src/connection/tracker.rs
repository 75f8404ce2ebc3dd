//! One connection, from its first byte to its end. Pure.

mod feeding;
mod session;

use std::{collections::VecDeque, net::IpAddr};

use crate::{
    connection::{
        Observation, Origin,
        added::{Added, Place},
        beginning::{Kept, Undecided, flow},
        stream::{Step, Stream},
    },
    event::{
        ClosingStep, Data, Direction, DirectionState, Endpoints, OtherEnd, PlaintextOpened,
        ProcessId, Role, Unit,
    },
    protocol::{Awaited, EndCause, Flow, Input, ServerSettings, Session, Shortfall},
    span::Kind,
};

/// errno of a connection that timed out, `include/uapi/asm-generic/errno.h`.
const ETIMEDOUT: u32 = 110;

/// A broken connection may still hand bytes to its program that arrived before it broke; they are
/// waited for this long.
const ABORT_GRACE_NS: u64 = 1_000_000_000;

/// The record that tells of a connection's end is on its way for a few milliseconds when the
/// kernel side has forgotten the connection already; more under load.
const MISSING_GRACE_NS: u64 = 1_000_000_000;

enum Understanding {
    Undecided(Undecided),
    Speaks {
        session: Box<dyn Session>,
        kind: Kind,
    },
    /// None of our protocols, or no longer one.
    Opaque,
}

/// What the kernel side is to make of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// Frames of streams that are side by side: captured frame by frame.
    Frames,
    /// Captured turn by turn.
    Other,
}

/// What is known of the connection that carries plaintext encrypted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Plaintext {
    /// TCP sequence numbers at which its directions began, inbound and outbound: with a position
    /// in the plaintext they make a number that both ends of the session know. 0 where they do not.
    pub origins: [u32; 2],
    /// It is, or was, one of our protocols; whether that was told.
    is_understood: bool,
    is_judged: bool,
}

/// A connection of a traced process.
pub struct Connection {
    pub process: ProcessId,
    /// The thread that used it last.
    pub unit: Unit,
    pub endpoints: Endpoints,
    /// Under which address the table knows it as a client's.
    pub(super) client_end: Option<(IpAddr, u16)>,
    pub other_end: OtherEnd,
    /// When it was last heard of.
    pub last_ns: u64,
    role: Role,
    complete: bool,
    /// A session lost track: the next one begins as on a connection older than the agent.
    has_lost_track: bool,
    /// What sessions could not follow and was not asked for yet; one that lost track counts as an
    /// exchange.
    shortfall: Shortfall,
    /// By the session that was last.
    highest_stream: Option<u32>,
    /// Its protocol runs exchanges side by side.
    is_multiplexed: bool,
    /// As it was told last.
    framing: Framing,
    server_settings: Option<ServerSettings>,
    unix_path: Option<String>,
    /// It is what a TLS session carries.
    plaintext: Option<Plaintext>,
    inbound: Stream,
    outbound: Stream,
    understanding: Understanding,
    remote_closed_first: bool,
    /// How its end began was seen: which side closed first, or that it broke.
    closing_seen: bool,
    first_ns: u64,
    /// How and when inbound and outbound ended.
    ended: [Option<(EndCause, u64)>; 2],
    /// Since when the kernel side does not know it any more.
    missing_ns: Option<u64>,
    aborted: Option<(EndCause, u64)>,
    observations: VecDeque<Observation>,
    /// Headers that were put into what it sends.
    added: Added,
}

impl Connection {
    pub fn new(unit: Unit, endpoints: Endpoints, role: Role, now_ns: u64) -> Self {
        Self {
            process: unit.process,
            unit,
            endpoints,
            client_end: None,
            other_end: OtherEnd::Unknown,
            last_ns: now_ns,
            role,
            complete: false,
            has_lost_track: false,
            shortfall: Shortfall::default(),
            highest_stream: None,
            is_multiplexed: false,
            framing: Framing::Other,
            server_settings: None,
            unix_path: None,
            plaintext: None,
            inbound: Stream::default(),
            outbound: Stream::default(),
            understanding: Understanding::Undecided(Undecided::default()),
            remote_closed_first: false,
            closing_seen: false,
            first_ns: now_ns,
            ended: [None; 2],
            missing_ns: None,
            aborted: None,
            observations: VecDeque::new(),
            added: Added::default(),
        }
    }

    /// A header was put before this position into what is sent next: TCP counts it, the program
    /// does not.
    pub fn handle_added(&mut self, position: u64, length: u32, place: Place) {
        self.added.handle(position, length, place);
    }

    /// The path its named end is bound to.
    pub fn set_unix_path(&mut self, path: Option<String>) {
        self.unix_path = path;
    }

    /// It is what a TLS session carries, over a connection with these ends. Of Go each direction's
    /// origin is told by itself.
    pub fn handle_plaintext(&mut self, opened: &PlaintextOpened) {
        self.endpoints = opened.endpoints;
        let plaintext = self.plaintext.get_or_insert_default();
        for (known, told) in plaintext.origins.iter_mut().zip(opened.origins) {
            if told != 0 {
                *known = told;
            }
        }
        if self.role == Role::Unknown {
            self.role = opened.role;
        }
        if self.inbound.position() > 0 || self.outbound.position() > 0 {
            self.ask();
        }
    }

    /// When what carries it was opened, if that was before its own first byte.
    pub fn handle_opened(&mut self, opened_ns: u64) {
        self.first_ns = self.first_ns.min(opened_ns);
    }

    /// When it was first heard of.
    pub fn first_ns(&self) -> u64 {
        self.first_ns
    }

    /// `None`: it is a connection itself.
    pub fn plaintext(&self) -> Option<Plaintext> {
        self.plaintext
    }

    /// What was learned, oldest first. Call until `None` after each `handle_*`.
    pub fn poll(&mut self) -> Option<Observation> {
        self.observations.pop_front()
    }

    /// What could not be followed since the last call.
    pub fn take_shortfall(&mut self) -> Shortfall {
        std::mem::take(&mut self.shortfall)
    }

    /// Where its requests are numbered: the highest number so far. `None` where that is not known.
    pub fn highest_stream(&self) -> Option<u32> {
        self.highest_stream
    }

    /// Whether fields that are referred to on it may not be known.
    pub fn may_lack_fields(&self) -> bool {
        match &self.understanding {
            Understanding::Speaks { session, .. } => session.may_lack_fields(),
            _ => false,
        }
    }

    /// Whether exchanges run side by side on it, so that neither turns nor order tell them apart.
    pub fn is_multiplexed(&self) -> bool {
        self.is_multiplexed
    }

    /// How it is to be captured from here on; `None` as before.
    pub fn take_framing(&mut self) -> Option<Framing> {
        let framing = match self.understanding {
            Understanding::Opaque => Framing::Other,
            _ if self.is_multiplexed => Framing::Frames,
            _ => Framing::Other,
        };
        let before = std::mem::replace(&mut self.framing, framing);
        (before != framing).then_some(framing)
    }

    /// What the server says of itself, when that has changed.
    pub fn take_server_settings(&mut self) -> Option<ServerSettings> {
        let Understanding::Speaks { session, .. } = &self.understanding else {
            return None;
        };
        let settings = session.server_settings();
        let before = std::mem::replace(&mut self.server_settings, settings);
        settings.filter(|_| before != settings)
    }

    /// Whether it was seen from its first byte on.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// When it was opened; `None` when it is older than the agent or its opening was not seen.
    pub fn opened_ns(&self) -> Option<u64> {
        self.complete.then_some(self.first_ns)
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
        if data.plaintext {
            self.plaintext.get_or_insert_default();
        }
        if data.complete {
            self.inbound.begin_at(0);
            self.outbound.begin_at(0);
        }
        if self.role == Role::Unknown {
            self.role = data.role;
        }
        let tcp_sequence = self.added.first_sequence(data);
        let origin = Origin {
            unit: data.unit,
            task: data.task,
            descriptor: data.descriptor,
            direction: data.direction,
            non_blocking: data.non_blocking,
            time_ns,
            tcp_sequence,
            position: data.position,
        };
        if data.end_of_stream {
            self.catch_up(data.direction, &data.other_flow, Some(origin));
            self.end(data.direction, EndCause::Closed, time_ns);
            return;
        }
        // Also within a turn: the record that began it may have been lost. Where both sides talk at
        // once, a thread may receive while another one's bytes are counted and not recorded, yet.
        if !self.is_multiplexed {
            self.catch_up(data.direction.opposite(), &data.other_flow, Some(origin));
        }
        self.handle_bytes(data.bytes, data.turn_start, origin);
        for (offset, bytes) in data.further {
            let position = data.position.saturating_add(offset.into());
            let added = self.added.between(data, position);
            let origin = Origin {
                tcp_sequence: tcp_sequence.wrapping_add(offset).wrapping_add(added),
                position,
                ..origin
            };
            self.handle_bytes(bytes, false, origin);
        }
        if data.uncaptured() > 0 {
            let end = data
                .position
                .saturating_add(u64::from(data.original_length));
            let flowed = DirectionState {
                position: end,
                last_ns: time_ns,
                tail: data.tail,
            };
            self.catch_up(data.direction, &flowed, Some(origin));
        }
    }

    fn handle_bytes(&mut self, data: &[u8], turn_start: bool, origin: Origin) {
        let (direction, position) = (origin.direction, origin.position);
        let bytes = match self.stream(direction).place(position, data) {
            Step::Known => return,
            Step::Next(bytes) => bytes,
            Step::Gap { length, then } => {
                let skipped = Kept::Skipped {
                    direction,
                    length,
                    position: position - length,
                    // Some time before these bytes: when is not known, and does not matter to
                    // a message that goes on.
                    last_ns: origin.time_ns,
                    tail: [0; 8],
                };
                self.feed_skipped(skipped, Some(origin));
                then
            }
        };
        if bytes.is_empty() {
            return;
        }
        let known = (data.len() - bytes.len()) as u64;
        let position = position.saturating_add(known);
        let tcp_sequence = origin.sequence_at(position);
        let origin = Origin {
            tcp_sequence,
            position,
            ..origin
        };
        self.feed_between_added(bytes, turn_start && known == 0, origin);
    }

    /// Hands on what lies between two headers of ours with its own sequence number.
    fn feed_between_added(&mut self, bytes: &[u8], mut turn_start: bool, origin: Origin) {
        if self.added.is_empty() {
            self.feed_bytes(bytes, turn_start, origin);
            return;
        }
        for (piece, origin) in self.added.pieces(bytes, origin) {
            self.feed_bytes(piece, std::mem::take(&mut turn_start), origin);
        }
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
        self.closing_seen |= step != ClosingStep::Destroyed;
        match step {
            ClosingStep::RemoteClosed => self.remote_closed_first = true,
            ClosingStep::LocalClosed => self.end(Direction::Outbound, EndCause::Closed, time_ns),
            ClosingStep::Aborted => {
                let cause = if error == ETIMEDOUT {
                    EndCause::TimedOut
                } else {
                    EndCause::Reset
                };
                self.aborted.get_or_insert((cause, time_ns));
            }
            ClosingStep::Destroyed => {
                let (cause, at_ns) = self.aborted.unwrap_or((EndCause::Closed, time_ns));
                self.end_both(cause, at_ns);
            }
        }
    }

    /// Whether records that were lost at `lost_ns` may have told how its end began.
    pub fn may_have_closed_unseen(&self, lost_ns: u64) -> bool {
        !self.closing_seen && self.first_ns <= lost_ns
    }

    /// How far both directions have come, `[inbound, outbound]`, from the kernel's own counts.
    pub fn handle_counts(&mut self, [inbound, outbound]: [&DirectionState; 2]) {
        self.missing_ns = None;
        self.last_ns = self.last_ns.max(inbound.last_ns).max(outbound.last_ns);
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

    /// The kernel side does not know the connection. Its last record may still be on its way:
    /// returns whether that was waited for long enough, seen that all records from before
    /// `horizon_ns` have been handled.
    pub fn handle_missing(&mut self, now_ns: u64, horizon_ns: u64) -> bool {
        let since_ns = *self.missing_ns.get_or_insert(now_ns);
        horizon_ns.saturating_sub(since_ns) > MISSING_GRACE_NS
    }

    /// The kernel side still knows the connection.
    pub fn handle_alive(&mut self, now_ns: u64) {
        if self.is_end_told() {
            self.last_ns = self.last_ns.max(now_ns);
        }
    }

    /// Whether the kernel side tells of its end, and forgets it then: not of unix sockets.
    pub fn is_end_told(&self) -> bool {
        matches!(self.endpoints, Endpoints::Inet { .. })
    }

    /// Whether it broke and is yet to be given up.
    pub fn is_breaking(&self) -> bool {
        self.aborted.is_some() && self.ended.iter().any(Option::is_none)
    }

    /// The connection is no longer watched, whatever becomes of it.
    pub fn handle_lost(&mut self, now_ns: u64) {
        let (cause, at_ns) = self.aborted.unwrap_or((EndCause::Unobserved, now_ns));
        self.end_both(cause, at_ns);
    }

    /// Whether what comes under this identity is another connection: identities are addresses on
    /// some kernels, and their reuse may go unannounced.
    pub fn is_replaced_by(&self, data: &Data<'_>) -> bool {
        let has_flowed = self.inbound.position() > 0 || self.outbound.position() > 0;
        // A connection is counted from its first byte or it is not, and counts do not go back.
        let starts_over = has_flowed
            && data.turn_start
            && !data.end_of_stream
            && data.position == 0
            && data.other_flow.position == 0;
        starts_over || (self.complete && !data.complete) || self.is_elsewhere(data.endpoints)
    }

    /// Whether these are the endpoints of another connection. What is not known yet differs from
    /// nothing: a port is chosen after the connection was announced.
    pub fn is_elsewhere(&self, endpoints: Endpoints) -> bool {
        match (self.endpoints, endpoints) {
            (
                Endpoints::Inet {
                    local: (_, port),
                    remote,
                    ..
                },
                Endpoints::Inet {
                    local: (_, other_port),
                    remote: other_remote,
                    ..
                },
            ) => {
                let has_ports = port != 0 && other_port != 0;
                let has_remotes = remote.1 != 0 && other_remote.1 != 0;
                (has_ports && port != other_port) || (has_remotes && remote != other_remote)
            }
            (
                Endpoints::Unix { local, remote },
                Endpoints::Unix {
                    local: other_local,
                    remote: other_remote,
                },
            ) => {
                let differs = |one, other| one != 0 && other != 0 && one != other;
                differs(local, other_local) || differs(remote, other_remote)
            }
            // Plaintext whose connection is told later, or not at all.
            (Endpoints::Unknown, _) | (_, Endpoints::Unknown) => false,
            _ => true,
        }
    }

    fn end_both(&mut self, cause: EndCause, at_ns: u64) {
        self.handle_unproven();
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
        if self.waits_for_proof() {
            self.handle_unproven();
        }
        let [inbound, outbound] = &mut self.ended;
        let ended = match direction {
            Direction::Inbound => inbound,
            Direction::Outbound => outbound,
        };
        if ended.is_some() {
            return;
        }
        *ended = Some((cause, time_ns));
        self.tell_end(direction, cause, time_ns);
    }

    fn tell_end(&mut self, direction: Direction, cause: EndCause, time_ns: u64) {
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
            let skipped = Kept::Skipped {
                direction,
                length,
                position,
                last_ns,
                tail,
            };
            // A record of one direction says nothing of who moved the other's bytes.
            self.feed_skipped(
                skipped,
                origin.filter(|origin| origin.direction == direction),
            );
        }
    }

    fn stream(&mut self, direction: Direction) -> &mut Stream {
        match direction {
            Direction::Inbound => &mut self.inbound,
            Direction::Outbound => &mut self.outbound,
        }
    }

    /// Nothing that comes after the end of a direction is told: it has nothing to end it.
    fn has_ended(&self, direction: Direction) -> bool {
        let [inbound, outbound] = &self.ended;
        match direction {
            Direction::Inbound => inbound.is_some(),
            Direction::Outbound => outbound.is_some(),
        }
    }
}
#[cfg(test)]
mod tests;

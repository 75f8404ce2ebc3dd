//! Exchanges in flight: what sessions learn, told to the parts that join traces. Pure.

mod goroutines;
mod hand_off;

use std::collections::VecDeque;

use opentelemetry::{SpanId, TraceId};
use rustc_hash::{FxHashMap, FxHashSet};

use super::{
    both_ends::BothEnds,
    carried,
    facts::ConnectionFacts,
    watchdog::{Carried, End},
};
use crate::{
    connection::Origin,
    context::{
        Evidence, Stitcher,
        answering::{Answering, Verdict},
        goroutine::Goroutines,
        handed_off::HandOffs,
        lineage::{Discipline, Lineage, Use},
        propagation,
        started::{Child, Starts},
        stitch::{self, Beginning, NodeKey, WireKey},
    },
    event::{self, ConnectionId, Direction, Endpoints, ProcessId, Unit},
    protocol::{ExchangeNumber, Progress},
    self_metrics::{Counter, SelfMetrics},
    span::{Details, Kind},
};

pub(super) use self::hand_off::Followed;

/// What a span needs besides its identity.
#[derive(Debug)]
pub(super) struct Finished {
    pub(super) process: ProcessId,
    pub(super) kind: Kind,
    pub(super) start_ns: u64,
    pub(super) end_ns: u64,
    pub(super) details: Details,
}

#[derive(Clone, Copy, Debug)]
struct Open {
    node: NodeKey,
    /// The thread that read or sent the request.
    unit: Unit,
    /// What the protocol numbers it, where exchanges run side by side.
    stream: Option<u32>,
    /// Position of the request's first byte.
    position: u64,
    /// The same as TCP options say it; `None` on unix sockets.
    place: Option<carried::Place>,
    carried: Carried,
}

/// A client's exchange that is over.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call {
    pub(super) process: ProcessId,
    pub(super) carried: Carried,
    pub(super) end: End,
}

/// Exchanges whose end is not known, and who works for whom.
#[derive(Debug, Default)]
pub(super) struct Exchanges {
    open: FxHashMap<(ConnectionId, ExchangeNumber), Open>,
    /// The exchange begun last on each client connection of an event loop.
    latest: FxHashMap<ConnectionId, NodeKey>,
    pub(super) lineage: Lineage<NodeKey>,
    answering: Answering<NodeKey>,
    /// Ids made for requests that are not known yet, by connection and position.
    minted: FxHashMap<ConnectionId, VecDeque<(u64, stitch::Minted)>>,
    /// What left or came with TCP options.
    pub(super) carried: carried::Contexts,
    /// Whether anyone asks how calls ended.
    is_injecting: bool,
    /// Calls that ended and were not asked for yet.
    calls: VecDeque<Call>,
    starts: Starts<NodeKey>,
    pub(super) both_ends: BothEnds,
    hand_offs: HandOffs<NodeKey>,
    /// Open requests of each process that serves.
    serving: FxHashMap<ProcessId, FxHashSet<NodeKey>>,
    /// Changes that were not asked for yet.
    followed: VecDeque<Followed>,
    pub(super) goroutines: Goroutines<NodeKey>,
}

/// Requests of one connection whose ids wait at most: pipelined ones.
const MINTED: usize = 1024;

/// Connections whose ids wait at most: as many as are watched.
const MINTED_CONNECTIONS: usize = agent_common::limits::CONNECTIONS as usize;

impl Exchanges {
    pub(super) fn new(is_injecting: bool) -> Self {
        Self {
            is_injecting,
            ..Self::default()
        }
    }

    /// The kernel side made ids for a request, which comes next or is being read.
    pub(super) fn handle_minted(&mut self, minted: &event::Minted) {
        let is_known = self.minted.contains_key(&minted.connection);
        if !is_known && self.minted.len() >= MINTED_CONNECTIONS {
            return;
        }
        let waiting = self.minted.entry(minted.connection).or_default();
        if waiting.len() >= MINTED {
            waiting.pop_front();
        }
        let span_id = Some(SpanId::from_bytes(minted.span_id)).filter(|id| *id != SpanId::INVALID);
        let trace_id = TraceId::from_bytes(minted.trace_id);
        waiting.push_back((minted.position, stitch::Minted { trace_id, span_id }));
    }

    /// A call that has ended since the last time.
    pub(super) fn poll_call(&mut self) -> Option<Call> {
        self.calls.pop_front()
    }

    /// Ids that were made for the request at this position.
    fn take_minted(&mut self, connection: ConnectionId, position: u64) -> Option<stitch::Minted> {
        let waiting = self.minted.get_mut(&connection)?;
        waiting.retain(|(at, _)| *at >= position);
        let found = waiting.pop_front_if(|(at, _)| *at == position);
        if waiting.is_empty() {
            self.minted.remove(&connection);
        }
        found.map(|(_, minted)| minted)
    }

    /// As [`Self::take_minted`], of a request that left with a TCP option after it was recorded,
    /// because TCP held it back.
    fn take_sent_late(
        &mut self,
        connection: &ConnectionFacts,
        open: &Open,
    ) -> Option<stitch::Minted> {
        if open.carried == Carried::Ours {
            return None;
        }
        self.carried.take_sent(connection.kind, open.place)
    }

    pub(super) fn handle(
        &mut self,
        connection: &ConnectionFacts,
        progress: Progress,
        origin: Option<Origin>,
        discipline: Discipline,
        stitcher: &mut Stitcher<Finished>,
        metrics: &SelfMetrics,
    ) {
        match progress {
            Progress::RequestStarted {
                exchange,
                stream,
                position,
                time_ns,
            } => {
                metrics.add(Counter::ExchangesStarted, 1);
                let unit = origin.map_or(connection.unit, |origin| origin.unit);
                let wire = origin.and_then(|origin| wire_key(connection, origin, position));
                let caller = match connection.kind {
                    // Whoever writes there writes for others too, but for who says otherwise.
                    Kind::Client if connection.multiplexed => {
                        origin.and_then(|origin| self.stream_caller(&origin, stream, stitcher))
                    }
                    Kind::Client => {
                        let usage = if connection.complete && position == 0 {
                            Use::First
                        } else {
                            Use::Later
                        };
                        match origin {
                            Some(origin) if origin.task.is_some() => {
                                self.goroutine_caller(connection, &origin, stitcher)
                            }
                            _ => self.caller(connection.id, unit, discipline, usage, stitcher),
                        }
                    }
                    Kind::Server => None,
                };
                let kind = connection.kind;
                let place =
                    origin.and_then(|origin| carried::Place::of(connection, &origin, position));
                // Any thread runs any goroutine: threads say nothing then.
                let is_goroutine = origin.is_some_and(|origin| origin.task.is_some());
                let beginning = Beginning {
                    kind,
                    start_ns: time_ns,
                    caller,
                    wire,
                    other_end: connection.other_end,
                    minted: self
                        .take_minted(connection.id, position)
                        .or_else(|| self.carried.take_sent(kind, place)),
                };
                let carried = match beginning.minted {
                    Some(minted) if minted.span_id.is_some() => Carried::Ours,
                    _ => Carried::Nothing,
                };
                let node = stitcher.handle_started(beginning);
                if let Some(received) = self.carried.take_received(kind, place) {
                    stitcher.handle_carried(node, received);
                }
                self.open.insert(
                    (connection.id, exchange),
                    Open {
                        node,
                        unit,
                        stream,
                        position,
                        place,
                        carried,
                    },
                );
                match kind {
                    Kind::Server => {
                        self.serving.entry(unit.process).or_default().insert(node);
                        self.note_worker(unit, stitcher);
                        self.lineage
                            .handle_request(unit, connection.id, node, discipline);
                        let is_threaded = discipline != Discipline::Loop && !is_goroutine;
                        if is_threaded && !connection.multiplexed {
                            self.answering
                                .handle_request(unit, connection.id, node, time_ns);
                        }
                    }
                    Kind::Client if discipline == Discipline::Loop => {
                        self.latest.insert(connection.id, node);
                    }
                    Kind::Client if connection.multiplexed && caller.is_none() => {
                        let process = unit.process;
                        let supposed = self.starts.handle_call_of_process(process, node, time_ns);
                        if supposed.is_some() {
                            stitcher.handle_undecided(node, supposed);
                        }
                    }
                    Kind::Client => {
                        if let Some((caller, _)) = caller {
                            self.hand_offs.handle_own_call(unit, caller);
                        } else if !is_goroutine {
                            self.leave_open(unit, node, time_ns, stitcher);
                        }
                    }
                }
            }
            Progress::RequestHead { exchange, headers } => {
                if let Some(open) = self.open.get(&(connection.id, exchange)).copied()
                    && let Some(minted) = self
                        .take_minted(connection.id, open.position)
                        .or_else(|| self.take_sent_late(connection, &open))
                {
                    stitcher.handle_minted(open.node, minted);
                    if minted.span_id.is_some()
                        && let Some(open) = self.open.get_mut(&(connection.id, exchange))
                    {
                        open.carried = Carried::Ours;
                    }
                }
                self.note_server_goroutine(connection, exchange, origin);
                if let Some(open) = self.open.get(&(connection.id, exchange))
                    && let Some(context) = propagation::extract(&headers)
                {
                    stitcher.handle_header(open.node, context);
                }
            }
            Progress::ResponseStarted { exchange, time_ns } => {
                if let Some(open) = self.open.get(&(connection.id, exchange)).copied() {
                    if let Some(minted) = self.take_sent_late(connection, &open) {
                        stitcher.handle_minted(open.node, minted);
                    }
                    stitcher.handle_answered(open.node);
                    if connection.kind == Kind::Client {
                        self.hand_offs.handle_answer(open.node, time_ns);
                    }
                    if let (Kind::Server, Some(origin)) = (connection.kind, sender(origin)) {
                        self.note_worker(origin.unit, stitcher);
                        self.answering.handle_answer(origin.unit, open.node);
                    }
                }
            }
            Progress::Finished {
                exchange,
                start_ns,
                end_ns,
                details,
            } => {
                let Some(open) = self.open.remove(&(connection.id, exchange)) else {
                    return;
                };
                self.lineage
                    .handle_answered(open.node, open.unit, connection.id);
                if connection.kind == Kind::Server {
                    let last = sender(origin).map(|origin| origin.unit);
                    self.answering.handle_finished(open.node, last);
                    self.starts.handle_finished(open.node, end_ns);
                    // Which calls were made for it is known before it is looked at.
                    self.tell_verdicts(stitcher);
                    self.note_finished(&open, start_ns, end_ns, stitcher);
                    self.forget_served(&open);
                }
                self.goroutines.handle_answered(connection.id, open.node);
                if self.latest.get(&connection.id) == Some(&open.node) {
                    self.latest.remove(&connection.id);
                }
                let process = open.unit.process;
                let kind = connection.kind;
                if self.is_injecting && kind == Kind::Client {
                    self.calls.push_back(Call {
                        process,
                        carried: open.carried,
                        end: End::of(&details),
                    });
                }
                let finished = Finished {
                    process,
                    kind,
                    start_ns,
                    end_ns,
                    details,
                };
                if connection.multiplexed {
                    self.both_ends
                        .handle_finished(open.node, end_ns, finished, stitcher);
                } else {
                    stitcher.handle_ended(open.node, end_ns, finished);
                }
            }
        }
        self.tell_verdicts(stitcher);
    }

    /// Calls whose request is known now, or never will be.
    fn tell_verdicts(&mut self, stitcher: &mut Stitcher<Finished>) {
        while let Some(verdict) = self.answering.poll().or_else(|| self.starts.poll()) {
            match verdict {
                Verdict::Made { call, exchange } => {
                    if self.hand_offs.handle_made(call, exchange) {
                        stitcher.handle_undecided(call, Some(exchange));
                    } else {
                        stitcher.handle_caller(call, exchange, Evidence::Answering);
                    }
                }
                Verdict::Unknown { call } => {
                    self.note_unknown(call);
                    stitcher.handle_no_caller(call);
                }
            }
        }
    }

    /// Records were lost: who works for whom is known again from the next read on.
    pub(super) fn handle_loss(&mut self, stitcher: &mut Stitcher<Finished>) {
        self.latest.clear();
        self.lineage.handle_loss();
        self.answering.handle_loss();
        self.starts.handle_loss();
        self.goroutines.handle_loss();
        self.hand_offs.handle_loss();
        self.tell_verdicts(stitcher);
        self.tell_outcomes(stitcher);
    }

    /// A thread read from a socket that is in an epoll set. Returns whether it is taken for a loop
    /// from now on.
    pub(super) fn handle_polled_read(
        &mut self,
        unit: Unit,
        stitcher: &mut Stitcher<Finished>,
    ) -> bool {
        let is_news = self.answering.handle_polled_read(unit);
        self.tell_verdicts(stitcher);
        is_news
    }

    /// A thread is a worker of a pool, for certain.
    pub(super) fn handle_worker(&mut self, unit: Unit) {
        self.answering.handle_worker(unit);
    }

    /// A thread started a process or another thread.
    pub(super) fn handle_start(&mut self, starter: Unit, child: Unit) {
        let exchange = self.lineage.works_for(starter);
        let child = if starter.process == child.process {
            Child::Thread(child)
        } else {
            Child::Process(child.process)
        };
        self.starts.handle_start(starter, child, exchange);
    }

    /// A thread serves a request of its own: calls it made before may belong to that.
    fn note_worker(&mut self, unit: Unit, stitcher: &mut Stitcher<Finished>) {
        for (start_ns, call) in self.starts.handle_worker(unit) {
            if !self.answering.handle_call(unit, call, start_ns) {
                stitcher.handle_no_caller(call);
            }
        }
    }

    /// Time passes.
    pub(super) fn handle_tick(&mut self, now_ns: u64, stitcher: &mut Stitcher<Finished>) {
        self.starts.handle_tick(now_ns);
        self.both_ends.handle_tick(now_ns, stitcher);
        self.tell_verdicts(stitcher);
        self.settle_handed(now_ns, stitcher);
    }

    /// A thread ended that was not the last one of its process.
    pub(super) fn handle_thread_exit(&mut self, unit: Unit, stitcher: &mut Stitcher<Finished>) {
        self.settle_started(Child::Thread(unit), stitcher);
        self.lineage.handle_thread_exit(unit);
        self.answering.handle_thread_exit(unit);
        self.hand_offs.handle_thread_exit(unit);
        self.tell_verdicts(stitcher);
    }

    /// Calls of what has ended, before the request did that it was started for.
    fn settle_started(&mut self, child: Child, stitcher: &mut Stitcher<Finished>) {
        let Some((exchange, calls)) = self.starts.handle_end(child) else {
            return;
        };
        for call in calls {
            stitcher.handle_caller(call, exchange, Evidence::Started);
        }
    }

    /// The process ended, and its threads with it.
    pub(super) fn handle_exit(&mut self, process: ProcessId, stitcher: &mut Stitcher<Finished>) {
        self.settle_started(Child::Process(process), stitcher);
        self.lineage.handle_exit(|unit| unit.process == process);
        self.answering.handle_exit(process);
        self.goroutines.handle_exit(process);
        self.tell_verdicts(stitcher);
        self.handle_exec(process);
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty()
            && self.latest.is_empty()
            && self.lineage.is_empty()
            && self.answering.is_empty()
            && self.minted.is_empty()
            && self.carried.is_empty()
            && self.starts.is_empty()
            && self.both_ends.is_empty()
            && self.hand_offs.is_empty()
            && self.serving.is_empty()
            && self.goroutines.is_empty()
    }

    /// The connection is over: nothing is read from it or answered any more.
    pub(super) fn handle_connection_end(&mut self, connection: ConnectionId) {
        self.minted.remove(&connection);
        self.carried.handle_connection_end(connection);
        self.lineage.handle_connection_end(connection);
        self.goroutines.handle_connection_end(connection);
    }

    /// The call an event loop waits for on a client connection.
    pub(super) fn open_on(&self, connection: ConnectionId) -> Option<NodeKey> {
        self.latest.get(&connection).copied()
    }

    fn caller(
        &mut self,
        connection: ConnectionId,
        unit: Unit,
        discipline: Discipline,
        usage: Use,
        stitcher: &Stitcher<Finished>,
    ) -> Option<(NodeKey, Evidence)> {
        let evidence = if discipline == Discipline::Loop {
            Evidence::Loop
        } else {
            Evidence::Thread
        };
        self.lineage
            .caller(unit, connection, discipline, usage)
            .filter(|caller| stitcher.is_open(*caller))
            .map(|caller| (caller, evidence))
    }
}

/// The record in which a server wrote, where it was one.
fn sender(origin: Option<Origin>) -> Option<Origin> {
    origin.filter(|origin| origin.direction == Direction::Outbound)
}

/// What the other end of this connection, if it is on this host, calls the same byte.
fn wire_key(connection: &ConnectionFacts, origin: Origin, position: u64) -> Option<WireKey> {
    let client = |local, remote| match connection.kind {
        Kind::Client => local,
        Kind::Server => remote,
    };
    if let Some(plaintext) = connection.plaintext {
        let [inbound, outbound] = plaintext.origins;
        let began = match origin.direction {
            Direction::Inbound => inbound,
            Direction::Outbound => outbound,
        };
        return match connection.endpoints {
            Endpoints::Inet { local, remote, .. } if began != 0 => Some(WireKey::Tls {
                client: client(local, remote),
                place: began.wrapping_add(position as u32),
            }),
            _ => None,
        };
    }
    match (connection.endpoints, connection.kind) {
        (Endpoints::Inet { .. }, _) if origin.tcp_sequence == 0 => None,
        (Endpoints::Inet { local, remote, .. }, _) => Some(WireKey::Tcp {
            client: client(local, remote),
            sequence: origin.sequence_at(position),
        }),
        (
            Endpoints::Unknown
            | Endpoints::Unix { local: 0, .. }
            | Endpoints::Unix { remote: 0, .. },
            _,
        ) => None,
        (Endpoints::Unix { local, remote }, Kind::Client) => Some(WireKey::Unix {
            client: local,
            server: remote,
            position,
        }),
        (Endpoints::Unix { local, remote }, Kind::Server) => Some(WireKey::Unix {
            client: remote,
            server: local,
            position,
        }),
    }
}

//! Exchanges in flight: what sessions learn, told to the parts that join traces. Pure.

use rustc_hash::FxHashMap;

use super::ConnectionFacts;
use crate::{
    connection::Origin,
    context::{
        Evidence, Stitcher,
        goroutine::Goroutines,
        lineage::{Discipline, Lineage, Use},
        propagation,
        stitch::{Beginning, NodeKey, WireKey},
    },
    event::{ConnectionId, Endpoints, ProcessId, Unit},
    protocol::{ExchangeNumber, Progress},
    self_metrics::{Counter, SelfMetrics},
    span::{Details, Kind},
};

/// What a span needs besides its identity.
#[derive(Debug)]
pub(super) struct Finished {
    pub(super) process: ProcessId,
    pub(super) kind: Kind,
    pub(super) start_ns: u64,
    pub(super) end_ns: u64,
    pub(super) details: Box<Details>,
}

#[derive(Clone, Copy, Debug)]
struct Open {
    node: NodeKey,
    /// The thread that read or sent the request.
    unit: Unit,
}

/// Exchanges whose end is not known, and who works for whom.
#[derive(Debug, Default)]
pub(super) struct Exchanges {
    open: FxHashMap<(ConnectionId, ExchangeNumber), Open>,
    /// The exchange begun last on each client connection of an event loop.
    latest: FxHashMap<ConnectionId, NodeKey>,
    pub(super) lineage: Lineage<NodeKey>,
    pub(super) goroutines: Goroutines<NodeKey>,
}

impl Exchanges {
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
                position,
                time_ns,
            } => {
                metrics.add(Counter::ExchangesStarted, 1);
                let unit = origin.map_or(connection.unit, |origin| origin.unit);
                let wire = origin.and_then(|origin| wire_key(connection, origin, position));
                let caller = match connection.kind {
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
                let beginning = Beginning {
                    kind,
                    start_ns: time_ns,
                    caller,
                    wire,
                };
                let node = stitcher.handle_started(beginning);
                self.open
                    .insert((connection.id, exchange), Open { node, unit });
                match connection.kind {
                    Kind::Server => {
                        self.lineage
                            .handle_request(unit, connection.id, node, discipline);
                    }
                    Kind::Client if discipline == Discipline::Loop => {
                        self.latest.insert(connection.id, node);
                    }
                    Kind::Client => {}
                }
            }
            Progress::RequestHead { exchange, headers } => {
                self.note_server_goroutine(connection, exchange, origin);
                if let Some(open) = self.open.get(&(connection.id, exchange))
                    && let Some(context) = propagation::extract(&headers)
                {
                    stitcher.handle_header(open.node, context);
                }
            }
            Progress::ResponseStarted { exchange, .. } => {
                if let Some(open) = self.open.get(&(connection.id, exchange)) {
                    stitcher.handle_answered(open.node);
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
                self.goroutines.handle_answered(connection.id, open.node);
                if self.latest.get(&connection.id) == Some(&open.node) {
                    self.latest.remove(&connection.id);
                }
                let process = open.unit.process;
                let kind = connection.kind;
                let finished = Finished {
                    process,
                    kind,
                    start_ns,
                    end_ns,
                    details,
                };
                stitcher.handle_ended(open.node, end_ns, finished);
            }
        }
    }

    /// Records were lost: who works for whom is known again from the next read on.
    pub(super) fn handle_loss(&mut self) {
        self.latest.clear();
        self.lineage.handle_loss();
        self.goroutines.handle_loss();
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty()
            && self.latest.is_empty()
            && self.lineage.is_empty()
            && self.goroutines.is_empty()
    }

    /// The connection is over: nothing is read from it or answered any more.
    pub(super) fn handle_connection_end(&mut self, connection: ConnectionId) {
        self.lineage.handle_connection_end(connection);
        self.goroutines.handle_connection_end(connection);
    }

    /// Whoever completes a request's head serves it.
    fn note_server_goroutine(
        &mut self,
        connection: &ConnectionFacts,
        exchange: ExchangeNumber,
        origin: Option<Origin>,
    ) {
        if let Some(origin) = origin.filter(|_| connection.kind == Kind::Server)
            && let Some(task) = origin.task
            && let Some(open) = self.open.get(&(connection.id, exchange))
        {
            self.goroutines.handle_request(
                origin.unit.process,
                task,
                connection.id,
                open.node,
                origin.time_ns,
            );
        }
    }

    fn goroutine_caller(
        &mut self,
        connection: &ConnectionFacts,
        origin: &Origin,
        stitcher: &Stitcher<Finished>,
    ) -> Option<(NodeKey, Evidence)> {
        let process = origin.unit.process;
        self.goroutines
            .caller(
                process,
                origin.task?,
                origin.descriptor,
                connection.opened_ns,
                origin.time_ns,
            )
            .filter(|caller| stitcher.is_open(*caller))
            .map(|caller| (caller, Evidence::Goroutine))
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

/// What the other end of this connection, if it is on this host, calls the same byte.
fn wire_key(connection: &ConnectionFacts, origin: Origin, position: u64) -> Option<WireKey> {
    match (connection.endpoints, connection.kind) {
        (Endpoints::Inet { .. }, _) if origin.tcp_sequence == 0 => None,
        (Endpoints::Inet { local, remote, .. }, kind) => Some(WireKey::Tcp {
            client: if kind == Kind::Client { local } else { remote },
            sequence: origin.sequence_at(position),
        }),
        (Endpoints::Unix { local: 0, .. } | Endpoints::Unix { remote: 0, .. }, _) => None,
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

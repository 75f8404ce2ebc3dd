//! Contexts that left or came with TCP options, until their request is known. Pure.
//!
//! A request whose bytes are seen on the socket is found by its first byte: the option says its TCP
//! sequence number ([`Contexts::take`]). One whose bytes are encrypted is found by its turn: what
//! was carried last when its first bytes had passed the socket ([`Contexts::take_latest`]); both
//! ends go by the same rule, so they find the same one.

use std::collections::VecDeque;

use opentelemetry::{SpanId, TraceId};
use rustc_hash::FxHashMap;

use super::facts::ConnectionFacts;
use crate::{
    connection::Origin,
    context::{RemoteContext, stitch::Minted},
    event::{self, ConnectionId, Endpoints},
    span::Kind,
};

/// Contexts of one connection that wait at most. A client adds one only after bytes have come since
/// the last; those of encrypted handshakes and of other protocols are never asked for.
const CONTEXTS: usize = 8;

/// Connections whose contexts wait at most: as many as are watched.
const CONNECTIONS: usize = agent_common::limits::CONNECTIONS as usize;

/// What an option says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Context {
    trace_id: TraceId,
    span_id: SpanId,
    flags: u8,
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    sequence: u32,
    time_ns: u64,
    context: Context,
}

impl Waiting {
    fn has_passed(&self, passed: Passed) -> bool {
        match passed {
            Passed::Byte(sequence) => self.sequence.wrapping_sub(sequence).cast_signed() <= 0,
            Passed::Time(at_ns) => self.time_ns <= at_ns,
        }
    }
}

/// Where a request begins, as options say it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place {
    /// At a TCP sequence number of its connection.
    Byte(ConnectionId, u32),
    /// Somewhere in what had passed a connection that carries it encrypted.
    Turn(ConnectionId, Passed),
}

/// How far a connection had come.
#[derive(Clone, Copy, Debug)]
pub(super) enum Passed {
    /// This sequence number included.
    Byte(u32),
    Time(u64),
}

impl Place {
    /// Of a request that begins at this position; `origin` is the record that showed it.
    pub(super) fn of(connection: &ConnectionFacts, origin: &Origin, position: u64) -> Option<Self> {
        if connection.plaintext.is_some() {
            // The first encrypted byte that the library's call moved, where it moved any itself.
            let passed = match origin.tcp_sequence {
                0 => Passed::Time(origin.time_ns),
                sequence => Passed::Byte(sequence),
            };
            return Some(Self::Turn(connection.id.carrier(), passed));
        }
        let is_tcp =
            matches!(connection.endpoints, Endpoints::Inet { .. }) && origin.tcp_sequence != 0;
        is_tcp.then(|| Self::Byte(connection.id, origin.sequence_at(position)))
    }
}

#[derive(Debug, Default)]
pub(super) struct Contexts {
    waiting: FxHashMap<ConnectionId, VecDeque<Waiting>>,
}

impl Contexts {
    pub(super) fn handle(&mut self, carried: &event::Carried, time_ns: u64) {
        let is_known = self.waiting.contains_key(&carried.connection);
        if !is_known && self.waiting.len() >= CONNECTIONS {
            return;
        }
        let waiting = self.waiting.entry(carried.connection).or_default();
        if waiting.len() >= CONTEXTS {
            waiting.pop_front();
        }
        waiting.push_back(Waiting {
            sequence: carried.tcp_sequence,
            time_ns,
            context: Context {
                trace_id: TraceId::from_bytes(carried.trace_id),
                span_id: SpanId::from_bytes(carried.span_id),
                flags: carried.flags,
            },
        });
    }

    /// The ids that left with a client's request which begins here.
    pub(super) fn take_sent(&mut self, kind: Kind, place: Option<Place>) -> Option<Minted> {
        if kind != Kind::Client {
            return None;
        }
        let Context {
            trace_id, span_id, ..
        } = self.take_at(place?)?;
        Some(Minted {
            trace_id,
            span_id: Some(span_id),
        })
    }

    /// The parent that came with a server's request which begins here.
    pub(super) fn take_received(
        &mut self,
        kind: Kind,
        place: Option<Place>,
    ) -> Option<RemoteContext> {
        if kind != Kind::Server {
            return None;
        }
        let Context {
            trace_id,
            span_id,
            flags,
        } = self.take_at(place?)?;
        Some(RemoteContext {
            trace_id,
            span_id,
            flags,
            state: String::new(),
        })
    }

    fn take_at(&mut self, place: Place) -> Option<Context> {
        match place {
            Place::Byte(connection, sequence) => self.take(connection, sequence),
            Place::Turn(carrier, passed) => self.take_latest(carrier, passed),
        }
    }

    /// The context of the request whose first byte has this sequence number. Those before it on the
    /// connection are not asked for any more.
    fn take(&mut self, connection: ConnectionId, sequence: u32) -> Option<Context> {
        let waiting = self.waiting.get_mut(&connection)?;
        while let Some(first) = waiting.front().copied() {
            // Sequence numbers wrap: what is less than half a circle behind is before.
            let distance = first.sequence.wrapping_sub(sequence).cast_signed();
            if distance > 0 {
                return None;
            }
            waiting.pop_front();
            if distance == 0 {
                return Some(first.context);
            }
        }
        self.waiting.remove(&connection);
        None
    }

    /// The context of the request whose first bytes had passed the socket then. Those before it on
    /// the connection are not asked for any more.
    fn take_latest(&mut self, connection: ConnectionId, passed: Passed) -> Option<Context> {
        let waiting = self.waiting.get_mut(&connection)?;
        let mut found = None;
        while let Some(first) = waiting.pop_front_if(|first| first.has_passed(passed)) {
            found = Some(first.context);
        }
        if waiting.is_empty() {
            self.waiting.remove(&connection);
        }
        found
    }

    pub(super) fn handle_connection_end(&mut self, connection: ConnectionId) {
        self.waiting.remove(&connection);
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONNECTION: ConnectionId = ConnectionId(7);

    fn carried(sequences: &[u32]) -> Contexts {
        let mut carried = Contexts::default();
        for (index, sequence) in (1..).zip(sequences) {
            let event = event::Carried {
                connection: CONNECTION,
                tcp_sequence: *sequence,
                trace_id: [index; 16],
                span_id: [index; 8],
                flags: 1,
            };
            carried.handle(&event, u64::from(index) * 100);
        }
        carried
    }

    fn span(context: Option<Context>) -> u8 {
        context.map_or(0, |context| context.span_id.to_bytes()[0])
    }

    /// Contexts are found by the exact byte, in the order of the stream, across the wrap of
    /// sequence numbers; one that was passed by is gone.
    #[test]
    fn a_request_is_found_by_its_first_byte() {
        let mut carried = carried(&[u32::MAX - 5, 20, 500]);
        assert_eq!(span(carried.take(CONNECTION, u32::MAX - 6)), 0);
        assert_eq!(span(carried.take(CONNECTION, u32::MAX - 5)), 1);
        assert_eq!(span(carried.take(CONNECTION, u32::MAX - 5)), 0);
        assert_eq!(span(carried.take(CONNECTION, 500)), 3);
        assert_eq!(span(carried.take(CONNECTION, 20)), 0);
        assert!(carried.is_empty());
    }

    /// Of an encrypted connection the latest counts that was there when the request was: not that
    /// of the handshake before it, nor that of what comes later.
    #[test]
    fn an_encrypted_request_is_found_by_its_turn() {
        let mut carried = carried(&[10, 20, 30]);
        assert_eq!(span(carried.take_latest(CONNECTION, Passed::Time(250))), 2);
        assert_eq!(span(carried.take_latest(CONNECTION, Passed::Time(250))), 0);
        assert_eq!(span(carried.take_latest(CONNECTION, Passed::Byte(29))), 0);
        assert_eq!(span(carried.take_latest(CONNECTION, Passed::Byte(30))), 3);
        assert!(carried.is_empty());
    }

    /// Connections that never ask hold a few only, and none when they have ended.
    #[test]
    fn what_nobody_asks_for_is_bounded() {
        let mut carried = carried(&(0..100).collect::<Vec<_>>());
        assert_eq!(carried.waiting[&CONNECTION].len(), CONTEXTS);
        carried.handle_connection_end(CONNECTION);
        assert!(carried.is_empty());
    }
}

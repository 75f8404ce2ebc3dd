//! What the engine knows of a connection, for those who make spans of it. Pure.

use crate::{
    connection::{Connection, Plaintext},
    event::{ConnectionId, OtherEnd, Unit},
    span::Kind,
};

/// What of a connection matters to its exchanges.
#[derive(Clone, Copy, Debug)]
pub(super) struct ConnectionFacts {
    pub(super) id: ConnectionId,
    pub(super) unit: Unit,
    pub(super) kind: Kind,
    pub(super) endpoints: crate::event::Endpoints,
    /// It is what a TLS session carries.
    pub(super) plaintext: Option<Plaintext>,
    /// It was seen from its first byte on.
    pub(super) complete: bool,
    /// Its exchanges run side by side, and any thread writes for all of them.
    pub(super) multiplexed: bool,
    pub(super) opened_ns: Option<u64>,
    pub(super) other_end: OtherEnd,
}

impl ConnectionFacts {
    pub(super) fn of(id: ConnectionId, connection: &Connection) -> Self {
        Self {
            id,
            unit: connection.unit,
            // Only a connection whose kind is known has a session to learn from.
            kind: connection.kind().unwrap_or(Kind::Server),
            endpoints: connection.endpoints,
            plaintext: connection.plaintext(),
            complete: connection.is_complete(),
            multiplexed: connection.is_multiplexed(),
            opened_ns: connection.opened_ns(),
            other_end: connection.other_end,
        }
    }
}

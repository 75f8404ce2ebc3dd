//! TLS sessions: which connection one travels on. Pure.

use super::{Command, Engine};
use crate::{
    connection::Connection,
    event::{ConnectionId, Data, PlaintextOpened, ProcessId, Role},
};

impl Engine {
    /// A TLS session is known to travel on a connection; its plaintext follows.
    pub(super) fn handle_plaintext(&mut self, opened: &PlaintextOpened, now_ns: u64) {
        let (id, process) = (opened.connection, opened.unit.process);
        let is_reused = self
            .connections
            .get(id)
            .is_some_and(|before| before.is_elsewhere(opened.endpoints));
        if is_reused {
            self.end_connection(id, now_ns);
        }
        let carrier = self.connections.get(id.carrier());
        let opened_ns = carrier.map(|carrier| carrier.first_ns());
        let before = self.connections.len();
        let connection =
            self.connections
                .get_or_insert(id, opened.unit, opened.endpoints, opened.role, now_ns);
        let Some(connection) = connection else { return };
        connection.handle_plaintext(opened);
        if let Some(opened_ns) = opened_ns {
            connection.handle_opened(opened_ns);
        }
        self.observe(id);
        if opened.role == Role::Client {
            self.connections.note_client(id);
        }
        if self.connections.len() > before {
            self.meet_connection(process);
            let is_complete = opened.origins != [0; 2];
            self.meet_other_end(id, opened.role, is_complete, opened.endpoints);
        }
    }

    /// Tells whether what a session carries is understood, as soon as that is known.
    pub(super) fn judge_plaintext(&mut self, id: ConnectionId, process: ProcessId) {
        let connection = self.connections.get(id);
        if let Some(is_understood) = connection.and_then(Connection::take_judgement) {
            let command = Command::NotePlaintext(process, is_understood);
            self.commands.push_back(command);
        }
    }
}

/// Whether a connection begins as TLS does (RFC 8446, section 5.1: a record of type handshake).
pub(super) fn is_handshake(data: &Data<'_>) -> bool {
    const HANDSHAKE: &[u8] = &[22, 3];
    data.position == 0 && !data.plaintext && data.bytes.starts_with(HANDSHAKE)
}

#[cfg(test)]
mod tests;

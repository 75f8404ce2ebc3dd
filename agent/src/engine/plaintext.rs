//! TLS sessions: which connection one travels on. Pure.

use super::{Command, Engine};
use crate::{
    connection::Connection,
    event::{ConnectionId, Data, Endpoints, PlaintextOpened, ProcessId, Role},
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
        let is_late = connection.endpoints == Endpoints::Unknown;
        if let Some(opened_ns) = opened_ns {
            connection.handle_opened(opened_ns);
        }
        connection.handle_plaintext(opened);
        if opened.role == Role::Client {
            self.connections.note_client(id);
        }
        let is_new = self.connections.len() > before;
        if is_new {
            self.meet_connection(process);
        }
        if is_new || is_late {
            let is_complete = opened.origins != [0; 2];
            self.meet_other_end(id, opened.role, is_complete, opened.endpoints);
        }
        self.observe(id);
        if is_late {
            self.judge_plaintext(id, process);
            self.connections.update_ask(id, now_ns);
        }
    }

    /// Plaintext was handled.
    pub(super) fn note_plaintext(&mut self, id: ConnectionId, process: ProcessId, now_ns: u64) {
        self.judge_plaintext(id, process);
        let connection = self.connections.get(id);
        if connection.is_some_and(|connection| connection.waits_for_proof()) {
            self.connections.note_unproven(id, now_ns);
        }
    }

    /// Time passes: what was not proven goes on without.
    pub(super) fn give_up_proofs(&mut self, now_ns: u64) {
        while let Some(id) = self.connections.poll_unproven(now_ns) {
            let Some(connection) = self.connections.get(id) else {
                continue;
            };
            connection.handle_unproven();
            let process = connection.process;
            self.judge_plaintext(id, process);
            self.observe(id);
            self.connections.update_ask(id, now_ns);
        }
    }

    /// Tells whether what a session carries is understood, as soon as that is known.
    fn judge_plaintext(&mut self, id: ConnectionId, process: ProcessId) {
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

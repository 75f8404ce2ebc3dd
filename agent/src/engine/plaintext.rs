//! TLS sessions: which connection one travels on. Pure.

use super::{Command, Engine};
use crate::event::{ConnectionId, Data, Endpoints, PlaintextOpened, Role, Unit};

/// How long after it was recorded what happened is handled, at most, when nothing else tells.
const LAG_NS: u64 = 1_000_000_000;

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
        self.read_on(id, now_ns);
    }

    /// Plaintext was handled.
    pub(super) fn note_plaintext(&mut self, id: ConnectionId, unit: Unit, now_ns: u64) {
        self.judge_plaintext(id);
        let connection = self.connections.get(id);
        if connection.is_some_and(|connection| connection.waits_for_proof()) {
            self.connections.note_unproven(unit, id, now_ns);
        }
    }

    /// A thread is about to go on with this connection: what it did before comes first.
    pub(super) fn settle_unproven(&mut self, unit: Unit, id: ConnectionId, now_ns: u64) {
        if let Some(held) = self.connections.take_unproven(unit, id) {
            self.give_up_proof(held, now_ns);
        }
    }

    /// Time passes: what was not proven goes on without. Records may be behind by [`LAG_NS`].
    pub(super) fn give_up_proofs(&mut self, now_ns: u64) {
        let handled_ns = self.latest_ns.max(now_ns.saturating_sub(LAG_NS));
        for id in self.connections.overdue_unproven(handled_ns) {
            self.give_up_proof(id, now_ns);
        }
    }

    fn give_up_proof(&mut self, id: ConnectionId, now_ns: u64) {
        if let Some(connection) = self.connections.get(id) {
            connection.handle_unproven();
            self.read_on(id, now_ns);
        }
    }

    /// What was kept may have been read.
    fn read_on(&mut self, id: ConnectionId, now_ns: u64) {
        self.judge_plaintext(id);
        self.observe(id);
        self.connections.update_ask(id, now_ns);
    }

    /// Tells whether what a session carries is understood, as soon as that is known.
    pub(super) fn judge_plaintext(&mut self, id: ConnectionId) {
        if let Some(connection) = self.connections.get(id)
            && let Some(is_understood) = connection.take_judgement()
        {
            let command = Command::NotePlaintext(connection.process, is_understood);
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

//! How connections end. Pure.

use super::{Command, Engine};
use crate::{
    event::{ClosingStep, ConnectionId, DirectionState, ProcessId, Unit},
    self_metrics::{Gauge, Loss},
};

impl Engine {
    pub(super) fn handle_closing(
        &mut self,
        id: ConnectionId,
        step: ClosingStep,
        error: u32,
        flowed: [&DirectionState; 2],
        now_ns: u64,
    ) {
        let Some(connection) = self.connections.get(id) else {
            return;
        };
        let unit = connection.unit;
        if step == ClosingStep::LocalClosed {
            self.handle_loop_gives_up(id, unit);
        }
        let Some(connection) = self.connections.get(id) else {
            return;
        };
        if step == ClosingStep::Destroyed
            && self
                .lost_ns
                .is_some_and(|lost_ns| connection.may_have_closed_unseen(lost_ns))
        {
            // Which side closed first decides whose failure it is.
            connection.handle_counts(flowed);
            self.end_connection(id, now_ns);
            return;
        }
        connection.handle_closing(step, error, flowed, now_ns);
        self.observe(id);
        if step == ClosingStep::Destroyed {
            self.exchanges.handle_connection_end(id);
            // What it carried has ended before.
            self.exchanges.handle_connection_end(id.plaintext());
            self.forget_connection(id);
        } else {
            self.connections.update_ask(id, now_ns);
        }
    }

    /// nginx closes a connection whose answer it no longer waits for: what it does next, such as
    /// trying another server, is for the same request, though a timer and not a read led to it.
    fn handle_loop_gives_up(&mut self, id: ConnectionId, unit: Unit) {
        if !self.is_nginx(unit.process) {
            return;
        }
        let caller = self
            .exchanges
            .open_on(id)
            .and_then(|exchange| self.stitcher.caller(exchange));
        if let Some(caller) = caller
            && self.stitcher.is_open(caller)
        {
            self.exchanges.lineage.handle_loop_read(unit, Some(caller));
        }
    }

    /// Nothing was heard of a connection for long. Streams of events, watches and pools are silent
    /// for hours: where the kernel side tells of every end, it is asked whether this one is over.
    pub(super) fn handle_idle(&mut self, id: ConnectionId, now_ns: u64) {
        let is_told = self
            .connections
            .get(id)
            .is_some_and(|connection| connection.is_end_told());
        if is_told {
            self.commands.push_back(Command::ReadConnection(id));
        } else {
            self.end_connection(id, now_ns);
        }
    }

    pub(super) fn end_connection(&mut self, id: ConnectionId, now_ns: u64) {
        if let Some(connection) = self.connections.get(id) {
            connection.handle_lost(now_ns);
            self.observe(id);
        }
        self.exchanges.handle_connection_end(id);
        self.forget_connection(id);
    }

    fn forget_connection(&mut self, id: ConnectionId) {
        self.note_lacking(id, false);
        self.judge_plaintext(id);
        let Some(connection) = self.connections.get(id) else {
            return;
        };
        // What was not recognised, because its beginning was lost, may have been HTTP/2.
        let known = match connection.highest_stream() {
            None if connection.is_complete() && !connection.is_multiplexed() => Some(0),
            known => known,
        };
        let may_count = match self.lost_ns {
            Some(_) => true,
            // What flows while the observation ends is ahead of what was recorded.
            None => connection.is_multiplexed() && !self.is_over,
        };
        if let Some(known) = known.filter(|_| may_count && connection.plaintext().is_none()) {
            self.commands.push_back(Command::CountStreams {
                connection: id,
                process: connection.process,
                known,
            });
        }
        self.connections.remove(id);
    }

    /// Requests of this process that the kernel side counted, and nothing was recorded of.
    pub fn handle_unrecorded(&mut self, process: ProcessId, count: u64) {
        self.lose(Loss::RequestUnrecorded, process, count);
    }

    /// Counts a loss for the service that a process is, if its spans are wanted.
    pub(super) fn lose(&mut self, reason: Loss, process: ProcessId, count: u64) {
        if self.rejected.contains_key(&process) {
            return;
        }
        let resource = self.enricher.resource(process, &self.processes);
        self.metrics.lose(reason, resource.service_name(), count);
    }

    /// Whether fields of this connection may not be known.
    pub(super) fn note_lacking(&mut self, id: ConnectionId, is_lacking: bool) {
        if !is_lacking && self.lacking.is_empty() {
            return;
        }
        let has_changed = if is_lacking {
            self.lacking.insert(id)
        } else {
            self.lacking.remove(&id)
        };
        if has_changed {
            let count = self.lacking.len() as u64;
            self.metrics.set(Gauge::ConnectionsLackingFields, count);
        }
    }
}

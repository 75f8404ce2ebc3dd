//! What is seen for the first time: a process, a connection and its other end. Pure.

use super::{Command, Engine};
use crate::{
    event::{ConnectionId, Endpoints, ProcessId, Role},
    process::{Facts, Process},
    self_metrics::Counter,
};

impl Engine {
    pub(super) fn meet_connection(&mut self, process: ProcessId) {
        self.metrics.add(Counter::ConnectionsSeen, 1);
        self.meet_process(process);
    }

    /// Says of a new connection whether its other end is to be waited for. A client's connection is
    /// established, and that is recorded, before its server reads from it; unless it is older than
    /// the agent, or records were lost.
    pub(super) fn meet_other_end(
        &mut self,
        id: ConnectionId,
        role: Role,
        is_complete: bool,
        endpoints: Endpoints,
    ) {
        if role != Role::Server || !is_complete || self.lost_ns.is_some() {
            return;
        }
        let other_end = self.connections.other_end(endpoints);
        if let Some(connection) = self.connections.get(id) {
            connection.other_end = other_end;
        }
    }

    /// A process whose first connection was seen, maybe before anything else of it.
    pub(super) fn meet_process(&mut self, process: ProcessId) {
        if self.processes.facts(process).is_none() {
            self.processes.handle_found(Process {
                id: process,
                facts: Facts::default(),
            });
            self.commands.push_front(Command::ReadProcess(process));
        }
    }
}

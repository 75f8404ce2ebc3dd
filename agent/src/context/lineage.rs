//! What each thread works for. Pure.
//!
//! Two kinds of thread are understood. A thread that reads requests from *blocking* sockets works
//! for one request from read to answer. An nginx worker's loop works, after each read, for the
//! request that the read belongs to. Any other thread proves nothing: a loop that serves one
//! request at a time still runs timers that belong to none.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;

use crate::event::{ConnectionId, Unit};

/// How a thread ties calls to requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Discipline {
    /// One request at a time, from read to answer.
    Blocking,
    /// nginx's event loop.
    Loop,
    /// Not known.
    Unknown,
}

/// What a blocking thread reads from.
#[derive(Clone, Copy, Debug)]
struct Blocking {
    connection: ConnectionId,
    /// It read a request while another connection's was unanswered, or it also reads without
    /// blocking: it is a loop of some kind, now and later.
    interleaved: bool,
}

/// Per-thread and per-connection state; `E` names an exchange.
#[derive(Debug)]
pub struct Lineage<E> {
    /// Unanswered requests of each server connection, oldest first: pipelined ones are worked on
    /// in order.
    open: FxHashMap<ConnectionId, VecDeque<E>>,
    blocking: FxHashMap<Unit, Blocking>,
    /// What each nginx worker works for now.
    current: FxHashMap<Unit, E>,
    /// Who opened a client connection that has not carried a request yet.
    openers: FxHashMap<ConnectionId, E>,
}

impl<E> Default for Lineage<E> {
    fn default() -> Self {
        Self {
            open: FxHashMap::default(),
            blocking: FxHashMap::default(),
            current: FxHashMap::default(),
            openers: FxHashMap::default(),
        }
    }
}

impl<E: Copy + PartialEq> Lineage<E> {
    /// A thread read the beginning of a request.
    pub fn handle_request(
        &mut self,
        unit: Unit,
        connection: ConnectionId,
        exchange: E,
        discipline: Discipline,
    ) {
        self.open.entry(connection).or_default().push_back(exchange);
        match discipline {
            Discipline::Blocking => {
                let before = self.blocking.get(&unit);
                let interleaved = before.is_some_and(|before| {
                    before.interleaved
                        || (before.connection != connection && self.oldest(before.connection).is_some())
                });
                self.blocking.insert(unit, Blocking { connection, interleaved });
            }
            Discipline::Loop => {
                if let Some(oldest) = self.oldest(connection) {
                    self.current.insert(unit, oldest);
                }
            }
            Discipline::Unknown => {
                if let Some(blocking) = self.blocking.get_mut(&unit) {
                    blocking.interleaved = true;
                }
            }
        }
    }

    /// The oldest unanswered request of a server connection.
    pub fn oldest(&self, connection: ConnectionId) -> Option<E> {
        self.open.get(&connection).and_then(|open| open.front().copied())
    }

    /// An nginx worker read something that belongs to `exchange`; `None`: to no request.
    pub fn handle_loop_read(&mut self, unit: Unit, exchange: Option<E>) {
        match exchange {
            Some(exchange) => self.current.insert(unit, exchange),
            None => self.current.remove(&unit),
        };
    }

    /// A thread began to connect.
    pub fn handle_connect(&mut self, unit: Unit, connection: ConnectionId) {
        match self.current.get(&unit) {
            Some(exchange) => self.openers.insert(connection, *exchange),
            None => self.openers.remove(&connection),
        };
    }

    /// The request that a call of this thread on this connection belongs to.
    pub fn caller(
        &mut self,
        unit: Unit,
        connection: ConnectionId,
        discipline: Discipline,
    ) -> Option<E> {
        if discipline == Discipline::Loop {
            let opener = self.openers.remove(&connection);
            return opener.or_else(|| self.current.get(&unit).copied());
        }
        let blocking = self.blocking.get(&unit).filter(|blocking| !blocking.interleaved)?;
        self.oldest(blocking.connection)
    }

    /// The exchange was answered: nobody works for it any more. A pipelined request behind it is
    /// worked on next.
    pub fn handle_answered(&mut self, exchange: E, unit: Unit, connection: ConnectionId) {
        if let Some(open) = self.open.get_mut(&connection) {
            open.retain(|other| *other != exchange);
            if open.is_empty() {
                self.open.remove(&connection);
            }
        }
        if self.current.get(&unit) == Some(&exchange) {
            let next = self.oldest(connection);
            self.handle_loop_read(unit, next);
        }
    }

    pub fn handle_connection_end(&mut self, connection: ConnectionId) {
        self.openers.remove(&connection);
        self.open.remove(&connection);
    }

    /// The process ended, and its threads with it.
    pub fn handle_exit(&mut self, is_of_process: impl Fn(Unit) -> bool) {
        self.blocking.retain(|unit, _| !is_of_process(*unit));
        self.current.retain(|unit, _| !is_of_process(*unit));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::ProcessId;

    const UNIT: Unit = Unit { process: ProcessId { pid: 1, start_ticks: 1 }, thread_id: 2 };
    const A: ConnectionId = ConnectionId(10);
    const B: ConnectionId = ConnectionId(11);
    const CALL: ConnectionId = ConnectionId(20);

    #[test]
    fn a_blocking_thread_works_for_what_it_read_until_it_answered() {
        let mut lineage = Lineage::default();
        lineage.handle_request(UNIT, A, 1, Discipline::Blocking);
        assert_eq!(lineage.caller(UNIT, CALL, Discipline::Unknown), Some(1));
        lineage.handle_answered(1, UNIT, A);
        assert_eq!(lineage.caller(UNIT, CALL, Discipline::Unknown), None);
    }

    /// Scenario: a thread reads a second request before it answered the first. Guarantee: it is
    /// evidence for neither, then or later.
    #[test]
    fn an_interleaved_thread_proves_nothing() {
        let mut lineage = Lineage::default();
        lineage.handle_request(UNIT, A, 1, Discipline::Blocking);
        lineage.handle_request(UNIT, B, 2, Discipline::Blocking);
        assert_eq!(lineage.caller(UNIT, CALL, Discipline::Unknown), None);
        lineage.handle_answered(1, UNIT, A);
        lineage.handle_answered(2, UNIT, B);
        lineage.handle_request(UNIT, A, 3, Discipline::Blocking);
        assert_eq!(lineage.caller(UNIT, CALL, Discipline::Unknown), None);
    }

    /// Scenario: two requests arrive in one read. Guarantee: calls belong to the first until it is
    /// answered, then to the second.
    #[test]
    fn pipelined_requests_are_worked_on_in_order() {
        for discipline in [Discipline::Blocking, Discipline::Loop] {
            let mut lineage = Lineage::default();
            lineage.handle_request(UNIT, A, 1, discipline);
            lineage.handle_request(UNIT, A, 2, discipline);
            assert_eq!(lineage.caller(UNIT, CALL, discipline), Some(1));
            lineage.handle_answered(1, UNIT, A);
            assert_eq!(lineage.caller(UNIT, CALL, discipline), Some(2));
        }
    }

    #[test]
    fn a_non_blocking_server_thread_proves_nothing() {
        let mut lineage = Lineage::default();
        lineage.handle_request(UNIT, A, 1, Discipline::Unknown);
        assert_eq!(lineage.caller(UNIT, CALL, Discipline::Unknown), None);
    }

    /// Scenario: nginx reads request 1, opens a connection for it, reads request 2, then sends
    /// request 1 on the new connection and request 2 on a kept one.
    #[test]
    fn a_loop_works_for_what_it_read_last_and_for_who_opened() {
        let mut lineage = Lineage::default();
        lineage.handle_request(UNIT, A, 1, Discipline::Loop);
        lineage.handle_connect(UNIT, CALL);
        lineage.handle_request(UNIT, B, 2, Discipline::Loop);
        assert_eq!(lineage.caller(UNIT, CALL, Discipline::Loop), Some(1));
        assert_eq!(lineage.caller(UNIT, ConnectionId(21), Discipline::Loop), Some(2));
        lineage.handle_loop_read(UNIT, Some(1));
        assert_eq!(lineage.caller(UNIT, CALL, Discipline::Loop), Some(1));
    }
}

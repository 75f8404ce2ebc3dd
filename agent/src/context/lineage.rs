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

/// Whether a client connection carried requests before this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// The first one: whoever opened the connection sends it, however long that took.
    First,
    /// It was kept, or is older than the agent.
    Later,
}

/// What a blocking thread reads from.
#[derive(Clone, Copy, Debug)]
struct Blocking {
    connection: ConnectionId,
    /// It read a request while another connection's was unanswered, or it also reads without
    /// blocking: it is a loop of some kind, now and later.
    interleaved: bool,
}

/// An unanswered request, and the thread that read it.
#[derive(Clone, Copy, Debug)]
struct Read<E> {
    exchange: E,
    unit: Unit,
}

/// Blocking threads remembered at most. Only those seen to interleave outlive their connections;
/// a thread beyond the bound is no evidence.
const BLOCKING_THREADS: usize = 65_536;

/// Per-thread and per-connection state; `E` names an exchange.
#[derive(Debug)]
pub struct Lineage<E> {
    /// Unanswered requests of each server connection, oldest first: pipelined ones are worked on
    /// in order.
    open: FxHashMap<ConnectionId, VecDeque<Read<E>>>,
    blocking: FxHashMap<Unit, Blocking>,
    /// The blocking thread that read from a connection last; its entry in `blocking` goes with
    /// the connection, because the end of a single thread is not told.
    readers: FxHashMap<ConnectionId, Unit>,
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
            readers: FxHashMap::default(),
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
        self.open
            .entry(connection)
            .or_default()
            .push_back(Read { exchange, unit });
        match discipline {
            Discipline::Blocking => self.note_blocking(unit, connection),
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

    fn note_blocking(&mut self, unit: Unit, connection: ConnectionId) {
        let before = self.blocking.get(&unit);
        if before.is_none() && self.blocking.len() >= BLOCKING_THREADS {
            return;
        }
        let interleaved = before.is_some_and(|before| {
            before.interleaved
                || (before.connection != connection
                    && self.oldest_of(unit, before.connection).is_some())
        });
        let left = before
            .map(|before| before.connection)
            .filter(|before| *before != connection);
        if let Some(left) = left
            && self.readers.get(&left) == Some(&unit)
        {
            self.readers.remove(&left);
        }
        self.blocking.insert(
            unit,
            Blocking {
                connection,
                interleaved,
            },
        );
        if let Some(other) = self
            .readers
            .insert(connection, unit)
            .filter(|other| *other != unit)
        {
            self.forget_reader(other, connection);
        }
    }

    /// A thread that reads from this connection no more. That it interleaved stays known.
    fn forget_reader(&mut self, unit: Unit, connection: ConnectionId) {
        let is_over = self.blocking.get(&unit).is_some_and(|blocking| {
            blocking.connection == connection
                && !blocking.interleaved
                && self.oldest_of(unit, connection).is_none()
        });
        if is_over {
            self.blocking.remove(&unit);
        }
    }

    /// The oldest unanswered request of a server connection.
    pub fn oldest(&self, connection: ConnectionId) -> Option<E> {
        self.front(connection).map(|read| read.exchange)
    }

    /// As [`Self::oldest`], when this thread read it: pools hand connections from one thread to
    /// the next.
    fn oldest_of(&self, unit: Unit, connection: ConnectionId) -> Option<E> {
        self.front(connection)
            .filter(|read| read.unit == unit)
            .map(|read| read.exchange)
    }

    fn front(&self, connection: ConnectionId) -> Option<Read<E>> {
        self.open
            .get(&connection)
            .and_then(|open| open.front().copied())
    }

    /// Whether nothing is remembered of any connection, and of no thread that could be forgotten.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.open.is_empty()
            && self.readers.is_empty()
            && self.openers.is_empty()
            && self.blocking.values().all(|blocking| blocking.interleaved)
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
        usage: Use,
    ) -> Option<E> {
        if discipline == Discipline::Loop {
            let opener = self.openers.remove(&connection);
            return match usage {
                Use::First => opener,
                Use::Later => opener.or_else(|| self.current.get(&unit).copied()),
            };
        }
        self.works_for(unit)
    }

    /// The request that a blocking thread works for.
    pub fn works_for(&self, unit: Unit) -> Option<E> {
        let blocking = self
            .blocking
            .get(&unit)
            .filter(|blocking| !blocking.interleaved)?;
        self.oldest_of(unit, blocking.connection)
    }

    /// The exchange was answered: nobody works for it any more. A pipelined request behind it is
    /// worked on next.
    pub fn handle_answered(&mut self, exchange: E, unit: Unit, connection: ConnectionId) {
        if let Some(open) = self.open.get_mut(&connection) {
            open.retain(|other| other.exchange != exchange);
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
        if let Some(unit) = self.readers.remove(&connection) {
            self.forget_reader(unit, connection);
        }
    }

    /// Records were lost, of any thread: what each works for is not known until it reads again.
    /// That a thread interleaved stays known.
    pub fn handle_loss(&mut self) {
        self.blocking.retain(|_, blocking| blocking.interleaved);
        self.readers.clear();
        self.current.clear();
        self.openers.clear();
    }

    /// A thread ended.
    pub fn handle_thread_exit(&mut self, unit: Unit) {
        if let Some(blocking) = self.blocking.remove(&unit)
            && self.readers.get(&blocking.connection) == Some(&unit)
        {
            self.readers.remove(&blocking.connection);
        }
    }

    /// The process ended, and its threads with it.
    pub fn handle_exit(&mut self, is_of_process: impl Fn(Unit) -> bool) {
        self.blocking.retain(|unit, _| !is_of_process(*unit));
        self.current.retain(|unit, _| !is_of_process(*unit));
        self.readers.retain(|_, unit| !is_of_process(*unit));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::ProcessId;

    const UNIT: Unit = Unit {
        process: ProcessId {
            pid: 1,
            start_ticks: 1,
        },
        thread_id: 2,
    };
    const A: ConnectionId = ConnectionId(10);
    const B: ConnectionId = ConnectionId(11);
    const CALL: ConnectionId = ConnectionId(20);

    #[test]
    fn a_blocking_thread_works_for_what_it_read_until_it_answered() {
        let mut lineage = Lineage::default();
        lineage.handle_request(UNIT, A, 1, Discipline::Blocking);
        assert_eq!(
            lineage.caller(UNIT, CALL, Discipline::Unknown, Use::Later),
            Some(1)
        );
        lineage.handle_answered(1, UNIT, A);
        assert_eq!(
            lineage.caller(UNIT, CALL, Discipline::Unknown, Use::Later),
            None
        );
    }

    /// Scenario: a thread reads a second request before it answered the first. Guarantee: it is
    /// evidence for neither, then or later.
    #[test]
    fn an_interleaved_thread_proves_nothing() {
        let mut lineage = Lineage::default();
        lineage.handle_request(UNIT, A, 1, Discipline::Blocking);
        lineage.handle_request(UNIT, B, 2, Discipline::Blocking);
        assert_eq!(
            lineage.caller(UNIT, CALL, Discipline::Unknown, Use::Later),
            None
        );
        lineage.handle_answered(1, UNIT, A);
        lineage.handle_answered(2, UNIT, B);
        lineage.handle_request(UNIT, A, 3, Discipline::Blocking);
        assert_eq!(
            lineage.caller(UNIT, CALL, Discipline::Unknown, Use::Later),
            None
        );
    }

    /// Scenario: two requests arrive in one read. Guarantee: calls belong to the first until it is
    /// answered, then to the second.
    #[test]
    fn pipelined_requests_are_worked_on_in_order() {
        for discipline in [Discipline::Blocking, Discipline::Loop] {
            let mut lineage = Lineage::default();
            lineage.handle_request(UNIT, A, 1, discipline);
            lineage.handle_request(UNIT, A, 2, discipline);
            assert_eq!(lineage.caller(UNIT, CALL, discipline, Use::Later), Some(1));
            lineage.handle_answered(1, UNIT, A);
            assert_eq!(lineage.caller(UNIT, CALL, discipline, Use::Later), Some(2));
        }
    }

    /// Scenario: a pool hands a kept connection from one thread to another. Guarantee: the first
    /// thread's calls do not belong to the request that the second one read, and the second one
    /// is evidence for it.
    #[test]
    fn a_connection_handed_on_is_the_work_of_who_read() {
        let other = Unit {
            thread_id: 3,
            ..UNIT
        };
        let mut lineage = Lineage::default();
        lineage.handle_request(UNIT, A, 1, Discipline::Blocking);
        lineage.handle_answered(1, UNIT, A);
        lineage.handle_request(other, A, 2, Discipline::Blocking);
        assert_eq!(
            lineage.caller(UNIT, CALL, Discipline::Unknown, Use::Later),
            None
        );
        assert_eq!(
            lineage.caller(other, CALL, Discipline::Unknown, Use::Later),
            Some(2)
        );
        // The first thread did not interleave by reading elsewhere meanwhile.
        lineage.handle_request(UNIT, B, 3, Discipline::Blocking);
        assert_eq!(
            lineage.caller(UNIT, CALL, Discipline::Unknown, Use::Later),
            Some(3)
        );
    }

    /// Scenario: a server starts a thread for each connection, and the agent is not told of the
    /// end of single threads. Guarantee: nothing remains of them.
    #[test]
    fn threads_are_forgotten_with_their_connections() {
        let mut lineage = Lineage::default();
        for number in 0..100_u32 {
            let unit = Unit {
                thread_id: 100 + number,
                ..UNIT
            };
            let connection = ConnectionId(number.into());
            lineage.handle_request(unit, connection, number, Discipline::Blocking);
            if number % 2 == 0 {
                lineage.handle_answered(number, unit, connection);
            }
            lineage.handle_connection_end(connection);
        }
        assert!(lineage.is_empty(), "{lineage:?}");
        assert!(lineage.blocking.is_empty(), "{lineage:?}");
    }

    /// Scenario: nginx gives up on an upstream by a timer and tries the next one. Guarantee: the
    /// second try belongs to the same request, though another request was read in between.
    #[test]
    fn a_retry_of_a_loop_belongs_to_who_was_given_up_for() {
        let mut lineage = Lineage::default();
        lineage.handle_request(UNIT, A, 1, Discipline::Loop);
        lineage.handle_connect(UNIT, CALL);
        assert_eq!(
            lineage.caller(UNIT, CALL, Discipline::Loop, Use::Later),
            Some(1)
        );
        lineage.handle_request(UNIT, B, 2, Discipline::Loop);
        // As the engine does when the first upstream connection is closed.
        lineage.handle_loop_read(UNIT, Some(1));
        let retry = ConnectionId(21);
        lineage.handle_connect(UNIT, retry);
        lineage.handle_loop_read(UNIT, Some(2));
        assert_eq!(
            lineage.caller(UNIT, retry, Discipline::Loop, Use::Later),
            Some(1)
        );
    }

    #[test]
    fn a_non_blocking_server_thread_proves_nothing() {
        let mut lineage = Lineage::default();
        lineage.handle_request(UNIT, A, 1, Discipline::Unknown);
        assert_eq!(
            lineage.caller(UNIT, CALL, Discipline::Unknown, Use::Later),
            None
        );
    }

    /// Scenario: nginx reads request 1, opens a connection for it, reads request 2, then sends
    /// request 1 on the new connection and request 2 on a kept one.
    #[test]
    fn a_loop_works_for_what_it_read_last_and_for_who_opened() {
        let mut lineage = Lineage::default();
        lineage.handle_request(UNIT, A, 1, Discipline::Loop);
        lineage.handle_connect(UNIT, CALL);
        lineage.handle_request(UNIT, B, 2, Discipline::Loop);
        assert_eq!(
            lineage.caller(UNIT, CALL, Discipline::Loop, Use::Later),
            Some(1)
        );
        assert_eq!(
            lineage.caller(UNIT, ConnectionId(21), Discipline::Loop, Use::Later),
            Some(2)
        );
        lineage.handle_loop_read(UNIT, Some(1));
        assert_eq!(
            lineage.caller(UNIT, CALL, Discipline::Loop, Use::Later),
            Some(1)
        );
    }
}

//! Which stream a handler was started for, where one goroutine reads the streams of a connection
//! side by side and starts a handler for each before it reads on, as gRPC's does. Pure.
//!
//! The reader does one thing after the other. So what it starts after the read that completed a
//! head and before the next such read is for that head's stream, and what it starts after a read
//! that completed two is for either. Times that a goroutine's id gives are bounds: only where both
//! fall between the same two reads is there proof.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;

use crate::event::ConnectionId;

/// Streams remembered of one reader, answered ones included while others are open: more than
/// servers allow at one time. A handler of a forgotten one proves nothing.
const STREAMS: usize = 1_024;

#[derive(Debug)]
pub(super) struct Streams<E> {
    connection: ConnectionId,
    /// It reads more than one connection: it may start anything for either.
    is_shared: bool,
    /// By the time of the read that completed each head.
    heads: VecDeque<Head<E>>,
    /// Those that were not answered, by the number of their stream.
    open: FxHashMap<u32, E>,
}

#[derive(Debug)]
struct Head<E> {
    /// Missing when the stream was answered, or another one's head came with the same read.
    exchange: Option<E>,
    read_ns: u64,
}

impl<E: Copy + PartialEq> Streams<E> {
    pub(super) fn new(connection: ConnectionId) -> Self {
        Self {
            connection,
            is_shared: false,
            heads: VecDeque::new(),
            open: FxHashMap::default(),
        }
    }

    pub(super) fn is_of(&self, connection: ConnectionId) -> bool {
        self.connection == connection && !self.is_shared
    }

    /// A read completed this head.
    pub(super) fn handle_head(
        &mut self,
        connection: ConnectionId,
        (number, exchange): (u32, E),
        read_ns: u64,
    ) {
        self.is_shared |= self.connection != connection;
        if self.open.len() < STREAMS {
            self.open.insert(number, exchange);
        }
        match self.heads.back_mut() {
            Some(last) if last.read_ns >= read_ns => last.exchange = None,
            _ => self.heads.push_back(Head {
                exchange: Some(exchange),
                read_ns,
            }),
        }
        while self.heads.len() > STREAMS {
            self.heads.pop_front();
        }
    }

    /// The stream was answered: its read still bounds the one before.
    pub(super) fn handle_answered(&mut self, exchange: E) {
        self.open.retain(|_, open| *open != exchange);
        for head in &mut self.heads {
            if head.exchange == Some(exchange) {
                head.exchange = None;
            }
        }
        while self.heads.len() > 1
            && self
                .heads
                .front()
                .is_some_and(|head| head.exchange.is_none())
        {
            self.heads.pop_front();
        }
    }

    /// The stream of this number that was not answered yet.
    pub(super) fn numbered(&self, number: u32) -> Option<E> {
        self.open.get(&number).copied().filter(|_| !self.is_shared)
    }

    /// The stream for which a handler was started that did not exist at `after_ns` and did at
    /// `before_ns`.
    pub(super) fn begun_between(&self, after_ns: u64, before_ns: u64) -> Option<E> {
        if self.is_shared {
            return None;
        }
        let next = self.heads.partition_point(|head| head.read_ns <= after_ns);
        let head = self.heads.get(next.checked_sub(1)?)?;
        let is_before_next = self
            .heads
            .get(next)
            .is_none_or(|following| before_ns <= following.read_ns);
        head.exchange.filter(|_| is_before_next)
    }
}

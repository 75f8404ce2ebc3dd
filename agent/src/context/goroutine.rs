//! Which request a goroutine works for. Pure.
//!
//! A server's goroutine that reads a request's head works for it until it is answered: `net/http`
//! has one for each connection, and others hand a whole connection to one at a time. What it starts
//! meanwhile works for the request too, and so does what that starts. Which goroutine uses a kept
//! connection of `net/http`'s client is told by a record of its own ([`Goroutines::handle_call`]),
//! because another goroutine writes the bytes. A write by a goroutine that serves a request is
//! proof without it; a write by any other goroutine proves nothing.
//!
//! A handler may start a goroutine that outlives its request, and calls while the next request of
//! the connection is served. So a child counts only when it is known to be younger than the reading
//! of the request. Go gives ids in batches of 16 to its processors: at each read the kernel side
//! notes the ids that the reader's processor had left, and the highest allotted to any. A goroutine
//! with one of those ids, or with a higher one, was started after that read.
//!
//! A goroutine that reads streams side by side works for none of them. Which goroutine serves a
//! stream is told by a record of its own ([`Goroutines::handle_served`]), and so is for which one
//! another begins it ([`Goroutines::handle_begun`]). Where a program was not understood so far,
//! there is what gRPC's reader does: it starts a handler for each stream before it reads on, so a
//! handler belongs to the stream between whose read and the next it was started ([`streams`]).

mod births;
mod streams;

use std::{collections::VecDeque, hash::Hash};

use rustc_hash::FxHashMap;

use self::{births::Births, streams::Streams};
use crate::event::{ConnectionId, ProcessId, Task, TaskIds};

/// A request is written within this time of its call; a call noted longer ago was given up.
const CALL_NS: u64 = 1_000_000_000;

/// Goroutines remembered of each process: parents of those seen, and those that belong to a
/// request. The oldest are forgotten; what they start then belongs to nothing.
const GOROUTINES: usize = 16_384;

/// Generations from a goroutine up to the one that serves.
const GENERATIONS: u32 = 8;

/// All processes made by Go; `E` names an exchange.
#[derive(Debug)]
pub struct Goroutines<E> {
    programs: FxHashMap<ProcessId, Program<E>>,
    /// Who serves a connection.
    servers: FxHashMap<ConnectionId, (ProcessId, u64)>,
}

#[derive(Debug)]
struct Program<E> {
    /// Goroutines that read requests, until their connection ends.
    serving: FxHashMap<u64, Serving<E>>,
    /// Those that read streams side by side.
    readers: FxHashMap<u64, Streams<E>>,
    /// Those of them that a goroutine started; 0 where it started several.
    readers_of: FxHashMap<u64, u64>,
    /// Other goroutines that belong to a request.
    bound: Recent<E>,
    parents: Recent<u64>,
    /// The latest call announced on each file descriptor.
    calls: FxHashMap<u32, Call<E>>,
    /// Calls for which goroutines are about to start one that writes the headers.
    stream_calls: FxHashMap<u64, Call<E>>,
    /// Calls for which a stream is about to be begun by a goroutine that does so for others.
    begun: FxHashMap<(u64, u32), Call<E>>,
    births: Births,
}

#[derive(Debug)]
struct Serving<E> {
    connection: ConnectionId,
    /// Unanswered requests, oldest first: pipelined ones are worked on in order. Each with the time
    /// since which children belong to it.
    open: VecDeque<(E, u64)>,
    /// It read a request while one of another connection was open: a loop, which proves nothing.
    is_loop: bool,
}

#[derive(Debug)]
struct Call<E> {
    caller: Option<E>,
    time_ns: u64,
}

impl<E> Default for Goroutines<E> {
    fn default() -> Self {
        Self {
            programs: FxHashMap::default(),
            servers: FxHashMap::default(),
        }
    }
}

impl<E> Default for Program<E> {
    fn default() -> Self {
        Self {
            serving: FxHashMap::default(),
            readers: FxHashMap::default(),
            readers_of: FxHashMap::default(),
            bound: Recent::default(),
            parents: Recent::default(),
            calls: FxHashMap::default(),
            stream_calls: FxHashMap::default(),
            begun: FxHashMap::default(),
            births: Births::default(),
        }
    }
}

impl<E: Copy + PartialEq> Goroutines<E> {
    /// A goroutine moved bytes; a reader with the ids that may still be given.
    pub fn handle_seen(
        &mut self,
        process: ProcessId,
        task: Task,
        ids: Option<TaskIds>,
        time_ns: u64,
    ) {
        let program = self.programs.entry(process).or_default();
        if task.parent != 0 {
            program.parents.insert(task.id, task.parent);
        }
        if let Some(ids) = ids {
            program.births.observe(ids, time_ns);
        }
    }

    /// A goroutine read what completes a request's head. Before that `net/http` may have read the
    /// first byte on a goroutine that waits for the client to go away.
    pub fn handle_request(
        &mut self,
        process: ProcessId,
        task: Task,
        connection: ConnectionId,
        exchange: E,
        time_ns: u64,
    ) {
        if let Some(before) = self.servers.insert(connection, (process, task.id))
            && before != (process, task.id)
        {
            self.forget_server(before, connection);
        }
        let program = self.programs.entry(process).or_default();
        let serving = program.serving.entry(task.id).or_insert(Serving {
            connection,
            open: VecDeque::new(),
            is_loop: false,
        });
        serving.is_loop |= serving.connection != connection && !serving.open.is_empty();
        serving.connection = connection;
        serving.open.push_back((exchange, time_ns));
    }

    /// As [`Self::handle_request`], on a connection whose exchanges run side by side, with the
    /// number of the stream.
    pub fn handle_stream(
        &mut self,
        process: ProcessId,
        task: Task,
        connection: ConnectionId,
        head: (u32, E),
        time_ns: u64,
    ) {
        if let Some(before) = self.servers.insert(connection, (process, task.id))
            && before != (process, task.id)
        {
            self.forget_server(before, connection);
        }
        let program = self.programs.entry(process).or_default();
        let streams = program
            .readers
            .entry(task.id)
            .or_insert_with(|| Streams::new(connection));
        streams.handle_head(connection, head, time_ns);
        if task.parent != 0 {
            let reader = program.readers_of.entry(task.parent).or_insert(task.id);
            if *reader != task.id {
                *reader = 0;
            }
        }
    }

    /// A goroutine serves a stream that the one which started it has read, or another one which
    /// that has started to read for it: gRPC has the first, `net/http` the second. The head that
    /// came with a connection's preface was read by neither, and has nobody.
    pub fn handle_served(&mut self, process: ProcessId, task: Task, stream: u32) {
        let Some(program) = self.programs.get_mut(&process) else {
            return;
        };
        let started = program.readers_of.get(&task.parent);
        let readers = [Some(&task.parent), started];
        let mut found = readers.into_iter().flatten().filter_map(|reader| {
            let streams = program.readers.get(reader)?;
            streams.numbered(stream)
        });
        let exchange = found.next();
        if let (Some(exchange), None) = (exchange, found.next()) {
            program.bound.insert(task.id, exchange);
        }
    }

    /// The request was answered: nobody works for it any more.
    pub fn handle_answered(&mut self, connection: ConnectionId, exchange: E) {
        let Some((process, task)) = self.servers.get(&connection) else {
            return;
        };
        let Some(program) = self.programs.get_mut(process) else {
            return;
        };
        if let Some(streams) = program.readers.get_mut(task) {
            streams.handle_answered(exchange);
        }
        if let Some(serving) = program.serving.get_mut(task) {
            serving.open.retain(|(other, _)| *other != exchange);
            // A request that was read while another was served: what was started meanwhile is not
            // its work, and there is no read between.
            if let Some((_, since_ns)) = serving.open.front_mut() {
                *since_ns = u64::MAX;
            }
        }
    }

    /// A goroutine is about to send a request of `net/http`'s client.
    pub fn handle_call(&mut self, process: ProcessId, task: Task, descriptor: u32, time_ns: u64) {
        let program = self.programs.entry(process).or_default();
        let call = program.call(task, time_ns);
        program.calls.insert(descriptor, call);
    }

    /// A stream was made by this goroutine, and is about to be begun by another one, which does so
    /// for all of its connection.
    pub fn handle_begun(
        &mut self,
        process: ProcessId,
        task: Task,
        (writer, stream): (u64, u32),
        time_ns: u64,
    ) {
        let program = self.programs.entry(process).or_default();
        let call = program.call(task, time_ns);
        call.note(&mut program.begun, (writer, stream));
    }

    /// A goroutine is about to start one for a stream. That writes the stream's headers under a
    /// lock and sends them before it gives that back: no other stream begins with the same bytes.
    pub fn handle_stream_call(&mut self, process: ProcessId, task: Task, time_ns: u64) {
        let program = self.programs.entry(process).or_default();
        let call = program.call(task, time_ns);
        call.note(&mut program.stream_calls, task.id);
    }

    /// The request for which this stream is begun by this goroutine: who made the stream, or the
    /// goroutine's starter, has announced that.
    pub fn stream_caller(
        &mut self,
        process: ProcessId,
        writer: Task,
        stream: u32,
        time_ns: u64,
    ) -> Option<E> {
        let program = self.programs.get_mut(&process)?;
        let begun = program.begun.remove(&(writer.id, stream));
        let call = begun.or_else(|| program.stream_calls.remove(&writer.parent))?;
        call.caller.filter(|_| call.is_recent(time_ns))
    }

    /// The request for which another is sent: by this goroutine, at this time, on this descriptor,
    /// by a connection opened at `opened_ns` where that is known.
    pub fn caller(
        &mut self,
        process: ProcessId,
        writer: Task,
        descriptor: Option<u32>,
        opened_ns: Option<u64>,
        time_ns: u64,
    ) -> Option<E> {
        let program = self.programs.get_mut(&process)?;
        let call = descriptor.and_then(|descriptor| program.calls.remove(&descriptor));
        let announced = call.filter(|call| {
            call.is_recent(time_ns) && opened_ns.is_none_or(|opened_ns| opened_ns <= call.time_ns)
        });
        match announced {
            Some(call) => call.caller,
            None => program.serving.get(&writer.id).and_then(Serving::current),
        }
    }

    pub fn handle_connection_end(&mut self, connection: ConnectionId) {
        if let Some(server) = self.servers.remove(&connection) {
            self.forget_server(server, connection);
        }
    }

    fn forget_server(&mut self, (process, task): (ProcessId, u64), connection: ConnectionId) {
        let Some(program) = self.programs.get_mut(&process) else {
            return;
        };
        if let Some(serving) = program.serving.get(&task)
            && serving.connection == connection
            && !serving.is_loop
        {
            program.serving.remove(&task);
        }
        if let Some(streams) = program.readers.get(&task)
            && streams.is_of(connection)
        {
            program.readers.remove(&task);
            program.readers_of.retain(|_, reader| *reader != task);
        }
    }

    /// Records were lost: who serves what is known again from the next reads on.
    pub fn handle_loss(&mut self) {
        for program in self.programs.values_mut() {
            program.serving.retain(|_, serving| {
                serving.open.clear();
                serving.is_loop
            });
            program.readers.clear();
            program.readers_of.clear();
            program.bound = Recent::default();
            program.calls.clear();
            program.stream_calls.clear();
            program.begun.clear();
        }
        self.servers.clear();
    }

    pub fn handle_exit(&mut self, process: ProcessId) {
        self.programs.remove(&process);
        self.servers.retain(|_, (of, _)| *of != process);
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.servers.is_empty()
            && self
                .programs
                .values()
                .all(|program| program.serving.is_empty() && program.readers.is_empty())
    }
}

impl<E> Call<E> {
    /// Keeps it until its headers are written. Where there are many, those that were given up go.
    fn note<K: Eq + Hash>(self, calls: &mut FxHashMap<K, Self>, key: K) {
        if calls.len() >= GOROUTINES {
            calls.retain(|_, call| call.is_recent(self.time_ns));
        }
        calls.insert(key, self);
    }

    const fn is_recent(&self, now_ns: u64) -> bool {
        now_ns.saturating_sub(self.time_ns) <= CALL_NS
    }
}

impl<E: Copy> Serving<E> {
    fn current(&self) -> Option<E> {
        self.front().map(|(exchange, _)| exchange)
    }

    fn front(&self) -> Option<(E, u64)> {
        self.open.front().copied().filter(|_| !self.is_loop)
    }
}

impl<E: Copy + PartialEq> Program<E> {
    fn call(&mut self, task: Task, time_ns: u64) -> Call<E> {
        let caller = self.request_of(task, time_ns, GENERATIONS);
        if task.parent != 0 {
            self.parents.insert(task.id, task.parent);
        }
        Call { caller, time_ns }
    }

    /// The request that a goroutine seen now works for, or worked for: it belongs to one for ever.
    fn request_of(&mut self, task: Task, now_ns: u64, generations: u32) -> Option<E> {
        if self.readers.contains_key(&task.id) {
            return None;
        }
        if let Some(serving) = self.serving.get(&task.id) {
            return serving.current();
        }
        if let Some(known) = self.bound.get(task.id) {
            return Some(known);
        }
        if task.parent == 0 || generations == 0 {
            return None;
        }
        let found = if let Some(streams) = self.readers.get(&task.parent) {
            let after_ns = self.births.after(task.id)?;
            let before_ns = self.births.before(task.id).unwrap_or(now_ns);
            streams.begun_between(after_ns, before_ns)
        } else if let Some(serving) = self.serving.get(&task.parent) {
            let (exchange, since_ns) = serving.front()?;
            let born_ns = self.births.after(task.id)?;
            (born_ns >= since_ns).then_some(exchange)
        } else {
            let parent = Task {
                id: task.parent,
                parent: self.parents.get(task.parent).unwrap_or(0),
            };
            self.request_of(parent, now_ns, generations - 1)
        }?;
        self.bound.insert(task.id, found);
        Some(found)
    }
}

/// A bounded table that forgets its oldest entries.
#[derive(Debug)]
struct Recent<V> {
    values: FxHashMap<u64, V>,
    order: VecDeque<u64>,
}

impl<V> Default for Recent<V> {
    fn default() -> Self {
        Self {
            values: FxHashMap::default(),
            order: VecDeque::new(),
        }
    }
}

impl<V: Copy> Recent<V> {
    fn get(&self, key: u64) -> Option<V> {
        self.values.get(&key).copied()
    }

    fn insert(&mut self, key: u64, value: V) {
        if self.values.insert(key, value).is_some() {
            return;
        }
        self.order.push_back(key);
        if self.order.len() > GOROUTINES
            && let Some(oldest) = self.order.pop_front()
        {
            self.values.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests;

//! Whoever writes the answer did the work. Pure.
//!
//! When a thread writes the answer to a request, the calls that this thread made after the request
//! was read, and after its own previous answer, belong to that request. It needs no knowledge of
//! the pool that handed the request to the thread, and a thread that answers nobody keeps its
//! calls. The verdict comes with the answer, so a call waits for it while one is possible.
//!
//! It does not hold for loops, whose thread answers everybody. One sign of a loop is enough, and is
//! remembered: the thread reads from a socket that is in an epoll set, or it answers two requests
//! of which it read the second before it had answered the first. (Answering on such a socket is no
//! sign: Puma's reactor gives a request to a worker before it takes the socket out of its set.) A
//! thread that has read a request and not answered it yet proves nothing meanwhile: it may be such
//! a loop, or a worker of a pool that gave the request to another one. A thread that is known as a
//! worker of a pool is no loop.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use rustc_hash::FxHashMap;

use crate::event::{ConnectionId, ProcessId, Unit};

/// Calls of one thread that wait for its answer; the oldest ones stop waiting beyond it. An N+1
/// query makes hundreds.
const CALLS: usize = 4_096;

/// Threads remembered at most; a thread beyond it proves nothing.
const THREADS: usize = 65_536;

/// What became of a call that waited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict<E> {
    /// The call was made for this exchange.
    Made { call: E, exchange: E },
    /// Nothing more will be known of it here.
    Unknown { call: E },
}

/// What a thread is doing. Only threads of which there is something to remember have one.
#[derive(Debug)]
struct Thread<E> {
    is_loop: bool,
    /// Known as a worker of a pool: what looks like a loop is none.
    is_worker: bool,
    /// Unanswered requests that it read itself.
    unanswered: Vec<E>,
    /// The request whose answer it began and that has not ended.
    answering: Option<E>,
    /// Calls since its last answer, by their start.
    calls: VecDeque<(u64, E)>,
}

impl<E> Default for Thread<E> {
    fn default() -> Self {
        Self {
            is_loop: false,
            is_worker: false,
            unanswered: Vec::new(),
            answering: None,
            calls: VecDeque::new(),
        }
    }
}

impl<E> Thread<E> {
    fn is_idle(&self) -> bool {
        !self.is_loop
            && !self.is_worker
            && self.unanswered.is_empty()
            && self.answering.is_none()
            && self.calls.is_empty()
    }
}

#[derive(Debug)]
struct Unanswered {
    start_ns: u64,
    reader: Unit,
    connection: ConnectionId,
    /// Its reader has answered another connection's request meanwhile.
    is_overlapped: bool,
}

/// Requests of one process that nobody began to answer, and calls that wait for that.
#[derive(Debug)]
struct Waiting<E> {
    requests: BTreeSet<(u64, E)>,
    calls: BTreeMap<(u64, E), Unit>,
}

impl<E> Default for Waiting<E> {
    fn default() -> Self {
        Self {
            requests: BTreeSet::new(),
            calls: BTreeMap::new(),
        }
    }
}

/// `E` names an exchange, a request that was read or a call that was made.
#[derive(Debug)]
pub struct Answering<E> {
    threads: FxHashMap<Unit, Thread<E>>,
    requests: FxHashMap<E, Unanswered>,
    processes: FxHashMap<ProcessId, Waiting<E>>,
    /// Who began an answer that has not ended.
    answerers: FxHashMap<E, Unit>,
    /// When each process made its latest call that waited in vain.
    unexplained: FxHashMap<ProcessId, u64>,
    verdicts: VecDeque<Verdict<E>>,
}

impl<E> Default for Answering<E> {
    fn default() -> Self {
        Self {
            threads: FxHashMap::default(),
            requests: FxHashMap::default(),
            processes: FxHashMap::default(),
            answerers: FxHashMap::default(),
            unexplained: FxHashMap::default(),
            verdicts: VecDeque::new(),
        }
    }
}

impl<E: Copy + Ord + std::hash::Hash> Answering<E> {
    /// A thread read the beginning of a request.
    pub fn handle_request(
        &mut self,
        unit: Unit,
        connection: ConnectionId,
        exchange: E,
        start_ns: u64,
    ) {
        let request = Unanswered {
            start_ns,
            reader: unit,
            connection,
            is_overlapped: false,
        };
        self.requests.insert(exchange, request);
        let process = self.processes.entry(unit.process).or_default();
        process.requests.insert((start_ns, exchange));
        if let Some(thread) = self.thread(unit) {
            thread.unanswered.push(exchange);
        }
    }

    /// A thread made a call that nothing else gives a parent. Returns whether the call waits for a
    /// verdict.
    pub fn handle_call(&mut self, unit: Unit, call: E, start_ns: u64) -> bool {
        let is_possible = self
            .processes
            .get(&unit.process)
            .and_then(|process| process.requests.first())
            .is_some_and(|(oldest_ns, _)| *oldest_ns <= start_ns);
        let known = self.threads.get(&unit);
        let is_answering = known.is_some_and(|thread| thread.answering.is_some());
        if known.is_some_and(|thread| thread.is_loop) || !(is_possible || is_answering) {
            return false;
        }
        let Some(thread) = self.thread(unit) else {
            return false;
        };
        thread.calls.push_back((start_ns, call));
        let dropped = (thread.calls.len() > CALLS)
            .then(|| thread.calls.pop_front())
            .flatten();
        let process = self.processes.entry(unit.process).or_default();
        process.calls.insert((start_ns, call), unit);
        if let Some((start_ns, call)) = dropped {
            process.calls.remove(&(start_ns, call));
            self.verdicts.push_back(Verdict::Unknown { call });
        }
        true
    }

    /// A thread read from a socket that is in non-blocking mode and in an epoll set. Returns
    /// whether it is taken for a loop from now on.
    pub fn handle_polled_read(&mut self, unit: Unit) -> bool {
        let known = self.threads.get(&unit);
        if known.is_some_and(|thread| thread.is_loop || thread.is_worker) {
            return false;
        }
        self.note_loop(unit);
        true
    }

    /// A thread is a worker of a pool, for certain.
    pub fn handle_worker(&mut self, unit: Unit) {
        if let Some(thread) = self.thread(unit) {
            thread.is_loop = false;
            thread.is_worker = true;
        }
    }

    /// A thread did its work for another one: those of its calls are that one's from now on.
    pub fn hand_over(&mut self, from: Unit, to: Unit, is_theirs: impl Fn(E) -> bool) -> Vec<E> {
        let is_useless = from == to || self.threads.get(&to).is_some_and(|thread| thread.is_loop);
        let Some(worker) = self.threads.get_mut(&from).filter(|_| !is_useless) else {
            return Vec::new();
        };
        let (given, kept) = worker
            .calls
            .drain(..)
            .partition(|(_, call)| is_theirs(*call));
        worker.calls = kept;
        let given: VecDeque<(u64, E)> = given;
        self.tidy(from);
        if given.is_empty() {
            return Vec::new();
        }
        let Some(taker) = self.thread(to) else {
            self.give_up(from, given);
            return Vec::new();
        };
        taker.calls.extend(given.iter().copied());
        let process = self.processes.entry(from.process).or_default();
        for call in &given {
            process.calls.insert(*call, to);
        }
        given.into_iter().map(|(_, call)| call).collect()
    }

    /// Whether the process made calls since that nothing explains, so far.
    pub fn has_calls_since(&self, process: ProcessId, start_ns: u64) -> bool {
        let waiting = self.processes.get(&process);
        let latest = waiting.and_then(|waiting| waiting.calls.last_key_value());
        latest.is_some_and(|((at_ns, _), _)| *at_ns >= start_ns)
            || self
                .unexplained
                .get(&process)
                .is_some_and(|at_ns| *at_ns >= start_ns)
    }

    /// A thread wrote the first byte of an answer.
    pub fn handle_answer(&mut self, unit: Unit, exchange: E) {
        let Some(request) = self.take_request(exchange) else {
            return;
        };
        if request.is_overlapped && request.reader == unit {
            self.note_loop(unit);
        }
        let overlaps = self.note_overlap(unit, request.connection);
        let is_loop = self.threads.get(&unit).is_some_and(|thread| thread.is_loop);
        if !is_loop && let Some(thread) = self.thread(unit) {
            let calls = std::mem::take(&mut thread.calls);
            let before = std::mem::replace(&mut thread.answering, (!overlaps).then_some(exchange));
            if let Some(before) = before {
                self.answerers.remove(&before);
            }
            if overlaps {
                self.give_up(unit, calls);
            } else {
                self.answerers.insert(exchange, unit);
                self.decide(unit, calls, exchange, request.start_ns);
            }
        }
        self.release(unit.process);
    }

    /// Whether the thread has read requests of other connections that are unanswered. Pipelined
    /// ones are read together by any thread.
    fn note_overlap(&mut self, unit: Unit, answered: ConnectionId) -> bool {
        let Some(thread) = self.threads.get(&unit).filter(|thread| !thread.is_worker) else {
            return false;
        };
        let mut overlaps = false;
        for exchange in &thread.unanswered {
            if let Some(request) = self.requests.get_mut(exchange)
                && request.connection != answered
            {
                request.is_overlapped = true;
                overlaps = true;
            }
        }
        overlaps
    }

    /// An exchange ended; `unit` wrote the last of its answer, where that was seen.
    pub fn handle_finished(&mut self, exchange: E, unit: Option<Unit>) {
        let request = self.take_request(exchange);
        if let Some(answerer) = self.answerers.remove(&exchange)
            && let Some(thread) = self.threads.get_mut(&answerer)
        {
            thread.answering = None;
            let calls = std::mem::take(&mut thread.calls);
            if unit == Some(answerer) {
                self.decide(answerer, calls, exchange, 0);
            } else {
                self.give_up(answerer, calls);
            }
            self.tidy(answerer);
            self.release(answerer.process);
        }
        if let Some(request) = request {
            self.release(request.reader.process);
        }
    }

    /// What was decided since the last call.
    pub fn poll(&mut self) -> Option<Verdict<E>> {
        self.verdicts.pop_front()
    }

    /// Records were lost: calls before and answers after it do not belong together for certain.
    /// What is a loop stays one.
    pub fn handle_loss(&mut self) {
        for process in self.processes.values_mut() {
            for ((_, call), _) in std::mem::take(&mut process.calls) {
                self.verdicts.push_back(Verdict::Unknown { call });
            }
        }
        for thread in self.threads.values_mut() {
            thread.calls.clear();
            thread.answering = None;
        }
        self.answerers.clear();
        self.threads.retain(|_, thread| !thread.is_idle());
    }

    /// A thread ended: it answers nothing any more.
    pub fn handle_thread_exit(&mut self, unit: Unit) {
        if let Some(thread) = self.threads.remove(&unit) {
            if let Some(exchange) = thread.answering {
                self.answerers.remove(&exchange);
            }
            self.give_up(unit, thread.calls);
        }
    }

    /// The process ended, and its threads with it.
    pub fn handle_exit(&mut self, process: ProcessId) {
        if let Some(waiting) = self.processes.get_mut(&process) {
            for ((_, call), _) in std::mem::take(&mut waiting.calls) {
                self.verdicts.push_back(Verdict::Unknown { call });
            }
            if waiting.requests.is_empty() {
                self.processes.remove(&process);
            }
        }
        self.unexplained.remove(&process);
        self.threads.retain(|unit, _| unit.process != process);
        self.answerers.retain(|_, unit| unit.process != process);
    }

    /// Whether nothing is remembered but which threads are loops and which are none.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.requests.is_empty()
            && self.processes.is_empty()
            && self.answerers.is_empty()
            && self
                .threads
                .values()
                .all(|thread| thread.is_loop || thread.is_worker)
    }

    fn thread(&mut self, unit: Unit) -> Option<&mut Thread<E>> {
        if self.threads.len() >= THREADS && !self.threads.contains_key(&unit) {
            return None;
        }
        Some(self.threads.entry(unit).or_default())
    }

    fn take_request(&mut self, exchange: E) -> Option<Unanswered> {
        let request = self.requests.remove(&exchange)?;
        if let Some(process) = self.processes.get_mut(&request.reader.process) {
            process.requests.remove(&(request.start_ns, exchange));
        }
        if let Some(thread) = self.threads.get_mut(&request.reader) {
            thread.unanswered.retain(|other| *other != exchange);
        }
        self.tidy(request.reader);
        Some(request)
    }

    /// The calls of a thread that answers `exchange`: those made after it was read, at `read_ns`,
    /// belong to it.
    fn decide(&mut self, unit: Unit, calls: VecDeque<(u64, E)>, exchange: E, read_ns: u64) {
        self.settle(unit, calls, |start_ns| {
            (start_ns > read_ns).then_some(exchange)
        });
    }

    fn give_up(&mut self, unit: Unit, calls: VecDeque<(u64, E)>) {
        self.settle(unit, calls, |_| None);
    }

    /// Calls of a thread wait no more; `made_for` tells by its start what each was made for.
    fn settle(
        &mut self,
        unit: Unit,
        calls: VecDeque<(u64, E)>,
        made_for: impl Fn(u64) -> Option<E>,
    ) {
        let Some(process) = self.processes.get_mut(&unit.process) else {
            return;
        };
        for (start_ns, call) in calls {
            process.calls.remove(&(start_ns, call));
            self.verdicts.push_back(match made_for(start_ns) {
                Some(exchange) => Verdict::Made { call, exchange },
                None => Verdict::Unknown { call },
            });
        }
    }

    fn note_loop(&mut self, unit: Unit) {
        let Some(thread) = self.thread(unit) else {
            return;
        };
        if thread.is_worker {
            return;
        }
        thread.is_loop = true;
        let calls = std::mem::take(&mut thread.calls);
        if let Some(exchange) = thread.answering.take() {
            self.answerers.remove(&exchange);
        }
        self.give_up(unit, calls);
    }

    /// Calls that were made before every request that is still unanswered wait for nothing, unless
    /// their thread goes on with an answer.
    fn release(&mut self, process_id: ProcessId) {
        let Some(process) = self.processes.get_mut(&process_id) else {
            return;
        };
        let oldest_ns = process.requests.first().map_or(u64::MAX, |(at, _)| *at);
        let mut kept = Vec::new();
        while let Some(first) = process.calls.first_entry() {
            if first.key().0 >= oldest_ns {
                break;
            }
            let ((start_ns, call), unit) = first.remove_entry();
            let Some(thread) = self.threads.get_mut(&unit) else {
                self.verdicts.push_back(Verdict::Unknown { call });
                continue;
            };
            if thread.answering.is_some() {
                kept.push(((start_ns, call), unit));
                continue;
            }
            // The oldest call of the process is mostly its thread's oldest, too.
            let place = thread.calls.iter().position(|(_, other)| *other == call);
            place.map(|place| thread.calls.remove(place));
            if thread.is_idle() {
                self.threads.remove(&unit);
            }
            let latest_ns = self.unexplained.entry(process_id).or_default();
            *latest_ns = start_ns.max(*latest_ns);
            self.verdicts.push_back(Verdict::Unknown { call });
        }
        process.calls.extend(kept);
        if process.calls.is_empty() && process.requests.is_empty() {
            self.processes.remove(&process_id);
        }
    }

    fn tidy(&mut self, unit: Unit) {
        if self.threads.get(&unit).is_some_and(Thread::is_idle) {
            self.threads.remove(&unit);
        }
    }
}

#[cfg(test)]
mod tests;

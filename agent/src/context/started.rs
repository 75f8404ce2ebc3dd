//! Threads and processes that were started for a request. Pure.
//!
//! What a thread starts while it works for a request, and what ends before that request does,
//! worked for it: a CGI program, a command, threads that share out the work and are joined. What
//! outlives the request may be a worker that takes other work too, and proves nothing. So the
//! verdict on a call comes with the end of who made it. A thread is joined a little before the
//! kernel sees its end, so [`GRACE_NS`] after the request still counts.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;

use super::answering::Verdict;
use crate::event::{ProcessId, Unit};

/// Threads and processes remembered at most, and calls of each; one beyond it proves nothing.
const STARTED: usize = 16_384;
const CALLS: usize = 4_096;

/// Between the end of a thread as its program sees it and as the kernel does, its processor may be
/// taken away once.
const GRACE_NS: u64 = 20_000_000;

/// Who was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Child {
    Thread(Unit),
    Process(ProcessId),
}

#[derive(Debug)]
struct Started<E> {
    /// The request that its starter worked for.
    exchange: E,
    /// Calls by their start.
    calls: Vec<(u64, E)>,
    /// The request was answered to its end.
    is_over: bool,
}

/// `E` names an exchange.
#[derive(Debug)]
pub struct Starts<E> {
    children: FxHashMap<Child, Started<E>>,
    /// The children of each request that has some.
    of_request: FxHashMap<E, Vec<Child>>,
    /// Requests that have ended with some of theirs still running, by their end.
    over: VecDeque<(u64, E)>,
    verdicts: VecDeque<Verdict<E>>,
}

impl<E> Default for Starts<E> {
    fn default() -> Self {
        Self {
            children: FxHashMap::default(),
            of_request: FxHashMap::default(),
            over: VecDeque::new(),
            verdicts: VecDeque::new(),
        }
    }
}

impl<E: Copy + Eq + std::hash::Hash> Starts<E> {
    /// A thread that works for `exchange`, where that is certain, started another thread or a
    /// process. What a started one starts has the same purpose.
    pub fn handle_start(&mut self, starter: Unit, child: Child, exchange: Option<E>) {
        let inherited = self.of(starter).and_then(|of| self.children.get(&of));
        let exchange = inherited.map(|started| started.exchange).or(exchange);
        if let Some(exchange) = exchange
            && self.children.len() < STARTED
        {
            self.remove(child);
            self.of_request.entry(exchange).or_default().push(child);
            let entry = Started {
                exchange,
                calls: Vec::new(),
                is_over: false,
            };
            self.children.insert(child, entry);
        }
    }

    /// A thread read or answered a request of its own, so it is a worker. Its calls so far may
    /// belong to that one, and are given back by their start.
    pub fn handle_worker(&mut self, unit: Unit) -> Vec<(u64, E)> {
        let started = self.of(unit).and_then(|child| self.remove(child));
        started.map(|started| started.calls).unwrap_or_default()
    }

    /// A thread made a call. Returns the request that it belongs to if who made it ends in time.
    pub fn handle_call(&mut self, unit: Unit, call: E, start_ns: u64) -> Option<E> {
        let child = self.of(unit)?;
        self.note_call(child, call, start_ns)
    }

    /// As [`Self::handle_call`], by whichever thread of a process.
    pub fn handle_call_of_process(
        &mut self,
        process: ProcessId,
        call: E,
        start_ns: u64,
    ) -> Option<E> {
        self.note_call(Child::Process(process), call, start_ns)
    }

    fn note_call(&mut self, child: Child, call: E, start_ns: u64) -> Option<E> {
        let started = self.children.get_mut(&child)?;
        if started.is_over || started.calls.len() >= CALLS {
            return None;
        }
        started.calls.push((start_ns, call));
        Some(started.exchange)
    }

    /// A request was answered to its end: what was started for it and runs on is no evidence.
    pub fn handle_finished(&mut self, exchange: E, now_ns: u64) {
        let Some(children) = self.of_request.get(&exchange) else {
            return;
        };
        for child in children {
            if let Some(started) = self.children.get_mut(child) {
                started.is_over = true;
            }
        }
        self.over.push_back((now_ns, exchange));
    }

    /// Time passes.
    pub fn handle_tick(&mut self, now_ns: u64) {
        while let Some((end_ns, exchange)) = self.over.front().copied() {
            if end_ns.saturating_add(GRACE_NS) > now_ns {
                break;
            }
            self.over.pop_front();
            for child in self.of_request.remove(&exchange).unwrap_or_default() {
                self.forget(child);
            }
        }
    }

    /// A thread or process ended: what it was started for, and its calls, made for that.
    pub fn handle_end(&mut self, child: Child) -> Option<(E, Vec<E>)> {
        let started = self.remove(child)?;
        let calls = started.calls.into_iter().map(|(_, call)| call);
        Some((started.exchange, calls.collect()))
    }

    /// Records were lost: an answer may be among them.
    pub fn handle_loss(&mut self) {
        for child in std::mem::take(&mut self.of_request).into_values().flatten() {
            self.forget(child);
        }
        self.over.clear();
    }

    /// Calls that nothing more will be known of here.
    pub fn poll(&mut self) -> Option<Verdict<E>> {
        self.verdicts.pop_front()
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.children.is_empty() && self.of_request.is_empty() && self.over.is_empty()
    }

    fn of(&self, unit: Unit) -> Option<Child> {
        if self.children.is_empty() {
            return None;
        }
        [Child::Thread(unit), Child::Process(unit.process)]
            .into_iter()
            .find(|child| self.children.contains_key(child))
    }

    /// Whoever it was is no child of a request any more.
    fn remove(&mut self, child: Child) -> Option<Started<E>> {
        let started = self.children.remove(&child)?;
        if let Some(children) = self.of_request.get_mut(&started.exchange) {
            children.retain(|other| *other != child);
            if children.is_empty() {
                self.of_request.remove(&started.exchange);
            }
        }
        Some(started)
    }

    /// A child proves nothing: nor do its calls, then.
    fn forget(&mut self, child: Child) {
        let Some(started) = self.remove(child) else {
            return;
        };
        let unknown = started.calls.iter();
        self.verdicts
            .extend(unknown.map(|(_, call)| Verdict::Unknown { call: *call }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn unit(pid: u32, thread_id: u32) -> Unit {
        Unit {
            process: ProcessId {
                pid,
                start_ticks: 1,
            },
            thread_id,
        }
    }

    const HANDLER: Unit = unit(1, 1);

    /// Scenario: a handler runs a command that runs another one, and a thread. Guarantee: their
    /// calls belong to the handler's request when they end before it.
    #[test]
    fn what_ends_in_time_worked_for_the_request() {
        let mut starts = Starts::default();
        let [shell, curl, helper] = [unit(2, 2), unit(3, 3), unit(1, 4)];
        starts.handle_start(HANDLER, Child::Process(shell.process), Some(7));
        starts.handle_start(shell, Child::Process(curl.process), None);
        starts.handle_start(HANDLER, Child::Thread(helper), Some(7));
        assert_eq!(starts.handle_call(curl, 101, 1), Some(7));
        assert_eq!(starts.handle_call(helper, 102, 2), Some(7));
        assert_eq!(starts.handle_call(HANDLER, 103, 3), None);
        starts.handle_finished(7, 10);
        for (child, calls) in [
            (Child::Process(curl.process), vec![101]),
            (Child::Thread(helper), vec![102]),
            (Child::Process(shell.process), vec![]),
        ] {
            assert_eq!(starts.handle_end(child), Some((7, calls)));
        }
        starts.handle_tick(10 + GRACE_NS);
        assert!(starts.is_empty());
    }

    /// Scenario: a handler starts workers of a pool, which live on. Guarantee: no evidence.
    #[test]
    fn what_outlives_the_request_proves_nothing() {
        let mut starts = Starts::default();
        let worker = unit(1, 2);
        starts.handle_start(HANDLER, Child::Thread(worker), Some(7));
        assert_eq!(starts.handle_call(worker, 101, 1), Some(7));
        starts.handle_finished(7, 10);
        assert_eq!(starts.handle_call(worker, 102, 11), None);
        starts.handle_tick(10 + GRACE_NS - 1);
        assert_eq!(starts.poll(), None);
        starts.handle_tick(10 + GRACE_NS);
        assert_eq!(starts.poll(), Some(Verdict::Unknown { call: 101 }));
        assert_eq!(starts.handle_call(worker, 102, 12), None);
        assert_eq!(starts.handle_end(Child::Thread(worker)), None);
        assert!(starts.is_empty());
    }

    /// Scenario: many requests have children, and one of them is finished. Guarantee: the others'
    /// children count on, and one that is started anew under the same number has a new purpose.
    #[test]
    fn the_end_of_a_request_is_of_its_own_children_only() {
        let mut starts = Starts::default();
        for request in 0..100 {
            starts.handle_start(HANDLER, Child::Thread(unit(1, request + 2)), Some(request));
            starts.handle_start(
                HANDLER,
                Child::Thread(unit(1, request + 2)),
                Some(request + 1),
            );
        }
        starts.handle_finished(7, 10);
        starts.handle_tick(10 + GRACE_NS);
        for request in (0..100).filter(|request| request + 1 != 7) {
            assert_eq!(
                starts.handle_call(unit(1, request + 2), 1_000, 11),
                Some(request + 1)
            );
            let end = starts.handle_end(Child::Thread(unit(1, request + 2)));
            assert_eq!(end, Some((request + 1, vec![1_000])));
        }
        assert_eq!(starts.handle_call(unit(1, 6 + 2), 1_000, 11), None);
        assert!(starts.is_empty());
    }

    /// Scenario: a pool grows while a request is served, and the new worker serves another one.
    /// Guarantee: its calls are not taken for the first.
    #[test]
    fn who_serves_was_not_started_for_a_request() {
        let mut starts = Starts::default();
        let worker = unit(1, 2);
        starts.handle_start(HANDLER, Child::Thread(worker), Some(7));
        starts.handle_start(HANDLER, Child::Thread(unit(1, 3)), None);
        assert_eq!(starts.handle_call(worker, 101, 5), Some(7));
        assert_eq!(starts.handle_worker(worker), [(5, 101)]);
        assert!(starts.is_empty());
    }
}

//! The bounded queue between the engine and one exporter.
//!
//! The engine's side never waits: what does not fit is dropped, newest first, and counted by
//! service. The exporter's side is woken when the queue stops being empty and when a batch is
//! full, so a batch costs at most two wake-ups, never one per span.
//!
//! The queue also keeps the books of what an exporter took and did not settle yet, so that
//! nothing is lost uncounted when an exporter must be abandoned.

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use crate::{
    export::batch::{self, Limits, Tally},
    self_metrics::{Counter, Loss, SelfMetrics},
    span::Span,
};

pub(super) struct Queue {
    capacity: usize,
    limits: Limits,
    delay: Duration,
    state: Mutex<State>,
    /// For an exporter that is a task.
    task: Notify,
    /// For an exporter that is a thread.
    thread: Condvar,
    metrics: Arc<SelfMetrics>,
}

#[derive(Default)]
struct State {
    spans: VecDeque<Span>,
    /// Taken by the exporter, fate unknown yet.
    in_flight: Tally,
    phase: Phase,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Open,
    /// No more spans come in; what is here still goes out.
    Closed,
    /// The exporter ended; all that comes is lost for this reason.
    Ended(Loss),
}

impl Queue {
    pub(super) fn new(config: &batch::Config, max_bytes: usize, metrics: Arc<SelfMetrics>) -> Self {
        Self {
            capacity: config.queue_spans,
            limits: Limits {
                spans: config.batch_spans,
                bytes: max_bytes,
            },
            delay: config.delay,
            state: Mutex::default(),
            task: Notify::new(),
            thread: Condvar::new(),
            metrics,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Never blocks but for the short lock.
    pub(super) fn try_send(&self, spans: Vec<Span>) {
        let mut state = self.lock();
        if state.phase != Phase::Open {
            let reason = match state.phase {
                Phase::Ended(reason) => reason,
                Phase::Open | Phase::Closed => Loss::ShutdownTimeout,
            };
            drop(state);
            return self.lose(reason, &Tally::of(&spans));
        }
        let before = state.spans.len();
        let room = self.capacity.saturating_sub(before);
        let mut spans = spans.into_iter();
        state.spans.extend(spans.by_ref().take(room));
        let after = state.spans.len();
        drop(state);
        let batch = self.limits.spans;
        if (before == 0 && after > 0) || (before < batch && after >= batch) {
            self.wake();
        }
        if spans.len() > 0 {
            self.lose(Loss::ExportQueueFull, &Tally::of(spans.as_slice()));
        }
    }

    /// The next batch, in time for its oldest span; `None` when the queue is closed and empty.
    pub(super) async fn next_batch(&self) -> Option<Vec<Span>> {
        let mut due: Option<Instant> = None;
        loop {
            let wait = match self.poll(&mut due, Instant::now()) {
                Poll::Batch(spans) => return Some(spans),
                Poll::End => return None,
                Poll::Wait(wait) => wait,
            };
            let notified = self.task.notified();
            match wait {
                None => notified.await,
                Some(wait) => {
                    // Elapsed or woken: both mean "look again".
                    let _ = tokio::time::timeout(wait, notified).await;
                }
            }
        }
    }

    /// As `next_batch`, for a thread, which comes back after `patience` at the latest: then with
    /// an empty batch.
    pub(super) fn next_batch_blocking(&self, patience: Option<Duration>) -> Option<Vec<Span>> {
        let give_up = patience.map(|patience| Instant::now() + patience);
        let mut due: Option<Instant> = None;
        loop {
            let now = Instant::now();
            let mut state = self.lock();
            let wait = match self.poll_locked(&mut state, &mut due, now) {
                Poll::Batch(spans) => return Some(spans),
                Poll::End => return None,
                Poll::Wait(wait) => wait,
            };
            let left = give_up.map(|give_up| give_up.saturating_duration_since(now));
            if left.is_some_and(|left| left.is_zero()) {
                return Some(Vec::new());
            }
            match [wait, left].into_iter().flatten().min() {
                None => drop(self.thread.wait(state)),
                Some(wait) => drop(self.thread.wait_timeout(state, wait)),
            }
        }
    }

    fn poll(&self, due: &mut Option<Instant>, now: Instant) -> Poll {
        self.poll_locked(&mut self.lock(), due, now)
    }

    fn poll_locked(&self, state: &mut State, due: &mut Option<Instant>, now: Instant) -> Poll {
        if let Phase::Ended(_) = state.phase {
            return Poll::End;
        }
        if state.spans.is_empty() {
            return if state.phase == Phase::Closed {
                Poll::End
            } else {
                Poll::Wait(None)
            };
        }
        let due = *due.get_or_insert_with(|| now.checked_add(self.delay).unwrap_or(now));
        let full = state.spans.len() >= self.limits.spans;
        if !full && now < due && state.phase == Phase::Open {
            return Poll::Wait(Some(due - now));
        }
        let spans = batch::take(&mut state.spans, self.limits);
        state.in_flight.merge(&Tally::of(&spans));
        Poll::Batch(spans)
    }

    /// These spans arrived.
    pub(super) fn settle_exported(&self, tally: &Tally) {
        let settled = self.lock().in_flight.subtract(tally);
        self.metrics.add(Counter::SpansExported, settled.total());
    }

    /// These spans are lost.
    pub(super) fn settle_lost(&self, reason: Loss, tally: &Tally) {
        let settled = self.lock().in_flight.subtract(tally);
        self.lose(reason, &settled);
    }

    pub(super) fn close(&self) {
        let mut state = self.lock();
        if state.phase == Phase::Open {
            state.phase = Phase::Closed;
        }
        drop(state);
        self.wake();
    }

    /// Counts all that is waiting or in flight as lost, and what still comes too.
    pub(super) fn end(&self, reason: Loss) -> u64 {
        let mut state = self.lock();
        state.phase = Phase::Ended(reason);
        let mut lost = std::mem::take(&mut state.in_flight);
        let waiting = std::mem::take(&mut state.spans);
        drop(state);
        lost.merge(&Tally::of(&waiting));
        self.lose(reason, &lost);
        self.wake();
        lost.total()
    }

    fn wake(&self) {
        self.task.notify_one();
        self.thread.notify_one();
    }

    fn lose(&self, reason: Loss, tally: &Tally) {
        for (service, count) in tally.iter() {
            self.metrics.lose(reason, service, count);
        }
    }
}

enum Poll {
    Batch(Vec<Span>),
    /// Until woken, or for this long.
    Wait(Option<Duration>),
    End,
}

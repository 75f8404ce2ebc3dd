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

#[cfg(test)]
mod tests {
    use std::{
        future::Future as _,
        pin::pin,
        sync::atomic::{AtomicU64, Ordering},
        task::{Context, Wake, Waker},
    };

    use super::*;
    use crate::export::tests::spans_of;

    fn queue(queue_spans: usize, batch_spans: usize, delay: Duration) -> Queue {
        let config = batch::Config {
            queue_spans,
            batch_spans,
            delay,
            ..batch::Config::default()
        };
        Queue::new(&config, usize::MAX, Arc::default())
    }

    const LONG: Duration = Duration::from_hours(1);

    #[derive(Default)]
    struct Wakes(AtomicU64);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A batch wakes its exporter when it begins and when it is full, not in between.
    #[test]
    fn a_batch_costs_two_wake_ups() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build();
        let runtime = runtime.expect("a runtime starts");
        let _entered = runtime.enter();
        let queue = queue(10_000, 1_000, LONG);
        let counter = Arc::new(Wakes::default());
        let waker = Waker::from(Arc::clone(&counter));
        let mut context = Context::from_waker(&waker);
        let mut next = pin!(queue.next_batch());
        assert!(next.as_mut().poll(&mut context).is_pending());
        for sent in 0..1_000 {
            queue.try_send(spans_of("cart", 1));
            if sent == 0 {
                assert!(next.as_mut().poll(&mut context).is_pending());
            }
        }
        assert_eq!(counter.0.load(Ordering::Relaxed), 2);
        match next.as_mut().poll(&mut context) {
            std::task::Poll::Ready(Some(batch)) => assert_eq!(batch.len(), 1_000),
            other => panic!("the batch is full: {other:?}"),
        }
    }

    /// Capacity counts spans, not calls; what was accepted first stays.
    #[test]
    fn overflow_drops_the_newest_and_counts() {
        let queue = queue(10, 100, LONG);
        queue.try_send(spans_of("old", 8));
        queue.try_send(spans_of("new", 5));
        queue.try_send(spans_of("newest", 4));
        let expected = [
            (("new", Loss::ExportQueueFull), 3),
            (("newest", Loss::ExportQueueFull), 4),
        ];
        let losses = queue.metrics.losses();
        let losses: Vec<_> = losses
            .iter()
            .map(|((loss, service), count)| ((service.as_str(), *loss), *count))
            .collect();
        assert_eq!(losses, expected);
        queue.close();
        let batch = queue.next_batch_blocking(None).expect("closed, not empty");
        assert_eq!(batch, [spans_of("old", 8), spans_of("new", 2)].concat());
        assert_eq!(queue.next_batch_blocking(None), None);
    }

    /// A span waits for company no longer than the delay, and a full batch not at all.
    #[test]
    fn batches_are_due_by_time_or_count() {
        let queue = queue(100, 3, LONG);
        let now = Instant::now();
        let mut due = None;
        assert!(matches!(queue.poll(&mut due, now), Poll::Wait(None)));
        queue.try_send(spans_of("cart", 2));
        assert!(matches!(queue.poll(&mut due, now), Poll::Wait(Some(wait)) if wait == LONG));
        let almost = now + LONG.saturating_sub(Duration::from_nanos(1));
        assert!(matches!(queue.poll(&mut due, almost), Poll::Wait(Some(_))));
        assert!(matches!(queue.poll(&mut due, now + LONG), Poll::Batch(batch) if batch.len() == 2));
        queue.try_send(spans_of("cart", 7));
        let mut due = None;
        assert!(matches!(queue.poll(&mut due, now), Poll::Batch(batch) if batch.len() == 3));
        assert!(matches!(queue.poll(&mut due, now), Poll::Batch(batch) if batch.len() == 3));
    }

    /// Every span is settled once: as exported, as lost, or when the exporter is given up.
    #[test]
    fn books_balance() {
        let queue = queue(100, 10, LONG);
        queue.try_send(spans_of("cart", 30));
        let batch = queue.next_batch_blocking(None).expect("full");
        let (sent, failed) = batch.split_at(4);
        queue.settle_exported(&Tally::of(sent));
        queue.settle_lost(Loss::ExportFailed, &Tally::of(&failed[..1]));
        assert_eq!(
            queue.end(Loss::ShutdownTimeout),
            25,
            "5 in flight and 20 waiting"
        );
        queue.settle_exported(&Tally::of(failed));
        queue.try_send(spans_of("cart", 1));
        assert_eq!(queue.metrics.total(Counter::SpansExported), 4);
        let cart = |loss| {
            queue
                .metrics
                .losses()
                .get(&(loss, "cart".to_owned()))
                .copied()
        };
        assert_eq!(cart(Loss::ExportFailed), Some(1));
        assert_eq!(cart(Loss::ShutdownTimeout), Some(26));
        assert_eq!(queue.next_batch_blocking(None), None);
    }
}

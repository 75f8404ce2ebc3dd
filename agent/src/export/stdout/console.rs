//! When a trace is complete enough to be shown. Pure: time is an argument.
//!
//! Nobody says that a trace is over, so one that was quiet for a second is shown. A trace that is
//! never quiet, and all traces together, have bounds; what exceeds them is shown early. Spans that
//! come later are shown as a trace again, with the same id.

use std::{collections::VecDeque, time::Duration};

use opentelemetry::TraceId;
use rustc_hash::FxHashMap;

use crate::span::Span;

/// The spans of one request end within milliseconds of each other, but their records are joined
/// and queued on the way.
const QUIET: Duration = Duration::from_secs(1);
/// No trace is held longer, even if spans keep coming.
const MAX_HOLD: Duration = Duration::from_secs(10);
/// Held at once: about 10 MiB at 1 KiB a span.
const MAX_SPANS: usize = 10_000;
/// Held of one trace; far more than a screen shows.
const MAX_TRACE_SPANS: usize = 1_000;

#[derive(Debug, Default)]
pub struct Grouping {
    traces: FxHashMap<TraceId, Trace>,
    /// By age of the trace, for the bound and for a stable order. May name traces that are gone.
    order: VecDeque<(TraceId, Duration)>,
    held: usize,
}

#[derive(Debug)]
struct Trace {
    spans: Vec<Span>,
    first: Duration,
    last: Duration,
}

impl Trace {
    fn due(&self) -> Duration {
        (self.last + QUIET).min(self.first + MAX_HOLD)
    }
}

impl Grouping {
    /// Takes spans that came at `now`; gives back traces that must be shown to stay in bounds.
    pub fn add(&mut self, spans: Vec<Span>, now: Duration) -> Vec<Vec<Span>> {
        let mut ready = Vec::new();
        for span in spans {
            let id = span.trace_id;
            let order = &mut self.order;
            let trace = self.traces.entry(id).or_insert_with(|| {
                order.push_back((id, now));
                Trace {
                    spans: Vec::new(),
                    first: now,
                    last: now,
                }
            });
            trace.spans.push(span);
            trace.last = now;
            self.held += 1;
            if trace.spans.len() >= MAX_TRACE_SPANS {
                ready.extend(self.remove(id));
            }
            while self.held > MAX_SPANS {
                ready.extend(self.remove_oldest());
            }
        }
        ready
    }

    /// The traces that are due, oldest first.
    pub fn poll(&mut self, now: Duration) -> Vec<Vec<Span>> {
        let traces = &self.traces;
        self.order
            .retain(|(id, first)| traces.get(id).is_some_and(|trace| trace.first == *first));
        let due: Vec<TraceId> = self
            .order
            .iter()
            .filter(|(id, _)| self.traces.get(id).is_some_and(|trace| trace.due() <= now))
            .map(|(id, _)| *id)
            .collect();
        due.into_iter().filter_map(|id| self.remove(id)).collect()
    }

    /// When `poll` has something next.
    pub fn next_due(&self) -> Option<Duration> {
        self.traces.values().map(Trace::due).min()
    }

    /// All that is left, oldest first.
    pub fn flush(&mut self) -> Vec<Vec<Span>> {
        self.poll(Duration::MAX)
    }

    fn remove(&mut self, id: TraceId) -> Option<Vec<Span>> {
        let trace = self.traces.remove(&id)?;
        self.held -= trace.spans.len();
        Some(trace.spans)
    }

    fn remove_oldest(&mut self) -> Option<Vec<Span>> {
        while let Some((id, first)) = self.order.pop_front() {
            if self
                .traces
                .get(&id)
                .is_some_and(|trace| trace.first == first)
            {
                return self.remove(id);
            }
        }
        // Every trace held is in `order`, so nothing is held.
        self.held = 0;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::tests::{checkout, span_of_trace};

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn ids(traces: &[Vec<Span>]) -> Vec<(u128, usize)> {
        traces
            .iter()
            .map(|spans| {
                (
                    u128::from_be_bytes(spans[0].trace_id.to_bytes()),
                    spans.len(),
                )
            })
            .collect()
    }

    /// A trace is shown a second after its last span, whole, however its spans arrived.
    #[test]
    fn a_quiet_trace_is_shown_once_and_whole() {
        let mut grouping = Grouping::default();
        for (index, span) in checkout().into_iter().enumerate() {
            let now = ms(index as u64 * 600);
            assert_eq!(grouping.add(vec![span], now), Vec::<Vec<Span>>::new());
            assert_eq!(grouping.poll(now), Vec::<Vec<Span>>::new());
        }
        let last = 600 * (checkout().len() as u64 - 1);
        assert_eq!(grouping.next_due(), Some(ms(last + 1000)));
        assert_eq!(grouping.poll(ms(last + 999)).len(), 0);
        assert_eq!(grouping.poll(ms(last + 1000)), [checkout()]);
        assert_eq!(grouping.next_due(), None);
        assert_eq!(grouping.flush().len(), 0);
    }

    /// A trace that never becomes quiet is shown all the same.
    #[test]
    fn a_busy_trace_is_not_held_for_ever() {
        let mut grouping = Grouping::default();
        for tick in 0..20 {
            grouping.add(vec![span_of_trace(1)], ms(tick * 500));
            assert_eq!(grouping.poll(ms(tick * 500)).len(), 0);
        }
        assert_eq!(ids(&grouping.poll(ms(10_000))), [(1, 20)]);
    }

    /// Memory is bounded: a huge trace leaves in parts, many traces leave oldest first.
    #[test]
    fn bounds() {
        let mut grouping = Grouping::default();
        let huge: Vec<Span> = (0..2_500).map(|_| span_of_trace(1)).collect();
        let ready = grouping.add(huge, ms(0));
        assert_eq!(ids(&ready), [(1, 1_000), (1, 1_000)]);
        let many: Vec<Span> = (2..9_505).map(span_of_trace).collect();
        let ready = grouping.add(many, ms(1));
        assert_eq!(ids(&ready), [(1, 500), (2, 1), (3, 1)][..ready.len()]);
        assert_eq!(
            grouping.held,
            grouping
                .traces
                .values()
                .map(|t| t.spans.len())
                .sum::<usize>()
        );
        assert!(grouping.held <= MAX_SPANS);
        let shown: usize = ready.iter().map(Vec::len).sum();
        let left: usize = grouping.flush().iter().map(Vec::len).sum();
        assert_eq!(
            shown + left,
            500 + 9_503,
            "every span is shown exactly once"
        );
    }
}

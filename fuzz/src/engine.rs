//! The engine, fed with a recording: records, answers, ticks and losses in any order.
//!
//! An input is a recording as `engine::replay` reads it, so what is found here can be looked at
//! with the tools of the replay tests. [`mutate`] knows the format and changes what went in.

pub mod mutate;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use agent::{
    engine::{
        Command, Config, Engine,
        replay::{self, Entry},
    },
    event::clock::WallClock,
    self_metrics::{Counter, Loss, SelfMetrics},
    span::{Span, SpanId, TraceId, attribute::SERVICE_NAME},
};

/// Times stay below this: nanoseconds since boot reach it after 146 years.
pub const LATEST_NS: u64 = 1 << 62;

/// After the last entry, so that everything that waits for time has waited long enough.
const LONG_NS: u64 = 3_600_000_000_000;

/// Panics when a span is not well-formed, or the counters do not add up.
pub fn run(data: &[u8]) {
    if let Ok(entries) = replay::read(data) {
        check(&entries);
    }
}

fn check(entries: &[Entry]) {
    let metrics = Arc::new(SelfMetrics::default());
    let mut engine = Engine::new(Config::default(), Arc::clone(&metrics));
    let mut spans = Vec::new();
    let mut latest_ns = 0;
    for entry in entries {
        latest_ns = latest_ns.max(time_of(entry));
        feed(&mut engine, entry);
        answer(&mut engine, latest_ns);
        spans.extend(engine.take_spans());
    }
    engine.handle_shutdown(latest_ns);
    spans.extend(engine.take_spans());
    // What is over stays over: nothing is left that time could bring.
    engine.handle_tick(latest_ns + LONG_NS);
    answer(&mut engine, latest_ns + LONG_NS);
    engine.handle_shutdown(latest_ns + LONG_NS);
    assert_eq!(engine.take_spans(), Vec::new());

    spans.iter().for_each(check_span);
    check_family(&spans);
    let made = metrics.total(Counter::SpansCreated);
    let unsampled = metrics.total(Counter::SpansNotSampled);
    assert_eq!(made, spans.len() as u64 + unsampled);
    assert!(made <= metrics.total(Counter::ExchangesStarted));
    let forced = metrics.losses().into_iter();
    let forced = forced.filter(|((reason, _), _)| *reason == Loss::TraceHoldFull);
    assert!(forced.map(|(_, count)| count).sum::<u64>() <= made);
}

fn feed(engine: &mut Engine, entry: &Entry) {
    match entry {
        Entry::Start { .. } => {}
        Entry::Records(batch) => {
            for record in replay::records(batch) {
                engine.handle_record(record);
            }
        }
        Entry::Thread { unit, name } => engine.handle_thread(*unit, name),
        Entry::Process(process) => engine.handle_process(process.clone()),
        Entry::ConnectionState {
            connection,
            now_ns,
            state,
        } => engine.handle_connection_state(*connection, state.as_ref(), *now_ns),
        Entry::Clock {
            boottime_ns,
            unix_ns,
        } => engine.handle_clock(WallClock::sampled(*boottime_ns, *unix_ns)),
        Entry::Tick { now_ns } => engine.handle_tick(*now_ns),
        Entry::Shutdown { now_ns } => engine.handle_shutdown(*now_ns),
        Entry::Loss => engine.handle_loss(),
        Entry::Rejected { process, now_ns } => engine.handle_rejected(*process, *now_ns),
    }
}

/// As an edge that finds nobody any more: each question is asked a bounded number of times.
fn answer(engine: &mut Engine, now_ns: u64) {
    const QUESTIONS: u32 = 1_000_000;
    for _ in 0..QUESTIONS {
        match engine.poll_command() {
            None => return,
            Some(Command::Consider(process)) => {
                // Both answers there are, by a fact that does not change.
                if process.pid % 2 == 0 {
                    engine.handle_rejected(process, now_ns);
                }
            }
            Some(
                Command::ReadConnection(_)
                | Command::ReadProcess(_)
                | Command::ReadThread(_)
                | Command::NoteProgram(_)
                | Command::StopInjecting(_)
                | Command::NoteTls(_)
                | Command::NotePlaintext(..)
                | Command::Follow(_)
                | Command::Unfollow(_)
                | Command::FollowFrames(_)
                | Command::LeaveFrames(_)
                | Command::CountStreams { .. }
                | Command::NoteServer(..),
            ) => {}
        }
    }
    panic!("the engine asks without end");
}

/// When this was, so that time only moves forward.
fn time_of(entry: &Entry) -> u64 {
    match entry {
        Entry::Records(batch) => replay::records(batch)
            .filter_map(mutate::timestamp)
            .max()
            .unwrap_or(0),
        Entry::Tick { now_ns }
        | Entry::Shutdown { now_ns }
        | Entry::ConnectionState { now_ns, .. }
        | Entry::Rejected { now_ns, .. } => *now_ns,
        Entry::Start { .. }
        | Entry::Process(_)
        | Entry::Thread { .. }
        | Entry::Clock { .. }
        | Entry::Loss => 0,
    }
    .min(LATEST_NS)
}

fn check_span(span: &Span) {
    assert_ne!(span.trace_id, TraceId::INVALID, "{span:?}");
    assert_ne!(span.span_id, SpanId::INVALID, "{span:?}");
    assert!(!span.name.is_empty(), "{span:?}");
    assert!(!span.resource.service_name().is_empty(), "{span:?}");
    let named = span.resource.attributes.iter();
    assert_eq!(named.filter(|each| each.key == SERVICE_NAME).count(), 1);
    if let Some(parent) = &span.parent {
        assert_ne!(parent.span_id, SpanId::INVALID, "{span:?}");
        assert_ne!(parent.span_id, span.span_id, "its own parent: {span:?}");
    }
    for link in &span.links {
        assert_ne!(link.trace_id, TraceId::INVALID, "{span:?}");
        assert_ne!(link.span_id, SpanId::INVALID, "{span:?}");
    }
    let mut keys: Vec<_> = span.attributes.iter().map(|each| &each.key).collect();
    let count = keys.len();
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), count, "keys are unique: {span:?}");
}

/// Ids are of one span each, a local parent is in the same trace, and nobody is its own ancestor.
fn check_family(spans: &[Span]) {
    let by_id: HashMap<SpanId, &Span> = spans.iter().map(|span| (span.span_id, span)).collect();
    assert_eq!(by_id.len(), spans.len(), "span ids are unique");
    for span in spans {
        let mut seen = HashSet::from([span.span_id]);
        let mut child = span;
        while let Some(parent) = child.parent.as_ref().and_then(|up| by_id.get(&up.span_id)) {
            assert_eq!(parent.trace_id, child.trace_id, "{child:?}\n{parent:?}");
            assert!(seen.insert(parent.span_id), "a circle: {span:?}");
            child = parent;
        }
    }
}

//! Recordings of real programs replay to the spans beside them, byte for byte; and whatever is
//! lost or broken on the way, the agent is right or silent. Needs no root.
//!
//! `UPDATE_RECORDINGS=1` writes the spans anew; a person then reads the difference.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    path::{Path, PathBuf},
};

use agent::{
    engine::replay::{self, Entry},
    export::stdout::json,
    span::{Kind, Span, Status, Value, attribute},
};

const SEED: u64 = 0x5eed;

struct Recording {
    name: String,
    path: PathBuf,
    entries: Vec<Entry>,
}

fn recordings() -> Vec<Recording> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("recordings");
    let mut paths: Vec<PathBuf> = fs::read_dir(directory)
        .expect("tests/recordings is there")
        .map(|entry| entry.expect("readable").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "rec"))
        .collect();
    paths.sort();
    assert!(!paths.is_empty(), "there are recordings");
    let read = |path: PathBuf| {
        let bytes = fs::read(&path).expect("readable");
        let entries =
            replay::read(&bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let name = path
            .file_stem()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        Recording {
            name,
            path,
            entries,
        }
    };
    paths.into_iter().map(read).collect()
}

fn lines(spans: &[Span]) -> String {
    let mut out = Vec::new();
    for span in spans {
        json::write_line(span, &mut out).expect("a Vec takes all");
    }
    String::from_utf8(out).expect("JSON is UTF-8")
}

#[test]
fn recordings_replay_to_their_spans() {
    for recording in recordings() {
        let spans = lines(&replay::replay_entries(&recording.entries, SEED));
        let expected = recording.path.with_extension("json");
        if env::var_os("UPDATE_RECORDINGS").is_some() {
            fs::write(&expected, &spans).expect("writable");
        }
        let expected = fs::read_to_string(&expected)
            .unwrap_or_else(|error| panic!("{}: {error}", expected.display()));
        for (number, (got, wanted)) in spans.lines().zip(expected.lines()).enumerate() {
            assert_eq!(got, wanted, "{}, span {number}", recording.name);
        }
        assert_eq!(
            spans.lines().count(),
            expected.lines().count(),
            "{}",
            recording.name
        );
    }
}

/// Guarantee: it does not matter how many records come at a time, nor how often time is told.
#[test]
fn batches_do_not_matter() {
    for recording in recordings() {
        let expected = told(&replay::replay_entries(&recording.entries, SEED));
        let single = recording.entries.iter().flat_map(|entry| match entry {
            Entry::Records(batch) => replay::records(batch)
                .map(|record| Entry::Records(record.to_vec()))
                .collect(),
            other => vec![other.clone()],
        });
        let single: Vec<Entry> = single.collect();
        assert_eq!(
            told(&replay::replay_entries(&single, SEED)),
            expected,
            "{}",
            recording.name
        );
        // Only every third tick is heard, so that several batches are one.
        let mut ticks = 0;
        let coarse: Vec<Entry> = single
            .into_iter()
            .filter(|entry| {
                ticks += usize::from(matches!(entry, Entry::Tick { .. }));
                !matches!(entry, Entry::Tick { .. }) || ticks % 3 == 0
            })
            .collect();
        assert_eq!(
            told(&replay::replay_entries(&coarse, SEED)),
            expected,
            "{}",
            recording.name
        );
    }
}

/// Guarantee: no record, however broken, causes a panic or a span that cannot be.
#[test]
fn broken_records_break_nothing() {
    for recording in recordings() {
        let mut random = Random(SEED);
        for place in places(&recording.entries) {
            for _ in 0..4 {
                let mut entries = recording.entries.clone();
                let Some(Entry::Records(batch)) = entries.get_mut(place.entry) else {
                    continue;
                };
                let at = place.start + random.below(place.length);
                batch[at] ^= 1 << random.below(8);
                hold(&recording.name, &replay::replay_entries(&entries, SEED));
            }
            let mut entries = recording.entries.clone();
            let Some(Entry::Records(batch)) = entries.get_mut(place.entry) else {
                continue;
            };
            let kept = random.below(place.length);
            batch.drain(place.start + kept..place.start + place.length);
            hold(&recording.name, &replay::replay_entries(&entries, SEED));
        }
    }
}

/// Guarantee: what is lost makes the agent say less, never something else.
#[test]
fn lost_records_invent_nothing() {
    for recording in recordings() {
        let whole = replay::replay_entries(&recording.entries, SEED);
        let places = places(&recording.entries);
        for every in 2..12 {
            for first in 0..every {
                let lost = |index: usize| index % every == first;
                let entries = without(&recording.entries, lost);
                let name = format!("{} without {first} of every {every}", recording.name);
                says_no_more(&name, &replay::replay_entries(&entries, SEED), &whole);
            }
        }
        // One at a time.
        for index in 0..places.len() {
            let entries = without(&recording.entries, |other| other == index);
            let name = format!("{} without record {index}", recording.name);
            says_no_more(&name, &replay::replay_entries(&entries, SEED), &whole);
        }
    }
}

/// Where a record lies.
struct Place {
    entry: usize,
    start: usize,
    length: usize,
}

fn places(entries: &[Entry]) -> Vec<Place> {
    let mut places = Vec::new();
    for (entry, batch) in entries.iter().enumerate() {
        let Entry::Records(batch) = batch else {
            continue;
        };
        let mut start = 0;
        for record in replay::records(batch) {
            places.push(Place {
                entry,
                start,
                length: record.len(),
            });
            start += record.len();
        }
    }
    places
}

fn without(entries: &[Entry], lost: impl Fn(usize) -> bool) -> Vec<Entry> {
    let mut index = 0;
    let mut kept = Vec::new();
    for entry in entries {
        let Entry::Records(batch) = entry else {
            kept.push(entry.clone());
            continue;
        };
        for record in replay::records(batch) {
            // The reader of the ring buffer says that records are missing.
            kept.push(if lost(index) {
                Entry::Loss
            } else {
                Entry::Records(record.to_vec())
            });
            index += 1;
        }
    }
    kept
}

/// What must hold of the spans of any replay.
fn hold(name: &str, spans: &[Span]) {
    let parents: BTreeMap<_, _> = spans
        .iter()
        .map(|span| {
            (
                span.span_id.to_bytes(),
                span.parent.map(|parent| parent.span_id.to_bytes()),
            )
        })
        .collect();
    assert_eq!(
        parents.len(),
        spans.len(),
        "{name}: one span for each exchange"
    );
    for span in spans {
        assert!(
            span.end_ns >= span.start_ns,
            "{name}: ends before it begins: {span:?}"
        );
        let Some(parent) = span.parent else { continue };
        let known = spans.iter().find(|other| other.span_id == parent.span_id);
        assert!(
            parent.is_remote || known.is_some(),
            "{name}: no parent: {span:?}"
        );
        if let Some(known) = known {
            assert_eq!(
                known.trace_id, span.trace_id,
                "{name}: two traces: {span:?}"
            );
        }
        let mut above = BTreeSet::new();
        let mut at = Some(span.span_id.to_bytes());
        while let Some(id) = at {
            assert!(above.insert(id), "{name}: its own ancestor: {span:?}");
            at = parents.get(&id).copied().flatten();
        }
    }
}

/// A span without its random ids: who, what and when.
type Key = (i64, u8, u64, String);

fn key(span: &Span) -> Key {
    let text = |name: &str| match attribute::find(&span.attributes, name) {
        Some(Value::String(text)) => text.to_string(),
        _ => String::new(),
    };
    let pid = match attribute::find(&span.resource.attributes, attribute::PROCESS_PID) {
        Some(Value::Int(pid)) => *pid,
        _ => 0,
    };
    // A path is told by a URL, and where its host is not known alone; of a call by its method.
    let full = text(attribute::URL_FULL);
    let in_full = full
        .split_once("://")
        .and_then(|(_, rest)| rest.find('/').map(|at| &rest[at..]));
    let in_full = in_full.and_then(|target| target.split('?').next());
    let path = match (text(attribute::URL_PATH), text(attribute::RPC_METHOD)) {
        (path, method) if path.is_empty() && !method.is_empty() => format!("/{method}"),
        (path, _) => path + in_full.unwrap_or_default(),
    };
    (
        pid,
        u8::from(span.kind == Kind::Client),
        span.start_ns,
        path,
    )
}

/// Who the parent is: a span of ours, or an id from the wire.
fn parent(span: &Span, spans: &[Span]) -> Option<Result<Key, String>> {
    let parent = span.parent?;
    let known = spans.iter().find(|other| other.span_id == parent.span_id);
    Some(known.map_or_else(|| Err(parent.span_id.to_string()), |known| Ok(key(known))))
}

/// All that is said, in an order of its own.
fn told(spans: &[Span]) -> Vec<String> {
    let mut told: Vec<String> = spans
        .iter()
        .map(|span| {
            let (parent, key) = (parent(span, spans), key(span));
            let Span {
                end_ns,
                status,
                attributes,
                links,
                resource,
                ..
            } = span;
            let links = links.len();
            format!("{key:?} {end_ns} {parent:?} {status:?} {attributes:?} {links} {resource:?}")
        })
        .collect();
    told.sort_unstable();
    told
}

fn says_no_more(name: &str, spans: &[Span], whole: &[Span]) {
    hold(name, spans);
    for span in spans {
        let same = whole.iter().find(|other| key(other) == key(span));
        let Some(same) = same else {
            // A head that was not seen whole has no path; the time is that of its first byte.
            let begun = whole.iter().any(|other| other.start_ns == span.start_ns);
            assert!(
                begun && key(span).3.is_empty(),
                "{name}: a span from nowhere: {span:?}"
            );
            continue;
        };
        let (got, wanted) = (parent(span, spans), parent(same, whole));
        assert!(
            got.is_none() || got == wanted,
            "{name}: {got:?}, not {wanted:?}: {span:?}"
        );
        let status = |span: &Span| {
            attribute::find(&span.attributes, attribute::HTTP_RESPONSE_STATUS_CODE).cloned()
        };
        let (got, wanted) = (status(span), status(same));
        // A call that is not known to be one is a request of HTTP: its status is that of HTTP,
        // which a call tells only where it is unusual.
        let is_call =
            |span: &Span| attribute::find(&span.attributes, attribute::RPC_SYSTEM_NAME).is_some();
        let is_plain = is_call(same) && !is_call(span) && got == Some(Value::Int(200));
        assert!(
            got.is_none() || got == wanted || is_plain,
            "{name}: {got:?}, not {wanted:?}: {span:?}"
        );
        if span.status != Status::Unset {
            assert_eq!(
                span.status, same.status,
                "{name}: an invented error: {span:?}"
            );
        }
        if attribute::find(&span.attributes, attribute::UNOBSERVED).is_none() {
            // What broke has no end of its own: it lasts until the last that was seen of it, and
            // that it broke may be noticed by another sign.
            let is_broken = attribute::find(&span.attributes, attribute::ERROR_TYPE)
                .and_then(Value::as_str)
                .is_some_and(|error| error.starts_with("connection_"));
            assert!(
                is_broken || span.end_ns == same.end_ns,
                "{name}: invented end: {span:?}"
            );
        }
    }
}

/// xorshift64*, <https://doi.org/10.18637/jss.v008.i14>: the same sequence everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % bound.max(1)
    }
}

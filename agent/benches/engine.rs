//! The engine alone, from records to spans: time, and what it allocates. `cargo bench -p agent`
//! runs it over the recordings of the tests, each small, and over the one that `ENGINE_RECORDING`
//! names; `cargo xtask bench --engine` makes that of a real nginx under load.
//!
//! An item is one span that came out, so one request on one of its ends.
#![expect(
    clippy::disallowed_methods,
    reason = "reads recordings, and which one from the environment"
)]

use std::{env, fmt, fs, path::Path};

use agent::engine::replay::{self, Entry};
use divan::{AllocProfiler, Bencher, black_box, counter::ItemsCount};

/// Counts in memory of each thread, so the profiler weighs little on the times.
#[global_allocator]
static ALLOCATOR: AllocProfiler = AllocProfiler::system();

const SEED: u64 = 0x5eed;

fn main() {
    divan::main();
}

struct Recording {
    name: String,
    entries: Vec<Entry>,
    spans: usize,
}

/// The name in the report, from which `cargo xtask bench` also takes the number of spans.
impl fmt::Display for Recording {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, self.spans)
    }
}

/// Reads each, and looks that it replays to spans: a bench of nothing is fast.
fn recordings() -> Vec<Recording> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/recordings");
    let listed = fs::read_dir(directory).expect("the recordings of the tests are there");
    let mut paths: Vec<_> = listed
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "rec"));
    paths.sort();
    paths.extend(env::var_os("ENGINE_RECORDING").map(Into::into));
    let read = |path: std::path::PathBuf| {
        let bytes = fs::read(&path).expect("the recording is readable");
        let entries = replay::read(&bytes).expect("the recording is whole");
        let spans = spans(&entries);
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        Recording {
            name: name.into_owned(),
            entries,
            spans,
        }
    };
    let recordings = paths.into_iter().map(read);
    recordings.filter(|recording| recording.spans > 0).collect()
}

#[divan::bench(args = recordings())]
fn replayed(bencher: Bencher<'_, '_>, recording: &Recording) {
    bencher
        .counter(ItemsCount::new(recording.spans))
        .bench_local(|| spans(&recording.entries));
}

/// What every replay has before its first record.
#[divan::bench]
fn empty() -> usize {
    spans(&[])
}

/// How many came; they are let go as they come, as an exporter does.
fn spans(entries: &[Entry]) -> usize {
    let mut count = 0;
    replay::replay_in_steps(black_box(entries), SEED, |spans| {
        count += black_box(spans).len();
    });
    count
}

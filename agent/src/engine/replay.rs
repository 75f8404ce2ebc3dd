//! Recordings of what went into an engine, and their replay. Pure: the edge that writes one is
//! `pipeline/recording.rs`.
//!
//! A recording is [`MAGIC`] and then entries, each `kind: u32, length: u32` and `length` bytes,
//! integers in the byte order of the machine that wrote it (as in the records themselves):
//!
//! | kind | content |
//! |---|---|
//! | 1 start | `boot_seconds: u64` |
//! | 2 records | records as they came from the ring buffer, each padded to 8 bytes |
//! | 3 process | JSON: what was known of a process |
//! | 4 connection state | `connection: u64, now_ns: u64`, then a `ConnectionState` or nothing |
//! | 5 clock | `boottime_ns: u64, unix_ns: u64` |
//! | 6 tick | `now_ns: u64` |
//! | 7 shutdown | `now_ns: u64` |
//! | 8 loss | nothing: records are missing here |
//! | 9 rejected | `pid: u64, start_ticks: u64, now_ns: u64` |
//!
//! **A recording holds what the traced programs sent and received**, passwords and cookies
//! included. Of the environment of programs it keeps `OTEL_*` variables only.

use std::sync::Arc;

use agent_common::{connection::ConnectionState, process::ProcessExec, record::RecordKind};
use serde_json::{Value, json};
use thiserror::Error;
use zerocopy::{FromBytes as _, IntoBytes as _};

use super::{Config, Engine};
use crate::{
    event::{ConnectionId, ProcessId, clock::WallClock, decode},
    process::{Facts, Process},
    self_metrics::SelfMetrics,
    span::Span,
};

/// First bytes of a recording; the last one is the version.
pub const MAGIC: &[u8; 8] = b"EBPFREC\x01";

const RECORDED_VARIABLES: &[u8] = b"OTEL_";

/// One thing that went into the engine.
#[derive(Clone, Debug, PartialEq)]
pub enum Entry {
    Start {
        boot_seconds: u64,
    },
    Records(Vec<u8>),
    Process(Process),
    ConnectionState {
        connection: ConnectionId,
        now_ns: u64,
        state: Option<ConnectionState>,
    },
    Clock {
        boottime_ns: u64,
        unix_ns: u64,
    },
    Tick {
        now_ns: u64,
    },
    Shutdown {
        now_ns: u64,
    },
    Loss,
    Rejected {
        process: ProcessId,
        now_ns: u64,
    },
}

#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum RecordingError {
    #[error("not a recording of version {}", MAGIC[7])]
    Magic,
    #[error("entry {0} is cut short")]
    Short(usize),
    #[error("entry {0} is of the unknown kind {1}")]
    UnknownKind(usize, u32),
    #[error("entry {0} is not well-formed")]
    Malformed(usize),
}

/// The spans that came of a recording, in the order they left the engine.
pub fn replay(recording: &[u8], seed: u64) -> Result<Vec<Span>, RecordingError> {
    Ok(replay_entries(&read(recording)?, seed))
}

/// As [`replay`], of entries that may have been changed on the way.
pub fn replay_entries(entries: &[Entry], seed: u64) -> Vec<Span> {
    let mut all = Vec::new();
    replay_in_steps(entries, seed, |spans| all.extend(spans));
    all
}

/// As [`replay_entries`], handing on after each entry what came of it, as the running agent does.
pub fn replay_in_steps(entries: &[Entry], seed: u64, mut take: impl FnMut(Vec<Span>)) {
    let boot_seconds = entries.iter().find_map(|entry| match entry {
        Entry::Start { boot_seconds } => Some(*boot_seconds),
        _ => None,
    });
    let config = Config {
        seed,
        boot_seconds: boot_seconds.unwrap_or(0),
        ..Config::default()
    };
    let mut engine = Engine::new(config, Arc::new(SelfMetrics::default()));
    for entry in entries {
        feed(&mut engine, entry);
        take(engine.take_spans());
    }
}

fn feed(engine: &mut Engine, entry: &Entry) {
    match entry {
        Entry::Start { .. } => {}
        Entry::Records(bytes) => {
            for record in records(bytes) {
                engine.handle_record(record);
            }
        }
        Entry::Process(process) => engine.handle_process(process.clone()),
        Entry::ConnectionState {
            connection,
            now_ns,
            state,
        } => {
            engine.handle_connection_state(*connection, state.as_ref(), *now_ns);
        }
        Entry::Clock {
            boottime_ns,
            unix_ns,
        } => {
            engine.handle_clock(WallClock::sampled(*boottime_ns, *unix_ns));
        }
        Entry::Tick { now_ns } => {
            engine.handle_tick(*now_ns);
            // The answers that were given are in the recording.
            while engine.poll_command().is_some() {}
        }
        Entry::Shutdown { now_ns } => engine.handle_shutdown(*now_ns),
        Entry::Loss => engine.handle_loss(),
        Entry::Rejected { process, now_ns } => engine.handle_rejected(*process, *now_ns),
    }
}

/// The records of a batch, each with its padding.
pub fn records(batch: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = batch;
    std::iter::from_fn(move || {
        let (record, behind) = rest.split_at_checked(decode::padded_length(rest)?)?;
        rest = behind;
        Some(record)
    })
}

/// The entries of a recording. One that was cut off in its last entry, as by a crash, is an error.
pub fn read(recording: &[u8]) -> Result<Vec<Entry>, RecordingError> {
    let mut rest = recording.strip_prefix(MAGIC).ok_or(RecordingError::Magic)?;
    let mut entries = Vec::new();
    while !rest.is_empty() {
        let index = entries.len();
        let (kind, behind) = u32_of(rest).ok_or(RecordingError::Short(index))?;
        let (length, behind) = u32_of(behind).ok_or(RecordingError::Short(index))?;
        let (body, behind) = behind
            .split_at_checked(length as usize)
            .ok_or(RecordingError::Short(index))?;
        rest = behind;
        entries.push(read_entry(index, kind, body)?);
    }
    Ok(entries)
}

fn read_entry(index: usize, kind: u32, body: &[u8]) -> Result<Entry, RecordingError> {
    let entry = match kind {
        1 => words(body).map(|([boot_seconds], _)| Entry::Start { boot_seconds }),
        2 => Some(Entry::Records(body.to_vec())),
        3 => serde_json::from_slice(body)
            .ok()
            .map(|value| Entry::Process(process_of(&value))),
        4 => words(body).and_then(|([id, now_ns], state)| {
            let state = match state {
                [] => None,
                state => Some(ConnectionState::read_from_bytes(state).ok()?),
            };
            Some(Entry::ConnectionState {
                connection: ConnectionId(id),
                now_ns,
                state,
            })
        }),
        5 => words(body).map(|([boottime_ns, unix_ns], _)| Entry::Clock {
            boottime_ns,
            unix_ns,
        }),
        6 => words(body).map(|([now_ns], _)| Entry::Tick { now_ns }),
        7 => words(body).map(|([now_ns], _)| Entry::Shutdown { now_ns }),
        8 => Some(Entry::Loss),
        9 => words(body).and_then(|([pid, start_ticks, now_ns], _)| {
            let process = ProcessId {
                pid: u32::try_from(pid).ok()?,
                start_ticks,
            };
            Some(Entry::Rejected { process, now_ns })
        }),
        unknown => return Err(RecordingError::UnknownKind(index, unknown)),
    };
    entry.ok_or(RecordingError::Malformed(index))
}

fn u32_of(bytes: &[u8]) -> Option<(u32, &[u8])> {
    u32::read_from_prefix(bytes).ok()
}

fn words<const N: usize>(bytes: &[u8]) -> Option<([u64; N], &[u8])> {
    <[u64; N]>::read_from_prefix(bytes).ok()
}

/// Appends an entry to a recording that began with [`MAGIC`].
pub fn write(entry: &Entry, out: &mut Vec<u8>) {
    let mut body = Vec::new();
    let kind: u32 = match entry {
        Entry::Start { boot_seconds } => {
            body.extend_from_slice(boot_seconds.as_bytes());
            1
        }
        Entry::Records(records) => {
            body.extend_from_slice(records);
            hide_environments(&mut body);
            2
        }
        Entry::Process(process) => {
            body = process_value(process).to_string().into_bytes();
            3
        }
        Entry::ConnectionState {
            connection,
            now_ns,
            state,
        } => {
            body.extend_from_slice([connection.0, *now_ns].as_bytes());
            if let Some(state) = state {
                body.extend_from_slice(state.as_bytes());
            }
            4
        }
        Entry::Clock {
            boottime_ns,
            unix_ns,
        } => {
            body.extend_from_slice([*boottime_ns, *unix_ns].as_bytes());
            5
        }
        Entry::Tick { now_ns } => {
            body.extend_from_slice(now_ns.as_bytes());
            6
        }
        Entry::Shutdown { now_ns } => {
            body.extend_from_slice(now_ns.as_bytes());
            7
        }
        Entry::Loss => 8,
        Entry::Rejected { process, now_ns } => {
            body.extend_from_slice(
                [u64::from(process.pid), process.start_ticks, *now_ns].as_bytes(),
            );
            9
        }
    };
    out.extend_from_slice([kind, body.len() as u32].as_bytes());
    out.extend_from_slice(&body);
}

/// Overwrites every variable but `OTEL_*` in the exec records of a batch, lengths unchanged.
fn hide_environments(batch: &mut [u8]) {
    let mut rest = batch;
    while let Some(length) = decode::padded_length(rest) {
        let Some((record, behind)) = rest.split_at_mut_checked(length) else {
            return;
        };
        let environment_at = ProcessExec::read_from_prefix(record)
            .ok()
            .filter(|(exec, _)| exec.header.kind == RecordKind::ProcessExec as u16)
            .map(|(exec, _)| exec.executable_length as usize + exec.arguments_length as usize);
        if let Some(at) = environment_at
            && let Some(environment) = record.get_mut(size_of::<ProcessExec>() + at..)
        {
            for variable in environment.split_mut(|byte| *byte == 0) {
                if !variable.starts_with(RECORDED_VARIABLES) {
                    variable.fill(b'x');
                }
            }
        }
        rest = behind;
    }
}

fn process_value(process: &Process) -> Value {
    let facts = &process.facts;
    json!({
        "pid": process.id.pid,
        "start_ticks": process.id.start_ticks,
        "parent_pid": facts.parent_pid,
        "executable": facts.executable.to_string_lossy(),
        "arguments": facts.arguments,
        "environment": facts.environment,
        "container_id": facts.container_id,
        "command": facts.command,
        "creation_time": facts.creation_time,
        "go_version": facts.go_version,
    })
}

/// What is missing is unknown.
fn process_of(value: &Value) -> Process {
    let number = |name: &str| value.get(name).and_then(Value::as_u64).unwrap_or(0);
    let text = |name: &str| value.get(name).and_then(Value::as_str).map(str::to_owned);
    let list = |name: &str| {
        value
            .get(name)
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
    };
    let owned = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let pair = |pair: &Value| match pair.as_array().map(Vec::as_slice) {
        Some([name, value]) => Some((owned(name), owned(value))),
        _ => None,
    };
    Process {
        id: ProcessId {
            pid: u32::try_from(number("pid")).unwrap_or(0),
            start_ticks: number("start_ticks"),
        },
        facts: Facts {
            parent_pid: u32::try_from(number("parent_pid")).unwrap_or(0),
            executable: text("executable").unwrap_or_default().into(),
            arguments: list("arguments").map(owned).collect(),
            environment: list("environment").filter_map(pair).collect(),
            container_id: text("container_id"),
            command: text("command").unwrap_or_default(),
            creation_time: text("creation_time"),
            go_version: text("go_version"),
        },
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros as _;

    use super::*;

    fn entries() -> Vec<Entry> {
        let process = Process {
            id: ProcessId {
                pid: 7,
                start_ticks: 99,
            },
            facts: Facts {
                parent_pid: 1,
                executable: "/usr/bin/python3".into(),
                arguments: vec!["python3".to_owned(), "-c".to_owned()],
                environment: vec![("OTEL_SERVICE_NAME".to_owned(), "cart".to_owned())],
                container_id: Some("c0".to_owned()),
                command: "python3".to_owned(),
                creation_time: None,
                go_version: Some("go1.22.1".to_owned()),
            },
        };
        let mut state = ConnectionState::new_zeroed();
        state.inbound.position = 12;
        let connection = ConnectionId(5);
        vec![
            Entry::Start {
                boot_seconds: 1_700_000_000,
            },
            Entry::Clock {
                boottime_ns: 1,
                unix_ns: 2,
            },
            Entry::Process(process),
            Entry::Records(vec![1, 2, 3]),
            Entry::ConnectionState {
                connection,
                now_ns: 3,
                state: Some(state),
            },
            Entry::ConnectionState {
                connection,
                now_ns: 4,
                state: None,
            },
            Entry::Tick { now_ns: 5 },
            Entry::Loss,
            Entry::Rejected {
                process: ProcessId {
                    pid: 7,
                    start_ticks: 99,
                },
                now_ns: 5,
            },
            Entry::Shutdown { now_ns: 6 },
        ]
    }

    fn written(entries: &[Entry]) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        for entry in entries {
            write(entry, &mut out);
        }
        out
    }

    #[test]
    fn what_is_written_is_read() {
        assert_eq!(read(&written(&entries())), Ok(entries()));
    }

    /// Guarantee: a cut recording is an error or a shorter recording, and never more.
    #[test]
    fn cut_recordings_are_told() {
        let (whole, all) = (written(&entries()), entries());
        for length in 0..whole.len() {
            match read(&whole[..length]) {
                Ok(read) => assert_eq!(read, all[..read.len()]),
                Err(RecordingError::Magic) => assert!(length < MAGIC.len()),
                Err(RecordingError::Short(_)) => {}
                Err(other) => panic!("{other} at {length}"),
            }
        }
    }

    /// Guarantee: the environment of a program does not get into a recording, `OTEL_*` excepted.
    #[test]
    fn secrets_of_the_environment_are_not_recorded() {
        let environment = b"TOKEN=secret\0OTEL_SERVICE_NAME=cart\0HOME=/home/me\0";
        let mut exec = ProcessExec::new_zeroed();
        exec.header.kind = RecordKind::ProcessExec as u16;
        exec.header.length = (size_of::<ProcessExec>() + environment.len()) as u32;
        exec.environment_length = environment.len() as u32;
        let mut record = [exec.as_bytes(), environment].concat();
        record.resize(record.len().next_multiple_of(8), 0);
        let twice = [record.clone(), record].concat();
        let read = read(&written(&[Entry::Records(twice.clone())])).expect("well-formed");
        let [Entry::Records(recorded)] = read.as_slice() else {
            panic!("records: {read:?}")
        };
        let hidden = b"xxxxxxxxxxxx\0OTEL_SERVICE_NAME=cart\0xxxxxxxxxxxxx\0";
        assert_eq!(recorded.len(), twice.len());
        for record in records(recorded) {
            assert!(record[size_of::<ProcessExec>()..].starts_with(hidden));
        }
        assert_eq!(records(recorded).count(), 2);
    }
}

//! Where fuzzing begins: the vectors of the parsers and the recordings of the replay tests, in the
//! form that the targets read, and an example of everything else.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use agent::{
    engine::replay::{self, Entry},
    protocol::{EndCause, Flow},
};
use agent_common::record::RecordHeader;
use zerocopy::FromBytes as _;

use crate::{http1, http2};

/// Longer recordings say nothing new and take longer.
const RECORDING_BYTES: usize = 24 * 1024;

/// Inputs of a target, made from the files of the workspace at `root`.
pub fn of(target: &str, root: &Path) -> io::Result<Vec<Vec<u8>>> {
    let examples = |texts: &[&str]| texts.iter().map(|text| text.as_bytes().to_vec()).collect();
    Ok(match target {
        "http1" => vectors(root)?,
        "http2" => frames(root)?,
        "outgoing_frames" => outgoing_frames(root)?,
        "record" => records(root)?,
        "recording" | "engine" => recordings(root)?,
        "kernel_types" => vec![kernel_types()],
        "trace_headers" => examples(&TRACE_HEADERS),
        "process_text" => examples(&PROCESS_TEXTS),
        "settings" => examples(&SETTINGS),
        "export_answer" => examples(&ANSWERS),
        _ => Vec::new(),
    })
}

/// Section 3.2 of <https://www.w3.org/TR/trace-context-2/>, and a later version.
const TRACE_HEADERS: [&str; 2] = [
    "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\nrojo=00f067aa0ba902b7,congo=t61",
    "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00-what-more",
];

const PROCESS_TEXTS: [&str; 6] = [
    "7 (a) b) S 1 7 7 0 -1 4194560 1 0 0 0 1 2 0 0 20 0 1 0 345 1 1",
    "PATH=/bin\0OTEL_SERVICE_NAME=cart\0OTEL_RESOURCE_ATTRIBUTES=service.version=1%202,a=b\0",
    "service.name=from%20attributes,service.namespace=shop,broken",
    "0::/system.slice/docker-8f1e6a0c7b2d4e5f9a3b1c2d3e4f5a6b7c8d9e0f1a2b3c4d5e6f7a8b9c0d1e2f.scope",
    "/usr/bin/python3\npython3\n-m\0http.server\0",
    "http://user:secret@host:8080/path?sig=1&X-Amz-Signature=2#end",
];

const SETTINGS: [&str; 4] = [
    "pid: [1, 2]\nport: 80,8000-8999\nexe: '*/nginx'\nall: true\nexporter: [json, none]\n",
    "EBPF_AGENT_PORT=80,8000-8999\nOTEL_EXPORTER_OTLP_ENDPOINT=http://[::1]:4318/x\nlisten=[::1]:1",
    "OTEL_TRACES_SAMPLER=parentbased_traceidratio\nOTEL_TRACES_SAMPLER_ARG=0.5\nOTEL_BSP_SCHEDULE_DELAY=1",
    "OTEL_EXPORTER_OTLP_HEADERS=a=b%20c,d=e\nOTEL_EXPORTER_OTLP_TIMEOUT=1\nexe=*/{a,b}\nlog-level=debug",
];

/// Status, code, then what follows: 429 with seconds and with a date, and `RetryInfo`.
const ANSWERS: [&str; 3] = [
    "\x1d\x08120",
    "\x67\x0eFri, 31 Dec 1999 23:59:59 GMT",
    "\x1d\x08\x1a\x31\x0a\x28type.googleapis.com/google.rpc.RetryInfo\x12\x04\x0a\x02\x08\x05",
];

/// Files with this ending in a directory of the workspace, in the order of their names.
fn files(root: &Path, directory: &str, ending: &str) -> io::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(root.join(directory))?;
    let mut paths = entries
        .map(|entry| Ok(entry?.path()))
        .collect::<io::Result<Vec<PathBuf>>>()?;
    paths.retain(|path| path.extension().is_some_and(|found| found == ending));
    paths.sort();
    Ok(paths)
}

fn recordings(root: &Path) -> io::Result<Vec<Vec<u8>>> {
    let paths = files(root, "tests/recordings", "rec")?;
    let mut recordings: Vec<Vec<u8>> = paths.iter().map(fs::read).collect::<io::Result<_>>()?;
    recordings.retain(|recording| recording.len() <= RECORDING_BYTES);
    Ok(recordings)
}

/// The first record of each kind and size class that the recordings have.
fn records(root: &Path) -> io::Result<Vec<Vec<u8>>> {
    let mut seen = BTreeSet::new();
    let mut records = Vec::new();
    for path in files(root, "tests/recordings", "rec")? {
        let recording = fs::read(path)?;
        for entry in replay::read(&recording).unwrap_or_default() {
            let Entry::Records(batch) = entry else {
                continue;
            };
            for record in replay::records(&batch) {
                let Ok((header, _)) = RecordHeader::read_from_prefix(record) else {
                    continue;
                };
                if seen.insert((header.kind, record.len().ilog2())) {
                    records.push(record.to_vec());
                }
            }
        }
    }
    Ok(records)
}

fn vectors(root: &Path) -> io::Result<Vec<Vec<u8>>> {
    let paths = files(root, "agent/src/protocol/http1/vectors", "txt")?;
    paths
        .iter()
        .map(|path| Ok(vector(&fs::read_to_string(path)?)))
        .collect()
}

/// Vectors of HTTP/2, each with several sizes of calls and buffers.
fn frames(root: &Path) -> io::Result<Vec<Vec<u8>>> {
    let mut seeds = Vec::new();
    for path in files(root, "agent/src/protocol/http2/vectors", "txt")? {
        let text = fs::read_to_string(path)?;
        let (input, _) = text.split_once("\nexpect\n").unwrap_or((&text, ""));
        let bytes = frame_bytes(input);
        let head = u8::from(input.contains("kind: client")) * http2::CLIENT
            + u8::from(input.contains("older: yes")) * http2::OLDER;
        for (call, buffer) in [(255, 255), (64, 2), (1, 255), (0, 0)] {
            seeds.push([&[head, call, buffer], bytes.as_slice()].concat());
        }
    }
    Ok(seeds)
}

/// What the clients of the same vectors send behind their prefaces, in messages of several lengths.
fn outgoing_frames(root: &Path) -> io::Result<Vec<Vec<u8>>> {
    const PREFACE: &[u8] = &agent_common::outgoing_frames::PREFACE;
    let mut seeds = Vec::new();
    for path in files(root, "agent/src/protocol/http2/vectors", "txt")? {
        let text = fs::read_to_string(path)?;
        let (input, _) = text.split_once("\nexpect\n").unwrap_or((&text, ""));
        let mut sent = Vec::new();
        let (mut is_clients, mut is_escaped) = (true, false);
        for byte in frame_bytes(input) {
            match (is_escaped, byte) {
                (false, http2::ESCAPE) => {
                    is_escaped = true;
                    continue;
                }
                (true, b'>' | b'<') => is_clients = byte == b'>',
                _ if is_clients => sent.push(byte),
                _ => {}
            }
            is_escaped = false;
        }
        if let Some(behind) = sent.strip_prefix(PREFACE) {
            seeds.extend([255, 199, 63, 7, 0].map(|size| [&[size], behind].concat()));
        }
    }
    Ok(seeds)
}

/// Lines of hexadecimal digits, below lines that begin with the direction.
fn frame_bytes(input: &str) -> Vec<u8> {
    let mut out = Vec::new();
    for line in input.lines() {
        if let Some(direction) = line.bytes().next().filter(|byte| b"<>".contains(byte)) {
            out.extend([http2::ESCAPE, direction]);
        } else if let Some(digits) = line.strip_prefix("  ") {
            for at in (0..digits.len()).step_by(2) {
                let byte = digits.get(at..at + 2).unwrap_or_default();
                let byte = u8::from_str_radix(byte, 16).unwrap_or(0);
                out.extend(vec![byte; 1 + usize::from(byte == http2::ESCAPE)]);
            }
        }
    }
    out
}

/// A vector, whose format is in the README beside it, as the target reads it.
fn vector(text: &str) -> Vec<u8> {
    let (input, _) = text.split_once("\nexpect\n").unwrap_or((text, ""));
    let mut head = 0;
    let mut out = Vec::new();
    let mut before = None;
    let mut tail: Option<Vec<u8>> = None;
    for line in input.lines() {
        if let Some(quoted) = line.strip_prefix("  \"") {
            let bytes = unescape(quoted.strip_suffix('"').unwrap_or(quoted));
            match &mut tail {
                Some(tail) => tail.extend(bytes),
                None => out.extend(bytes),
            }
            continue;
        }
        put_tail(&mut out, tail.take());
        match line {
            "kind: client" => head |= http1::CLIENT,
            "older: yes" => head |= http1::OLDER,
            _ if line.starts_with(['<', '>']) => {
                let flow = if line.starts_with('>') {
                    Flow::Request
                } else {
                    Flow::Response
                };
                tail = put_step(&mut out, flow, before.replace(flow), line);
            }
            _ => {}
        }
    }
    put_tail(&mut out, tail);
    out.insert(0, head);
    out
}

/// The beginning of a step; gives the place for the last bytes of a hole.
fn put_step(out: &mut Vec<u8>, flow: Flow, before: Option<Flow>, line: &str) -> Option<Vec<u8>> {
    let code = match flow {
        _ if before == Some(flow) => b',',
        Flow::Request => b'>',
        Flow::Response => b'<',
    };
    out.extend([http1::ESCAPE, code]);
    let words: Vec<&str> = line.split(' ').collect();
    match words.get(2..) {
        Some(["skip", length]) => {
            let length: u64 = length.parse().unwrap_or(0);
            out.extend([http1::ESCAPE, b'#']);
            out.extend((length << 8).to_le_bytes());
            Some(Vec::new())
        }
        Some(["end", cause]) => {
            let code = match *cause {
                "closed" => http1::code(EndCause::Closed),
                "reset" => http1::code(EndCause::Reset),
                "timed_out" => http1::code(EndCause::TimedOut),
                _ => http1::code(EndCause::Unobserved),
            };
            out.extend([http1::ESCAPE, code]);
            None
        }
        _ => None,
    }
}

/// The last bytes of a hole, right aligned.
fn put_tail(out: &mut Vec<u8>, tail: Option<Vec<u8>>) {
    if let Some(tail) = tail {
        let missing = 8_usize.saturating_sub(tail.len());
        out.extend(vec![0; missing]);
        out.extend(tail.get(..8 - missing).unwrap_or_default());
    }
}

fn unescape(quoted: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut characters = quoted.bytes();
    while let Some(byte) = characters.next() {
        if byte != b'\\' {
            bytes.push(byte);
            continue;
        }
        match characters.next() {
            Some(b'r') => bytes.push(b'\r'),
            Some(b'n') => bytes.push(b'\n'),
            Some(b'x') => {
                let digits: String = characters.by_ref().take(2).map(char::from).collect();
                let byte = u8::from_str_radix(&digits, 16).unwrap_or(0);
                // A byte that begins a step stands for itself when it comes twice.
                bytes.extend(vec![byte; 1 + usize::from(byte == http1::ESCAPE)]);
            }
            Some(other) => bytes.push(other),
            None => {}
        }
    }
    bytes
}

/// `struct s { struct { int b; } a; }`, a function `f` and a typedef `btf_trace_t`: header, types,
/// strings, Documentation/bpf/btf.rst.
fn kernel_types() -> Vec<u8> {
    const INT: u32 = 1;
    const STRUCT: u32 = 4;
    const TYPEDEF: u32 = 8;
    const FUNC: u32 = 12;
    const FUNC_PROTO: u32 = 13;
    let strings = b"\0int\0b\0a\0s\0f\0btf_trace_t\0";
    let name = |wanted: &[u8]| {
        let mut at = 0;
        for text in strings.split(|byte| *byte == 0) {
            if text == wanted {
                break;
            }
            at += text.len() as u32 + 1;
        }
        at
    };
    let types = [
        // 1: int; 2: the inner structure; 3: s; 4: a prototype; 5: f; 6: the typedef.
        vec![name(b"int"), INT << 24, 4, 32],
        vec![0, (STRUCT << 24) | 1, 4, name(b"b"), 1, 0],
        vec![name(b"s"), (STRUCT << 24) | 1, 4, name(b"a"), 2, 0],
        vec![0, FUNC_PROTO << 24, 0],
        vec![name(b"f"), FUNC << 24, 4],
        vec![name(b"btf_trace_t"), TYPEDEF << 24, 4],
    ]
    .concat();
    let types_length = types.len() as u32 * 4;
    let header = [
        0x0001_eb9f,
        24,
        0,
        types_length,
        types_length,
        strings.len() as u32,
    ];
    let words = header.into_iter().chain(types);
    words
        .flat_map(u32::to_le_bytes)
        .chain(strings.iter().copied())
        .collect()
}

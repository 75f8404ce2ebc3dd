//! What is fuzzed: one target for each parser and one for the engine.
//!
//! A target is a function of bytes that panics when something that must hold does not. libFuzzer
//! calls it through `fuzz_targets/`; `tests/inputs.rs` calls it with every input in
//! `regressions/` and with every seed, so that what was found once is looked at in each test run.
//! `cargo xtask fuzz` builds and runs them.
#![forbid(unsafe_code)]

pub mod engine;
pub mod export_answer;
pub mod http1;
pub mod http2;
pub mod kernel_types;
pub mod outgoing_frames;
pub mod process_text;
pub mod record;
pub mod recording;
pub mod seeds;
pub mod settings;
pub mod trace_headers;

/// A target by its name.
pub struct Target {
    pub name: &'static str,
    pub run: fn(&[u8]),
}

/// Every target; each has a program of its name in `fuzz_targets/`.
pub static TARGETS: &[Target] = &[
    Target {
        name: "http1",
        run: http1::run,
    },
    Target {
        name: "http2",
        run: http2::run,
    },
    Target {
        name: "outgoing_frames",
        run: outgoing_frames::run,
    },
    Target {
        name: "trace_headers",
        run: trace_headers::run,
    },
    Target {
        name: "record",
        run: record::run,
    },
    Target {
        name: "recording",
        run: recording::run,
    },
    Target {
        name: "engine",
        run: engine::run,
    },
    Target {
        name: "process_text",
        run: process_text::run,
    },
    Target {
        name: "settings",
        run: settings::run,
    },
    Target {
        name: "export_answer",
        run: export_answer::run,
    },
    Target {
        name: "kernel_types",
        run: kernel_types::run,
    },
];

//! Zero-code tracing: bytes of unmodified programs in, OpenTelemetry spans out.
//!
//! ```text
//! kernel (edge) -> event -> connection -> protocol -> context -> enrich -> sample -> export (edge)
//!    records      Event   streams       exchanges   parents   resources  verdicts   OTLP, console
//! ```
//!
//! Modules stand in the order of that flow. Everything between the two edges is synchronous and
//! pure, and `engine` composes it: a recording of ring-buffer records replays to the same spans.
#![forbid(unsafe_code)]

pub mod capability;
pub mod check;
pub mod cli;
pub mod config;
pub mod connection;
pub mod context;
pub mod engine;
pub mod enrich;
pub mod event;
pub mod export;
pub mod failure;
pub mod kernel;
pub mod launch;
pub mod ledger;
pub mod pipeline;
pub mod process;
pub mod protocol;
pub mod sample;
pub mod self_metrics;
pub mod span;
pub mod status;

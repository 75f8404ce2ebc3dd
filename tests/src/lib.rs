//! Judges the whole agent from outside: real servers and clients, the built binary, and an OTLP
//! receiver that shares no code with it.
//!
//! A test starts a [`receiver::Receiver`] and some [`workload`]s, traces them with an
//! [`agent::Agent`], drives them, stops the agent (which flushes) and looks at the spans. All of it
//! panics on failure, waits with deadlines instead of sleeping, and is stopped by pid on drop.
#![forbid(unsafe_code)]

pub mod agent;
pub mod go;
pub mod http;
pub mod long;
pub mod namespace;
pub mod node;
pub mod pki;
pub mod port;
pub mod privilege;
pub mod process;
pub mod python;
pub mod receiver;
pub mod scene;
pub mod span;
pub mod summary;
pub mod temp;
pub mod wait;
pub mod workload;

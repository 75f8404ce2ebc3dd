//! Real programs to trace. Each starts on a free port, keeps its own log of what it served, and is
//! stopped by pid when dropped.

pub mod client;
pub mod connect;
pub mod ends;
pub mod grpc;
pub mod hop;
pub mod mix;
pub mod nghttp2;
pub mod nginx;
pub mod recorder;
pub mod server;
pub mod streams;
pub mod tls;

use std::{fs, path::Path};

use serde::Deserialize;

/// What a server says of one request it served.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct LogLine {
    pub method: String,
    /// Without the query.
    pub path: String,
    pub status: i64,
    /// Body bytes as the server's program counted them, without transfer framing. nginx knows
    /// only the length that was announced.
    #[serde(deserialize_with = "number_or_text")]
    pub request_body: i64,
    pub response_body: i64,
    /// The client's port; 0 for a unix socket.
    #[serde(deserialize_with = "number_or_text")]
    pub port: i64,
}

/// nginx quotes what may be empty.
fn number_or_text<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
    use serde::de::Error;
    match serde_json::Value::deserialize(deserializer)? {
        serde_json::Value::String(text) => Ok(text.parse().unwrap_or(0)),
        other => other
            .as_i64()
            .ok_or_else(|| D::Error::custom("neither number nor text")),
    }
}

fn read_log(path: &Path) -> Vec<LogLine> {
    let text = fs::read_to_string(path).unwrap_or_default();
    // Programs may be writing the last line.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole
        .lines()
        .map(|line| {
            serde_json::from_str(line).unwrap_or_else(|error| panic!("log: {error}: {line}"))
        })
        .collect()
}

//! EDGE: one export call over the network, by gRPC or HTTP.
//!
//! Both share one connection pool and one TLS setup. Redirects are not followed and proxies are
//! not used: a receiver is where the endpoint says.

mod grpc;
mod http;
mod tls;

use std::{error::Error, time::Duration};

use anyhow::Result;
use bytes::Bytes;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTracePartialSuccess;

use crate::export::otlp::{
    config::{Config, Protocol},
    retry::{Class, Failure},
};

const USER_AGENT: &str = concat!("ebpf-agent/", env!("CARGO_PKG_VERSION"));
/// An idle connection is given up after this long, before common load balancers do so silently.
const IDLE_TIMEOUT: Duration = Duration::from_secs(50);
/// For endpoints that were given no timeout.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// What a receiver said about a request it took.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Answer {
    /// Spans it did not take.
    pub(super) rejected: u64,
    /// What it wants people to know; empty when nothing.
    pub(super) message: String,
}

impl From<Option<ExportTracePartialSuccess>> for Answer {
    fn from(partial: Option<ExportTracePartialSuccess>) -> Self {
        let partial = partial.unwrap_or_default();
        Self {
            rejected: partial.rejected_spans.try_into().unwrap_or(0),
            message: partial.error_message,
        }
    }
}

pub(super) struct Transport {
    caller: Caller,
    timeout: Duration,
}

enum Caller {
    Grpc(grpc::Caller),
    Http(http::Caller),
}

impl Transport {
    /// Reads the certificate files; connects to nothing yet.
    pub(super) fn new(config: &Config) -> Result<Self> {
        let builder = HttpsConnectorBuilder::new()
            .with_tls_config(tls::client_config(config)?)
            .https_or_http();
        let caller = match config.protocol {
            Protocol::Grpc => Caller::Grpc(grpc::Caller::new(
                config,
                builder.enable_http2().wrap_connector(tcp()),
            )),
            Protocol::HttpProtobuf | Protocol::HttpJson => Caller::Http(http::Caller::new(
                config,
                builder.enable_http1().wrap_connector(tcp()),
            )),
        };
        Ok(Self {
            caller,
            timeout: config.timeout,
        })
    }

    /// Compresses once what will be sent one or more times.
    pub(super) fn prepare(&self, body: Vec<u8>) -> Result<Bytes> {
        match &self.caller {
            Caller::Grpc(_) => Ok(body.into()),
            Caller::Http(caller) => caller.compress(body),
        }
    }

    /// One attempt, over within the configured timeout and within `limit`.
    pub(super) async fn send(&mut self, body: Bytes, limit: Duration) -> Result<Answer, Failure> {
        let timeout = self.timeout.min(limit);
        let attempt = async {
            match &mut self.caller {
                Caller::Grpc(caller) => caller.send(body, timeout).await,
                Caller::Http(caller) => caller.send(body).await,
            }
        };
        let Ok(result) = tokio::time::timeout(timeout, attempt).await else {
            // The connection may be half open, and a new call would wait on it again.
            match &mut self.caller {
                Caller::Grpc(caller) => caller.reconnect(),
                Caller::Http(caller) => caller.reconnect(),
            }
            return Err(Failure {
                class: Class::Retryable(None),
                cause: format!("no answer within {} ms", timeout.as_millis()),
                next_step: "check that the receiver is up, or raise OTEL_EXPORTER_OTLP_TIMEOUT",
            });
        };
        result
    }
}

fn tcp() -> HttpConnector {
    let mut connector = HttpConnector::new();
    // The TLS layer above checks the scheme.
    connector.enforce_http(false);
    connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
    connector.set_nodelay(true);
    connector
}

fn client<B>(
    connector: HttpsConnector<HttpConnector>,
    http2: bool,
) -> Client<HttpsConnector<HttpConnector>, B>
where
    B: hyper::body::Body + Send,
    B::Data: Send,
{
    Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_TIMEOUT)
        .http2_only(http2)
        .build(connector)
}

/// A call that got no answer: nobody there, TLS refused, connection broken.
fn unanswered(error: &(dyn Error + 'static)) -> Failure {
    let cause = chain(error);
    let next_step = if cause.contains("certificate") {
        "check OTEL_EXPORTER_OTLP_CERTIFICATE, and that the host name is in the certificate"
    } else if cause.contains("corrupt message") || cause.contains("InvalidContentType") {
        "the receiver does not speak TLS: use http:// in OTEL_EXPORTER_OTLP_ENDPOINT"
    } else if cause.contains("dns error") || cause.contains("lookup") {
        "check the host name in OTEL_EXPORTER_OTLP_ENDPOINT"
    } else {
        "start a collector there, or set OTEL_EXPORTER_OTLP_ENDPOINT and \
         OTEL_EXPORTER_OTLP_PROTOCOL to where one listens"
    };
    Failure {
        class: Class::Retryable(None),
        cause,
        next_step,
    }
}

/// An error with its causes on one line.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Wrappers often repeat what they wrap.
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// The first `limit` characters on one line, for text that a receiver chose.
fn excerpt(text: &str, limit: usize) -> String {
    text.chars()
        .take(limit)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

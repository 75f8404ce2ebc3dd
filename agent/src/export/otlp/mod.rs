//! The OTLP exporter for traces: batches to requests to a receiver.
//!
//! Source: OTLP specification 1.x and the OpenTelemetry Protocol Exporter specification. Covered:
//! gRPC, http/protobuf and http/json; gzip and zstd; TLS and mutual TLS; retries with the
//! receiver's own delays; partial success. Not covered: proxies, redirects, concurrent requests.
//!
//! One batch is under delivery at a time. While it is retried the queue fills and then drops, so
//! memory stays bounded. A batch that is abandoned at shutdown is counted as lost although the
//! receiver may have it: its answer was not seen.

pub mod config;
mod json;
pub mod outage;
mod protobuf;
pub mod request;
pub mod retry;
#[cfg(test)]
mod tests;
mod transport;

use std::{sync::Arc, time::Duration};

use anyhow::Result;
use bytes::Bytes;
use rand::{Rng as _, SeedableRng as _, rngs::SmallRng};
use tokio::time::Instant;

use crate::{
    export::{batch::Tally, queue::Queue},
    self_metrics::{Counter, Loss, SelfMetrics},
    span::Span,
};
use config::{Config, Protocol};
use outage::Outage;
use retry::{Decision, Failure, Retry};
use transport::{Answer, Transport};

/// Receivers commonly take 4 MiB at most (gRPC's default limit). The rest is room for framing.
const MAX_REQUEST_BYTES: usize = 4 * 1024 * 1024 - 64 * 1024;
/// JSON is up to about three times as long as the protobuf encoding that the limit is told in.
const MAX_JSON_REQUEST_BYTES: usize = MAX_REQUEST_BYTES / 3;

/// What the last attempt within the limit gets at least.
const MIN_ATTEMPT: Duration = Duration::from_secs(1);

/// The byte limit of a batch, told in its protobuf encoding.
pub(super) fn max_batch_bytes(protocol: Protocol) -> usize {
    match protocol {
        Protocol::Grpc | Protocol::HttpProtobuf => MAX_REQUEST_BYTES,
        Protocol::HttpJson => MAX_JSON_REQUEST_BYTES,
    }
}

pub(super) struct Exporter {
    transport: Transport,
    protocol: Protocol,
    /// Bound on the delivery of one batch.
    limit: Duration,
    outage: Outage,
    random: SmallRng,
    metrics: Arc<SelfMetrics>,
    started: Instant,
    /// Of the last request, for the next one.
    buffer: Vec<u8>,
}

impl Exporter {
    pub(super) fn new(config: &Config, limit: Duration, metrics: Arc<SelfMetrics>) -> Result<Self> {
        Ok(Self {
            transport: Transport::new(config)?,
            protocol: config.protocol,
            limit,
            outage: Outage::new(config.endpoint.to_string()),
            random: SmallRng::from_os_rng(),
            metrics,
            started: Instant::now(),
            buffer: Vec::new(),
        })
    }

    /// Until the queue is closed and empty.
    pub(super) async fn run(mut self, queue: Arc<Queue>) {
        while let Some(spans) = queue.next_batch().await {
            self.deliver(spans, &queue).await;
        }
    }

    async fn deliver(&mut self, spans: Vec<Span>, queue: &Queue) {
        let tally = Tally::of(&spans);
        let encoded = self.encode(&spans);
        drop(spans);
        let body = match encoded {
            Ok(body) => body,
            Err(error) => {
                tracing::warn!("cannot encode {} spans: {error:#}", tally.total());
                return queue.settle_lost(Loss::ExportFailed, &tally);
            }
        };
        self.send(&body, &tally, queue).await;
        // Else the transport still holds it, after a failure.
        if body.is_unique() {
            self.buffer = body.into();
        }
    }

    async fn send(&mut self, body: &Bytes, tally: &Tally, queue: &Queue) {
        let first = Instant::now();
        let mut retry = Retry::new(self.limit);
        loop {
            // Waits may overrun; a last attempt must still have time to succeed.
            let left = self.limit.saturating_sub(first.elapsed()).max(MIN_ATTEMPT);
            let failure = match self.transport.send(body.clone(), left).await {
                Ok(answer) => return self.accepted(&answer, tally, queue),
                Err(failure) => failure,
            };
            self.report(&failure);
            match retry.after_failure(failure.class, first.elapsed(), self.random.random()) {
                Decision::Again(delay) => {
                    self.metrics.add(Counter::ExportsRetried, 1);
                    tokio::time::sleep(delay).await;
                }
                Decision::GiveUp(pause) => {
                    self.outage.lost(tally.total());
                    queue.settle_lost(Loss::ExportFailed, tally);
                    return tokio::time::sleep(pause).await;
                }
            }
        }
    }

    /// The body that every attempt sends.
    fn encode(&mut self, spans: &[Span]) -> Result<Bytes> {
        let mut body = std::mem::take(&mut self.buffer);
        body.clear();
        match self.protocol {
            Protocol::Grpc | Protocol::HttpProtobuf => protobuf::encode(spans, &mut body),
            Protocol::HttpJson => body = json::encode(&request::build(spans)),
        }
        self.transport.prepare(body)
    }

    fn accepted(&mut self, answer: &Answer, tally: &Tally, queue: &Queue) {
        let now = self.started.elapsed();
        if let Some(line) = self.outage.reached(now) {
            tracing::info!("{line}");
        }
        if (answer.rejected > 0 || !answer.message.is_empty())
            && let Some(line) = self
                .outage
                .complained(answer.rejected, &answer.message, now)
        {
            tracing::warn!("{line}");
        }
        self.metrics.add(Counter::ExportsSucceeded, 1);
        let mut taken = tally.clone();
        let rejected = taken.subtract(&tally.share(answer.rejected));
        queue.settle_lost(Loss::ExportRejected, &rejected);
        queue.settle_exported(&taken);
    }

    fn report(&mut self, failure: &Failure) {
        if let Some(line) = self.outage.failed(failure, self.started.elapsed()) {
            tracing::warn!("{line}");
        }
    }
}

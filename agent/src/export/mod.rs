//! EDGE: finished spans out of the agent.
//!
//! ```text
//! engine thread -> SpanSink -> [queue of each exporter] -> otlp (task) | console, json (thread)
//! ```
//!
//! Every exporter has its own bounded queue, so one that is slow or stuck harms no other and
//! never the engine. What does not fit is dropped, newest first, and counted by service.
#![expect(
    clippy::disallowed_methods,
    reason = "edge: sockets, certificates, and the clocks of deadlines and batches"
)]

pub mod batch;
pub mod otlp;
mod queue;
pub mod setting;
pub mod stdout;

use std::{str::FromStr, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use thiserror::Error;
use tokio::{
    runtime::Handle,
    sync::oneshot,
    task::JoinHandle,
    time::{Instant, timeout_at},
};

use crate::{
    self_metrics::{Loss, SelfMetrics},
    span::Span,
};
use queue::Queue;
use setting::Lookup;

/// What exporters there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Otlp,
    /// For people: a waterfall per trace on standard output.
    Console,
    /// For programs: one JSON object a line on standard output.
    Json,
    None,
}

impl Kind {
    pub const ALL: &'static [Self] = &[Self::Otlp, Self::Console, Self::Json, Self::None];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Otlp => "otlp",
            Self::Console => "console",
            Self::Json => "json",
            Self::None => "none",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("`{0}` is not an exporter; use otlp, console, json or none")]
pub struct UnknownKind(pub String);

impl FromStr for Kind {
    type Err = UnknownKind;

    /// As the specification wants enumerations: case does not matter.
    fn from_str(text: &str) -> Result<Self, UnknownKind> {
        let wanted = text.trim();
        let known = Self::ALL
            .iter()
            .find(|kind| wanted.eq_ignore_ascii_case(kind.name()));
        known.copied().ok_or_else(|| UnknownKind(text.to_owned()))
    }
}

/// Which exporters, and how each is set.
#[derive(Clone, Debug, Default)]
pub struct Config {
    pub batch: batch::Config,
    pub otlp: Option<otlp::config::Config>,
    pub console: Option<stdout::Config>,
    pub json: bool,
}

impl Config {
    /// The settings of `exporters` from the environment, with what was wrong but could be passed
    /// over. Repeated kinds count once.
    pub fn from_lookup(
        exporters: &[Kind],
        lookup: Lookup<'_>,
    ) -> Result<(Self, Vec<String>), otlp::config::ConfigError> {
        let mut warnings = Vec::new();
        let wants = |kind| exporters.contains(&kind);
        let config = Self {
            batch: batch::Config::from_lookup(lookup, &mut warnings),
            otlp: if wants(Kind::Otlp) {
                Some(otlp::config::Config::from_lookup(lookup, &mut warnings)?)
            } else {
                None
            },
            console: wants(Kind::Console).then(|| stdout::Config::from_lookup(lookup)),
            json: wants(Kind::Json),
        };
        Ok((config, warnings))
    }
}

impl Config {
    /// The exporters that are configured.
    pub fn kinds(&self) -> Vec<Kind> {
        [
            (Kind::Otlp, self.otlp.is_some()),
            (Kind::Console, self.console.is_some()),
            (Kind::Json, self.json),
        ]
        .into_iter()
        .filter_map(|(kind, is_configured)| is_configured.then_some(kind))
        .collect()
    }
}

/// Where the engine puts finished spans.
#[derive(Clone)]
pub struct SpanSink {
    queues: Arc<[Arc<Queue>]>,
}

impl SpanSink {
    /// Never blocks, from any thread. What does not fit is counted.
    pub fn try_send(&self, spans: Vec<Span>) {
        let Some((last, others)) = self.queues.split_last() else {
            return;
        };
        for queue in others {
            queue.try_send(spans.clone());
        }
        last.try_send(spans);
    }
}

/// The running exporters.
pub struct Exporters {
    running: Vec<Running>,
}

struct Running {
    name: &'static str,
    queue: Arc<Queue>,
    end: End,
}

enum End {
    Task(JoinHandle<()>),
    /// A thread may hang in a write to a stalled terminal; it is never joined.
    Thread(oneshot::Receiver<()>),
}

/// Starts every configured exporter. Errors are about configuration: certificate files above all.
pub fn start(
    config: &Config,
    metrics: &Arc<SelfMetrics>,
    runtime: &Handle,
) -> Result<(SpanSink, Exporters)> {
    let mut running = Vec::new();
    if let Some(otlp) = &config.otlp {
        let bytes = otlp::max_batch_bytes(otlp.protocol);
        let queue = Arc::new(Queue::new(&config.batch, bytes, Arc::clone(metrics)));
        let limit = config.batch.export_timeout;
        let exporter = otlp::Exporter::new(otlp, limit, Arc::clone(metrics))
            .context("setting up the OTLP exporter")?;
        let end = End::Task(runtime.spawn(exporter.run(Arc::clone(&queue))));
        running.push(Running {
            name: Kind::Otlp.name(),
            queue,
            end,
        });
    }
    let printers = config
        .console
        .map(|console| (Kind::Console, stdout::Form::Console(console)))
        .into_iter()
        .chain(config.json.then_some((Kind::Json, stdout::Form::Json)));
    for (kind, form) in printers {
        // People watch: what is printed waits for no batch to fill.
        let batch = batch::Config {
            delay: config.batch.delay.min(stdout::MAX_DELAY),
            ..config.batch.clone()
        };
        let queue = Arc::new(Queue::new(&batch, usize::MAX, Arc::clone(metrics)));
        let end = End::Thread(stdout::spawn(form, Arc::clone(&queue))?);
        running.push(Running {
            name: kind.name(),
            queue,
            end,
        });
    }
    let queues = running
        .iter()
        .map(|running| Arc::clone(&running.queue))
        .collect();
    Ok((SpanSink { queues }, Exporters { running }))
}

impl Exporters {
    /// Sends what is queued, for at most `deadline`, and counts the rest as lost.
    pub async fn shutdown(self, deadline: Duration) {
        let now = Instant::now();
        let deadline_at = now.checked_add(deadline).unwrap_or(now);
        for running in &self.running {
            running.queue.close();
        }
        for Running { name, queue, end } in self.running {
            match end {
                End::Task(mut task) => {
                    if timeout_at(deadline_at, &mut task).await.is_err() {
                        task.abort();
                    }
                }
                End::Thread(done) => {
                    // An error means that it is over too: the thread is gone.
                    let _ = timeout_at(deadline_at, done).await;
                }
            }
            let lost = queue.end(Loss::ShutdownTimeout);
            if lost > 0 {
                tracing::warn!("{name}: {lost} spans were lost, the final flush took too long");
            }
        }
    }
}

#[cfg(test)]
mod tests;

//! EDGE: the reader and the engine thread, and the queue between them.
#![expect(clippy::disallowed_methods, reason = "edge: threads and clocks")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, anyhow};
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::oneshot;

use super::targets::Targets;
use crate::{
    engine::{Command, Engine},
    event::{clock::WallClock, decode},
    export::SpanSink,
    kernel::{
        maps::Connections,
        ring::{Batch, Ring},
    },
    self_metrics::{Counter, Loss, SelfMetrics},
};

/// Pause between two looks at the ring buffer while records come, and while none do. The buffer
/// holds far more than a node captures meanwhile.
const BUSY_PAUSE: Duration = Duration::from_millis(4);
const IDLE_PAUSE: Duration = Duration::from_millis(10);

/// Batches that may wait for the engine: 16 MiB of records at the most.
const QUEUE_BATCHES: usize = 64;

/// The engine hears of time this often at least.
const TICK: Duration = Duration::from_millis(10);

/// The wall clock is compared with the kernel's this often.
const CLOCK_NS: u64 = 1_000_000_000;

enum Message {
    Records(Batch),
    /// Select what runs already, and this process.
    Select { command: Option<u32>, done: oneshot::Sender<anyhow::Result<usize>> },
}

pub(super) struct Threads {
    stop: Arc<AtomicBool>,
    sender: SyncSender<Message>,
    reader: JoinHandle<()>,
    engine: JoinHandle<()>,
}

impl Threads {
    pub(super) fn start(
        ring: Ring,
        connections: Connections,
        engine: Engine,
        targets: Targets,
        sink: SpanSink,
        metrics: Arc<SelfMetrics>,
    ) -> anyhow::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (sender, reader_to_engine) = sync_channel(QUEUE_BATCHES);
        let shell = Shell { engine, connections, targets, sink, metrics: Arc::clone(&metrics) };
        let engine = thread::Builder::new()
            .name("engine".to_owned())
            .spawn(move || shell.run(&reader_to_engine))
            .context("cannot start the engine thread")?;
        let reader = {
            let (stop, sender) = (Arc::clone(&stop), sender.clone());
            thread::Builder::new()
                .name("ring-reader".to_owned())
                .spawn(move || read(ring, &stop, &sender, &metrics))
                .context("cannot start the reader thread")?
        };
        Ok(Self { stop, sender, reader, engine })
    }

    /// Traces the processes that were chosen and run already.
    pub(super) async fn select(&self, command: Option<u32>) -> anyhow::Result<()> {
        let (done, selected) = oneshot::channel();
        self.sender
            .send(Message::Select { command, done })
            .map_err(|_| anyhow!("the engine thread ended"))?;
        let count = selected.await.context("the engine thread ended")??;
        tracing::info!(processes = count, "tracing");
        Ok(())
    }

    /// Reads and handles what is left, then ends both threads.
    pub(super) async fn stop(self) -> anyhow::Result<()> {
        self.stop.store(true, Ordering::Release);
        drop(self.sender);
        tokio::task::spawn_blocking(move || {
            let reader = self.reader.join();
            let engine = self.engine.join();
            reader.and(engine).map_err(|_| anyhow!("a thread panicked"))
        })
        .await?
    }
}

/// Moves records from the ring buffer to the queue, until it is told to stop and none are left.
fn read(mut ring: Ring, stop: &AtomicBool, sender: &SyncSender<Message>, metrics: &SelfMetrics) {
    loop {
        let is_last = stop.load(Ordering::Acquire);
        let mut batch = Batch::default();
        let has_more = ring.drain(&mut batch);
        let is_idle = batch.records == 0;
        if !is_idle {
            metrics.add(Counter::RecordsReceived, batch.records);
            metrics.add(Counter::RecordBytesReceived, batch.bytes.len() as u64);
            match sender.try_send(Message::Records(batch)) {
                Ok(()) => {}
                Err(TrySendError::Full(Message::Records(batch))) => {
                    metrics.lose(Loss::ReaderQueueFull, "", batch.records);
                }
                Err(_) => return,
            }
        }
        if has_more {
            continue;
        }
        if is_last {
            return;
        }
        thread::sleep(if is_idle { IDLE_PAUSE } else { BUSY_PAUSE });
    }
}

/// The engine with what it needs from outside.
struct Shell {
    engine: Engine,
    connections: Connections,
    targets: Targets,
    sink: SpanSink,
    metrics: Arc<SelfMetrics>,
}

impl Shell {
    fn run(mut self, reader_to_engine: &Receiver<Message>) {
        let mut clock_due_ns = 0;
        loop {
            let message = reader_to_engine.recv_timeout(TICK);
            let now_ns = boottime_ns();
            if now_ns >= clock_due_ns {
                self.engine.handle_clock(WallClock::sampled(boottime_ns(), unix_ns()));
                clock_due_ns = now_ns + CLOCK_NS;
            }
            match message {
                Ok(Message::Records(batch)) => self.handle_batch(&batch),
                Ok(Message::Select { command, done }) => {
                    let selected = self.select(command);
                    // Nobody waits when the start was given up.
                    let _ = done.send(selected);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            // Which processes were chosen is decided before any of their spans is made.
            self.answer_commands();
            self.engine.handle_tick(now_ns);
            self.answer_commands();
            self.hand_out();
        }
        self.engine.handle_shutdown(boottime_ns());
        self.hand_out();
    }

    fn handle_batch(&mut self, batch: &Batch) {
        let mut rest = batch.bytes.as_slice();
        while let Some(length) = decode::padded_length(rest) {
            self.engine.handle_record(rest);
            rest = rest.get(length..).unwrap_or_default();
        }
        if !rest.is_empty() {
            self.metrics.lose(Loss::RecordMalformed, "", 1);
        }
    }

    fn select(&mut self, command: Option<u32>) -> anyhow::Result<usize> {
        let chosen = self.targets.select_running(command)?;
        let count = chosen.len();
        for process in chosen {
            self.engine.handle_process(process);
        }
        Ok(count)
    }

    fn answer_commands(&mut self) {
        while let Some(command) = self.engine.poll_command() {
            match command {
                Command::ReadConnection(id) => {
                    let state = self.connections.state(id);
                    self.engine.handle_connection_state(id, state.as_ref(), boottime_ns());
                }
                Command::ReadProcess(id) => {
                    if let Some(process) = self.targets.read(id) {
                        self.engine.handle_process(process);
                    }
                }
                Command::Consider(id) => {
                    match self.targets.consider(id, self.engine.facts(id)) {
                        Some(process) => self.engine.handle_selected(process),
                        None => self.engine.handle_rejected(id, boottime_ns()),
                    }
                }
            }
        }
    }

    fn hand_out(&mut self) {
        let spans = self.engine.take_spans();
        if !spans.is_empty() {
            self.sink.try_send(spans);
        }
    }
}

fn boottime_ns() -> u64 {
    nanoseconds(ClockId::Boottime)
}

fn unix_ns() -> u64 {
    nanoseconds(ClockId::Realtime)
}

fn nanoseconds(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}

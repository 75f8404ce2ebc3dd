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

use super::{
    findings::Findings, following::Following, injecting::Injecting, recording::Recording,
    targets::Targets,
};
use crate::{
    engine::{Command, Engine, replay::Entry},
    event::{ConnectionId, ProcessId, Unit, clock::WallClock, decode},
    export::SpanSink,
    kernel::{
        frames::Frames,
        maps::{Connections, Drops},
        ring::{Batch, Completeness, Ring},
    },
    process::{Process, Runtime},
    self_metrics::{Counter, Gauge, Loss, SelfMetrics},
};

/// Pause between two looks at the ring buffer while records come, and while none do. The buffer
/// holds far more than a node captures meanwhile.
const BUSY_PAUSE: Duration = Duration::from_millis(8);
const IDLE_PAUSE: Duration = Duration::from_millis(16);

/// Batches that may wait for the engine: 4 MiB of records at the most, as much again as the ring
/// buffer holds.
const QUEUE_BATCHES: usize = 16;

/// A hook takes its time stamp, then writes its record, then updates the connection's counts: all
/// within a few microseconds, but since Linux 7.0 its processor may be taken away between.
const ANSWER_SLACK_NS: u64 = 50_000_000;

/// The engine hears of time this often at least.
const TICK: Duration = Duration::from_millis(10);

/// The wall clock is compared with the kernel's this often.
const CLOCK_NS: u64 = 1_000_000_000;

/// How often it is said who does not pass trace contexts on, and once at the end.
const FINDINGS_NS: u64 = 60_000_000_000;

enum Message {
    Records(Batch),
    /// Select what runs already, and this process.
    Select {
        command: Option<u32>,
        done: oneshot::Sender<anyhow::Result<usize>>,
    },
}

/// Where records come from, and the counts of those that did not fit.
pub(super) struct Source {
    pub(super) ring: Ring,
    pub(super) drops: Arc<Drops>,
}

/// What the engine's commands are answered with.
pub(super) struct Answers {
    pub(super) connections: Connections,
    pub(super) frames: Frames,
    pub(super) targets: Targets,
    pub(super) injecting: Injecting,
    pub(super) following: Following,
}

pub(super) struct Threads {
    stop: Arc<AtomicBool>,
    sender: SyncSender<Message>,
    reader: JoinHandle<()>,
    engine: JoinHandle<()>,
}

impl Threads {
    pub(super) fn start(
        source: Source,
        answers: Answers,
        engine: Engine,
        recording: Recording,
        sink: SpanSink,
        metrics: Arc<SelfMetrics>,
    ) -> anyhow::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (sender, reader_to_engine) = sync_channel(QUEUE_BATCHES);
        let Answers {
            connections,
            frames,
            targets,
            injecting,
            following,
        } = answers;
        let shell = {
            let metrics = Arc::clone(&metrics);
            Shell {
                engine,
                findings: Findings::default(),
                connections,
                frames,
                injecting,
                following,
                targets,
                recording,
                sink,
                metrics,
                horizon_ns: 0,
            }
        };
        let engine = thread::Builder::new()
            .name("engine".to_owned())
            .spawn(move || shell.run(&reader_to_engine))
            .context("cannot start the engine thread")?;
        let reader = {
            let (stop, sender) = (Arc::clone(&stop), sender.clone());
            thread::Builder::new()
                .name("ring-reader".to_owned())
                .spawn(move || read(source, &stop, &sender, &metrics))
                .context("cannot start the reader thread")?
        };
        Ok(Self {
            stop,
            sender,
            reader,
            engine,
        })
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
///
/// Nothing is dropped here: while the queue is full the batch grows, and when that has its full
/// size the records stay in the ring buffer. What does not fit there is counted on the kernel side.
fn read(source: Source, stop: &AtomicBool, sender: &SyncSender<Message>, metrics: &SelfMetrics) {
    let Source { mut ring, drops } = source;
    let mut lost = 0;
    let mut batch = Batch::default();
    loop {
        let is_last = stop.load(Ordering::Acquire);
        let (began_ns, waiting) = (boottime_ns(), batch.records);
        let has_more = ring.drain(&mut batch);
        let is_idle = batch.records == waiting;
        if !has_more {
            batch.drained_ns = began_ns;
        }
        let lost_before = std::mem::replace(&mut lost, drops.missing_records());
        if lost != lost_before {
            batch.completeness = Completeness::Holed;
        }
        let (records, bytes) = (batch.records, batch.bytes.len() as u64);
        let next = Batch::with_room(batch.bytes.len());
        let message = Message::Records(std::mem::replace(&mut batch, next));
        let sent = if is_last && !has_more {
            sender
                .send(message)
                .map_err(|_| TrySendError::Disconnected(()))
        } else {
            sender.try_send(message).map_err(|error| match error {
                TrySendError::Full(Message::Records(unsent)) => {
                    batch = unsent;
                    TrySendError::Full(())
                }
                _ => TrySendError::Disconnected(()),
            })
        };
        match sent {
            Ok(()) => {
                metrics.add(Counter::RecordsReceived, records);
                metrics.add(Counter::RecordBytesReceived, bytes);
            }
            Err(TrySendError::Full(())) => {}
            Err(TrySendError::Disconnected(())) => return,
        }
        if is_last && !has_more {
            return;
        }
        if !has_more || batch.records > 0 {
            thread::sleep(if is_idle { IDLE_PAUSE } else { BUSY_PAUSE });
        }
    }
}

/// The engine with what it needs from outside.
struct Shell {
    engine: Engine,
    findings: Findings,
    connections: Connections,
    frames: Frames,
    injecting: Injecting,
    following: Following,
    targets: Targets,
    recording: Recording,
    sink: SpanSink,
    metrics: Arc<SelfMetrics>,
    /// All records written before this time have been handled.
    horizon_ns: u64,
}

impl Shell {
    fn run(mut self, reader_to_engine: &Receiver<Message>) {
        let mut clock_due_ns = 0;
        let mut findings_due_ns = boottime_ns() + FINDINGS_NS;
        loop {
            let message = reader_to_engine.recv_timeout(TICK);
            let now_ns = boottime_ns();
            if now_ns >= clock_due_ns {
                let (boottime_ns, unix_ns) = (boottime_ns(), unix_ns());
                self.recording.add(|| Entry::Clock {
                    boottime_ns,
                    unix_ns,
                });
                self.engine
                    .handle_clock(WallClock::sampled(boottime_ns, unix_ns));
                clock_due_ns = now_ns + CLOCK_NS;
                self.targets.sweep(now_ns);
            }
            if now_ns >= findings_due_ns {
                self.tell_findings();
                findings_due_ns = now_ns + FINDINGS_NS;
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
            self.recording.add(|| Entry::Tick { now_ns });
            self.engine.handle_tick(now_ns);
            self.answer_commands();
            self.injecting.handle_tick();
            self.targets.handle_tick(now_ns);
            self.hand_out();
        }
        let now_ns = boottime_ns();
        self.recording.add(|| Entry::Shutdown { now_ns });
        self.recording.flush();
        let lacking = self.metrics.now(Gauge::ConnectionsLackingFields);
        self.engine.handle_shutdown(now_ns);
        // The summary says how it was when the observation ended, not after.
        self.metrics.set(Gauge::ConnectionsLackingFields, lacking);
        self.count_last_streams();
        self.hand_out();
        self.tell_findings();
    }

    fn tell_findings(&mut self) {
        for line in self.findings.lines(self.metrics.passed()) {
            tracing::warn!("{line}");
        }
    }

    fn handle_batch(&mut self, batch: &Batch) {
        let completeness = batch.completeness;
        self.horizon_ns = self.horizon_ns.max(batch.drained_ns);
        if batch.records == 0 && completeness == Completeness::Whole {
            return;
        }
        if completeness == Completeness::Whole {
            self.recording.add(|| Entry::Records(batch.bytes.clone()));
        }
        let mut rest = batch.bytes.as_slice();
        while let Some(length) = decode::padded_length(rest) {
            if completeness == Completeness::Holed {
                // It is not known between which two records others are missing.
                self.handle_loss();
                self.recording
                    .add(|| Entry::Records(rest.get(..length).unwrap_or(rest).to_vec()));
            }
            self.engine.handle_record(rest);
            rest = rest.get(length..).unwrap_or_default();
        }
        if completeness == Completeness::Holed {
            self.handle_loss();
        }
        if !rest.is_empty() {
            self.metrics.lose(Loss::RecordMalformed, "", 1);
        }
    }

    fn handle_loss(&mut self) {
        self.recording.add(|| Entry::Loss);
        self.engine.handle_loss();
    }

    fn select(&mut self, command: Option<u32>) -> anyhow::Result<usize> {
        let chosen = self.targets.select_running(command, boottime_ns())?;
        let count = chosen.len();
        for process in chosen {
            self.handle_process(process);
        }
        Ok(count)
    }

    fn handle_process(&mut self, process: Process) {
        let id = process.id;
        let names_threads = process.facts.runtime() == Runtime::Ruby;
        self.recording.add(|| Entry::Process(process.clone()));
        self.injecting.handle_program(process.id, &process.facts);
        self.engine.handle_process(process);
        if names_threads {
            for unit in self.targets.threads(id) {
                self.handle_thread(unit);
            }
        }
    }

    fn handle_thread(&mut self, unit: Unit) {
        if let Some(name) = self.targets.thread_name(unit) {
            self.engine.handle_thread(unit, &name);
            self.recording.add(|| Entry::Thread { unit, name });
        }
    }

    fn answer_commands(&mut self) {
        while let Some(command) = self.engine.poll_command() {
            match command {
                Command::ReadConnection(id) => self.answer_connection(id),
                Command::ReadProcess(id) => {
                    if let Some(process) = self.targets.learn(id) {
                        self.handle_process(process);
                    }
                }
                Command::ReadThread(unit) => self.handle_thread(unit),
                Command::StopInjecting(id) => {
                    let connections = self.engine.connections_of(id);
                    self.injecting.stop(id, self.engine.facts(id), &connections);
                }
                Command::FollowFrames(id) => tell(self.frames.follow(id)),
                Command::LeaveFrames(id) => tell(self.frames.leave(id)),
                Command::CountStreams {
                    connection,
                    process,
                    known,
                } => self.count_streams(connection, process, known),
                Command::NoteServer(id, settings) => self.injecting.note_server(id, settings),
                Command::NoteTls(id) => self.targets.note_tls(id, boottime_ns()),
                Command::NotePlaintext(id, is_understood) => {
                    self.targets.note_plaintext(id, is_understood);
                }
                Command::Follow(id) => {
                    if self.following.follow(id) {
                        self.targets.mark_followed(id, true);
                    }
                }
                Command::Unfollow(id) => {
                    self.following.leave(id);
                    self.targets.mark_followed(id, false);
                }
                Command::NoteProgram(id) => {
                    self.targets.note_program(id, boottime_ns());
                    if let Some(facts) = self.engine.facts(id) {
                        self.injecting.handle_program(id, facts);
                    }
                }
                Command::Consider(id) => match self.targets.consider(id, self.engine.facts(id)) {
                    Some(process) => {
                        self.targets.note_program(id, boottime_ns());
                        self.handle_process(process);
                    }
                    None => self.handle_rejected(id),
                },
            }
        }
    }

    fn handle_rejected(&mut self, process: ProcessId) {
        let now_ns = boottime_ns();
        self.recording.add(|| Entry::Rejected { process, now_ns });
        self.engine.handle_rejected(process, now_ns);
    }

    /// The kernel's counts may be ahead of the records that were read. They are no answer then; the
    /// engine asks again.
    fn answer_connection(&mut self, connection: ConnectionId) {
        let state = self.connections.state(connection);
        let last_ns = state.map_or(0, |state| state.inbound.last_ns.max(state.outbound.last_ns));
        if last_ns + ANSWER_SLACK_NS >= self.horizon_ns {
            return;
        }
        // Records of one that is gone may wait in the ring buffer for long.
        let now_ns = state.map_or(self.horizon_ns, |_| boottime_ns());
        self.recording.add(|| Entry::ConnectionState {
            connection,
            now_ns,
            state,
        });
        self.engine
            .handle_connection_state(connection, state.as_ref(), now_ns);
    }

    /// As [`Self::count_streams`], at the end: of connections that have ended, and of those that
    /// nothing was ever recorded of.
    fn count_last_streams(&mut self) {
        while let Some(command) = self.engine.poll_command() {
            if let Command::CountStreams {
                connection,
                process,
                known,
            } = command
                && self.connections.state(connection).is_none()
            {
                self.count_streams(connection, process, known);
            }
        }
        if self.engine.has_lost_records() {
            let has_ended = |connection| self.connections.state(connection).is_none();
            let left = self.frames.streams_left(has_ended);
            self.metrics.lose(Loss::RequestUnrecorded, "", left);
        }
    }

    /// Clients number their requests by odd numbers.
    fn count_streams(&mut self, connection: ConnectionId, process: ProcessId, known: u32) {
        let highest = self.frames.take_highest_stream(connection);
        let unrecorded = highest.div_ceil(2).saturating_sub(known.div_ceil(2));
        if unrecorded > 0 {
            self.engine.handle_unrecorded(process, unrecorded.into());
        }
    }

    fn hand_out(&mut self) {
        let spans = self.engine.take_spans();
        if !spans.is_empty() {
            self.sink.try_send(spans);
        }
    }
}

/// What the kernel side could not be told costs capture and nothing else.
fn tell(told: anyhow::Result<()>) {
    if let Err(error) = told {
        tracing::debug!(%error, "frames are not followed");
    }
}

pub(super) fn boottime_ns() -> u64 {
    nanoseconds(ClockId::Boottime)
}

fn unix_ns() -> u64 {
    nanoseconds(ClockId::Realtime)
}

fn nanoseconds(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000
        + u64::try_from(time.tv_nsec).unwrap_or(0)
}

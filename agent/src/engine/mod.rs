//! The synchronous heart: records in, spans out. Pure: time is an argument, ids are seeded.
//!
//! Call in this order, as often as there is news:
//! 1. `handle_*`: a record, a tick, or the answer to a command;
//! 2. [`Engine::poll_command`] until `None`, and answer what it asks;
//! 3. [`Engine::take_spans`].

mod both_ends;
mod carried;
mod closing;
mod exchange;
mod facts;
mod meeting;
mod plaintext;
pub mod replay;
mod spans;
mod watchdog;

use std::{collections::VecDeque, sync::Arc};

use agent_common::connection::ConnectionState;
use rustc_hash::{FxHashMap, FxHashSet};

use self::{
    exchange::{Exchanges, Finished, Followed},
    facts::ConnectionFacts,
    watchdog::Watchdog,
};
use crate::{
    connection::{self, Observation, added::Place, tracker::Framing},
    context::{Evidence, IdGenerator, Stitcher, lineage::Discipline},
    enrich::{Enricher, Host},
    event::{
        Carrier, ConnectionId, Data, Direction, EventKind, Minted, ProcessId, Role, Traced, Unit,
        clock::WallClock, decode,
    },
    process::{Facts, Process, Runtime, pool, table::ProcessTable},
    protocol::ServerSettings,
    sample::Sampler,
    self_metrics::{Counter, Loss, SelfMetrics},
    span::{Kind, Span},
};

/// Connections watched at one time; the kernel side watches as many.
const CONNECTIONS: usize = agent_common::limits::CONNECTIONS as usize;

/// Processes remembered at one time, those that ended a minute ago included.
const PROCESSES: usize = 65_536;

/// Ended exchanges that wait for their trace to settle. A busy node ends some 20,000 a second, and
/// one waits for 0.1 s.
const WAITING: usize = 65_536;

/// Exchanges of a rejected process that were still open come to their end within this time, or
/// with the process.
const REJECTED_NS: u64 = 60_000_000_000;

#[derive(Clone, Debug, Default)]
pub struct Config {
    pub host: Host,
    pub sampler: Sampler,
    /// Seconds since the Unix epoch at which the machine booted.
    pub boot_seconds: u64,
    /// The weakest evidence that makes a parent; a weaker one makes a link.
    pub parent_evidence: Evidence,
    /// Headers are put into requests: how calls end is watched.
    pub is_injecting: bool,
    /// Seed of span and trace ids.
    pub seed: u64,
}

/// What the engine wants to know from the edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// How far a connection has come: answer with [`Engine::handle_connection_state`].
    ReadConnection(ConnectionId),
    /// What `/proc` says of a process: answer with [`Engine::handle_process`], or not at all when
    /// it is gone.
    ReadProcess(ProcessId),
    /// The name of a thread: answer with [`Engine::handle_thread`], or not at all when it is gone.
    ReadThread(Unit),
    /// A process replaced its program, or began to listen while not traced: it may be one that the
    /// user chose. Answer with [`Engine::handle_process`] or [`Engine::handle_rejected`].
    Consider(ProcessId),
    /// A traced process runs another program now: [`Engine::facts`] says which. There is nothing
    /// to answer.
    NoteProgram(ProcessId),
    /// A traced process speaks TLS on a connection of which only the encrypted bytes are seen.
    /// There is nothing to answer.
    NoteTls(ProcessId),
    /// What a TLS session of this process carries is one of our protocols, or none. There is
    /// nothing to answer.
    NotePlaintext(ProcessId, bool),
    /// Calls of this process seem to be made by threads that requests are handed to: watch its
    /// threads. There is nothing to answer.
    Follow(ProcessId),
    /// Watching them was of no use, or the process ended. There is nothing to answer.
    Unfollow(ProcessId),
    /// Requests of this process fare worse since headers are put into them: stop it. There is
    /// nothing to answer.
    StopInjecting(ProcessId),
    /// The connection carries frames of HTTP/2, which turns say nothing about. There is nothing to
    /// answer.
    FollowFrames(ConnectionId),
    /// It does not, or no longer.
    LeaveFrames(ConnectionId),
    /// A connection of this process has ended, of whose numbered requests `known` is the highest:
    /// those above it that the kernel side counted were lost. Answer with
    /// [`Engine::handle_unrecorded`] if there are any.
    CountStreams {
        connection: ConnectionId,
        process: ProcessId,
        known: u32,
    },
    /// The server of a connection has said what it takes: fields may be added accordingly. There
    /// is nothing to answer.
    NoteServer(ConnectionId, ServerSettings),
}

pub struct Engine {
    connections: connection::Table,
    exchanges: Exchanges,
    is_injecting: bool,
    watchdog: Watchdog,
    stitcher: Stitcher<Finished>,
    processes: ProcessTable,
    enricher: Enricher,
    sampler: Sampler,
    clock: WallClock,
    metrics: Arc<SelfMetrics>,
    commands: VecDeque<Command>,
    /// Processes that were traced only provisionally, and when that ended.
    rejected: FxHashMap<ProcessId, u64>,
    spans: Vec<Span>,
    /// Connections whose fields may not be known.
    lacking: FxHashSet<ConnectionId>,
    /// The observation ends.
    is_over: bool,
    /// When time was told last.
    tick_ns: u64,
    /// Time of the last record, and of the last one before records were lost.
    latest_ns: u64,
    lost_ns: Option<u64>,
}

impl Engine {
    pub fn new(config: Config, metrics: Arc<SelfMetrics>) -> Self {
        Self {
            connections: connection::Table::new(CONNECTIONS),
            exchanges: Exchanges::new(config.is_injecting),
            is_injecting: config.is_injecting,
            watchdog: Watchdog::default(),
            stitcher: Stitcher::new(
                IdGenerator::seeded(config.seed),
                WAITING,
                config.parent_evidence,
            ),
            processes: ProcessTable::new(PROCESSES, config.boot_seconds),
            enricher: Enricher::new(config.host),
            sampler: config.sampler,
            clock: WallClock::default(),
            metrics,
            commands: VecDeque::new(),
            rejected: FxHashMap::default(),
            spans: Vec::new(),
            lacking: FxHashSet::default(),
            is_over: false,
            tick_ns: 0,
            latest_ns: 0,
            lost_ns: None,
        }
    }

    /// The wall clock was looked at again.
    pub fn handle_clock(&mut self, clock: WallClock) {
        self.clock = clock;
    }

    /// A record of the ring buffer, alone or followed by others.
    pub fn handle_record(&mut self, record: &[u8]) {
        let event = match decode::decode(record) {
            Ok(event) => event,
            Err(error) => {
                tracing::debug!(%error, "record not understood");
                self.metrics.lose(Loss::RecordMalformed, "", 1);
                return;
            }
        };
        let now_ns = event.timestamp_ns;
        self.latest_ns = self.latest_ns.max(now_ns);
        match event.kind {
            EventKind::Data(data) => self.handle_data(&data, now_ns),
            EventKind::Opened {
                unit,
                connection,
                endpoints,
                role,
                unix_path,
            } => {
                // Nothing of a TCP connection comes before the call that began it.
                let is_reused = self
                    .connections
                    .get(connection)
                    .is_some_and(|before| role == Role::Client || before.is_elsewhere(endpoints));
                if is_reused {
                    self.end_connection(connection, now_ns);
                }
                let opened = self
                    .connections
                    .get_or_insert(connection, unit, endpoints, role, now_ns);
                let Some(opened) = opened else { return };
                opened.set_unix_path(unix_path);
                if role == Role::Client && self.is_nginx(unit.process) {
                    let lineage = &mut self.exchanges.lineage;
                    lineage.handle_connect(unit, connection);
                    lineage.handle_connect(unit, connection.plaintext());
                }
            }
            EventKind::Established {
                connection,
                endpoints,
            } => {
                if let Some(known) = self.connections.get(connection) {
                    known.endpoints = endpoints;
                }
                self.connections.note_client(connection);
            }
            EventKind::Closing {
                connection,
                step,
                error,
                inbound,
                outbound,
            } => {
                self.handle_closing(connection, step, error, [&inbound, &outbound], now_ns);
            }
            EventKind::Exec(exec) => {
                self.processes.handle_exec(&exec);
                self.rejected.remove(&exec.process);
                self.exchanges.handle_exec(exec.process);
                self.commands.push_back(match exec.traced {
                    Traced::Provisionally => Command::Consider(exec.process),
                    _ => Command::NoteProgram(exec.process),
                });
            }
            EventKind::Fork {
                parent,
                child,
                is_decided,
            } => {
                self.exchanges.handle_start(parent, child);
                if parent.process == child.process {
                    if self.processes.runtime(child.process) == Runtime::Ruby {
                        self.commands.push_back(Command::ReadThread(child));
                    }
                    return;
                }
                self.processes.handle_fork(parent.process, child.process);
                if !is_decided {
                    self.commands.push_back(Command::Consider(child.process));
                }
            }
            EventKind::ThreadExit { unit } => {
                self.exchanges.handle_thread_exit(unit, &mut self.stitcher);
            }
            EventKind::Exit { process } => {
                self.exchanges.handle_exit(process, &mut self.stitcher);
                self.watchdog.handle_exit(process);
                self.processes.handle_exit(process, now_ns);
            }
            EventKind::PlaintextOpened(opened) => self.handle_plaintext(&opened, now_ns),
            EventKind::HandOff(wake) => {
                self.exchanges
                    .handle_hand_off(&wake, now_ns, &mut self.stitcher);
            }
            EventKind::Minted(minted) => self.handle_minted(&minted),
            EventKind::Carried(carried) => self.exchanges.carried.handle(&carried, now_ns),
            EventKind::GoCall {
                process,
                task,
                descriptor,
            } => {
                let goroutines = &mut self.exchanges.goroutines;
                match descriptor {
                    Some(descriptor) => goroutines.handle_call(process, task, descriptor, now_ns),
                    None => goroutines.handle_stream_call(process, task, now_ns),
                }
            }
            EventKind::GoStream {
                process,
                task,
                stream,
                writer,
            } => {
                let goroutines = &mut self.exchanges.goroutines;
                match writer {
                    Some(writer) => {
                        goroutines.handle_begun(process, task, (writer, stream), now_ns);
                    }
                    None => goroutines.handle_served(process, task, stream),
                }
            }
            EventKind::Listen {
                process, traced, ..
            } => {
                if !traced {
                    self.commands.push_back(Command::Consider(process));
                }
            }
        }
    }

    /// Records may be missing between those before and those after this call. What a thread works
    /// for is proven by an unbroken sequence of reads and writes only.
    pub fn handle_loss(&mut self) {
        self.lost_ns = Some(self.latest_ns);
        self.exchanges.handle_loss(&mut self.stitcher);
    }

    /// Whether records were ever lost.
    pub fn has_lost_records(&self) -> bool {
        self.lost_ns.is_some()
    }

    /// A process that runs already, or the answer to [`Command::ReadProcess`] or
    /// [`Command::Consider`].
    pub fn handle_process(&mut self, process: Process) {
        self.rejected.remove(&process.id);
        if self.processes.facts(process.id).is_some() {
            self.processes.handle_read(process);
        } else {
            self.processes.handle_found(process);
        }
    }

    /// The answer to [`Command::ReadThread`].
    pub fn handle_thread(&mut self, unit: Unit, name: &str) {
        if pool::is_worker(name) {
            self.exchanges.handle_worker(unit);
        }
    }

    /// The answer to [`Command::ReadConnection`]. `None`: the kernel side does not know it, and all
    /// records from before `now_ns` have been handled.
    pub fn handle_connection_state(
        &mut self,
        id: ConnectionId,
        state: Option<&ConnectionState>,
        now_ns: u64,
    ) {
        let Some(connection) = self.connections.get(id) else {
            return;
        };
        match state {
            Some(state) => {
                connection.handle_counts([&state.inbound, &state.outbound]);
                connection.handle_tick(now_ns);
                connection.handle_alive(now_ns);
                let is_done = !connection.is_waiting() && !connection.is_breaking();
                self.observe(id);
                if is_done {
                    self.connections.update_ask(id, now_ns);
                }
            }
            None => {
                if connection.handle_missing(self.tick_ns.max(now_ns), now_ns) {
                    self.end_connection(id, now_ns);
                }
            }
        }
    }

    /// A process was traced only until it was decided whether the user chose it: not so. Spans of
    /// it are not made.
    pub fn handle_rejected(&mut self, process: ProcessId, now_ns: u64) {
        self.rejected.insert(process, now_ns);
    }

    /// What is known of a process.
    pub fn facts(&self, process: ProcessId) -> Option<&Facts> {
        self.processes.facts(process)
    }

    /// Connections of a process.
    pub fn connections_of(&self, process: ProcessId) -> Vec<ConnectionId> {
        self.connections.of_process(process)
    }

    /// Time passes, `CLOCK_BOOTTIME` in nanoseconds.
    pub fn handle_tick(&mut self, now_ns: u64) {
        self.tick_ns = now_ns;
        while let Some(id) = self.connections.poll_ask(now_ns) {
            self.commands.push_back(Command::ReadConnection(id));
        }
        for id in self.connections.idle(now_ns) {
            self.handle_idle(id, now_ns);
        }
        self.give_up_proofs(now_ns);
        self.exchanges.handle_tick(now_ns, &mut self.stitcher);
        self.stitcher.handle_tick(now_ns);
        self.finish_spans();
        self.rejected
            .retain(|_, at_ns| now_ns.saturating_sub(*at_ns) < REJECTED_NS);
        let forgotten = self.processes.handle_tick(now_ns);
        self.enricher.forget(&forgotten);
        let evicted = self.processes.take_evicted();
        if !evicted.is_empty() {
            let count = evicted.len() as u64;
            self.metrics.lose(Loss::ProcessTableFull, "", count);
            self.enricher.forget(&evicted);
        }
    }

    /// The observation ends: everything comes out as far as it is known.
    pub fn handle_shutdown(&mut self, now_ns: u64) {
        self.is_over = true;
        self.stitcher.settle();
        for id in self.connections.ids() {
            self.end_connection(id, now_ns);
        }
        self.exchanges
            .both_ends
            .handle_tick(u64::MAX, &mut self.stitcher);
        self.stitcher.flush();
        self.finish_spans();
    }

    pub fn poll_command(&mut self) -> Option<Command> {
        let followed = |change| match change {
            Followed::FromNowOn(process) => Command::Follow(process),
            Followed::NoMore(process) => Command::Unfollow(process),
        };
        self.processes
            .poll_unread()
            .map(Command::ReadProcess)
            .or_else(|| self.exchanges.poll_followed().map(followed))
            .or_else(|| self.commands.pop_front())
    }

    /// Spans that are final.
    pub fn take_spans(&mut self) -> Vec<Span> {
        std::mem::take(&mut self.spans)
    }

    fn handle_data(&mut self, data: &Data<'_>, now_ns: u64) {
        let (id, unit) = (data.connection, data.unit);
        self.settle_unproven(unit, id, now_ns);
        if self
            .connections
            .get(id)
            .is_some_and(|known| known.is_replaced_by(data))
        {
            self.end_connection(id, now_ns);
        }
        if let Some(task) = data.task {
            self.exchanges
                .goroutines
                .handle_seen(unit.process, task, data.task_ids, now_ns);
        }
        if plaintext::is_handshake(data) {
            self.commands.push_back(Command::NoteTls(unit.process));
        }
        let before = self.connections.len();
        let connection =
            self.connections
                .get_or_insert(id, unit, data.endpoints, data.role, now_ns);
        let Some(connection) = connection else {
            self.metrics.lose(Loss::ConnectionTableFull, "", 1);
            return;
        };
        connection.handle_data(data, now_ns);
        let kind = connection.kind();
        let is_multiplexed = connection.is_multiplexed();
        // Frames of plaintext are not followed: its calls are captured whole instead.
        match connection.take_framing().filter(|_| !data.plaintext) {
            Some(Framing::Frames) => self.commands.push_back(Command::FollowFrames(id)),
            Some(Framing::Other) => self.commands.push_back(Command::LeaveFrames(id)),
            None => {}
        }
        if self.is_injecting
            && kind == Some(Kind::Client)
            && let Some(settings) = connection.take_server_settings()
        {
            let command = Command::NoteServer(id, settings);
            self.commands.push_back(command);
        }
        if data.role == Role::Client {
            self.connections.note_client(id);
        }
        if self.connections.len() > before {
            self.meet_connection(unit.process);
            self.meet_other_end(id, data.role, data.complete, data.endpoints);
        }
        self.metrics
            .add(Counter::BytesNotCaptured, data.uncaptured());
        let is_nginx = data.direction == Direction::Inbound && self.is_nginx(unit.process);
        if is_nginx {
            let worked_for = match kind {
                _ if is_multiplexed => None,
                Some(Kind::Client) => self
                    .exchanges
                    .open_on(id)
                    .and_then(|exchange| self.stitcher.caller(exchange))
                    .filter(|caller| self.stitcher.is_open(*caller)),
                _ => self.exchanges.lineage.oldest(id),
            };
            self.exchanges.lineage.handle_loop_read(unit, worked_for);
        } else if data.direction == Direction::Inbound
            && data.non_blocking
            && data.polled
            && data.task.is_none()
            && self.exchanges.handle_polled_read(unit, &mut self.stitcher)
        {
            self.commands.push_back(Command::ReadThread(unit));
        }
        if data.plaintext {
            self.note_plaintext(id, unit, now_ns);
        }
        self.observe(id);
        self.connections.update_ask(id, now_ns);
    }

    /// The kernel side made ids for a request, which may be known already or comes next.
    fn handle_minted(&mut self, minted: &Minted) {
        if let Some(connection) = self.connections.get(minted.connection)
            && minted.added > 0
        {
            let place = match minted.carrier {
                Carrier::Header => Place::Before,
                Carrier::Field => Place::Behind,
            };
            connection.handle_added(minted.added_at, minted.added, place);
        }
        self.exchanges.handle_minted(minted);
    }

    /// Takes what a connection's session learned.
    fn observe(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get(id) else {
            return;
        };
        let facts = ConnectionFacts::of(id, connection);
        let runtime = self.processes.runtime(facts.unit.process);
        let is_multiplexed = connection.is_multiplexed();
        let discipline = |origin: Option<&connection::Origin>| match origin {
            // What a thread or a loop read last is not what it works for.
            _ if is_multiplexed => Discipline::Unknown,
            _ if runtime == Runtime::Nginx => Discipline::Loop,
            Some(origin) if !origin.non_blocking => Discipline::Blocking,
            _ => Discipline::Unknown,
        };
        let shortfall = connection.take_shortfall();
        let lacks_fields = connection.may_lack_fields();
        self.note_lacking(id, lacks_fields);
        self.metrics
            .add(Counter::ConnectionsJoinedLate, shortfall.late_joins);
        if shortfall.exchanges > 0 {
            let reason = if is_multiplexed {
                Loss::RequestUnrecorded
            } else {
                Loss::ExchangeUnparsed
            };
            self.lose(reason, facts.unit.process, shortfall.exchanges);
        }
        let Some(connection) = self.connections.get(id) else {
            return;
        };
        while let Some(Observation { progress, origin }) = connection.poll() {
            let discipline = discipline(origin.as_ref());
            self.exchanges.handle(
                &facts,
                progress,
                origin,
                discipline,
                &mut self.stitcher,
                &self.metrics,
            );
        }
        while let Some(call) = self.exchanges.poll_call() {
            if self
                .watchdog
                .handle_end(call.process, call.carried, call.end)
            {
                let resource = self.enricher.resource(call.process, &self.processes);
                self.metrics
                    .lose(Loss::InjectionStopped, resource.service_name(), 1);
                self.commands
                    .push_back(Command::StopInjecting(call.process));
            }
        }
    }

    fn is_nginx(&self, process: ProcessId) -> bool {
        self.processes.runtime(process) == Runtime::Nginx
    }
}

#[cfg(test)]
mod tests;

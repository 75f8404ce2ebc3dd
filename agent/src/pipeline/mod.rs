//! EDGE: the async shell around the pure engine. Threads, queues, signals, and the order in which
//! things start and stop.
//!
//! ```text
//! reader thread              engine thread                         tasks of the runtime
//! kernel::ring  -> [reader_to_engine] -> engine -> SpanSink -> [a queue per exporter] -> export
//! ```
//!
//! | start | stop |
//! |---|---|
//! | exporters, so that a bad endpoint is known before anything is attached | reader: last drain |
//! | kernel side | engine: last records, then everything as far as it is known |
//! | engine and reader threads | exporters: final flush, bounded |
//! | processes selected; COMMAND let go; ready file | kernel side detached; summary |
#![expect(
    clippy::disallowed_methods,
    reason = "edge: threads, clocks and the ready file"
)]

mod findings;
mod following;
mod injecting;
mod libraries;
mod programs;
mod recording;
mod targets;
mod threads;

use std::{
    fs,
    io::{IsTerminal as _, Write as _},
    sync::Arc,
    time::Duration,
};

use agent_common::limits;
use anyhow::Context as _;
use tokio::{
    runtime::{Builder, Handle},
    signal::unix::{Signal, SignalKind, signal},
};

use self::{
    following::Following,
    injecting::Injecting,
    libraries::Libraries,
    programs::Programs,
    recording::Recording,
    targets::Targets,
    threads::{Answers, Source, Threads},
};
use crate::{
    check::{Hook, KernelReport, Outcome, system},
    config::{Capture, Config},
    engine,
    export::{self, Exporters},
    failure::Failure,
    kernel::{self, CapturePath, LoadError, injection::Carriers},
    launch::{Held, Running},
    ledger::Ledger,
    process::watch::ProcFs,
    self_metrics::SelfMetrics,
    status::{self, Listener, ReadyFile, Sample, Status},
};

/// How long the final flush may take: longer than an export takes, shorter than a service manager
/// or a cluster waits before it kills (10 to 30 s).
const FLUSH: Duration = Duration::from_secs(5);

/// A path, from the environment, at which the exit summary is also written as JSON.
const SUMMARY_FILE: &str = "EBPF_AGENT_SUMMARY_FILE";

/// Bytes of the ring buffer, from the environment: larger where bursts are lost (`ring_full`),
/// smaller where every megabyte counts.
const RING_BYTES: &str = "EBPF_AGENT_RING_BYTES";

/// Traces until a signal or the end of COMMAND. Returns the exit code.
pub fn run(config: Config) -> Result<u8, Failure> {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start")?;
    runtime.block_on(trace(config))
}

async fn trace(config: Config) -> Result<u8, Failure> {
    let mut signals = Signals::listen()?;
    let metrics = Arc::new(SelfMetrics::default());
    let ready = config
        .ready_file
        .clone()
        .map(ReadyFile::prepare)
        .transpose()?;
    let listener = match config.listen {
        Some(address) => Some(Listener::bind(address).await?),
        None => None,
    };
    let (sink, exporters) = export::start(&config.export, &metrics, &Handle::current())?;

    let held = if config.command.is_empty() {
        None
    } else {
        Some(start_command(&config).await?)
    };
    let procfs = ProcFs::open()?;
    let loaded = kernel::load(&kernel_settings(&config, ring_bytes()?)).map_err(load_failure)?;
    let drops = Arc::new(loaded.drops);
    let outcomes = Arc::new(loaded.outcomes);
    let targets = Targets::new(
        config.selection.clone(),
        procfs.clone(),
        loaded.processes,
        Programs::new(loaded.go),
        Libraries::new(loaded.tls),
    );
    let recording = Recording::from_environment(procfs.boot_seconds())?;
    let engine_config = engine::Config {
        host: system::host(),
        sampler: config.sampler,
        parent_evidence: config.parent_evidence,
        is_injecting: !config.inject.is_none(),
        boot_seconds: procfs.boot_seconds(),
        seed: rand::random(),
    };
    let threads = Threads::start(
        Source {
            ring: loaded.ring,
            drops: Arc::clone(&drops),
        },
        Answers {
            connections: loaded.connections,
            frames: loaded.frames,
            targets,
            injecting: Injecting::new(loaded.injection),
            following: Following::new(loaded.hand_off),
        },
        engine::Engine::new(engine_config, Arc::clone(&metrics)),
        recording,
        sink,
        Arc::clone(&metrics),
    )?;
    threads.select(held.as_ref().map(Held::pid)).await?;

    let status = {
        let (drops, outcomes) = (Arc::clone(&drops), Arc::clone(&outcomes));
        Arc::new(Status::new(Arc::clone(&metrics), move || {
            let (lost, injected) = (drops.totals(), outcomes.totals());
            let lost = counters(
                "ebpf_agent_kernel_lost_total",
                "What was lost on the kernel side, by reason.",
                "reason",
                lost.iter().map(|(reason, count)| (reason.name(), *count)),
            );
            let injected = counters(
                "ebpf_agent_injections_total",
                "What became of requests and connections that trace context was to be put into.",
                "outcome",
                injected
                    .iter()
                    .map(|(outcome, count)| (outcome.name(), *count)),
            );
            lost.chain(injected).collect()
        }))
    };
    if let Some(listener) = listener {
        tokio::spawn(listener.serve(Arc::clone(&status)));
    }
    let command = held.map(Held::release).transpose()?;
    status.set_ready();
    if let Some(ready) = &ready {
        ready.create()?;
    }

    let ledger = || Ledger::new(&metrics, drops.totals()).with_injections(outcomes.totals());
    let print = || print_summary(&ledger());
    let code = wait(&mut signals, command, &print).await?;

    drop(ready);
    threads.stop().await?;
    flush(exporters, &mut signals).await;
    drop(loaded.guard);
    let ledger = ledger();
    print_summary(&ledger);
    if let Some(path) = std::env::var_os(SUMMARY_FILE).filter(|path| !path.is_empty()) {
        fs::write(&path, ledger.json().to_string())
            .with_context(|| format!("cannot write the summary to {}", path.display()))?;
    }
    Ok(code)
}

/// The signals that end or question the agent.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    user: Signal,
}

impl Signals {
    fn listen() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            user: listen(SignalKind::user_defined1())?,
        })
    }
}

/// Waits for the end: of COMMAND where there is one, else for a signal. SIGUSR1 prints the summary
/// so far.
async fn wait(
    signals: &mut Signals,
    command: Option<Running>,
    print: &impl Fn(),
) -> anyhow::Result<u8> {
    let Some(mut command) = command else {
        loop {
            tokio::select! {
                _ = signals.interrupt.recv() => return Ok(0),
                _ = signals.terminate.recv() => return Ok(0),
                _ = signals.user.recv() => print(),
            }
        }
    };
    loop {
        tokio::select! {
            code = command.wait() => return code,
            _ = signals.interrupt.recv() => {
                // A terminal sends it to the command as well, which may handle it and go on.
                if !std::io::stdin().is_terminal() {
                    command.interrupt();
                }
            }
            _ = signals.terminate.recv() => command.terminate(),
            _ = signals.user.recv() => print(),
        }
    }
}

/// Sends what is queued. A second signal ends it at once.
async fn flush(exporters: Exporters, signals: &mut Signals) {
    tokio::select! {
        () = exporters.shutdown(FLUSH) => {}
        _ = signals.interrupt.recv() => tracing::warn!("final flush interrupted"),
        _ = signals.terminate.recv() => tracing::warn!("final flush interrupted"),
    }
}

async fn start_command(config: &Config) -> Result<Held, Failure> {
    let agent = std::env::current_exe().context("cannot find the agent's own executable")?;
    Ok(Held::start(agent.as_os_str(), &config.command).await?)
}

/// By the number of processors, unless the user says otherwise. The kernel takes powers of two of
/// pages only.
fn ring_bytes() -> Result<u32, Failure> {
    const PAGE: u32 = 4096;
    const LARGEST: u32 = 1 << 30;
    let Some(text) = std::env::var_os(RING_BYTES).filter(|text| !text.is_empty()) else {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let processors = u32::try_from(processors).unwrap_or(u32::MAX);
        let wanted = limits::RING_BYTES_PER_CPU
            .saturating_mul(processors)
            .clamp(*limits::RING_BYTES.start(), *limits::RING_BYTES.end());
        return Ok(wanted.next_power_of_two());
    };
    let text = text.to_string_lossy().into_owned();
    let usable = |bytes: &u32| bytes.is_power_of_two() && (PAGE..=LARGEST).contains(bytes);
    match text.parse().ok().filter(usable) {
        Some(bytes) => Ok(bytes),
        None => Err(Failure::UnknownValue {
            origin: RING_BYTES.to_owned(),
            text,
            expected: "the powers of two from 4096 to 1073741824",
        }),
    }
}

fn kernel_settings(config: &Config, ring_bytes: u32) -> kernel::Settings {
    let selection = &config.selection;
    kernel::Settings {
        capture: match config.capture {
            Capture::Auto => None,
            Capture::Tracepoint => Some(CapturePath::Tracepoint),
            Capture::Fexit => Some(CapturePath::Fexit),
            Capture::Kretprobe => Some(CapturePath::Kretprobe),
        },
        trace_all: selection.all,
        inject: config.inject,
        consider_execs: !selection.executables.is_empty(),
        ports: selection
            .ports
            .kernel_ranges()
            .map(|range| (range.first, range.last))
            .collect(),
        agent_process_id: std::process::id(),
        ring_bytes: Some(ring_bytes),
    }
}

fn load_failure(error: LoadError) -> Failure {
    match error {
        LoadError::NoBtf(_) => Failure::NoTypeInformation { release: release() },
        LoadError::BadBtf(_)
        | LoadError::MissingFields(_)
        | LoadError::NotPermitted(_)
        | LoadError::NoCapturePath(_) => Failure::KernelUnsupported {
            cause: error.to_string(),
        },
        LoadError::Injection(cause) => Failure::InjectionUnsupported { cause },
        LoadError::NoObject | LoadError::Object(_) => Failure::Runtime(error.into()),
    }
}

fn release() -> String {
    system::System::read().map_or_else(|_| String::from("unknown"), |system| system.release)
}

/// What `agent check` shows of the kernel: everything is really loaded, and let go again. Injection
/// only where `with_injection`: its programs take the kernel longest.
pub fn probe(with_injection: bool) -> KernelReport {
    let settings = kernel::Settings {
        agent_process_id: std::process::id(),
        ..kernel::Settings::default()
    };
    let hook = |name: &str, purpose: &str, outcome| Hook {
        name: name.to_owned(),
        purpose: purpose.to_owned(),
        outcome,
    };
    let (report, uprobes) = match kernel::load(&settings) {
        Ok(kernel) => (kernel.report, kernel.guard.try_uprobes()),
        Err(error) => {
            let outcome = Outcome::Fails {
                cause: error.to_string(),
            };
            let hooks = vec![hook("socket hooks", "socket data", outcome)];
            return KernelReport {
                hooks,
                ..KernelReport::default()
            };
        }
    };
    let mut hooks: Vec<Hook> = CapturePath::ALL
        .iter()
        .map(|path| {
            let rejected = report.rejected.iter().find(|(other, _)| other == path);
            let outcome = match rejected {
                Some((_, cause)) => Outcome::Fails {
                    cause: cause.clone(),
                },
                None if *path == report.capture => Outcome::Works,
                None => Outcome::NotTried {
                    reason: "not needed here".to_owned(),
                },
            };
            hook(path.name(), "socket data", outcome)
        })
        .collect();
    hooks.extend(kernel::attach::optional_hooks().map(|(symbol, purpose)| {
        let unattached = report
            .unattached
            .iter()
            .find(|other| other.symbol == symbol);
        let outcome = unattached.map_or(Outcome::Works, |other| Outcome::Fails {
            cause: other.reason.clone(),
        });
        hook(symbol, purpose, outcome)
    }));
    hooks.extend(uprobes.into_iter().map(|(whose, refused)| {
        let outcome = refused.map_or(Outcome::Works, |cause| Outcome::Fails { cause });
        hook(&format!("uprobes on {whose}"), UPROBES, outcome)
    }));
    let headers = Carriers {
        headers: true,
        option: false,
    };
    let option = Carriers {
        headers: false,
        option: true,
    };
    for (symbol, purpose, carriers) in [
        (
            "sockops and sk_msg",
            "header injection, where asked for",
            headers,
        ),
        (
            "sockops",
            "trace context in TCP options, where asked for",
            option,
        ),
    ] {
        let outcome = if with_injection {
            probe_injection(&settings, carriers)
        } else {
            Outcome::NotTried {
                reason: "as asked for".to_owned(),
            }
        };
        hooks.push(hook(symbol, purpose, outcome));
    }
    let missing_fields = report
        .missing_features
        .iter()
        .map(|(feature, field)| (field.path().to_owned(), feature.name().to_owned()))
        .collect();
    KernelReport {
        hooks,
        capture: Some(report.capture.name().to_owned()),
        missing_fields,
    }
}

/// What uprobes are for.
const UPROBES: &str = "inside programs, where they have it";

/// Loads it all once more; headers are tried with the agent's own sockets.
fn probe_injection(settings: &kernel::Settings, carriers: Carriers) -> Outcome {
    let settings = kernel::Settings {
        inject: carriers,
        ..settings.clone()
    };
    match kernel::load(&settings) {
        Ok(_) => Outcome::Works,
        Err(error) => Outcome::Fails {
            cause: error.to_string(),
        },
    }
}

fn print_summary(ledger: &Ledger) {
    // Nothing can be done when standard error is closed.
    let _ = std::io::stderr().write_all(ledger.text().as_bytes());
}

/// A counter for each of the kernel side's reasons or outcomes.
fn counters(
    name: &'static str,
    help: &'static str,
    label: &'static str,
    totals: impl Iterator<Item = (&'static str, u64)>,
) -> impl Iterator<Item = Sample> {
    totals.map(move |(value, count)| Sample {
        name,
        help,
        kind: status::Kind::Counter,
        labels: vec![(label, value.to_owned())],
        value: count as f64,
    })
}

//! EDGE: the eBPF object, loaded by the first capture path that really works.
#![expect(
    clippy::disallowed_methods,
    reason = "edge: reads the kernel's type information"
)]

use std::{
    io,
    sync::{Arc, Mutex},
};

use agent_common::{
    kernel_config::{KernelConfig, KernelField, PortRange},
    limits,
};
use aya::{Btf, Ebpf, EbpfError, EbpfLoader, Endianness, include_bytes_aligned};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use thiserror::Error;
use tracing::{debug, info, warn};

use super::{
    attach::{
        AttachError, CapturePath, Unattached, Variant, attach_always, attach_path, load_for_later,
        reason,
    },
    btf::KernelTypes,
    features::Helpers,
    frames::Frames,
    go::GoHooks,
    hand_off::HandOffHooks,
    injection::{Carriers, Injection, Outcomes},
    layout::{Feature, needed_by, resolve},
    maps::{Connections, Drops, Processes},
    ring::Ring,
    tls::TlsHooks,
};

const OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/agent-ebpf"));
const BTF_PATH: &str = "/sys/kernel/btf/vmlinux";

/// What the kernel side is told before it is loaded.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// `None`: the first that works.
    pub capture: Option<CapturePath>,
    pub trace_all: bool,
    /// Every process that replaces its program is traced until it is decided whether the user
    /// chose it by its executable.
    pub consider_execs: bool,
    /// What carries trace context in requests of the processes that [`Injection`] is told of.
    pub inject: Carriers,
    /// Inclusive ranges: a process that begins to listen in one is traced. At most
    /// [`limits::PORT_RANGES`]; more are matched in user space only.
    pub ports: Vec<(u16, u16)>,
    pub agent_process_id: u32,
    /// Bytes of the ring buffer, a power of two of pages; `None`: those for one processor.
    pub ring_bytes: Option<u32>,
}

#[derive(Debug, Error)]
pub enum LoadError {
    #[error("the kernel has no type information ({BTF_PATH}: {0})")]
    NoBtf(io::Error),
    #[error("the kernel's type information cannot be used: {0}")]
    BadBtf(String),
    #[error("the kernel lacks fields that capture needs: {}", .0.join(", "))]
    MissingFields(Vec<&'static str>),
    #[error("not permitted to load eBPF programs: {0}")]
    NotPermitted(String),
    #[error("no way to capture works on this kernel: {}", .0.join("; "))]
    NoCapturePath(Vec<String>),
    #[error("this build carries no eBPF object (AGENT_EBPF_SKIP was set)")]
    NoObject,
    #[error("cannot load the eBPF object: {0}")]
    Object(String),
    #[error("{0}")]
    Injection(String),
}

/// What was chosen and what could not be had.
#[derive(Clone, Debug)]
pub struct Report {
    pub capture: CapturePath,
    /// Better paths that were tried, each with the reason it does not work.
    pub rejected: Vec<(CapturePath, String)>,
    pub unattached: Vec<Unattached>,
    pub missing_features: Vec<(Feature, KernelField)>,
    pub helpers: Helpers,
}

/// The attached programs and their maps. Dropping it detaches everything.
pub struct Kernel {
    pub ring: Ring,
    pub connections: Connections,
    pub processes: Processes,
    pub frames: Frames,
    pub go: GoHooks,
    pub tls: TlsHooks,
    pub hand_off: HandOffHooks,
    pub drops: Drops,
    /// `None` when it was not asked for.
    pub injection: Option<Injection>,
    pub outcomes: Outcomes,
    pub report: Report,
    pub guard: Guard,
}

/// Keeps the programs attached.
pub struct Guard {
    ebpf: Arc<Mutex<Ebpf>>,
}

impl Guard {
    pub(super) fn ebpf(&self) -> &Arc<Mutex<Ebpf>> {
        &self.ebpf
    }
}

/// Loads and attaches.
pub fn load(settings: &Settings) -> Result<Kernel, LoadError> {
    if OBJECT.is_empty() {
        return Err(LoadError::NoObject);
    }
    raise_memlock();
    let kinds = Kinds::read()?;
    // While the former are held: blocks as large as those that it frees would come from the heap.
    let mut loader = loader()?;
    let (types, btf) = (&kinds.types, &kinds.btf);
    let mut config = KernelConfig::DEFAULT;
    let missing_features = missing_features(&resolve(types, &mut config))?;
    select(settings, &mut config);
    let helpers = Helpers::of(types);

    let mut rejected = Vec::new();
    let candidates = settings
        .capture
        .map_or(CapturePath::ALL.to_vec(), |path| vec![path]);
    let candidates: Vec<_> = candidates
        .into_iter()
        .map(|path| (path, configured_for(path, helpers, &config)))
        .collect();
    for (path, config) in &candidates {
        let path = *path;
        match try_path(&mut loader, settings, config, &kinds, path) {
            Ok((mut ebpf, mut unattached)) => {
                unattached.extend(attach_always(&mut ebpf, btf));
                unattached.extend(load_for_later(&mut ebpf, btf));
                let report = Report {
                    capture: path,
                    rejected,
                    unattached,
                    missing_features,
                    helpers,
                };
                announce(&report);
                let injection = start_injection(settings, config, &mut ebpf, &report)?;
                return finish(ebpf, report, injection);
            }
            Err(PathError::Object(error)) => return Err(object_error(&error)),
            Err(PathError::Attach(error)) => {
                debug!(path = path.name(), %error, "capture path does not work");
                rejected.push((path, reason(&error)));
            }
        }
    }
    Err(LoadError::NoCapturePath(
        rejected
            .iter()
            .map(|(path, reason)| format!("{}: {reason}", path.name()))
            .collect(),
    ))
}

/// The configuration as this path wants it.
fn configured_for(path: CapturePath, helpers: Helpers, config: &KernelConfig) -> KernelConfig {
    let mut config = *config;
    helpers.apply(&mut config);
    if path == CapturePath::Kretprobe {
        // The helper wants a socket whose type the verifier knows.
        config.has_socket_cookie = 0;
    }
    config
}

enum PathError {
    Object(EbpfError),
    Attach(AttachError),
}

fn try_path<'a>(
    loader: &mut EbpfLoader<'a>,
    settings: &Settings,
    config: &'a KernelConfig,
    kinds: &'a Kinds,
    path: CapturePath,
) -> Result<(Ebpf, Vec<Unattached>), PathError> {
    loader
        .btf(Some(&kinds.btf))
        .override_global("CONFIG", config, true)
        .map_max_entries("SCRATCH", path.scratch_slots())
        .map_max_entries(
            "RECORDS",
            settings.ring_bytes.unwrap_or(limits::RING_BYTES_PER_CPU),
        );
    for (maps, is_needed) in [
        (INJECTION_MAPS, config.inject == 1),
        (HEADER_MAPS, config.inject_headers == 1),
        (OPTION_MAPS, config.inject_option == 1),
    ] {
        for map in maps.iter().filter(|_| !is_needed) {
            loader.map_max_entries(map, 1);
        }
    }
    let mut ebpf = if config.inject_headers == 1 {
        loader.load(OBJECT)
    } else {
        loader.load(&without_socket_map(OBJECT))
    }
    .map_err(PathError::Object)?;
    let variant = Variant::of(config.inject == 1, Helpers::of(&kinds.types));
    let unattached = attach_path(&mut ebpf, &kinds.btf, &kinds.types, path, variant)
        .map_err(PathError::Attach)?;
    Ok((ebpf, unattached))
}

/// A loader without the type information that it reads when it is made: some 100,000 pieces of
/// memory, made and freed by a thread whose share of malloc's memory the engine's thread gets next.
fn loader<'a>() -> Result<EbpfLoader<'a>, LoadError> {
    let make = || {
        let mut loader = EbpfLoader::new();
        loader.btf(None);
        loader
    };
    let joined = std::thread::spawn(make).join();
    joined.map_err(|_| LoadError::Object("the loader cannot be made".to_owned()))
}

/// Injection is all or nothing: what was asked for and cannot be had is an error.
fn start_injection(
    settings: &Settings,
    config: &KernelConfig,
    ebpf: &mut Ebpf,
    report: &Report,
) -> Result<Option<Injection>, LoadError> {
    let Carriers { headers, option } = settings.inject;
    if !headers && !option {
        return Ok(None);
    }
    let needed = [
        (headers, Feature::HeaderInjection),
        (option, Feature::TcpOption),
        (option, Feature::LocalWire),
    ];
    if let Some((_, field)) = report.missing_features.iter().find(|(missing, _)| {
        needed
            .iter()
            .any(|(is_asked, feature)| *is_asked && feature == missing)
    }) {
        let cause = format!("the kernel lacks the field {}", field.path());
        return Err(LoadError::Injection(cause));
    }
    if headers && config.has_socket_cookie == 0 {
        let cause = "connections cannot be told apart by cookie here (Linux 5.12, not kretprobe)";
        return Err(LoadError::Injection(cause.to_owned()));
    }
    Injection::start(ebpf, settings.inject)
        .map(Some)
        .map_err(|error| LoadError::Injection(format!("{error:#}")))
}

/// Maps that only injection fills.
const INJECTION_MAPS: &[&str] = &["ARMED", "WORK", "STARTED", "REQUESTS", "CALLS"];

/// Maps that only injection of headers fills.
const HEADER_MAPS: &[&str] = &[
    "INJECTED_SOCKETS",
    "STREAMS",
    "INJECTABLE",
    "LEAVING",
    "OUTGOING_FRAMES",
    "PEER_SETTINGS",
    "SERVING",
    "BOUND",
    "BORN",
    "SERVED",
    "GO_CALLS",
];

/// Maps that only TCP options fill.
const OPTION_MAPS: &[&str] = &["OPTION_STREAMS", "RECEIVED", "PATHS"];

/// The object with a plain hash in place of the map of sockets, which needs a capability
/// (`CAP_NET_ADMIN`) that nothing else does. Its definition is found by its content: type, sizes
/// of key and value, number of entries, flags.
fn without_socket_map(object: &[u8]) -> Vec<u8> {
    const HASH: u32 = 1;
    const SOCKET_HASH: u32 = 18;
    let definition = |kind: u32| {
        [kind, 8, 4, limits::INJECTED, 0]
            .map(u32::to_le_bytes)
            .concat()
    };
    let wanted = definition(SOCKET_HASH);
    let mut changed = object.to_vec();
    let found = object.windows(wanted.len()).position(|part| part == wanted);
    if let Some(place) = found
        && let Some(part) = changed.get_mut(place..place + wanted.len())
    {
        part.copy_from_slice(&definition(HASH));
    }
    changed
}

fn finish(
    mut ebpf: Ebpf,
    report: Report,
    injection: Option<Injection>,
) -> Result<Kernel, LoadError> {
    let object = |error: anyhow::Error| LoadError::Object(format!("{error:#}"));
    let ring = Ring::take(&mut ebpf).map_err(object)?;
    let connections = Connections::take(&mut ebpf).map_err(object)?;
    let processes = Processes::take(&mut ebpf).map_err(object)?;
    let frames = Frames::take(&mut ebpf).map_err(object)?;
    let drops = Drops::take(&mut ebpf).map_err(object)?;
    let outcomes = Outcomes::take(&mut ebpf).map_err(object)?;
    let ebpf = Arc::new(Mutex::new(ebpf));
    let variant = Variant::of(injection.is_some(), report.helpers);
    Ok(Kernel {
        ring,
        connections,
        processes,
        frames,
        go: GoHooks::take(&ebpf).map_err(object)?,
        tls: TlsHooks::new(&ebpf, variant),
        hand_off: HandOffHooks::take(&ebpf),
        drops,
        injection,
        outcomes,
        report,
        guard: Guard { ebpf },
    })
}

/// What the kernel says of itself, as it is needed while loading.
struct Kinds {
    types: KernelTypes,
    /// For aya, which finds functions and tracepoints by name.
    btf: Btf,
    /// What `btf` was read from. It goes with the others: malloc of glibc takes every block from
    /// its heap that is smaller than the largest one freed so far (mallopt(3), `M_MMAP_THRESHOLD`),
    /// and the heap hardly ever shrinks.
    _names: Vec<u8>,
}

impl Kinds {
    fn read() -> Result<Self, LoadError> {
        let bad = |error: &dyn std::fmt::Display| LoadError::BadBtf(error.to_string());
        let raw = std::fs::read(BTF_PATH).map_err(LoadError::NoBtf)?;
        let types = KernelTypes::parse(raw).map_err(|error| bad(&error))?;
        let names = types.names().map_err(|error| bad(&error))?;
        let btf = Btf::parse(&names, Endianness::default()).map_err(|error| bad(&error))?;
        Ok(Self {
            types,
            btf,
            _names: names,
        })
    }
}

/// Features that are off; an error when capture itself is among them.
fn missing_features(missing: &[KernelField]) -> Result<Vec<(Feature, KernelField)>, LoadError> {
    let features: Vec<_> = missing
        .iter()
        .map(|field| (needed_by(*field), *field))
        .collect();
    let fatal: Vec<_> = features
        .iter()
        .filter(|(feature, _)| *feature == Feature::SocketCapture)
        .map(|(_, field)| field.path())
        .collect();
    if fatal.is_empty() {
        Ok(features)
    } else {
        Err(LoadError::MissingFields(fatal))
    }
}

fn select(settings: &Settings, config: &mut KernelConfig) {
    config.agent_process_id = settings.agent_process_id;
    config.trace_all = u32::from(settings.trace_all);
    let Carriers { headers, option } = settings.inject;
    config.inject = u32::from(headers || option);
    config.inject_headers = u32::from(headers);
    config.inject_option = u32::from(option);
    config.consider_execs = u32::from(settings.consider_execs);
    for ((first, last), range) in settings.ports.iter().zip(&mut config.ports) {
        *range = PortRange {
            first: *first,
            last: *last,
        };
    }
    config.port_count = settings.ports.len().min(limits::PORT_RANGES) as u32;
}

fn object_error(error: &EbpfError) -> LoadError {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    let mut denied = false;
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        denied |= inner
            .downcast_ref::<io::Error>()
            .is_some_and(|io| io.kind() == io::ErrorKind::PermissionDenied);
        cause = inner.source();
    }
    if denied {
        LoadError::NotPermitted(text)
    } else {
        LoadError::Object(text)
    }
}

/// Before Linux 5.11 maps count against this limit. Without the capability to raise it the load
/// may still succeed, so a refusal is only noted.
fn raise_memlock() {
    let current = getrlimit(Resource::Memlock);
    let unlimited = Rlimit {
        current: None,
        maximum: None,
    };
    if current.current.is_some()
        && let Err(error) = setrlimit(Resource::Memlock, unlimited)
    {
        debug!(%error, "the limit of locked memory stays; kernels before 5.11 may refuse maps");
    }
}

fn announce(report: &Report) {
    info!(path = report.capture.name(), "capture attached");
    for (path, reason) in &report.rejected {
        info!(path = path.name(), reason, "capture path not available");
    }
    for hook in &report.unattached {
        warn!(
            hook = hook.symbol,
            reason = hook.reason,
            "hook not attached; the rest goes on"
        );
    }
    let Helpers {
        task_registers,
        socket_cookie,
        long_searches,
    } = report.helpers;
    debug!(
        task_registers,
        socket_cookie, long_searches, "kernel helpers"
    );
    for feature in Feature::ALL {
        if report
            .missing_features
            .iter()
            .all(|(missing, _)| *missing != feature)
        {
            debug!(feature = feature.name(), "kernel has every field");
        }
    }
    for (feature, field) in &report.missing_features {
        warn!(
            field = field.path(),
            "this kernel lacks a field: no {}",
            feature.name()
        );
    }
}

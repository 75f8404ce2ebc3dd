//! Gathers the settings: built-in, then file, then environment, then flags.
//!
//! [`setting`] is the table of names, [`file`] the YAML file. What a user wrote for this agent
//! and is wrong stops it; what other tools' variables say and is wrong is warned about and left
//! out, as the OpenTelemetry specification asks. The settings that say what to trace count as
//! one: a flag among them replaces those of variables and file as a whole.

pub mod file;
pub mod setting;

use std::{ffi::OsString, io::IsTerminal as _, net::SocketAddr, path::PathBuf, str::FromStr};

use self::setting::{Given, Rank, Sources};
use crate::{
    cli::Flags,
    context::Evidence,
    export::{self, Kind as Exporter},
    failure::Failure,
    kernel::injection::Carriers,
    process::select::{ExecutableGlob, PortSet, Selection},
    sample::Sampler,
};

/// Everything the agent was asked for.
#[derive(Clone, Debug)]
pub struct Config {
    pub selection: Selection,
    /// COMMAND and its arguments; empty where none is to be started.
    pub command: Vec<OsString>,
    /// None where spans are to go nowhere.
    pub export: export::Config,
    pub capture: Capture,
    pub ready_file: Option<PathBuf>,
    pub listen: Option<SocketAddr>,
    pub log_level: LogLevel,
    pub sampler: Sampler,
    /// The weakest evidence that makes a parent.
    pub parent_evidence: Evidence,
    /// What carries trace context in outgoing requests.
    pub inject: Carriers,
}

/// Declares a choice by the words users write.
macro_rules! choice {
    ($(#[$attribute:meta])* $type:ident { $($(#[$doc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$attribute])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $type { $($(#[$doc])* $variant,)+ }

        impl $type {
            const WORDS: &str = choice!(@list $($word,)+);

            pub const fn word(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }
        }

        impl FromStr for $type {
            type Err = &'static str;

            /// In any case; the error lists what is expected.
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                match text.trim().to_ascii_lowercase().as_str() {
                    $($word => Ok(Self::$variant),)+
                    _ => Err(Self::WORDS),
                }
            }
        }
    };
    (@list $first:literal, $($rest:literal,)*) => { concat!($first, $(", ", $rest,)*) };
}

choice! {
    /// Which kernel hooks capture socket calls.
    Capture {
        /// The first that loads, in the order below.
        Auto = "auto",
        Tracepoint = "tracepoint",
        Fexit = "fexit",
        Kretprobe = "kretprobe",
    }
}

choice! {
    LogLevel {
        Error = "error",
        Warn = "warn",
        Info = "info",
        Debug = "debug",
        Trace = "trace",
    }
}

choice! {
    Injection {
        None = "none",
        Headers = "headers",
        Tcp = "tcp",
        All = "all",
    }
}

impl Config {
    /// From flags, COMMAND, and `lookup` of the environment. Also gives warnings, to be logged
    /// once logging is set up.
    pub fn gather(
        flags: &Flags,
        command: Vec<OsString>,
        lookup: &dyn Fn(&str) -> Option<String>,
    ) -> Result<(Self, Vec<String>), Failure> {
        let path = setting::config_path(flags, lookup);
        let file = path.map(|path| file::read(&path)).transpose()?;
        let mut sources = Sources::new(flags, lookup, file);

        let selection = selection(&mut sources, &command)?;
        let exporters = exporters(&mut sources)?;
        let inject = sources.take("inject", injection)?;
        let capture = sources.take("capture", word::<Capture>)?;
        let parent_evidence = sources.take("parent-evidence", evidence)?;
        let ready_file = sources.take("ready-file", single)?;
        let listen = sources.take("listen", address)?;
        let log_level = sources.take("log-level", word::<LogLevel>)?;

        let mut warnings = sources.into_warnings();
        let (export, export_warnings) =
            export::Config::from_lookup(&exporters, lookup).map_err(|error| {
                Failure::ExportMalformed {
                    cause: error.to_string(),
                }
            })?;
        warnings.extend(export_warnings);
        let (sampler, sampler_warnings) = Sampler::from_lookup(lookup);
        warnings.extend(sampler_warnings);
        let config = Self {
            selection,
            command,
            export,
            capture: capture.map_or(Capture::Auto, |(_, capture)| capture),
            ready_file: ready_file.map(|(_, path)| path.into()),
            listen: listen.map(|(_, address)| address),
            log_level: log_level.map_or(LogLevel::Info, |(_, level)| level),
            sampler,
            inject: inject.map_or_else(Carriers::default, |(_, carriers)| carriers),
            parent_evidence: parent_evidence.map_or_else(Evidence::default, |(_, weakest)| weakest),
        };
        Ok((config, warnings))
    }

    /// A choice must have been made, unless a command brings its own.
    pub fn require_targets(&self) -> Result<(), Failure> {
        if self.selection.is_empty() && self.command.is_empty() {
            return Err(Failure::NothingSelected);
        }
        Ok(())
    }
}

impl Config {
    /// Log lines go to standard error: our own at the level asked for, those of libraries from
    /// warnings on. A second call changes nothing.
    pub fn start_logging(&self) {
        let ours = self.log_level.word();
        let theirs = if self.log_level == LogLevel::Error {
            "error"
        } else {
            "warn"
        };
        let filter = tracing_subscriber::EnvFilter::new(format!("{theirs},agent={ours}"));
        let subscriber = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .with_ansi(std::io::stderr().is_terminal())
            .with_target(false);
        // An error means that one is set already.
        let _ = subscriber.try_init();
    }
}

/// What to trace, from the highest source that says anything about it.
fn selection(sources: &mut Sources<'_>, command: &[OsString]) -> Result<Selection, Failure> {
    const KEYS: [&str; 4] = ["pid", "port", "exe", "all"];
    let asked_by_flag = (!command.is_empty()).then_some(Rank::Flag);
    let highest = KEYS
        .iter()
        .filter_map(|key| sources.highest(key))
        .chain(asked_by_flag)
        .max();
    let Some(rank) = highest else {
        return Ok(Selection::default());
    };
    Ok(Selection {
        pids: sources
            .take_at(rank, "pid", pids)?
            .unwrap_or_default()
            .into_iter()
            .collect(),
        ports: sources.take_at(rank, "port", ports)?.unwrap_or_default(),
        executables: sources.take_at(rank, "exe", globs)?.unwrap_or_default(),
        all: sources.take_at(rank, "all", boolean)?.unwrap_or(false),
    })
}

/// The exporters asked for, else OTLP where an endpoint is configured, else the console.
fn exporters(sources: &mut Sources<'_>) -> Result<Vec<Exporter>, Failure> {
    if sources
        .variable("OTEL_SDK_DISABLED")
        .is_some_and(|text| text.eq_ignore_ascii_case("true"))
    {
        sources.warn("OTEL_SDK_DISABLED is true: no spans are exported".to_owned());
        return Ok(Vec::new());
    }
    let has_endpoint = [
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    ]
    .iter()
    .any(|name| sources.variable(name).is_some());
    let printer = printer(sources);
    let default = match (has_endpoint, printer) {
        (true, _) => vec![Exporter::Otlp],
        (false, Some(_)) => Vec::new(),
        (false, None) => vec![Exporter::Console],
    };
    let asked = sources.take("exporter", exporter_words)?;
    let mut exporters = match asked {
        // The printer of OBI prints beside what is exported; a file yields to any variable.
        Some((Rank::File, _)) if printer.is_some() => default,
        Some((_, exporters)) => exporters,
        None => default,
    };
    if !sources.is_own("exporter") {
        exporters.extend(printer);
    }
    exporters.retain(|exporter| *exporter != Exporter::None);
    let mut unique = Vec::new();
    for exporter in exporters {
        if !unique.contains(&exporter) {
            unique.push(exporter);
        }
    }
    Ok(unique)
}

/// `OTEL_EBPF_TRACE_PRINTER` of OBI, in our words.
fn printer(sources: &mut Sources<'_>) -> Option<Exporter> {
    let text = sources.variable("OTEL_EBPF_TRACE_PRINTER")?;
    match text.to_ascii_lowercase().as_str() {
        "text" => Some(Exporter::Console),
        "json" | "json_indent" => Some(Exporter::Json),
        "disabled" => None,
        _ => {
            sources.warn(format!(
                "OTEL_EBPF_TRACE_PRINTER: {text:?} is not one of text, json, disabled; left out"
            ));
            None
        }
    }
}

fn exporter_words(given: &Given) -> Result<Vec<Exporter>, Failure> {
    let parse = |part: &str| {
        part.parse().map_err(|_| Failure::UnknownValue {
            origin: given.origin.clone(),
            text: part.to_owned(),
            expected: "otlp, console, json, none",
        })
    };
    given.parts().map(parse).collect()
}

/// What is injected: one word or several. OBI says `disabled` for none and `http` for headers.
fn injection(given: &Given) -> Result<Carriers, Failure> {
    let mut carriers = Carriers::default();
    for part in given.parts() {
        let word = match part.to_ascii_lowercase().as_str() {
            "disabled" if given.is_foreign() => Injection::None,
            "http" if given.is_foreign() => Injection::Headers,
            _ => parse_word(given, part)?,
        };
        carriers.headers |= matches!(word, Injection::Headers | Injection::All);
        carriers.option |= matches!(word, Injection::Tcp | Injection::All);
    }
    Ok(carriers)
}

fn pids(given: &Given) -> Result<Vec<u32>, Failure> {
    let parse = |text: &str| match text.parse() {
        Ok(pid) if pid > 0 => Ok(pid),
        _ => Err(Failure::PidMalformed {
            origin: given.origin.clone(),
            text: text.to_owned(),
        }),
    };
    given.parts().map(parse).collect()
}

fn ports(given: &Given) -> Result<PortSet, Failure> {
    let parse = |text: &str| {
        PortSet::parse_range(text).map_err(|cause| Failure::PortMalformed {
            origin: given.origin.clone(),
            text: text.to_owned(),
            cause,
        })
    };
    let ports: PortSet = given.parts().map(parse).collect::<Result<_, _>>()?;
    if ports.len() > PortSet::MAX_RANGES {
        return Err(Failure::TooManyPortRanges {
            origin: given.origin.clone(),
            count: ports.len(),
            limit: PortSet::MAX_RANGES,
        });
    }
    Ok(ports)
}

/// Not split at commas, which belong to `{a,b}`.
fn globs(given: &Given) -> Result<Vec<ExecutableGlob>, Failure> {
    let parse = |text: &String| {
        ExecutableGlob::parse(text).map_err(|cause| Failure::GlobMalformed {
            origin: given.origin.clone(),
            text: text.clone(),
            cause,
        })
    };
    given.values.iter().map(parse).collect()
}

fn boolean(given: &Given) -> Result<bool, Failure> {
    match single(given)?.to_ascii_lowercase().as_str() {
        "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        text => Err(Failure::UnknownValue {
            origin: given.origin.clone(),
            text: text.to_owned(),
            expected: "true, false",
        }),
    }
}

fn address(given: &Given) -> Result<SocketAddr, Failure> {
    let text = single(given)?;
    let malformed = |_| Failure::AddressMalformed {
        origin: given.origin.clone(),
        text: text.clone(),
    };
    text.parse().map_err(malformed)
}

/// A grade of evidence by its name in `ebpf_agent.parent.evidence`.
fn evidence(given: &Given) -> Result<Evidence, Failure> {
    let text = single(given)?;
    let name = text.to_ascii_lowercase();
    Evidence::ALL
        .into_iter()
        .find(|evidence| evidence.name() == name)
        .ok_or_else(|| Failure::UnknownValue {
            origin: given.origin.clone(),
            text,
            expected: Evidence::NAMES,
        })
}

fn word<Choice: FromStr<Err = &'static str>>(given: &Given) -> Result<Choice, Failure> {
    parse_word(given, &single(given)?)
}

fn parse_word<Choice>(given: &Given, text: &str) -> Result<Choice, Failure>
where
    Choice: FromStr<Err = &'static str>,
{
    text.parse().map_err(|expected| Failure::UnknownValue {
        origin: given.origin.clone(),
        text: text.to_owned(),
        expected,
    })
}

fn single(given: &Given) -> Result<String, Failure> {
    match given.values.as_slice() {
        [value] => Ok(value.trim().to_owned()),
        values => Err(Failure::TooManyValues {
            origin: given.origin.clone(),
            count: values.len(),
        }),
    }
}

#[cfg(test)]
mod tests;

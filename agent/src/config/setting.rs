//! The table of settings, and where each is looked for. Pure.

use std::path::PathBuf;

use super::file::SettingsFile;
use crate::{cli::Flags, failure::Failure};

/// One setting: flag `--KEY`, variable `EBPF_AGENT_KEY`, key of the file.
#[derive(Debug)]
pub struct Setting {
    pub key: &'static str,
    pub variable: &'static str,
    /// Variables of the OpenTelemetry specification and of OBI that mean the same, looked at in
    /// this order after our own.
    pub foreign: &'static [&'static str],
}

pub const SETTINGS: [Setting; 11] = [
    Setting {
        key: "pid",
        variable: "EBPF_AGENT_PID",
        foreign: &["OTEL_EBPF_TARGET_PID"],
    },
    Setting {
        key: "port",
        variable: "EBPF_AGENT_PORT",
        foreign: &["OTEL_EBPF_OPEN_PORT"],
    },
    Setting {
        key: "exe",
        variable: "EBPF_AGENT_EXE",
        foreign: &["OTEL_EBPF_AUTO_TARGET_EXE", "OTEL_GO_AUTO_TARGET_EXE"],
    },
    Setting {
        key: "all",
        variable: "EBPF_AGENT_ALL",
        foreign: &[],
    },
    Setting {
        key: "exporter",
        variable: "EBPF_AGENT_EXPORTER",
        foreign: &["OTEL_TRACES_EXPORTER"],
    },
    Setting {
        key: "inject",
        variable: "EBPF_AGENT_INJECT",
        foreign: &["OTEL_EBPF_BPF_CONTEXT_PROPAGATION"],
    },
    Setting {
        key: "parent-evidence",
        variable: "EBPF_AGENT_PARENT_EVIDENCE",
        foreign: &[],
    },
    Setting {
        key: "ready-file",
        variable: "EBPF_AGENT_READY_FILE",
        foreign: &[],
    },
    Setting {
        key: "listen",
        variable: "EBPF_AGENT_LISTEN",
        foreign: &[],
    },
    Setting {
        key: "log-level",
        variable: "EBPF_AGENT_LOG_LEVEL",
        foreign: &["OTEL_EBPF_LOG_LEVEL", "OTEL_LOG_LEVEL"],
    },
    Setting {
        key: "capture",
        variable: "EBPF_AGENT_CAPTURE",
        foreign: &[],
    },
];

const CONFIG_VARIABLE: &str = "EBPF_AGENT_CONFIG";

/// Where the file is, by flag or variable.
pub fn config_path(flags: &Flags, lookup: &dyn Fn(&str) -> Option<String>) -> Option<PathBuf> {
    let flag = flags
        .get("config")
        .and_then(|values| values.last().cloned());
    flag.or_else(|| lookup(CONFIG_VARIABLE).filter(|path| !path.trim().is_empty()))
        .map(PathBuf::from)
}

/// How much a source counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rank {
    File,
    Environment,
    Flag,
}

/// Whose name a value was given under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Ours,
    Foreign,
}

/// A value as it was written.
#[derive(Clone, Debug)]
pub struct Given {
    /// The name it was given under, for messages: `--port`, `EBPF_AGENT_PORT`, `port in FILE`.
    pub origin: String,
    pub values: Vec<String>,
    rank: Rank,
    owner: Owner,
}

impl Given {
    /// Values split at commas. Empty parts stay where they are a mistake, as in `80,,81`.
    pub fn parts(&self) -> impl Iterator<Item = &str> {
        self.values
            .iter()
            .flat_map(|value| value.split(','))
            .map(str::trim)
    }

    pub fn is_foreign(&self) -> bool {
        self.owner == Owner::Foreign
    }
}

/// All places where settings are, with the warnings that reading them brought.
pub struct Sources<'a> {
    flags: &'a Flags,
    lookup: &'a dyn Fn(&str) -> Option<String>,
    file: Option<SettingsFile>,
    warnings: Vec<String>,
}

type Parse<T> = fn(&Given) -> Result<T, Failure>;

impl<'a> Sources<'a> {
    pub fn new(
        flags: &'a Flags,
        lookup: &'a dyn Fn(&str) -> Option<String>,
        file: Option<SettingsFile>,
    ) -> Self {
        Self {
            flags,
            lookup,
            file,
            warnings: Vec::new(),
        }
    }

    /// A variable that is set; an empty one is not.
    pub fn variable(&self, name: &str) -> Option<String> {
        (self.lookup)(name)
            .map(|value| value.trim().to_owned())
            .filter(|value| !value.is_empty())
    }

    pub fn warn(&mut self, warning: String) {
        self.warnings.push(warning);
    }

    pub fn into_warnings(self) -> Vec<String> {
        self.warnings
    }

    /// The value that counts, parsed, with its rank.
    pub fn take<T>(&mut self, key: &str, parse: Parse<T>) -> Result<Option<(Rank, T)>, Failure> {
        self.first(self.given(key), parse)
    }

    /// The value given at one rank; others are not looked at.
    pub fn take_at<T>(
        &mut self,
        rank: Rank,
        key: &str,
        parse: Parse<T>,
    ) -> Result<Option<T>, Failure> {
        let given = self
            .given(key)
            .into_iter()
            .filter(|given| given.rank == rank)
            .collect();
        Ok(self.first(given, parse)?.map(|(_, value)| value))
    }

    /// The highest rank that gives a value.
    pub fn highest(&self, key: &str) -> Option<Rank> {
        self.given(key).first().map(|given| given.rank)
    }

    /// Whether the value that counts is given as flag or under our own variable.
    pub fn is_own(&self, key: &str) -> bool {
        self.given(key)
            .first()
            .is_some_and(|given| given.owner == Owner::Ours && given.rank > Rank::File)
    }

    fn first<T>(
        &mut self,
        given: Vec<Given>,
        parse: Parse<T>,
    ) -> Result<Option<(Rank, T)>, Failure> {
        for given in given {
            match parse(&given) {
                Ok(value) => return Ok(Some((given.rank, value))),
                Err(failure) if given.is_foreign() => {
                    self.warnings.push(format!("left out: {failure}"));
                }
                Err(failure) => return Err(failure),
            }
        }
        Ok(None)
    }

    /// Every place that gives a value, the one that counts most first.
    fn given(&self, key: &str) -> Vec<Given> {
        let mut found = Vec::new();
        let Some(setting) = SETTINGS.iter().find(|setting| setting.key == key) else {
            return found;
        };
        if let Some(values) = self.flags.get(key) {
            let origin = format!("--{key}");
            found.push(Given {
                origin,
                values: values.clone(),
                rank: Rank::Flag,
                owner: Owner::Ours,
            });
        }
        let own = std::iter::once((setting.variable, Owner::Ours));
        let foreign = setting.foreign.iter().map(|&name| (name, Owner::Foreign));
        for (name, owner) in own.chain(foreign) {
            if let Some(value) = self.variable(name) {
                let (origin, values) = (name.to_owned(), vec![value]);
                found.push(Given {
                    origin,
                    values,
                    rank: Rank::Environment,
                    owner,
                });
            }
        }
        if let Some(file) = &self.file
            && let Some(values) = file.values.get(key)
        {
            let origin = format!("`{key}` in {}", file.path.display());
            found.push(Given {
                origin,
                values: values.clone(),
                rank: Rank::File,
                owner: Owner::Ours,
            });
        }
        // `all: false` says nothing about what to trace.
        if key == "all" {
            found.retain(|given| !matches!(given.values.as_slice(), [value] if value == "false"));
        }
        found
    }
}

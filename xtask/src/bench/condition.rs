//! What runs beside a program while it is measured: the agent, or a part of what it is.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use super::{sink::Sink, usage::Usage};
use crate::{
    build::{self, Agent},
    child::Running,
    steps::{self, Privilege},
    toolchain::Toolchain,
};

#[derive(
    clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, serde::Serialize,
)]
#[serde(rename_all = "lowercase")]
pub(super) enum Condition {
    /// The agent traces the program and exports its spans.
    Traced,
    /// The same, and headers are put into the program's own requests.
    Injecting,
    /// The agent's process is halted and its probes run, until the ring buffer is full and beyond:
    /// what the hooks cost, without the processor time of the agent.
    Halted,
    /// The agent traces another program, so that every probe ends at its filter.
    Filter,
    /// A pair of probes that only count stands where the agent's would.
    Counting,
}

impl Condition {
    pub(super) const ALL: [Self; 5] = [
        Self::Traced,
        Self::Injecting,
        Self::Halted,
        Self::Filter,
        Self::Counting,
    ];

    pub(super) const fn title(self) -> &'static str {
        match self {
            Self::Traced => "traced",
            Self::Injecting => "traced, headers injected",
            Self::Halted => "probes only, agent halted",
            Self::Filter => "probes that end at their filter",
            Self::Counting => "probes that only count",
        }
    }
}

/// What a condition is made from.
pub(super) struct Parts<'a> {
    pub(super) agent: &'a Path,
    /// The probes that only count, when they are wanted.
    pub(super) counting: Option<Counting>,
    /// Where processes write; one condition at a time.
    pub(super) directory: &'a Path,
}

/// A condition that holds until this is dropped.
pub(super) struct Standing {
    /// Whose programs are attached.
    process: Running,
    started: Instant,
    sink: Sink,
    /// Where the agent leaves its ledger.
    summary: Option<PathBuf>,
    is_halted: bool,
    /// Another program to trace. Ends after the agent.
    _idle: Option<Running>,
}

impl Condition {
    /// Makes it hold for the program with this process id.
    pub(super) fn stand(self, parts: &Parts<'_>, subject: u32) -> Result<Standing> {
        match self {
            Self::Traced => parts.trace(subject, &[], None),
            Self::Injecting => parts.trace(subject, &["--inject", "headers"], None),
            Self::Halted => {
                let mut standing = parts.trace(subject, &[], None)?;
                standing.process.signal("STOP")?;
                standing.is_halted = true;
                Ok(standing)
            }
            Self::Filter => {
                let mut idle = Command::new("sleep");
                let idle = Running::start("idle", parts.directory, idle.arg("infinity"))?;
                parts.trace(idle.pid(), &[], Some(idle))
            }
            Self::Counting => parts.count(),
        }
    }
}

impl Parts<'_> {
    /// With more arguments, and with what else has to last as long as the agent.
    fn trace(&self, pid: u32, more: &[&str], idle: Option<Running>) -> Result<Standing> {
        let sink = Sink::start()?;
        let endpoint = format!("http://127.0.0.1:{}", sink.port);
        let environment = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
        ];
        let pid = pid.to_string();
        let arguments = ["--pid", &pid, "--exporter", "otlp"];
        let arguments: Vec<String> = arguments
            .iter()
            .chain(more)
            .map(ToString::to_string)
            .collect();
        // What an earlier agent left would look like this one's.
        for name in ["agent.ready", "agent.json"] {
            remove_file(&self.directory.join(name))?;
        }
        let started = Instant::now();
        let agent = Agent::start(self.agent, self.directory, &arguments, &environment)?;
        Ok(Standing {
            process: agent.process,
            started,
            sink,
            summary: Some(agent.summary),
            is_halted: false,
            _idle: idle,
        })
    }

    fn count(&self) -> Result<Standing> {
        let counting = self
            .counting
            .as_ref()
            .context("the counting probes were not built")?;
        let ready = self.directory.join("counting.ready");
        remove_file(&ready)?;
        let privilege = Privilege::detect();
        let mut command = privilege
            .command(&counting.loader, &[])
            .context("attaching probes needs root")?;
        command.arg(&counting.object).arg(&ready);
        let started = Instant::now();
        let mut process = Running::start_as(privilege, "counting", self.directory, &mut command)?;
        process.wait_until("attached probe", Duration::from_secs(10), || ready.exists())?;
        Ok(Standing {
            process,
            started,
            sink: Sink::start()?,
            summary: None,
            is_halted: false,
            _idle: None,
        })
    }
}

impl Standing {
    pub(super) fn pid(&self) -> u32 {
        self.process.pid()
    }

    pub(super) fn usage(&self) -> Result<Usage> {
        Usage::of(self.pid())
    }

    /// Ends it in order; what the agent says of itself at the end comes back.
    pub(super) fn end(mut self) -> Result<Ended> {
        self.wake();
        self.process.stop()?;
        let ledger = match &self.summary {
            Some(file) => {
                let text = fs::read_to_string(file).context("the agent wrote no summary")?;
                Some(serde_json::from_str(&text).context("the agent's summary is damaged")?)
            }
            None => None,
        };
        let first = self.sink.first_span();
        Ok(Ended {
            spans: self.sink.spans(),
            first_span: first.map(|first| first - self.started),
            ledger: ledger.unwrap_or_default(),
        })
    }

    /// A halted process would not hear that it is to end.
    fn wake(&mut self) {
        if self.is_halted {
            self.is_halted = self.process.signal("CONT").is_err();
        }
    }
}

impl Drop for Standing {
    fn drop(&mut self) {
        self.wake();
    }
}

/// What was known when an agent had ended.
pub(super) struct Ended {
    /// That the receiver got.
    pub(super) spans: u64,
    /// From starting the agent to its first span at the receiver.
    pub(super) first_span: Option<Duration>,
    pub(super) ledger: Ledger,
}

/// The agent's own ledger, as it writes it.
#[derive(Debug, Default, serde::Deserialize)]
pub(super) struct Ledger {
    losses: Vec<Loss>,
    kernel_losses: std::collections::BTreeMap<String, u64>,
}

#[derive(Debug, serde::Deserialize)]
struct Loss {
    reason: String,
    count: u64,
}

impl Ledger {
    /// How much was lost for each reason, on both sides of the kernel.
    pub(super) fn lost(&self) -> impl Iterator<Item = (&str, u64)> {
        let user = self.losses.iter();
        let user = user.map(|loss| (loss.reason.as_str(), loss.count));
        let kernel = self.kernel_losses.iter();
        user.chain(kernel.map(|(reason, count)| (reason.as_str(), *count)))
            .filter(|(_, count)| *count > 0)
    }
}

/// The probes that only count, built.
pub(super) struct Counting {
    loader: PathBuf,
    object: PathBuf,
}

impl Counting {
    /// The object by the compiler of the eBPF programs, and what loads it as an example of the
    /// agent's crate, which has the library for that.
    pub(super) fn build() -> Result<Self> {
        const NAME: &str = "bench_floor";
        let toolchain = Toolchain::read().context("no compiler for the eBPF programs")?;
        let place = build::target_directory().join("ebpf-bench");
        let mut object = toolchain.cargo("build");
        object.args(["--quiet", "--package", "agent-ebpf", "--bin", NAME]);
        object.arg("--target-dir").arg(&place);
        object.current_dir(steps::workspace());
        steps::run_timed("building the probes that only count", &mut object)?;
        let mut loader = steps::cargo();
        loader.args(["build", "--quiet", "--package", "agent", "--example", NAME]);
        steps::run_timed("building what loads them", &mut loader)?;
        let counting = Self {
            loader: build::target_directory().join("debug/examples").join(NAME),
            object: place
                .join(crate::toolchain::TARGET)
                .join("release")
                .join(NAME),
        };
        for file in [&counting.loader, &counting.object] {
            ensure!(file.is_file(), "{} was not built", file.display());
        }
        Ok(counting)
    }
}

fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Losses of both sides are named with their counts, and reasons without a loss are not.
    #[test]
    fn what_was_lost() {
        let text = r#"{"counters": {"records.received": 9},
            "losses": [{"reason": "export_failed", "service": "shop", "count": 2}],
            "kernel_losses": {"ring_full": 3, "io_uring": 0}}"#;
        let ledger: Ledger = serde_json::from_str(text).expect("as the agent writes it");
        let lost: Vec<_> = ledger.lost().collect();
        assert_eq!(lost, [("export_failed", 2), ("ring_full", 3)]);
    }
}

//! `cargo xtask bench --guest`: cost in a guest whose clock counts instructions.
//!
//! The guest has one processor, and a second of its time is so many instructions, so figures
//! repeat on any machine and however busy it is, and figures of different agents compare. They say
//! nothing of caches or of the frequency of a real processor.
//!
//! Any agent can be measured that is one program which needs no arguments, exports OTLP as
//! http/protobuf to 127.0.0.1:4318 and ends on SIGTERM; a script may give it its settings. nginx
//! listens on port [`NGINX_PORT`], which the variables for our own agent name.

pub(crate) mod inside;

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::{steps::say, vm};

/// The kernel that other agents were measured on.
const KERNEL: &str = "6.12";

/// Where nginx listens in the guest, so that a script can name it.
pub(super) const NGINX_PORT: u16 = 8080;

/// By the machine's clock. An agent that needs minutes of the guest's time to start needs ten
/// times as long by the machine's.
const DEADLINE: Duration = Duration::from_hours(1);

/// What one agent cost in the guest, in its time.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct Figures {
    /// Requests per second that nginx answered, in the better of a run before and one after.
    pub(super) rate_without: f64,
    pub(super) rate_with: f64,
    /// While the agent ran and the load was full.
    pub(super) requests: u64,
    /// Spans of those requests.
    pub(super) spans: u64,
    /// CPU seconds of the agent, user and kernel, until the last of these spans had come.
    pub(super) cpu_s: f64,
    pub(super) rss_kb: u64,
    pub(super) peak_kb: u64,
    /// Seconds from starting the agent to its first span at the receiver, while a request was made
    /// every few hundredths of a second.
    pub(super) first_span_s: f64,
}

impl Figures {
    pub(super) fn throughput_kept(&self) -> f64 {
        self.rate_with / self.rate_without
    }

    pub(super) fn cpu_s_per_10_000(&self) -> f64 {
        self.cpu_s / self.requests.max(1) as f64 * 10_000.0
    }

    fn text(&self) -> String {
        format!(
            "throughput kept {:.3} ({:.0} /s without, {:.0} /s with)\n  \
             agent CPU {:.3} s per 10,000 requests\n  \
             RSS {:.1} MB, peak {:.1} MB\n  \
             first span {:.2} s after the start\n  \
             {} spans of {} requests",
            self.throughput_kept(),
            self.rate_without,
            self.rate_with,
            self.cpu_s_per_10_000(),
            megabytes(self.rss_kb),
            megabytes(self.peak_kb),
            self.first_span_s,
            self.spans,
            self.requests,
        )
    }
}

/// Of kB as the kernel counts them.
pub(super) fn megabytes(kilobytes: u64) -> f64 {
    kilobytes as f64 * 1_024.0 / 1_000_000.0
}

/// The figures, and the kernel they come from.
pub(super) fn run(agent: &Path, seconds: u32) -> Result<(String, Figures)> {
    let agent = visible(agent)?;
    let own = env::current_exe().context("the path of this program is not known")?;
    let seconds = seconds.to_string();
    let words: [&std::ffi::OsStr; 7] = [
        own.as_os_str(),
        "vm-guest".as_ref(),
        "bench".as_ref(),
        "--agent".as_ref(),
        agent.as_os_str(),
        "--seconds".as_ref(),
        seconds.as_ref(),
    ];
    let command: Vec<OsString> = words.map(OsString::from).to_vec();
    let mut figures = None;
    let release = vm::run_counted(
        KERNEL,
        &command,
        DEADLINE,
        |line| match serde_json::from_str(line) {
            Ok(read) => figures = Some(read),
            Err(_) => say("bench", line),
        },
    )?;
    let figures: Figures = figures.context("the guest reported no figures")?;
    say(
        "bench",
        &format!(
            "in a guest with Linux {release}, by its own clock\n  {}",
            figures.text()
        ),
    );
    Ok((release, figures))
}

/// The agent's path, as long as the guest can see it.
fn visible(agent: &Path) -> Result<PathBuf> {
    let path = agent.canonicalize().context("no such agent")?;
    let hidden = env::temp_dir();
    ensure!(
        !path.starts_with(&hidden),
        "{} is hidden in the guest, which has a {} of its own: copy it below target/",
        path.display(),
        hidden.display()
    );
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Figures are given as others give theirs: a ratio, and CPU time for 10,000 requests.
    #[test]
    fn figures_of_comparison() {
        let figures = Figures {
            rate_without: 1_000.0,
            rate_with: 360.0,
            requests: 20_000,
            spans: 20_000,
            cpu_s: 3.0,
            rss_kb: 0,
            peak_kb: 1_000,
            first_span_s: 1.0,
        };
        assert!((figures.throughput_kept() - 0.36).abs() < 1e-9);
        assert!((figures.cpu_s_per_10_000() - 1.5).abs() < 1e-9);
        assert!((megabytes(figures.peak_kb) - 1.024).abs() < 1e-9);
    }
}

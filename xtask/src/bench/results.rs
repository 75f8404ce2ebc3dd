//! What was measured, kept beside the page that shows it.

use std::{collections::BTreeMap, fs, path::PathBuf, process::Command};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::{
    condition::Condition, engine::Replayed, guest, load::Load, programs::Run, spread::Spread,
};
use crate::steps::{self, capture};

const RESULTS: &str = "docs/bench.json";

/// Everything that `--update` wrote; each part by the command that measures it.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub(super) struct Results {
    pub(super) machine: Option<Machine>,
    pub(super) subjects: Vec<SubjectResult>,
    pub(super) engine: Vec<Replayed>,
    pub(super) guest: Option<GuestResult>,
}

/// Where the subjects and the engine were measured.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct Machine {
    pub(super) processor: String,
    pub(super) processors: usize,
    pub(super) kernel: String,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct GuestResult {
    pub(super) kernel: String,
    pub(super) figures: guest::Figures,
}

/// One program under load.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct SubjectResult {
    pub(super) name: String,
    pub(super) rows: Vec<Row>,
    pub(super) agent: Option<AgentCost>,
    pub(super) programs: Vec<ProgramCost>,
}

/// The program under one condition, or alone.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct Row {
    pub(super) condition: Option<Condition>,
    /// Of each pair: the rate with, by the rate without.
    pub(super) ratio: Option<Spread>,
    pub(super) side: Side,
}

impl Row {
    pub(super) const fn without(side: Side) -> Self {
        Self {
            condition: None,
            ratio: None,
            side,
        }
    }
}

/// What the load generator saw in several runs.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct Side {
    /// Requests per second.
    pub(super) rate: Option<Spread>,
    pub(super) p50_us: Option<Spread>,
    pub(super) p99_us: Option<Spread>,
}

impl Side {
    pub(super) fn of(loads: impl Iterator<Item = Load>) -> Self {
        let loads: Vec<Load> = loads.collect();
        let of = |value: fn(&Load) -> f64| Spread::of(loads.iter().map(value));
        Self {
            rate: of(|load| load.rate),
            p50_us: of(|load| load.p50_us),
            p99_us: of(|load| load.p99_us),
        }
    }
}

/// What the agent took for itself while it traced.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct AgentCost {
    pub(super) cpu_us_per_request: Option<Spread>,
    pub(super) rss_mib: Option<Spread>,
    pub(super) peak_mib: Option<Spread>,
    /// From its start to the first span at the receiver; the load begins when it is ready.
    pub(super) first_span_ms: Option<Spread>,
    /// Of all runs.
    pub(super) requests: u64,
    /// Where the agent knows the protocol.
    pub(super) spans: Option<u64>,
    /// Of all runs, by reason.
    pub(super) lost: BTreeMap<String, u64>,
}

/// One eBPF program, by the kernel's own statistics.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct ProgramCost {
    pub(super) condition: Condition,
    pub(super) name: String,
    pub(super) hits_per_request: f64,
    pub(super) ns_per_hit: f64,
    /// Of a hit that ends at the filter.
    pub(super) filter_ns: Option<f64>,
    /// Of a hit of the traced program.
    pub(super) traced_ns: Option<f64>,
}

impl ProgramCost {
    /// The load generator sends once and receives once for each request, and is not traced: its
    /// hits end at the filter, and what remains is the traced program's.
    pub(super) fn new(
        condition: Condition,
        name: &str,
        run: Run,
        requests: u64,
        filter: Option<Run>,
    ) -> Self {
        let requests = requests.max(1) as f64;
        let (hits, ns) = (run.hits as f64, run.ns as f64);
        let filter_ns = filter.map(|filter| filter.ns as f64 / filter.hits.max(1) as f64);
        let traced_hits = hits - requests;
        let is_data = ["send", "recv"].iter().any(|part| name.contains(part));
        let is_known = is_data && condition == Condition::Traced && traced_hits > 0.1 * requests;
        let traced_ns = filter_ns
            .filter(|_| is_known)
            .map(|filter_ns| (ns - requests * filter_ns) / traced_hits);
        Self {
            condition,
            name: name.to_owned(),
            hits_per_request: hits / requests,
            ns_per_hit: ns / hits.max(1.0),
            filter_ns,
            traced_ns,
        }
    }

    pub(super) fn us_per_request(&self) -> f64 {
        self.hits_per_request * self.ns_per_hit / 1_000.0
    }

    pub(super) fn line(&self) -> String {
        let ns = |value: Option<f64>| value.map_or("-".to_owned(), |ns| format!("{ns:.0}"));
        format!(
            "{:<20} {:.2} hits per request, {:.0} ns per hit ({} at the filter, {} traced), \
             {:.2} us per request",
            self.name,
            self.hits_per_request,
            self.ns_per_hit,
            ns(self.filter_ns),
            ns(self.traced_ns),
            self.us_per_request(),
        )
    }
}

impl Results {
    pub(super) fn read() -> Result<Self> {
        let path = file();
        match fs::read_to_string(&path) {
            Ok(text) => serde_json::from_str(&text)
                .with_context(|| format!("{} is damaged", path.display())),
            Err(_) => Ok(Self::default()),
        }
    }

    pub(super) fn write(&self) -> Result<()> {
        let path = file();
        let text = serde_json::to_string_pretty(self)? + "\n";
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Puts what was measured anew where the old was.
    pub(super) fn take(&mut self, new: Self) {
        self.machine = new.machine.or(self.machine.take());
        self.guest = new.guest.or(self.guest.take());
        if !new.engine.is_empty() {
            self.engine = new.engine;
        }
        for subject in new.subjects {
            match self
                .subjects
                .iter_mut()
                .find(|old| old.name == subject.name)
            {
                Some(old) => *old = subject,
                None => self.subjects.push(subject),
            }
        }
    }
}

impl Machine {
    pub(super) fn this() -> Result<Self> {
        let information = fs::read_to_string("/proc/cpuinfo").context("no /proc/cpuinfo")?;
        Ok(Self {
            processor: processor(&information).unwrap_or("unknown").to_owned(),
            processors: std::thread::available_parallelism()?.get(),
            kernel: capture(Command::new("uname").arg("-r"))?.trim().to_owned(),
        })
    }
}

fn processor(information: &str) -> Option<&str> {
    let line = information
        .lines()
        .find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim())
}

fn file() -> PathBuf {
    steps::workspace().join(RESULTS)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of 30 hits at 10 requests, 10 are the load generator's and cost what the filter costs.
    #[test]
    fn what_a_traced_hit_costs() {
        let run = |hits, ns| Run { hits, ns };
        let of =
            |condition, filter| ProgramCost::new(condition, "send", run(30, 8_500), 10, filter);
        let filter = Some(run(100, 5_000));
        let cost = of(Condition::Traced, filter);
        assert_eq!(cost.filter_ns, Some(50.0));
        assert_eq!(cost.traced_ns, Some(400.0));
        assert!((cost.us_per_request() - 0.85).abs() < 1e-9);
        assert_eq!(of(Condition::Traced, None).traced_ns, None);
        assert_eq!(of(Condition::Counting, filter).traced_ns, None);
        let other = ProgramCost::new(Condition::Traced, "exit", run(30, 8_500), 10, filter);
        assert_eq!(other.traced_ns, None, "not what the load generator calls");
    }

    /// What was not measured anew stays, and a program keeps its place.
    #[test]
    fn new_results_replace_old_ones() {
        let subject = |name: &str, requests| SubjectResult {
            name: name.to_owned(),
            rows: vec![Row::without(Side::of(std::iter::once(Load {
                requests,
                rate: requests as f64,
                p50_us: 1.0,
                p99_us: 1.0,
            })))],
            agent: None,
            programs: Vec::new(),
        };
        let machine = Some(Machine {
            processor: "old".to_owned(),
            processors: 1,
            kernel: "6.1".to_owned(),
        });
        let mut kept = Results {
            machine: machine.clone(),
            subjects: vec![subject("nginx", 1), subject("Redis", 2)],
            ..Results::default()
        };
        kept.take(Results {
            subjects: vec![subject("Python", 3), subject("nginx", 4)],
            ..Results::default()
        });
        assert_eq!(kept.machine, machine);
        let expected = [
            subject("nginx", 4),
            subject("Redis", 2),
            subject("Python", 3),
        ];
        assert_eq!(kept.subjects, expected);
    }

    /// The name stands behind a tab and a colon.
    #[test]
    fn processors_have_names() {
        let information = "processor\t: 0\nmodel name\t: AMD EPYC\n";
        assert_eq!(processor(information), Some("AMD EPYC"));
    }
}

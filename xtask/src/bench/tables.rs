//! The tables of `docs/bench.md` and of the README, from the results that are kept.

use std::fmt::Write as _;

use anyhow::Result;

use super::{
    condition::Condition,
    guest::{self, megabytes},
    results::{AgentCost, Results, Row, SubjectResult},
    spread::Spread,
};
use crate::{codegen, steps};

/// In the README.
const SUMMARY: &str = "bench-summary";
/// In [`PAGE`].
const CONDITIONS: &str = "bench-conditions";
const PROGRAMS: &str = "bench-programs";
const ENGINE: &str = "bench-engine";
const GUEST: &str = "bench-guest";

const PAGE: &str = "docs/bench.md";
const README: &str = "README.md";

const NOTHING: &str = "Not measured yet.";

/// All tables by name.
pub(crate) fn tables() -> Result<Vec<(String, String)>> {
    let results = Results::read()?;
    let all = [
        (SUMMARY, summary(&results.subjects)),
        (CONDITIONS, conditions(&results)),
        (PROGRAMS, programs(&results)),
        (ENGINE, engine(&results)),
        (GUEST, guest(&results)),
    ];
    Ok(all.map(|(name, table)| (name.to_owned(), table)).into())
}

/// Puts the results that are kept into the pages.
pub(super) fn write() -> Result<()> {
    for (name, table) in tables()? {
        let page = if name == SUMMARY { README } else { PAGE };
        codegen::write_one(&steps::workspace().join(page), &name, &table)?;
    }
    Ok(())
}

/// What was measured of one program, for who waits for it.
pub(super) fn of_subject(subject: &SubjectResult) -> String {
    let subjects = std::slice::from_ref(subject);
    format!("{}\n\n{}", condition_rows(subjects), summary(subjects))
}

/// A table as it grows.
struct Table(String);

impl Table {
    fn new(heads: &[&str]) -> Self {
        let mut table = Self(String::new());
        table.line(heads.iter().copied());
        let _ = writeln!(table.0, "{}|", "|---".repeat(heads.len()));
        table
    }

    fn line<T: AsRef<str>>(&mut self, cells: impl IntoIterator<Item = T>) {
        for cell in cells {
            let _ = write!(self.0, "| {} ", cell.as_ref());
        }
        self.0.push_str("|\n");
    }

    fn finish(self) -> String {
        self.0.trim_end().to_owned()
    }
}

fn cell(spread: Option<Spread>, decimals: usize) -> String {
    spread.map_or_else(|| "-".to_owned(), |spread| spread.text(decimals))
}

fn summary(subjects: &[SubjectResult]) -> String {
    if subjects.is_empty() {
        return NOTHING.to_owned();
    }
    let names = subjects.iter().map(|subject| subject.name.as_str());
    let heads: Vec<&str> = std::iter::once("").chain(names).collect();
    let mut table = Table::new(&heads);
    let mut line = |name: &str, value: &dyn Fn(&SubjectResult) -> String| {
        let cells = subjects.iter().map(value);
        table.line(std::iter::once(name.to_owned()).chain(cells));
    };
    line("requests/s without the agent", &|subject| {
        cell(row(subject, None).and_then(|row| row.side.rate), 0)
    });
    for condition in Condition::ALL {
        line(
            &format!("throughput kept: {}", condition.title()),
            &|subject| cell(row(subject, Some(condition)).and_then(|row| row.ratio), 2),
        );
    }
    line("headers injected, of traced", &|subject| {
        of_traced(subject).map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"))
    });
    let agent = |value: &dyn Fn(&AgentCost) -> String, subject: &SubjectResult| {
        subject.agent.as_ref().map_or_else(|| "-".to_owned(), value)
    };
    line("agent CPU per request, us", &|subject| {
        agent(&|agent| cell(agent.cpu_us_per_request, 1), subject)
    });
    line("agent memory (RSS), MiB", &|subject| {
        agent(&|agent| cell(agent.rss_mib, 1), subject)
    });
    line("agent memory at its peak, MiB", &|subject| {
        agent(&|agent| cell(agent.peak_mib, 1), subject)
    });
    line("start to first span, ms", &|subject| {
        agent(&|agent| cell(agent.first_span_ms, 0), subject)
    });
    line("requests, and spans of them", &|subject| {
        agent(
            &|agent| match agent.spans {
                Some(spans) => format!("{}, {spans}", agent.requests),
                None => format!("{}, not understood yet", agent.requests),
            },
            subject,
        )
    });
    line("lost", &|subject| agent(&lost, subject));
    table.finish()
}

/// Throughput with injection by that of the agent alone, each by that without an agent in the runs
/// beside it.
fn of_traced(subject: &SubjectResult) -> Option<f64> {
    let median = |condition| Some(row(subject, Some(condition))?.ratio?.median);
    Some(median(Condition::Injecting)? / median(Condition::Traced)?)
}

fn lost(agent: &AgentCost) -> String {
    if agent.lost.is_empty() {
        return "nothing".to_owned();
    }
    let reasons = agent.lost.iter();
    let reasons = reasons.map(|(reason, count)| format!("{count} `{reason}`"));
    reasons.collect::<Vec<_>>().join(", ")
}

fn row(subject: &SubjectResult, condition: Option<Condition>) -> Option<&Row> {
    subject.rows.iter().find(|row| row.condition == condition)
}

fn conditions(results: &Results) -> String {
    let Some(machine) = results
        .machine
        .as_ref()
        .filter(|_| !results.subjects.is_empty())
    else {
        return NOTHING.to_owned();
    };
    format!(
        "Machine: {} processors ({}), Linux {}.\n\n{}",
        machine.processors,
        machine.processor,
        machine.kernel,
        condition_rows(&results.subjects)
    )
}

fn condition_rows(subjects: &[SubjectResult]) -> String {
    let mut table = Table::new(&[
        "program",
        "beside it",
        "requests/s",
        "throughput kept",
        "p50, us",
        "p99, us",
    ]);
    for subject in subjects {
        for row in &subject.rows {
            let condition = row.condition.map_or("nothing", Condition::title);
            table.line([
                subject.name.clone(),
                condition.to_owned(),
                cell(row.side.rate, 0),
                cell(row.ratio, 3),
                cell(row.side.p50_us, 0),
                cell(row.side.p99_us, 0),
            ]);
        }
    }
    table.finish()
}

fn programs(results: &Results) -> String {
    let mut table = Table::new(&[
        "program",
        "eBPF program",
        "hits per request",
        "ns per hit",
        "ns at the filter",
        "ns when traced",
        "us per request",
    ]);
    let ns = |value: Option<f64>| value.map_or("-".to_owned(), |ns| format!("{ns:.0}"));
    let mut count = 0;
    for subject in &results.subjects {
        for program in &subject.programs {
            count += 1;
            table.line([
                subject.name.clone(),
                format!("`{}`", program.name),
                format!("{:.2}", program.hits_per_request),
                format!("{:.0}", program.ns_per_hit),
                ns(program.filter_ns),
                ns(program.traced_ns),
                format!("{:.2}", program.us_per_request()),
            ]);
        }
    }
    if count == 0 {
        return NOTHING.to_owned();
    }
    table.finish()
}

fn engine(results: &Results) -> String {
    if results.engine.is_empty() {
        return NOTHING.to_owned();
    }
    let mut table = Table::new(&[
        "recording",
        "spans",
        "spans/s on one core",
        "allocations per span",
        "bytes per span",
    ]);
    for replayed in &results.engine {
        table.line([
            format!("`{}`", replayed.recording),
            replayed.spans.to_string(),
            format!("{:.0}", replayed.spans_per_second),
            format!("{:.1}", replayed.allocations_per_span),
            format!("{:.0}", replayed.bytes_per_span),
        ]);
    }
    table.finish()
}

/// What OBI (v0.10.0 with the main branch of August 2026) cost by the same method: kernel, nginx
/// with a small static file, wrk with 8 connections.
const OBI: Compared = Compared {
    throughput_kept: 0.36,
    cpu_s_per_10_000: 9.99,
    rss_mb: 99.0,
    peak_mb: 107.0,
    first_span_s: 97.0,
};

struct Compared {
    throughput_kept: f64,
    cpu_s_per_10_000: f64,
    rss_mb: f64,
    peak_mb: f64,
    first_span_s: f64,
}

impl Compared {
    fn of(figures: &guest::Figures) -> Self {
        Self {
            throughput_kept: figures.throughput_kept(),
            cpu_s_per_10_000: figures.cpu_s_per_10_000(),
            rss_mb: megabytes(figures.rss_kb),
            peak_mb: megabytes(figures.peak_kb),
            first_span_s: figures.first_span_s,
        }
    }
}

fn guest(results: &Results) -> String {
    let Some(measured) = &results.guest else {
        return NOTHING.to_owned();
    };
    let ours = Compared::of(&measured.figures);
    let mut table = Table::new(&["", "this agent", "OBI", "OBI by this agent"]);
    let mut line = |name: &str, value: fn(&Compared) -> f64, decimals: usize| {
        let (our, other) = (value(&ours), value(&OBI));
        table.line([
            name.to_owned(),
            format!("{our:.decimals$}"),
            format!("{other:.decimals$}"),
            format!("{:.2}", other / our),
        ]);
    };
    line("throughput kept", |it| it.throughput_kept, 2);
    line(
        "agent CPU for 10,000 requests, s",
        |it| it.cpu_s_per_10_000,
        2,
    );
    line("agent memory (RSS), MB", |it| it.rss_mb, 1);
    line("agent memory at its peak, MB", |it| it.peak_mb, 1);
    line("start to first span, s", |it| it.first_span_s, 1);
    format!(
        "Linux {}, {} requests, {} spans of them.\n\n{}",
        measured.kernel,
        measured.figures.requests,
        measured.figures.spans,
        table.finish()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::{
        load::Load,
        results::{GuestResult, Machine, Side},
    };

    fn results() -> Results {
        let load = |rate| Load {
            requests: 10,
            rate,
            p50_us: 100.0,
            p99_us: 900.0,
        };
        let traced = Row {
            condition: Some(Condition::Traced),
            ratio: Spread::of([0.5]),
            side: Side::of([load(50.0)].into_iter()),
        };
        let agent = AgentCost {
            cpu_us_per_request: Spread::of([5.0, 6.0, 7.0]),
            rss_mib: None,
            peak_mib: None,
            first_span_ms: None,
            requests: 20,
            spans: Some(19),
            lost: [("ring_full".to_owned(), 1)].into(),
        };
        let subject = SubjectResult {
            name: "nginx".to_owned(),
            rows: vec![Row::without(Side::of([load(100.0)].into_iter())), traced],
            agent: Some(agent),
            programs: Vec::new(),
        };
        let figures = guest::Figures {
            rate_without: 1_000.0,
            rate_with: 720.0,
            requests: 10_000,
            spans: 10_000,
            cpu_s: 0.999,
            rss_kb: 0,
            peak_kb: 0,
            first_span_s: 2.0,
        };
        Results {
            machine: Some(Machine {
                processor: "EPYC".to_owned(),
                processors: 2,
                kernel: "6.18".to_owned(),
            }),
            subjects: vec![subject],
            engine: Vec::new(),
            guest: Some(GuestResult {
                kernel: "6.12".to_owned(),
                figures,
            }),
        }
    }

    /// Each figure stands in the column of its program, with its spread and the name of a loss.
    #[test]
    fn figures_come_into_the_tables() {
        let results = results();
        let summary = summary(&results.subjects);
        for line in [
            "| throughput kept: traced | 0.50 (0.50-0.50) |",
            "| throughput kept: probes that only count | - |",
            "| agent CPU per request, us | 6.0 (5.0-7.0) |",
            "| requests, and spans of them | 20, 19 |",
            "| lost | 1 `ring_full` |",
        ] {
            assert!(summary.contains(line), "no {line} in\n{summary}");
        }
        let conditions = conditions(&results);
        assert!(conditions.starts_with("Machine: 2 processors (EPYC), Linux 6.18."));
        assert!(
            conditions.contains("| nginx | nothing | 100 (100-100) | - | 100 (100-100) | 900"),
            "{conditions}"
        );
        assert_eq!(engine(&results), NOTHING);
    }

    /// Our figure, the other's, and how many times ours the other's is.
    #[test]
    fn agents_are_compared() {
        let table = guest(&results());
        assert!(
            table.contains("| agent CPU for 10,000 requests, s | 1.00 | 9.99 | 10.00 |"),
            "{table}"
        );
        assert!(
            table.contains("| throughput kept | 0.72 | 0.36 | 0.50 |"),
            "{table}"
        );
    }

    /// What was measured survives being kept.
    #[test]
    fn results_are_kept_whole() {
        let results = results();
        let text = serde_json::to_string(&results).expect("plain data");
        assert_eq!(
            serde_json::from_str::<Results>(&text).expect("the same"),
            results
        );
    }
}

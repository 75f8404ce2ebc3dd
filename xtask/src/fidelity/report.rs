//! The table: one row for each runtime and number of clients, kept beside the page.

use std::{
    collections::BTreeMap,
    fmt::{Display, Write as _},
    fs,
    path::PathBuf,
};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::{
    judge::Cell,
    runtime::{BackgroundJob, Proof, RUNTIMES, Runtime},
};
use crate::{codegen, steps};

/// The table's name in [`PAGE`].
pub(crate) const TABLE: &str = "fidelity";
const PAGE: &str = "docs/fidelity.md";
const RESULTS: &str = "docs/fidelity.json";

/// Parents that must be right where the agent has evidence, in hundredths of a percent of the
/// requests.
const RIGHT_WHERE_KNOWN: u64 = 9_990;

/// Losses that cost a join, or part of a call that began before the agent, but no span.
const HARMLESS: [&str; 2] = ["trace_hold_full", "entry_missing"];

const COLUMNS: [&str; 11] = [
    "Runtime",
    "Clients",
    "Recorded %",
    "Right parent %",
    "Whole chain %",
    "Orphan %",
    "Links, right / wrong",
    "**Wrong parent %**",
    "Background calls with a parent",
    "Duration error, median / p99",
    "Evidence",
];

/// What a run showed, by runtime.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(super) struct Results {
    /// Release of the kernel of the last run.
    kernel: String,
    /// Of each runtime, as its program says it.
    versions: BTreeMap<String, String>,
    cells: BTreeMap<String, Vec<Cell>>,
}

/// The table of the page, from the results that are kept.
pub(crate) fn table() -> Result<String> {
    Ok(Results::read()?.table())
}

impl Results {
    pub(super) fn read() -> Result<Self> {
        let path = results_file();
        match fs::read_to_string(&path) {
            Ok(text) => serde_json::from_str(&text)
                .with_context(|| format!("{} is damaged", path.display())),
            Err(_) => Ok(Self::default()),
        }
    }

    pub(super) fn of(kernel: &str) -> Self {
        Self {
            kernel: kernel.to_owned(),
            ..Self::default()
        }
    }

    /// Puts `cell` in the place of an older one of the same runtime and number of clients.
    pub(super) fn insert(&mut self, runtime: &Runtime, cell: Cell) {
        let cells = self.cells.entry(runtime.name.to_owned()).or_default();
        cells.retain(|known| known.clients != cell.clients);
        cells.push(cell);
        cells.sort_by_key(|cell| cell.clients);
    }

    pub(super) fn note_version(&mut self, runtime: &Runtime, version: &str) {
        self.versions
            .insert(runtime.name.to_owned(), version.to_owned());
    }

    /// Takes over what `newer` has.
    pub(super) fn update(&mut self, newer: &Self) {
        self.kernel.clone_from(&newer.kernel);
        self.versions.extend(newer.versions.clone());
        for (runtime, cells) in newer.in_order() {
            for cell in cells {
                self.insert(runtime, cell.clone());
            }
        }
    }

    /// The file, and the page made from it.
    pub(super) fn write(&self) -> Result<()> {
        let path = results_file();
        let text = serde_json::to_string_pretty(self)? + "\n";
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        codegen::write_one(&steps::workspace().join(PAGE), TABLE, &self.table())
    }

    /// Why the results are not as they must be.
    pub(super) fn failures(&self) -> Vec<String> {
        let rows = self.in_order().into_iter();
        rows.flat_map(|(runtime, cells)| cells.iter().flat_map(|cell| failures(runtime, cell)))
            .collect()
    }

    /// In the order of the runtimes' table.
    fn in_order(&self) -> Vec<(&'static Runtime, &[Cell])> {
        RUNTIMES
            .iter()
            .filter_map(|runtime| Some((runtime, self.cells.get(runtime.name)?.as_slice())))
            .collect()
    }

    pub(super) fn table(&self) -> String {
        let mut text = format!("| {} |\n", COLUMNS.join(" | "));
        let _ = writeln!(text, "|---{}|", "|---:".repeat(COLUMNS.len() - 2) + "|---");
        for (runtime, cells) in self.in_order() {
            for cell in cells {
                let _ = writeln!(text, "| {} |", columns(runtime, cell).join(" | "));
            }
        }
        let notes: Vec<_> = self
            .in_order()
            .into_iter()
            .flat_map(|(runtime, cells)| notes(runtime, cells))
            .collect();
        if !notes.is_empty() {
            let _ = write!(text, "\n{}\n", notes.join("\n"));
        }
        let in_order = self.in_order().into_iter();
        let versions: Vec<_> = in_order
            .filter_map(|(runtime, _)| Some(self.versions.get(runtime.name)?.as_str()))
            .collect();
        if !versions.is_empty() {
            let (kernel, versions) = (&self.kernel, versions.join("; "));
            let _ = write!(text, "\nMeasured on kernel {kernel} with {versions}.");
        }
        text.trim_end().to_owned()
    }
}

fn results_file() -> PathBuf {
    steps::workspace().join(RESULTS)
}

/// One row as a person reads it while the cells run.
pub(super) fn line(runtime: &Runtime, cell: &Cell) -> String {
    let [
        _,
        clients,
        recorded,
        right,
        chain,
        orphan,
        links,
        wrong,
        background,
        duration,
        evidence,
    ] = columns(runtime, cell);
    let mut line = format!(
        "{:<31} clients {clients:>2}: recorded {recorded:>6}, right {right:>6}, whole chain \
         {chain:>6}, orphan {orphan:>6}, links {links}, WRONG {wrong:>4}; background {background}; duration \
         error {duration}; {evidence}",
        runtime.title
    );
    if !cell.lost.is_empty() {
        let _ = write!(line, "; lost {}", counts(&cell.lost));
    }
    line
}

fn columns(runtime: &Runtime, cell: &Cell) -> [String; 11] {
    let requests = cell.requests;
    let spans = 3 * requests;
    let background = match runtime.background {
        BackgroundJob::Absent => "-".to_owned(),
        BackgroundJob::Present => {
            let background = cell.background;
            format!("{} of {}", background.with_parent, background.calls)
        }
    };
    let error = cell.duration_error;
    [
        runtime.title.to_owned(),
        cell.clients.to_string(),
        at_least(spans - cell.missing(), spans),
        at_least(cell.in_process.right, requests),
        at_least(cell.whole_chains, requests),
        at_most(cell.in_process.orphan, requests),
        format!("{} / {}", cell.linked_right, cell.linked_wrong),
        at_most(cell.wrong(), requests),
        background,
        format!("{} / {}", time(error.median_us), time(error.p99_us)),
        counts(&cell.evidence),
    ]
}

/// A percentage rounded down, so that 100 means all.
fn at_least(part: u32, whole: u32) -> String {
    percent(hundredths(part, whole))
}

/// A percentage rounded up, so that 0 means none.
fn at_most(part: u32, whole: u32) -> String {
    percent((u64::from(part) * 10_000).div_ceil(u64::from(whole.max(1))))
}

fn hundredths(part: u32, whole: u32) -> u64 {
    u64::from(part) * 10_000 / u64::from(whole.max(1))
}

fn percent(hundredths: u64) -> String {
    match (hundredths / 100, hundredths % 100) {
        (whole, 0) => whole.to_string(),
        (whole, rest) => format!("{whole}.{rest:02}"),
    }
}

fn time(us: i64) -> String {
    if us.abs() < 1_000 {
        format!("{us} us")
    } else {
        format!("{:.1} ms", us as f64 / 1_000.0)
    }
}

fn counts(counts: &BTreeMap<String, impl Display>) -> String {
    if counts.is_empty() {
        return "none".to_owned();
    }
    let each: Vec<_> = counts
        .iter()
        .map(|(name, count)| format!("`{name}` {count}"))
        .collect();
    each.join(", ")
}

/// What a reader must know of a runtime: which identity is missing, and what was lost.
fn notes(runtime: &Runtime, cells: &[Cell]) -> Vec<String> {
    let mut notes = Vec::new();
    let orphans: u32 = cells.iter().map(|cell| cell.in_process.orphan).sum();
    let requests: u32 = cells.iter().map(|cell| cell.requests).sum();
    let linked: u32 = cells.iter().map(|cell| cell.linked_right).sum();
    if orphans > 0 {
        let mut note = format!(
            "- **{}**: {orphans} of {requests} calls begin a trace of their own. ",
            runtime.title
        );
        match runtime.proof {
            Proof::Lacking(identity) => {
                let _ = write!(note, "Not known is {identity}.");
            }
            Proof::Known => note += "The evidence for it is known, so this is a fault.",
        }
        if linked > 0 {
            let _ = write!(note, " {linked} of them have a link to their request.");
        }
        notes.push(note);
    }
    for cell in cells.iter().filter(|cell| !cell.lost.is_empty()) {
        notes.push(format!(
            "- **{}**, {} clients: the ledger says that {} were lost.",
            runtime.title,
            cell.clients,
            counts(&cell.lost)
        ));
    }
    notes
}

/// Why one cell is not as it must be.
fn failures(runtime: &Runtime, cell: &Cell) -> Vec<String> {
    let mut failures = Vec::new();
    let mut fail = |why: String| {
        failures.push(format!(
            "{}, {} clients: {why}",
            runtime.title, cell.clients
        ));
    };
    if cell.wrong() > 0 {
        fail(format!("{} wrong parents", cell.wrong()));
    }
    let lost = cell.lost.iter();
    let lost = lost.filter(|(reason, _)| !HARMLESS.contains(&reason.as_str()));
    let (missing, lost) = (
        u64::from(cell.missing()),
        lost.map(|(_, count)| count).sum::<u64>(),
    );
    if missing > lost {
        fail(format!(
            "{missing} spans are missing, and the ledger counts {lost} losses"
        ));
    }
    let right = hundredths(cell.in_process.right, cell.requests);
    if runtime.proof == Proof::Known && right < RIGHT_WHERE_KNOWN {
        fail(format!("only {} % right parents", percent(right)));
    }
    // Both ends of the wire are on this host, whatever the front is.
    let joined = hundredths(cell.on_wire.right, cell.requests);
    if joined < RIGHT_WHERE_KNOWN {
        fail(format!("only {} % joined on the wire", percent(joined)));
    }
    failures
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fidelity::judge::{Joins, Recorded};

    /// Of 1,000 requests, so many calls with the right parent, the others orphans.
    fn cell(clients: u32, right: u32) -> Cell {
        Cell {
            clients,
            requests: 1_000,
            recorded: Recorded {
                front_server: 1_000,
                front_client: 1_000,
                back_server: 1_000,
            },
            in_process: Joins {
                right,
                orphan: 1_000 - right,
                wrong: 0,
            },
            on_wire: Joins {
                right: 1_000,
                ..Joins::default()
            },
            ..Cell::default()
        }
    }

    fn results(name: &str, cells: impl IntoIterator<Item = Cell>) -> Results {
        let runtime = Runtime::named(name).expect("a runtime of the table");
        let mut results = Results::default();
        for cell in cells {
            results.insert(runtime, cell);
        }
        results
    }

    /// Nearly all is not all, and nearly none is not none.
    #[test]
    fn percentages_do_not_flatter() {
        assert_eq!(at_least(1_000, 1_000), "100");
        assert_eq!(at_least(99_999, 10_0000), "99.99");
        assert_eq!(at_most(1, 10_0000), "0.01");
        assert_eq!(at_most(0, 10_0000), "0");
        assert_eq!(at_most(1, 1_000), "0.10");
    }

    /// A runtime with orphans has a sentence that says which identity is missing; a newer cell
    /// takes the place of an older one.
    #[test]
    fn the_table_says_what_is_missing() {
        let results = results("node", [cell(64, 5), cell(8, 0), cell(64, 0)]);
        let table = results.table();
        let rows: Vec<_> = table
            .lines()
            .filter(|line| line.starts_with("| Node"))
            .collect();
        assert_eq!(rows.len(), 2, "{table}");
        assert!(
            rows[0].starts_with("| Node http | 8 | 100 | 0 |"),
            "{table}"
        );
        assert!(
            table.contains("- **Node http**: 2000 of 2000 calls") && table.contains("async id"),
            "{table}"
        );
    }

    /// Orphans are a failure only where there is evidence; wrong parents everywhere; missing
    /// spans unless the ledger counts them.
    #[test]
    fn failures_are_named() {
        assert_eq!(results("node", [cell(8, 0)]).failures().len(), 0);
        assert_eq!(results("nginx", [cell(8, 999)]).failures().len(), 0);
        let failures = results("nginx", [cell(8, 998)]).failures();
        assert_eq!(
            failures,
            ["nginx proxy_pass, 8 clients: only 99.80 % right parents"]
        );

        let mut unjoined = cell(8, 0);
        unjoined.on_wire.right = 900;
        assert!(results("node", [unjoined]).failures()[0].contains("90 % joined"));

        let mut wrong = cell(8, 1_000);
        wrong.background.with_parent = 1;
        assert!(results("node", [wrong]).failures()[0].contains("1 wrong"));

        let mut missing = cell(8, 1_000);
        missing.recorded.back_server = 998;
        missing.lost.insert("ring_full".to_owned(), 1);
        assert!(results("node", [missing.clone()]).failures()[0].contains("2 spans are missing"));
        missing.lost.insert("trace_hold_full".to_owned(), 9);
        assert!(!results("node", [missing.clone()]).failures().is_empty());
        missing.lost.insert("ring_full".to_owned(), 2);
        assert_eq!(results("node", [missing]).failures().len(), 0);
    }
}

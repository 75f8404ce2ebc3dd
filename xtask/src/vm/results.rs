//! What the guests showed: one row for each kernel and capture path, kept beside the page.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::PathBuf};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::{
    agent_log::AgentLog,
    kernels::{Image, KERNELS},
    suite::PATHS,
};
use crate::{codegen, steps};

/// The table's name in [`PAGE`].
pub(crate) const TABLE: &str = "kernels";
const PAGE: &str = "docs/kernels.md";
const RESULTS: &str = "docs/kernels.json";

/// Since this version the socket tracepoints exist.
const TRACEPOINTS_SINCE: (u32, u32) = (6, 3);

/// A name, and why it is missing or wrong; nothing where all is well.
pub(super) type Verdict = (String, Option<String>);

/// One capture path in one kernel.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub(super) struct Row {
    pub(super) path: String,
    /// The agent's own choice on this kernel.
    pub(super) chosen: bool,
    /// Why it does not work.
    pub(super) reason: Option<String>,
    /// Kernel symbols in the order in which they were attached.
    pub(super) hooks: Vec<Verdict>,
    pub(super) features: Vec<Verdict>,
    pub(super) has_task_registers: bool,
    pub(super) has_socket_cookie: bool,
    pub(super) exchanges: Vec<Verdict>,
    pub(super) lost: Option<String>,
}

impl Row {
    pub(super) fn of(log: &AgentLog, exchanges: Vec<Verdict>) -> Self {
        let owned = |(name, reason): (&str, &str)| (name.to_owned(), Some(reason.to_owned()));
        let fine = |name: &str| (name.to_owned(), None);
        let mut hooks: Vec<Verdict> = Vec::new();
        for hook in log
            .attached()
            .into_iter()
            .map(fine)
            .chain(log.unattached().map(owned))
        {
            // Entry and return are two programs on one symbol.
            if hooks.iter().all(|(symbol, _)| *symbol != hook.0) {
                hooks.push(hook);
            }
        }
        let features = log
            .features()
            .map(fine)
            .chain(log.missing_features().map(owned));
        Self {
            path: log.path().unwrap_or_default().to_owned(),
            chosen: false,
            reason: None,
            hooks,
            features: features.collect(),
            has_task_registers: log.has_helper("task_registers"),
            has_socket_cookie: log.has_helper("socket_cookie"),
            exchanges,
            lost: log.lost(),
        }
    }

    pub(super) fn missing(path: &str, reason: &str) -> Self {
        Self {
            path: path.to_owned(),
            reason: Some(reason.to_owned()),
            ..Self::default()
        }
    }

    pub(super) fn to_text(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }

    /// The row as a person reads it while the guests run.
    pub(super) fn line(&self) -> String {
        if let Some(reason) = &self.reason {
            return format!("{:<10} -       {reason}", self.path);
        }
        let chosen = if self.chosen { "chosen" } else { "forced" };
        let attached = self
            .hooks
            .iter()
            .filter(|(_, reason)| reason.is_none())
            .count();
        let right = self
            .exchanges
            .iter()
            .filter(|(_, fault)| fault.is_none())
            .count();
        let (hooks, exchanges) = (self.hooks.len(), self.exchanges.len());
        let mut line = format!(
            "{:<10} {chosen}  {attached}/{hooks} hooks  {right}/{exchanges} exchanges right",
            self.path
        );
        for (name, reason) in self.wrong() {
            let _ = write!(line, "; {name}: {reason}");
        }
        if let Some(lost) = &self.lost {
            let _ = write!(line, "; {lost}");
        }
        line
    }

    /// Whether an exchange left other spans than it should.
    pub(super) fn is_faulty(&self) -> bool {
        self.exchanges.iter().any(|(_, fault)| fault.is_some())
    }

    fn wrong(&self) -> impl Iterator<Item = (&str, &str)> {
        let all = self.hooks.iter().chain(&self.exchanges);
        all.filter_map(|(name, reason)| Some((name.as_str(), reason.as_deref()?)))
    }

    /// Why the row is not as it must be on a kernel of this release.
    pub(super) fn failure(&self, release: &str) -> Option<String> {
        let is_absent = self.path == PATHS[0] && version(release) < TRACEPOINTS_SINCE;
        if let Some(reason) = &self.reason {
            return (!is_absent).then(|| format!("{}: {reason}", self.path));
        }
        let wrong: Vec<_> = self
            .wrong()
            .map(|(name, why)| format!("{name}: {why}"))
            .collect();
        (!wrong.is_empty()).then(|| format!("{}: {}", self.path, wrong.join("; ")))
    }
}

fn version(release: &str) -> (u32, u32) {
    let mut numbers = release
        .split(['.', '-', '+'])
        .map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

#[derive(Clone, Debug, Deserialize, Serialize)]
struct Guest {
    release: String,
    rows: Vec<Row>,
}

/// By the kernel's name in the matrix.
#[derive(Default)]
pub(super) struct Results(BTreeMap<String, Guest>);

impl Results {
    pub(super) fn read() -> Result<Self> {
        let path = results_file();
        match fs::read_to_string(&path) {
            Ok(text) => {
                let guests = serde_json::from_str(&text);
                Ok(Self(guests.with_context(|| {
                    format!("{} is damaged", path.display())
                })?))
            }
            Err(_) => Ok(Self(BTreeMap::new())),
        }
    }

    pub(super) fn replace(&mut self, image: &Image, rows: Vec<Row>) {
        let guest = Guest {
            release: image.release.clone(),
            rows,
        };
        self.0.insert(image.name.to_owned(), guest);
    }

    /// The file, and the page made from it.
    pub(super) fn write(&self) -> Result<()> {
        let path = results_file();
        let text = serde_json::to_string_pretty(&self.0)? + "\n";
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        codegen::write_one(&steps::workspace().join(PAGE), TABLE, &self.table())
    }

    fn table(&self) -> String {
        let guests: Vec<&Guest> = KERNELS
            .iter()
            .filter_map(|kernel| self.0.get(kernel.name))
            .collect();
        let mut table = Table {
            guests: &guests,
            text: String::new(),
            reasons: Vec::new(),
        };
        table.fill();
        table.finish()
    }
}

fn results_file() -> PathBuf {
    steps::workspace().join(RESULTS)
}

/// The table of the page, from the results that are kept.
pub(crate) fn table() -> Result<String> {
    Ok(Results::read()?.table())
}

struct Table<'a> {
    guests: &'a [&'a Guest],
    text: String,
    /// Why something is missing, in the order of the cells.
    reasons: Vec<String>,
}

impl Table<'_> {
    fn fill(&mut self) {
        self.line("", |guest| format!("**{}**", guest.release));
        let columns = "|---".repeat(self.guests.len() + 1);
        let _ = writeln!(self.text, "{columns}|");
        self.head("Capture path");
        self.line("chosen", |guest| {
            let chosen = guest.rows.iter().find(|row| row.chosen);
            chosen.map_or("none", |row| &row.path).to_owned()
        });
        for path in PATHS {
            self.verdicts(path, |guest| {
                let row = guest.rows.iter().find(|row| row.path == path);
                row.map_or(Err(String::new()), |row| match &row.reason {
                    None => Ok("yes".to_owned()),
                    Some(reason) => Err(reason.clone()),
                })
            });
        }
        self.head("Hook, and the paths it is used on");
        for symbol in self.names(|row| &row.hooks) {
            self.verdicts(&format!("`{symbol}`"), |guest| {
                by_path(guest, &symbol, |row| &row.hooks)
            });
        }
        self.head("Feature");
        self.line("connection identity", |guest| {
            let cookie = guest.rows.iter().any(|row| row.has_socket_cookie);
            if cookie {
                "socket cookie; kretprobe: address"
            } else {
                "socket address"
            }
            .to_owned()
        });
        self.line("registers of the system call", |guest| {
            let helper = guest.rows.iter().any(|row| row.has_task_registers);
            if helper { "helper" } else { "top of the stack" }.to_owned()
        });
        for feature in self.names(|row| &row.features) {
            self.verdicts(&feature, |guest| {
                by_path(guest, &feature, |row| &row.features).map(|_| "yes".to_owned())
            });
        }
        self.head("HTTP, every span right and joined");
        for name in self.names(|row| &row.exchanges) {
            self.verdicts(&name, |guest| by_path(guest, &name, |row| &row.exchanges));
        }
    }

    fn head(&mut self, title: &str) {
        self.line(&format!("**{title}**"), |_| String::new());
    }

    fn line(&mut self, name: &str, cell: impl Fn(&Guest) -> String) {
        let cells: Vec<String> = self.guests.iter().map(|guest| cell(guest)).collect();
        let _ = writeln!(self.text, "| {name} | {} |", cells.join(" | "));
    }

    /// A line of which a cell may be missing with a reason, which is listed below the table.
    fn verdicts(&mut self, name: &str, verdict: impl Fn(&Guest) -> Result<String, String>) {
        let mut cells = Vec::new();
        for guest in self.guests {
            cells.push(match verdict(guest) {
                Ok(cell) => cell,
                Err(reason) if reason.is_empty() => "-".to_owned(),
                Err(reason) => {
                    self.reasons
                        .push(format!("- {name}, {}: {reason}", guest.release));
                    "no".to_owned()
                }
            });
        }
        let _ = writeln!(self.text, "| {name} | {} |", cells.join(" | "));
    }

    /// Names in any row, each once, in the order of their first appearance.
    fn names(&self, part: impl Fn(&Row) -> &Vec<Verdict>) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for row in self.guests.iter().flat_map(|guest| &guest.rows) {
            for (name, _) in part(row) {
                if !names.contains(name) {
                    names.push(name.clone());
                }
            }
        }
        names
    }

    fn finish(mut self) -> String {
        if !self.reasons.is_empty() {
            self.text.push_str("\nWhat is missing, and why:\n\n");
            self.text.push_str(&self.reasons.join("\n"));
        }
        self.text.trim_end().to_owned()
    }
}

/// The paths on which a name is well; an error with the reasons where it is not on any that has it.
fn by_path(
    guest: &Guest,
    name: &str,
    part: impl Fn(&Row) -> &Vec<Verdict>,
) -> Result<String, String> {
    let (mut well, mut reasons) = (Vec::new(), Vec::new());
    for path in PATHS {
        let row = guest.rows.iter().find(|row| row.path == path);
        let verdict = row.and_then(|row| part(row).iter().find(|(known, _)| known == name));
        match verdict {
            Some((_, None)) => well.push(path),
            Some((_, Some(reason))) => reasons.push(format!("{path}: {reason}")),
            None => {}
        }
    }
    if reasons.is_empty() && !well.is_empty() {
        Ok(well.join(", "))
    } else {
        Err(reasons.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest() -> Guest {
        let fine = |name: &str| (name.to_owned(), None);
        let row = Row {
            path: "fexit".to_owned(),
            chosen: true,
            hooks: vec![fine("inet_sendmsg")],
            exchanges: vec![
                fine("IPv4"),
                ("IPv6".to_owned(), Some("no span".to_owned())),
            ],
            ..Row::default()
        };
        let rows = vec![Row::missing("tracepoint", "not in BTF"), row];
        Guest {
            release: "5.10.0-1".to_owned(),
            rows,
        }
    }

    /// Rows survive the serial line, and missing things carry their reasons below the table.
    #[test]
    fn the_table_says_what_is_missing_and_why() {
        let guest = guest();
        for row in &guest.rows {
            assert_eq!(Row::parse(&row.to_text()).as_ref(), Some(row));
        }
        let table = Results(BTreeMap::from([("5.10".to_owned(), guest)])).table();
        assert!(table.contains("| tracepoint | no |"), "{table}");
        assert!(table.contains("| `inet_sendmsg` | fexit |"), "{table}");
        assert!(table.contains("| IPv4 | fexit |"), "{table}");
        assert!(
            table.contains("- tracepoint, 5.10.0-1: not in BTF"),
            "{table}"
        );
        assert!(
            table.contains("- IPv6, 5.10.0-1: fexit: no span"),
            "{table}"
        );
    }

    /// The tracepoints may be missing where the kernel is too old for them, nothing else may.
    #[test]
    fn only_what_a_kernel_cannot_have_may_be_missing() {
        let [absent, row] = guest().rows.try_into().expect("two rows");
        assert_eq!(absent.failure("5.10.0-1"), None);
        assert!(absent.failure("6.12.1+deb").is_some());
        assert!(
            row.failure("5.10.0-1")
                .expect("IPv6 is wrong")
                .contains("no span")
        );
    }
}

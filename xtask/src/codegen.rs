//! `cargo xtask codegen`: the tables of `docs/` and the README that come from registries in the
//! code, or from results that are kept.
//!
//! The registries are the agent's, and xtask does not link the agent, which would make every
//! command wait for it and for the eBPF compiler. An example of the agent's crate prints them,
//! so they are neither parsed out of source text nor part of the binary that users get.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context as _, Result, bail};

use crate::{
    bench, fidelity,
    steps::{self, capture, say},
    tidy::imports,
    vm,
};

/// What to do where a table is not as the code says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Write,
    Check,
}

/// A table ends at the next of these; its name is in the first.
const BEGIN: (&str, &str) = ("<!-- generated: ", " -->");
const END: &str = "<!-- end of generated table -->";

pub(crate) fn run(mode: Mode) -> Result<()> {
    let tables = tables()?;
    let directory = steps::workspace().join("docs");
    let mut pages: Vec<_> = fs::read_dir(&directory)
        .with_context(|| format!("cannot list {}", directory.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "md"))
        .collect();
    pages.push(steps::workspace().join("README.md"));
    pages.sort();
    let mut count = 0;
    for page in pages {
        count += refresh(&page, &tables, mode)?;
    }
    say(
        "codegen",
        &format!("{count} tables in docs/ and the README are as the code says"),
    );
    Ok(())
}

/// Writes one table of a page and leaves the others as they are.
pub(crate) fn write_one(page: &Path, name: &str, table: &str) -> Result<()> {
    let old = fs::read_to_string(page).with_context(|| format!("{}", page.display()))?;
    let marker = format!("{}{name}{}", BEGIN.0, BEGIN.1);
    let (before, rest) = old
        .split_once(&marker)
        .with_context(|| format!("no table {name}"))?;
    let (_, after) = rest.split_once(END).context("a table without an end")?;
    let new = [before, &marker, "\n\n", table, "\n\n", END, after].concat();
    fs::write(page, new).with_context(|| format!("cannot write {}", page.display()))
}

/// Returns how many tables the page has.
fn refresh(page: &Path, tables: &BTreeMap<String, String>, mode: Mode) -> Result<usize> {
    let old = fs::read_to_string(page).with_context(|| format!("{}", page.display()))?;
    let (new, count) = fill(&old, tables).with_context(|| format!("{}", page.display()))?;
    if new != old {
        match mode {
            Mode::Check => bail!("{} is stale: run `cargo xtask codegen`", page.display()),
            Mode::Write => {
                fs::write(page, new).with_context(|| format!("cannot write {}", page.display()))?;
                say("codegen", &format!("wrote {}", page.display()));
            }
        }
    }
    Ok(count)
}

/// The tables that the agent's code and `tidy` know, by name.
fn tables() -> Result<BTreeMap<String, String>> {
    let mut cargo = steps::cargo();
    cargo.args([
        "run",
        "--quiet",
        "--package",
        "agent",
        "--example",
        "documentation_tables",
    ]);
    let printed = capture(&mut cargo)?;
    let mut tables: BTreeMap<_, _> = printed
        .split(BEGIN.0)
        .skip(1)
        .filter_map(|part| part.split_once(BEGIN.1))
        .map(|(name, table)| (name.to_owned(), table.trim().to_owned()))
        .collect();
    if tables.is_empty() {
        bail!("the agent's example documentation_tables printed no table");
    }
    tables.insert("imports".to_owned(), imports::table());
    tables.insert(vm::TABLE.to_owned(), vm::table()?);
    tables.insert(fidelity::TABLE.to_owned(), fidelity::table()?);
    tables.extend(bench::tables()?);
    Ok(tables)
}

/// `page` with every marked table replaced, and how many there are.
fn fill(page: &str, tables: &BTreeMap<String, String>) -> Result<(String, usize)> {
    let mut parts = page.split(BEGIN.0);
    let mut filled = parts.next().unwrap_or_default().to_owned();
    let mut count = 0;
    for part in parts {
        let (name, rest) = part
            .split_once(BEGIN.1)
            .context("a marker without an end")?;
        let (_, after) = rest
            .split_once(END)
            .with_context(|| format!("table {name} has no end marker"))?;
        let table = tables
            .get(name)
            .with_context(|| format!("no table is named {name}"))?;
        let (open, close) = BEGIN;
        filled += &[open, name, close, "\n\n", table, "\n\n", END, after].concat();
        count += 1;
    }
    Ok((filled, count))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tables() -> BTreeMap<String, String> {
        BTreeMap::from([("a".to_owned(), "| A |".to_owned())])
    }

    /// What is between the markers is replaced, the rest stays, and a second time changes nothing.
    #[test]
    fn tables_are_replaced() {
        let page = format!("before\n<!-- generated: a -->\nold\n{END}\nafter\n");
        let (new, count) = fill(&page, &tables()).expect("the page is well formed");
        assert_eq!(
            new,
            format!("before\n<!-- generated: a -->\n\n| A |\n\n{END}\nafter\n")
        );
        assert_eq!(count, 1);
        assert_eq!(fill(&new, &tables()).expect("still well formed").0, new);
    }

    /// A table that the code does not know, or that never ends, is an error.
    #[test]
    fn broken_pages_are_errors() {
        assert!(fill(&format!("<!-- generated: b -->{END}"), &tables()).is_err());
        assert!(fill("<!-- generated: a --> no end", &tables()).is_err());
    }
}

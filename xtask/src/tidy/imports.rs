//! Who may import whom inside the agent. Within one crate the compiler permits cycles; this
//! table does not.

use super::{Finding, Source};

/// A module and what it may import, in the order of the data's flow. All may import `self_metrics`.
const MAY_IMPORT: [(&str, &[&str]); 22] = [
    ("self_metrics", &[]),
    ("span", &[]),
    ("event", &["agent_common"]),
    ("protocol", &["span"]),
    ("connection", &["event", "protocol", "span"]),
    ("context", &["event", "protocol", "span"]),
    ("process", &["agent_common", "event"]),
    ("enrich", &["event", "process", "span"]),
    ("sample", &["span"]),
    ("engine", ENGINE),
    ("kernel", &["agent_common", "event", "process"]),
    ("export", &["span"]),
    ("cli", &[]),
    ("capability", &[]),
    ("failure", &["capability"]),
    ("ledger", &["agent_common"]),
    ("config", CONFIG),
    ("launch", &["failure", "process"]),
    ("status", &["agent_common", "failure", "kernel"]),
    (
        "check",
        &[
            "agent_common",
            "capability",
            "config",
            "enrich",
            "event",
            "failure",
            "kernel",
            "process",
        ],
    ),
    ("pipeline", PIPELINE),
    (
        "main",
        &[
            "check", "cli", "config", "failure", "kernel", "launch", "pipeline", "process",
        ],
    ),
];

const ENGINE: &[&str] = &[
    "agent_common",
    "connection",
    "context",
    "enrich",
    "event",
    "process",
    "protocol",
    "sample",
    "span",
];

const CONFIG: &[&str] = &[
    "agent_common",
    "cli",
    "connection",
    "context",
    "engine",
    "enrich",
    "event",
    "export",
    "failure",
    "kernel",
    "process",
    "protocol",
    "sample",
    "span",
];

const PIPELINE: &[&str] = &[
    "agent_common",
    "check",
    "config",
    "connection",
    "context",
    "engine",
    "enrich",
    "event",
    "export",
    "failure",
    "kernel",
    "launch",
    "ledger",
    "process",
    "protocol",
    "sample",
    "span",
    "status",
];

/// The leaf that all may import.
const BY_ALL: &str = "self_metrics";

/// Pairs of protocols of which the first may build on the second.
const PROTOCOL_ON_PROTOCOL: [(&str, &str); 1] = [("grpc", "http2")];

/// The table as it stands in `docs/ARCHITECTURE.md`.
pub(crate) fn table() -> String {
    let mut rows = vec!["| module | may import |".to_owned(), "|---|---|".to_owned()];
    for (module, allowed) in MAY_IMPORT {
        let names: Vec<String> = allowed.iter().map(|name| format!("`{name}`")).collect();
        let names = if names.is_empty() {
            "nothing of ours".to_owned()
        } else {
            names.join(", ")
        };
        rows.push(format!("| `{module}` | {names} |"));
    }
    rows.join("\n")
}

pub(super) fn check(source: &Source, findings: &mut Vec<Finding>) {
    let Some(path) = source.in_agent().filter(|_| source.is_rust()) else {
        return;
    };
    let module = module_path(path);
    // The crate's root only lists the modules.
    let Some(own) = module.first().map(String::as_str) else {
        return;
    };
    let mut report = |line, what: String| {
        findings.push(Finding {
            path: source.path.clone(),
            line,
            what,
        });
    };
    let Some((_, allowed)) = MAY_IMPORT.iter().find(|(name, _)| *name == own) else {
        report(
            0,
            format!("module `{own}` has no row in the import table (xtask/src/tidy)"),
        );
        return;
    };
    for reference in references(&source.text, &module) {
        let Some(other) = reference.path.first().map(String::as_str) else {
            continue;
        };
        let known = other == "agent_common" || MAY_IMPORT.iter().any(|(name, _)| *name == other);
        if known && other != own && other != BY_ALL && !allowed.contains(&other) {
            report(reference.line, format!("`{own}` may not import `{other}`"));
        }
        if let Some((a, b)) = crosses_protocols(&module, &reference.path) {
            report(
                reference.line,
                format!("protocol `{a}` may not import protocol `{b}`"),
            );
        }
    }
}

/// `protocol/http1/parse.rs` is `[protocol, http1, parse]`; the crate's root is empty.
fn module_path(path: &str) -> Vec<String> {
    let without_extension = path.strip_suffix(".rs").unwrap_or(path);
    let mut parts: Vec<String> = without_extension.split('/').map(str::to_owned).collect();
    if parts
        .last()
        .is_some_and(|last| last == "mod" || (last == "lib" && parts.len() == 1))
    {
        parts.pop();
    }
    parts
}

/// Two different folders of `protocol`; files directly in it belong to all.
fn crosses_protocols<'a>(
    module: &'a [String],
    reference: &'a [String],
) -> Option<(&'a str, &'a str)> {
    const SHARED: [&str; 6] = [
        "detect",
        "other_end",
        "reader",
        "rpc",
        "semantics",
        "vectors",
    ];
    let ([from, a, ..], [to, b, ..]) = (module, reference) else {
        return None;
    };
    let both = from == "protocol" && to == "protocol";
    let is_protocol = |name: &str| {
        !SHARED.contains(&name) && name.starts_with(|first: char| first.is_ascii_lowercase())
    };
    let crosses = both && a != b && is_protocol(a) && is_protocol(b);
    (crosses && !PROTOCOL_ON_PROTOCOL.contains(&(a, b))).then_some((a.as_str(), b.as_str()))
}

/// A path from the crate's root (or another crate of ours), as far as its text shows.
#[derive(Debug, PartialEq, Eq)]
struct Reference {
    line: usize,
    path: Vec<String>,
}

/// All paths of `text` that begin at the crate's root: `crate::a::b`, `crate::{a, b::c}`,
/// `super::super::a`, `agent::a` (in main.rs) and `agent_common`.
fn references(text: &str, module: &[String]) -> Vec<Reference> {
    let mut found = Vec::new();
    let code = without_comments(text);
    for (at, _) in code.match_indices("::") {
        let start = code[..at]
            .rfind(|c: char| !is_word(c))
            .map_or(0, |before| before + 1);
        let first = &code[start..at];
        // The middle of a path belongs to its beginning.
        if first.is_empty() || code[..start].ends_with("::") {
            continue;
        }
        let line = code[..at].matches('\n').count() + 1;
        let mut paths = Vec::new();
        match first {
            "crate" | "agent" => {
                expand(&code[at + 2..], &[], &mut paths);
            }
            "super" => above(&code[at + 2..], module, &mut paths),
            "agent_common" => paths.push(vec![first.to_owned()]),
            _ => {}
        }
        found.extend(paths.into_iter().map(|path| Reference { line, path }));
    }
    found
}

/// Follows `super::` as far up as the crate's root; what stays below is the module's own.
fn above(mut rest: &str, module: &[String], paths: &mut Vec<Vec<String>>) {
    let mut levels = module.len().saturating_sub(1);
    while let Some(next) = rest.strip_prefix("super::") {
        rest = next;
        levels = levels.saturating_sub(1);
    }
    if levels < module.len() {
        expand(rest, &module[..levels], paths);
    }
}

/// Adds every path of the use tree at the start of `text`, each after `prefix`; returns what
/// follows the tree.
fn expand<'a>(text: &'a str, prefix: &[String], paths: &mut Vec<Vec<String>>) -> &'a str {
    let text = text.trim_start();
    if let Some(mut rest) = text.strip_prefix('{') {
        loop {
            rest = expand(rest, prefix, paths).trim_start();
            match rest.strip_prefix(',') {
                Some(next) => rest = next,
                None => return rest.strip_prefix('}').unwrap_or(rest),
            }
        }
    }
    let end = text.find(|c: char| !is_word(c)).unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    if name.is_empty() {
        // A glob, or the comma before a closing brace.
        return rest.strip_prefix('*').unwrap_or(rest);
    }
    let path = [prefix, &[name.to_owned()]].concat();
    if let Some(below) = rest.strip_prefix("::") {
        return expand(below, &path, paths);
    }
    paths.push(path);
    let renamed = rest.trim_start().strip_prefix("as ").map(str::trim_start);
    renamed.map_or(rest, |name| name.trim_start_matches(is_word))
}

fn is_word(character: char) -> bool {
    character.is_ascii_alphanumeric() || character == '_'
}

/// The same lines without `//` comments, whose links are not imports.
fn without_comments(text: &str) -> String {
    let code = text.lines().map(|line| {
        let comment = line.trim_start().starts_with("//");
        if comment {
            ""
        } else {
            line.split(" // ").next().unwrap_or_default()
        }
    });
    code.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(path: &str, text: &str) -> Vec<String> {
        let source = Source {
            path: path.to_owned(),
            text: text.to_owned(),
        };
        let mut findings = Vec::new();
        check(&source, &mut findings);
        findings
            .into_iter()
            .map(|finding| format!("{}: {}", finding.line, finding.what))
            .collect()
    }

    /// A grouped, nested import is seen in each of its branches.
    #[test]
    fn groups_are_expanded() {
        let text =
            "use crate::{\n    span::{Span, attribute},\n    export::otlp as other, engine,\n};";
        assert_eq!(
            findings("agent/src/protocol/mod.rs", text),
            [
                "1: `protocol` may not import `export`",
                "1: `protocol` may not import `engine`"
            ]
        );
    }

    /// A path inside an expression counts as an import; a doc link does not.
    #[test]
    fn paths_count_and_links_do_not() {
        let text = "/// See [`crate::kernel`].\nfn f() { crate::kernel::load(); }";
        assert_eq!(
            findings("agent/src/span/mod.rs", text),
            ["2: `span` may not import `kernel`"]
        );
    }

    /// `super` leads out of a module as well.
    #[test]
    fn supers_are_followed() {
        assert_eq!(
            findings(
                "agent/src/span/attribute.rs",
                "use super::super::engine::Engine;"
            ),
            ["1: `span` may not import `engine`"]
        );
        assert!(findings("agent/src/span/attribute.rs", "use super::Span;").is_empty());
    }

    /// A protocol may use what all share, and no other protocol.
    #[test]
    fn protocols_stand_alone() {
        let text = "use crate::protocol::{Protocol, reader::Reader, redis};";
        assert_eq!(
            findings("agent/src/protocol/http1/parse.rs", text),
            ["1: protocol `http1` may not import protocol `redis`"]
        );
        let up = "use super::super::redis::Reply;";
        assert_eq!(findings("agent/src/protocol/http1/parse.rs", up).len(), 1);
        assert!(
            findings(
                "agent/src/protocol/mod.rs",
                "use self::http1; use crate::protocol::redis;"
            )
            .is_empty()
        );
    }

    /// A new module gets a row before it gets code.
    #[test]
    fn unknown_modules_are_refused() {
        assert_eq!(findings("agent/src/helpers.rs", "").len(), 1);
    }
}

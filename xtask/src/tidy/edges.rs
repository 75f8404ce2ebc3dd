//! Where files, sockets and clocks may be touched. clippy refuses them everywhere; these are the
//! places that may lift its ban, and the crates that the pure modules do without.

use super::{Finding, Source};

/// Files and folders below `agent/src` that do I/O or read the clock.
const EDGES: [&str; 10] = [
    "check",
    "config",
    "export",
    "kernel",
    "launch",
    "main",
    "pipeline",
    "process/tls_file",
    "process/watch",
    "status",
];

/// Modules that only compute.
const PURE: [&str; 9] = [
    "connection",
    "context",
    "engine",
    "enrich",
    "event",
    "protocol",
    "sample",
    "self_metrics",
    "span",
];

/// Crates that do I/O or run tasks.
const IO_CRATES: [&str; 8] = [
    "aya",
    "hyper",
    "hyper_rustls",
    "hyper_util",
    "procfs",
    "tokio",
    "tonic",
    "tracing_subscriber",
];

pub(super) fn check(source: &Source, findings: &mut Vec<Finding>) {
    let Some(path) = source.in_agent().filter(|_| source.is_rust()) else {
        return;
    };
    let edge = EDGES.iter().any(|edge| is_or_in(path, edge));
    let pure = PURE.iter().any(|pure| is_or_in(path, pure));
    for (index, line) in source.text.lines().enumerate() {
        let mut report = |what: String| {
            findings.push(Finding {
                path: source.path.clone(),
                line: index + 1,
                what,
            });
        };
        if line.trim_start().starts_with("//") {
            continue;
        }
        if !edge && line.contains("clippy::disallowed_methods") {
            report("not an edge: files, sockets, clocks and environment stay out".to_owned());
        }
        if pure && let Some(name) = IO_CRATES.iter().find(|name| mentions(line, name)) {
            report(format!("a pure module does without `{name}`"));
        }
    }
}

/// Whether `path` is the file `module`.rs or lies in the folder `module`.
fn is_or_in(path: &str, module: &str) -> bool {
    path.strip_prefix(module)
        .is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
}

/// Whether `line` has a path that begins with the crate `name`.
fn mentions(line: &str, name: &str) -> bool {
    let path = format!("{name}::");
    line.match_indices(&path).any(|(at, _)| {
        !line[..at].ends_with(|before: char| {
            before.is_ascii_alphanumeric() || before == '_' || before == ':'
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(path: &str, text: &str) -> usize {
        let mut findings = Vec::new();
        check(
            &Source {
                path: path.to_owned(),
                text: text.to_owned(),
            },
            &mut findings,
        );
        findings.len()
    }

    /// Only an edge may lift the ban.
    #[test]
    fn the_ban_holds_in_pure_modules() {
        let text = "#![expect(clippy::disallowed_methods, reason = \"r\")]";
        assert_eq!(count("agent/src/span/mod.rs", text), 1);
        assert_eq!(count("agent/src/process/select.rs", text), 1);
        assert_eq!(count("agent/src/process/watch.rs", text), 0);
        assert_eq!(count("agent/src/kernel/ring.rs", text), 0);
    }

    /// Pure modules use no crate that does I/O, by whatever path.
    #[test]
    fn pure_modules_name_no_io_crate() {
        assert_eq!(
            count(
                "agent/src/engine.rs",
                "let (a, b) = tokio::sync::mpsc::channel(1);"
            ),
            1
        );
        assert_eq!(count("agent/src/engine.rs", "use self::mytokio::x;"), 0);
        assert_eq!(count("agent/src/pipeline.rs", "use tokio::sync::mpsc;"), 0);
    }
}

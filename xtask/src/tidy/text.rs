//! Length of files and lines, and words that have no place in the project.

use super::{Finding, Source};
use crate::steps::say;

/// From here on a file is worth splitting, and is named.
const SOFT_LINES: usize = 500;

/// From here on it has to be split.
const HARD_LINES: usize = 600;

/// As rustfmt is set; it does not break comments.
const COLUMNS: usize = 100;

/// This file, which has to name them.
const OWN_PATH: &str = "xtask/src/tidy/text.rs";

/// A word, and why it is refused.
const REFUSED: [(&str, &str); 3] = [
    ("/work/", "a path of one machine"),
    ("/root/", "a path of one machine"),
    ("FIXME", "write an issue, and TODO(#number) here"),
];

/// As [`REFUSED`], in Rust only: pages may speak about them.
const REFUSED_IN_RUST: [(&str, &str); 2] = [
    ("#[ignore", "a test runs or does not exist"),
    ("#[should_panic", "assert on the error instead"),
];

pub(super) fn check(source: &Source, findings: &mut Vec<Finding>) {
    if source.path == OWN_PATH {
        return;
    }
    let mut report = |line, what: String| {
        findings.push(Finding {
            path: source.path.clone(),
            line,
            what,
        });
    };
    let lines = source.text.lines().count();
    if source.is_rust() && lines > HARD_LINES {
        report(
            0,
            format!("{lines} lines: split it by state (at most {HARD_LINES})"),
        );
    } else if source.is_rust() && lines > SOFT_LINES {
        say(
            "tidy",
            &format!("{}: {lines} lines, aim for {SOFT_LINES}", source.path),
        );
    }
    for (index, line) in source.text.lines().enumerate() {
        let in_rust = REFUSED_IN_RUST.into_iter().filter(|_| source.is_rust());
        for (word, why) in REFUSED.into_iter().chain(in_rust) {
            if line.contains(word) {
                report(index + 1, format!("`{word}`: {why}"));
            }
        }
        if unnumbered_todo(line) {
            report(
                index + 1,
                "TODO without the number of an issue: TODO(#12)".to_owned(),
            );
        }
        let comment = source.is_rust() && line.trim_start().starts_with("//");
        // A link cannot be broken.
        if comment && line.chars().count() > COLUMNS && !line.contains("http") {
            report(
                index + 1,
                format!("a comment of more than {COLUMNS} columns"),
            );
        }
    }
}

fn unnumbered_todo(line: &str) -> bool {
    line.match_indices("TODO")
        .any(|(at, word)| !line[at + word.len()..].starts_with("(#"))
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

    /// Work left to do carries the number of an issue.
    #[test]
    fn todos_carry_a_number() {
        assert_eq!(count("agent/src/engine.rs", "// TODO later"), 1);
        assert_eq!(count("agent/src/engine.rs", "// TODO(#12) later"), 0);
    }

    /// The length of a file is bounded.
    #[test]
    fn long_files_are_refused() {
        assert_eq!(count("agent/src/engine.rs", &"x\n".repeat(HARD_LINES)), 0);
        assert_eq!(
            count("agent/src/engine.rs", &"x\n".repeat(HARD_LINES + 1)),
            1
        );
    }

    /// Paths of one machine and sleeping tests are refused in every file.
    #[test]
    fn words_are_refused() {
        assert_eq!(count("deploy/x.yaml", "path: /work/x"), 1);
        assert_eq!(count("tests/tests/a.rs", "#[ignore]\nfn a() {}"), 1);
    }
}

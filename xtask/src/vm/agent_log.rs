//! What the agent's log says about the kernel: paths, hooks, fields, helpers, losses.

use super::results::Verdict;

/// The log at level debug, without colours.
pub(super) struct AgentLog {
    text: String,
}

impl AgentLog {
    pub(super) fn new(text: String) -> Self {
        Self { text }
    }

    /// The capture path that was attached.
    pub(super) fn path(&self) -> Option<&str> {
        self.lines("capture attached")
            .find_map(|line| field(line, "path"))
    }

    /// Better paths than the attached one, each with its reason.
    pub(super) fn rejected(&self) -> impl Iterator<Item = (&str, &str)> {
        self.lines("capture path not available")
            .filter_map(|line| Some((field(line, "path")?, field(line, "reason")?)))
    }

    /// Why nothing could be attached.
    pub(super) fn failure(&self) -> Option<String> {
        let (_, reason) = self
            .text
            .split_once("no way to capture works on this kernel: ")?;
        reason.lines().next().map(str::to_owned)
    }

    /// Kernel symbols with a program on each of their hooks.
    pub(super) fn attached(&self) -> Vec<&str> {
        let symbols = self
            .lines("hook attached")
            .filter_map(|line| field(line, "hook"));
        let mut symbols: Vec<_> = symbols.collect();
        symbols.dedup();
        symbols
    }

    /// Optional hooks that could not be had, each with its reason.
    pub(super) fn unattached(&self) -> impl Iterator<Item = (&str, &str)> {
        self.lines("hook not attached")
            .filter_map(|line| Some((field(line, "hook")?, field(line, "reason")?)))
    }

    /// Features whose fields this kernel has, all of them.
    pub(super) fn features(&self) -> impl Iterator<Item = &str> {
        self.lines("kernel has every field")
            .filter_map(|line| field(line, "feature"))
    }

    /// Features that are off, each with the field that is missing.
    pub(super) fn missing_features(&self) -> impl Iterator<Item = (&str, &str)> {
        self.lines("this kernel lacks a field: no ")
            .filter_map(|line| {
                let (_, rest) = line.split_once("this kernel lacks a field: no ")?;
                Some((rest.split(" field=").next()?, field(line, "field")?))
            })
    }

    /// Whether a helper exists: `task_registers` or `socket_cookie`.
    pub(super) fn has_helper(&self, name: &str) -> bool {
        self.lines("kernel helpers")
            .any(|line| line.contains(&format!("{name}=true")))
    }

    /// What the summary at the end counts as lost.
    pub(super) fn lost(&self) -> Option<String> {
        let (_, summary) = self.text.rsplit_once("\nsummary\n")?;
        if summary.contains("nothing was lost") {
            return None;
        }
        let losses = summary.lines().map(str::trim);
        let losses =
            losses.filter(|line| line.starts_with("lost: ") || line.starts_with("kernel: "));
        Some(losses.collect::<Vec<_>>().join("; "))
    }

    /// Whether the summary says that hooks did not run, or that maps had no room.
    pub(super) fn has_kernel_losses(&self) -> bool {
        self.lost().is_some_and(|lost| lost.contains("kernel: "))
    }

    fn lines<'a>(&'a self, message: &'a str) -> impl Iterator<Item = &'a str> {
        self.text.lines().filter(move |line| line.contains(message))
    }
}

/// What the page of `agent check` says of uprobes: on whose functions, and why they cannot be had.
pub(super) fn uprobes(page: &str) -> Vec<Verdict> {
    const NAME: &str = "uprobes on ";
    let verdicts = page.lines().filter_map(|line| {
        let (_, rest) = line.split_once(NAME)?;
        let (whose, reason) = match rest.split_once(": ") {
            Some((whose, reason)) => (whose, Some(reason.to_owned())),
            None => (rest, None),
        };
        Some((format!("{NAME}{whose}"), reason))
    });
    verdicts.collect()
}

/// A field of a log line: `name="value"`.
fn field<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = line.split_once(&format!(" {name}=\""))?;
    // Values may hold quotes, escaped.
    let end = rest
        .char_indices()
        .find(|(at, character)| *character == '"' && !rest[..*at].ends_with('\\'));
    Some(&rest[..end?.0])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_on_uprobes() {
        let page = "Kernel hooks\n  ok    socket data: tracepoint\n  \
                    ok    inside programs: uprobes on rustls\n  \
                    FAIL  inside programs: uprobes on grpc-go: go_grpc_begun: too large\n";
        let expected = [
            ("uprobes on rustls".to_owned(), None),
            (
                "uprobes on grpc-go".to_owned(),
                Some("go_grpc_begun: too large".to_owned()),
            ),
        ];
        assert_eq!(uprobes(page), expected);
    }

    const LOG: &str = r#"
2026-01-01T00:00:00Z DEBUG hook attached hook="inet_sendmsg" program="inet_sendmsg_exit"
2026-01-01T00:00:00Z  INFO capture attached path="fexit"
2026-01-01T00:00:00Z  INFO capture path not available path="tracepoint" reason="no \"type\" of it"
2026-01-01T00:00:00Z  WARN hook not attached; the rest goes on hook="x" reason="why"
2026-01-01T00:00:00Z DEBUG kernel helpers task_registers=false socket_cookie=true
2026-01-01T00:00:00Z DEBUG kernel has every field feature="unix sockets"
2026-01-01T00:00:00Z  WARN this kernel lacks a field: no network namespaces field="net.ns.inum"
summary
  nothing was lost
"#;

    /// Everything that becomes a cell of the table is found.
    #[test]
    fn facts_are_found() {
        let log = AgentLog::new(LOG.to_owned());
        assert_eq!(log.path(), Some("fexit"));
        let rejected: Vec<_> = log.rejected().collect();
        assert_eq!(rejected, [("tracepoint", r#"no \"type\" of it"#)]);
        assert_eq!(log.attached(), ["inet_sendmsg"]);
        assert_eq!(log.unattached().collect::<Vec<_>>(), [("x", "why")]);
        assert_eq!(log.features().collect::<Vec<_>>(), ["unix sockets"]);
        let missing: Vec<_> = log.missing_features().collect();
        assert_eq!(missing, [("network namespaces", "net.ns.inum")]);
        assert!(log.has_helper("socket_cookie") && !log.has_helper("task_registers"));
        assert_eq!((log.lost(), log.has_kernel_losses()), (None, false));
        let skipped = LOG.replace(
            "nothing was lost",
            "kernel: hook_skipped                    3  The kernel left a hook out.",
        );
        let skipped = AgentLog::new(skipped);
        assert!(skipped.has_kernel_losses());
    }
}

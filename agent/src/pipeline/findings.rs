//! What the agent saw that someone should mend: services that receive a trace context and call out
//! without it. Pure.

use std::{collections::BTreeMap, fmt::Write as _};

use crate::self_metrics::{Passed, Passing};

/// Calls by service and destination.
type Totals = BTreeMap<(String, String), Passed>;

/// Services named at once at most: a line each, once a minute.
const LINES: usize = 20;

/// Lines for people, of what came since the last call.
#[derive(Debug, Default)]
pub(super) struct Findings {
    before: Totals,
}

impl Findings {
    pub(super) fn lines(&mut self, now: Totals) -> Vec<String> {
        let mut services: BTreeMap<&str, (u64, u64, Vec<&str>)> = BTreeMap::new();
        for (key, passed) in &now {
            let before = self.before.get(key).copied().unwrap_or_default();
            let new = |passing: Passing| {
                let at = |passed: &Passed| passed.get(passing as usize).copied().unwrap_or(0);
                at(passed).saturating_sub(at(&before))
            };
            let broken = new(Passing::Missing) + new(Passing::Replaced);
            let (service, destination) = key;
            let entry = services.entry(service).or_default();
            entry.1 += broken + new(Passing::Kept);
            if broken > 0 {
                entry.0 += broken;
                entry.2.push(destination);
            }
        }
        let lines = services
            .into_iter()
            .filter(|(_, (broken, ..))| *broken > 0)
            .take(LINES)
            .map(|(service, (broken, calls, destinations))| {
                line(service, broken, calls, &destinations)
            })
            .collect();
        self.before = now;
        lines
    }
}

fn line(service: &str, broken: u64, calls: u64, destinations: &[&str]) -> String {
    const NAMED: usize = 3;
    let mut text = format!(
        "{service} receives a traceparent and does not pass it on in {broken} of {calls} calls, to "
    );
    text.push_str(
        &destinations
            .iter()
            .take(NAMED)
            .copied()
            .collect::<Vec<_>>()
            .join(", "),
    );
    if destinations.len() > NAMED {
        let _ = write!(text, " and {} more", destinations.len() - NAMED);
    }
    text.push_str(": without this agent, its traces end there");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn totals(rows: &[(&str, &str, Passed)]) -> Totals {
        rows.iter()
            .map(|(service, destination, passed)| {
                (((*service).to_owned(), (*destination).to_owned()), *passed)
            })
            .collect()
    }

    /// Only what is new is told, and only of services that break traces.
    #[test]
    fn tells_what_is_new() {
        let mut findings = Findings::default();
        let first = totals(&[
            ("good", "a:80", [5, 0, 0]),
            ("orders", "b:80", [1, 0, 2]),
            ("orders", "c:80", [0, 3, 0]),
        ]);
        let expected = "orders receives a traceparent and does not pass it on in 5 of 6 calls, \
                        to b:80, c:80: without this agent, its traces end there";
        assert_eq!(findings.lines(first.clone()), [expected]);
        assert_eq!(findings.lines(first), Vec::<String>::new());
        let more = totals(&[("good", "a:80", [9, 0, 1]), ("orders", "b:80", [9, 0, 2])]);
        let expected = "good receives a traceparent and does not pass it on in 1 of 5 calls, \
                        to a:80: without this agent, its traces end there";
        assert_eq!(findings.lines(more), [expected]);
    }
}

//! The verdict: what the spans say against what is known from outside. Pure.
//!
//! Every case makes three spans: the front's server span, the front's client span, and the back's
//! server span. The client is not traced, so the first has no parent; the parent of each other is
//! the one before it. A background call makes the last two, and its client span has no parent.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

/// A request as the client saw it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    pub(super) case: u32,
    pub(super) duration_ns: u64,
}

/// Which of the three spans of a case one is.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(super) enum Role {
    FrontServer,
    FrontClient,
    BackServer,
}

/// What a request is for, as its path says.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(super) enum Subject {
    Case(u32),
    Background(u32),
}

#[derive(Clone, Debug)]
pub(super) struct Span {
    pub(super) role: Role,
    pub(super) subject: Subject,
    pub(super) trace_id: String,
    pub(super) id: String,
    /// Empty for a root.
    pub(super) parent_id: String,
    pub(super) duration_ns: u64,
    pub(super) evidence: Option<String>,
    /// Span ids of its links.
    pub(super) links: Vec<String>,
}

/// One runtime at one number of clients.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub(super) struct Cell {
    pub(super) clients: u32,
    pub(super) requests: u32,
    pub(super) recorded: Recorded,
    /// From the front's client span to its server span.
    pub(super) in_process: Joins,
    /// From the back's server span to the front's client span.
    pub(super) on_wire: Joins,
    /// Cases of which all three spans are there, and joined as they must be.
    pub(super) whole_chains: u32,
    /// Server spans of the front that have a parent, though the client is not traced.
    pub(super) roots_with_parent: u32,
    /// Client spans without a parent that have a link, to the right span and to others.
    pub(super) linked_right: u32,
    pub(super) linked_wrong: u32,
    pub(super) background: Background,
    pub(super) duration_error: DurationError,
    /// How often each grade of evidence made a parent.
    pub(super) evidence: BTreeMap<String, u32>,
    /// What the agent's own ledger says was lost, by reason.
    pub(super) lost: BTreeMap<String, u64>,
}

/// Cases that have the span.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
pub(super) struct Recorded {
    pub(super) front_server: u32,
    pub(super) front_client: u32,
    pub(super) back_server: u32,
}

/// Cases by how a span of theirs is joined to the one before it.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
pub(super) struct Joins {
    pub(super) right: u32,
    pub(super) orphan: u32,
    pub(super) wrong: u32,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
pub(super) struct Background {
    /// Client spans of background calls.
    pub(super) calls: u32,
    /// Those that have a parent: all of these are wrong.
    pub(super) with_parent: u32,
    /// Those that have a link to a span of some case.
    pub(super) linked: u32,
    /// Server spans of the back whose parent is another span than the call's.
    pub(super) wrong_on_wire: u32,
}

/// The client's duration less that of the front's server span, in microseconds.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
#[expect(clippy::struct_field_names, reason = "a name ends with its unit")]
pub(super) struct DurationError {
    pub(super) least_us: i64,
    pub(super) median_us: i64,
    pub(super) p99_us: i64,
    pub(super) most_us: i64,
}

/// How a span is joined to the one that must be its parent. A later one outweighs an earlier one.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Verdict {
    Missing,
    Right,
    Orphan,
    Wrong,
}

impl Cell {
    /// Spans whose parent is not theirs, of cases and of background calls.
    pub(super) fn wrong(&self) -> u32 {
        self.in_process.wrong
            + self.on_wire.wrong
            + self.roots_with_parent
            + self.background.with_parent
            + self.background.wrong_on_wire
    }

    /// Spans that cases must have and that are not there.
    pub(super) fn missing(&self) -> u32 {
        let Recorded {
            front_server,
            front_client,
            back_server,
        } = self.recorded;
        3 * self.requests - front_server - front_client - back_server
    }
}

impl Joins {
    fn count(&mut self, verdict: Verdict) {
        match verdict {
            Verdict::Missing => {}
            Verdict::Right => self.right += 1,
            Verdict::Orphan => self.orphan += 1,
            Verdict::Wrong => self.wrong += 1,
        }
    }
}

/// Judges the spans of one run, and says in words what is wrong with each that is.
pub(super) fn judge(clients: u32, requests: &[Request], spans: &[Span]) -> (Cell, Vec<String>) {
    let mut judge = Judge::of(spans);
    judge.cell.clients = clients;
    judge.cell.requests = requests.len() as u32;
    let mut errors_ns = Vec::new();
    for request in requests {
        errors_ns.extend(judge.case(request));
    }
    judge.cell.duration_error = DurationError::of(errors_ns);
    judge.background();
    for evidence in spans.iter().filter_map(|span| span.evidence.as_ref()) {
        *judge.cell.evidence.entry(evidence.clone()).or_default() += 1;
    }
    (judge.cell, judge.faults)
}

struct Judge<'a> {
    spans: &'a [Span],
    by_id: HashMap<&'a str, &'a Span>,
    by_place: HashMap<(Subject, Role), Vec<&'a Span>>,
    cell: Cell,
    faults: Vec<String>,
}

impl<'a> Judge<'a> {
    fn of(spans: &'a [Span]) -> Self {
        let mut by_place: HashMap<_, Vec<_>> = HashMap::new();
        for span in spans {
            let place = (span.subject, span.role);
            by_place.entry(place).or_default().push(span);
        }
        Self {
            spans,
            by_id: spans.iter().map(|span| (&*span.id, span)).collect(),
            by_place,
            cell: Cell::default(),
            faults: Vec::new(),
        }
    }

    fn at(&self, subject: Subject, role: Role) -> Vec<&'a Span> {
        self.by_place
            .get(&(subject, role))
            .cloned()
            .unwrap_or_default()
    }

    /// Counts one case; gives the error of its duration, where it has exactly one server span.
    fn case(&mut self, request: &Request) -> Option<i64> {
        let subject = Subject::Case(request.case);
        let [front, call, back] = [Role::FrontServer, Role::FrontClient, Role::BackServer]
            .map(|role| self.at(subject, role));
        self.cell.recorded.front_server += u32::from(!front.is_empty());
        self.cell.recorded.front_client += u32::from(!call.is_empty());
        self.cell.recorded.back_server += u32::from(!back.is_empty());

        for span in front.iter().filter(|span| !span.parent_id.is_empty()) {
            self.cell.roots_with_parent += 1;
            self.faults.push(self.fault(span));
        }
        let in_process = self.join(&call, &front);
        let on_wire = self.join(&back, &call);
        self.cell.in_process.count(in_process);
        self.cell.on_wire.count(on_wire);
        let whole = in_process == Verdict::Right && on_wire == Verdict::Right;
        self.cell.whole_chains += u32::from(whole);
        self.links(&call, &front);

        let [front] = front[..] else {
            return None;
        };
        Some(request.duration_ns as i64 - front.duration_ns as i64)
    }

    /// The heaviest verdict on `children`, each of which must have its parent among `parents`.
    fn join(&mut self, children: &[&Span], parents: &[&Span]) -> Verdict {
        let mut heaviest = Verdict::Missing;
        for child in children {
            let is_parent =
                |parent: &&&Span| child.parent_id == parent.id && child.trace_id == parent.trace_id;
            let verdict = if child.parent_id.is_empty() {
                Verdict::Orphan
            } else if parents.iter().any(|parent| is_parent(&parent)) {
                Verdict::Right
            } else {
                self.faults.push(self.fault(child));
                Verdict::Wrong
            };
            heaviest = heaviest.max(verdict);
        }
        heaviest
    }

    /// Counts the links that calls without a parent have instead of one.
    fn links(&mut self, calls: &[&Span], fronts: &[&Span]) {
        for call in calls.iter().filter(|call| call.parent_id.is_empty()) {
            for link in &call.links {
                if fronts.iter().any(|front| front.id == *link) {
                    self.cell.linked_right += 1;
                } else {
                    self.cell.linked_wrong += 1;
                }
            }
        }
    }

    fn background(&mut self) {
        let spans = self.spans;
        for span in spans {
            let Subject::Background(_) = span.subject else {
                continue;
            };
            match span.role {
                Role::FrontClient => {
                    self.cell.background.calls += 1;
                    if !span.parent_id.is_empty() {
                        self.cell.background.with_parent += 1;
                        self.faults.push(self.fault(span));
                    }
                    self.cell.background.linked += u32::from(!span.links.is_empty());
                }
                Role::BackServer => {
                    let calls = self.at(span.subject, Role::FrontClient);
                    if self.join(&[span], &calls) == Verdict::Wrong {
                        self.cell.background.wrong_on_wire += 1;
                    }
                }
                // Nobody asks the front for these.
                Role::FrontServer => {}
            }
        }
    }

    fn fault(&self, span: &Span) -> String {
        let parent = match self.by_id.get(&*span.parent_id) {
            None => "a span that was not received".to_owned(),
            Some(parent) if parent.trace_id != span.trace_id => {
                format!("{} of another trace", parent.place())
            }
            Some(parent) => parent.place(),
        };
        let evidence = span.evidence.as_deref().unwrap_or("no evidence");
        format!(
            "the {} (span {}) is a child of {parent} (span {}) by {evidence}",
            span.place(),
            span.id,
            span.parent_id
        )
    }
}

impl Span {
    fn place(&self) -> String {
        let role = match self.role {
            Role::FrontServer => "front's server span",
            Role::FrontClient => "front's client span",
            Role::BackServer => "back's server span",
        };
        match self.subject {
            Subject::Case(case) => format!("{role} of case {case}"),
            Subject::Background(number) => format!("{role} of background call {number}"),
        }
    }
}

impl Subject {
    /// From a path, or from a URL that ends with it.
    pub(super) fn parse(path: &str) -> Option<Self> {
        let number = |marker: &str| path.rsplit_once(marker)?.1.parse().ok();
        number("/case/")
            .map(Self::Case)
            .or_else(|| number("/background/").map(Self::Background))
    }
}

impl DurationError {
    fn of(mut errors_ns: Vec<i64>) -> Self {
        errors_ns.sort_unstable();
        let last = errors_ns.len().saturating_sub(1);
        let at = |percent: usize| {
            let found = errors_ns.get((last * percent).div_ceil(100));
            found.map_or(0, |error_ns| error_ns / 1_000)
        };
        Self {
            least_us: at(0),
            median_us: at(50),
            p99_us: at(99),
            most_us: at(100),
        }
    }
}

#[cfg(test)]
mod tests;

//! What most tests do: trace some processes while something happens, then look.

use std::collections::BTreeMap;

use crate::{
    agent::{AgentCommand, Exit},
    receiver::Receiver,
    span::{Span, Spans},
    workload::LogLine,
};

/// What a run of the agent left.
#[derive(Debug)]
pub struct Traced {
    pub spans: Vec<Span>,
    pub exit: Exit,
}

impl Traced {
    pub fn of(&self, service: &str, kind: &str) -> Vec<Span> {
        self.spans.of(service, kind)
    }

    /// The one span of this service, kind and path.
    #[track_caller]
    pub fn only(&self, service: &str, kind: &str, path: &str) -> Span {
        let found = self.of(service, kind).at(path);
        let [only] = &found[..] else {
            let said = &self.exit.stderr;
            panic!("not one {kind} span of {service} at {path}: {found:#?}\n{said}");
        };
        only.clone()
    }

    /// The span's parent, where we have it.
    pub fn parent(&self, child: &Span) -> Option<&Span> {
        self.spans.iter().find(|span| child.is_child_of(span))
    }
}

/// Traces these processes and their descendants, exporting over gRPC, while `drive` runs.
pub fn trace(pids: &[u32], drive: impl FnOnce()) -> Traced {
    trace_with(
        |agent| pids.iter().fold(agent, |agent, &pid| agent.pid(pid)),
        drive,
    )
}

/// Traces what `select` says. The agent's flush at its end brings every span.
pub fn trace_with(
    select: impl FnOnce(AgentCommand) -> AgentCommand,
    drive: impl FnOnce(),
) -> Traced {
    let receiver = Receiver::start();
    let agent = select(AgentCommand::new().grpc_to(&receiver)).start();
    drive();
    let exit = agent.stop();
    Traced {
        spans: receiver.spans(),
        exit,
    }
}

/// One request as a server's log and a server span can both tell it: method, path, status and the
/// sizes of both bodies.
type Served = (String, String, Option<i64>, i64, i64);

/// Panics unless the server spans are the requests of the log, one by one: same connection (by the
/// client's port), same order on it, same method, path, status and body sizes.
///
/// The sizes of a `/chunked/` response may be missing: past what is captured, the framing of its
/// chunks is not seen, and then a span says nothing rather than something wrong.
pub fn assert_spans_match_log(spans: &[Span], log: &[LogLine]) {
    let mut logged: BTreeMap<i64, Vec<Served>> = BTreeMap::new();
    for line in log {
        let (method, path) = (line.method.clone(), line.path.clone());
        let request = (
            method,
            path,
            Some(line.status),
            line.request_body,
            line.response_body,
        );
        logged.entry(line.port).or_default().push(request);
    }
    let mut ordered: Vec<&Span> = spans.iter().collect();
    ordered.sort_by_key(|span| span.start_ns);
    let mut seen: BTreeMap<i64, Vec<Served>> = BTreeMap::new();
    for span in ordered {
        let response_body = span
            .response_body()
            .unwrap_or_else(|| unseen_size(span.path()));
        seen.entry(span.number("network.peer.port").unwrap_or(0))
            .or_default()
            .push((
                span.method().to_owned(),
                span.path().to_owned(),
                span.http_status(),
                span.request_body().unwrap_or(0),
                response_body,
            ));
    }
    assert_eq!(
        seen, logged,
        "spans (left) and the server's log (right), by client port"
    );
}

/// What a response without a size attribute stands for.
fn unseen_size(path: &str) -> i64 {
    path.strip_prefix("/chunked/")
        .and_then(|size| size.parse().ok())
        .unwrap_or(0)
}

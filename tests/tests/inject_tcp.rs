//! The TCP option that carries trace context to another host: where it is and where it is not, as
//! a host on the way sees it; what two agents make of it; and that nothing else is changed.

use std::{collections::BTreeMap, process::Command};

use agent_tests::{
    agent::{Agent, AgentCommand, Exit},
    namespace::Namespace,
    pki::Pki,
    process::{Process, crate_file, output},
    python,
    receiver::Receiver,
    require_root,
    span::Spans,
    workload::{
        client,
        hop::{self, Joined},
        nginx::{Nginx, NginxOptions},
        recorder::{Caller, Recorder},
        tls::{NginxTls, Twin, curl_tls},
    },
};
use serde::Deserialize;
use serde_json::Value;

/// A TCP segment, as `segments.py` says.
#[derive(Clone, Debug, Deserialize)]
struct Segment {
    source: u16,
    target: u16,
    sequence: u32,
    options: Vec<(u8, String)>,
    option_bytes: u32,
    length: u32,
    begin: String,
}

impl Segment {
    /// Trace id and span id of our option, which is the only one that is not usual.
    fn context(&self) -> Option<(&str, &str)> {
        let [(kind, content)] = self.options.as_slice() else {
            assert!(self.options.is_empty(), "{self:?}");
            return None;
        };
        assert_eq!((*kind, content.len()), (254, 2 * 26), "{self:?}");
        let (identifier, ids) = content.split_at(4);
        assert!(["7ce3", "7ce2"].contains(&identifier), "{self:?}");
        Some(ids.split_at(32))
    }
}

/// A foreign judge of what is on the wire.
struct Wire {
    process: Process,
    asked: usize,
}

impl Wire {
    fn record(namespace: &Namespace, arguments: &[&str]) -> Self {
        let mut command = Command::new(python::interpreter());
        command
            .arg(crate_file("workloads/segments.py"))
            .arg(namespace.near_link())
            .args(arguments);
        let mut process = Process::spawn("segments", &mut command);
        process.json_line(0);
        Self { process, asked: 0 }
    }

    /// What passed since the last time.
    fn take(&mut self) -> Vec<Segment> {
        self.process.write_line("");
        self.asked += 1;
        let lines = self.process.json_line(self.asked);
        serde_json::from_value(lines).expect("segments")
    }
}

/// Two services on two sides of a network, each under an agent of its own that injects as told.
struct Hosts {
    namespace: Namespace,
    receiver: Receiver,
    front: Process,
    back: Process,
    port: u16,
    back_port: u16,
}

impl Hosts {
    fn start() -> Self {
        let namespace = Namespace::create();
        let (back, back_port) = hop::start(namespace.command(), "back", &[namespace.far()]);
        let behind = format!("{}:{back_port}", namespace.far());
        let (front, port) = hop::start(Command::new("env"), "front", &["127.0.0.1", &behind]);
        Self {
            namespace,
            receiver: Receiver::start(),
            front,
            back,
            port,
            back_port,
        }
    }

    fn agents(&self, what: &str) -> [Agent; 2] {
        [&self.front, &self.back].map(|process| {
            AgentCommand::new()
                .args(["--inject", what])
                .grpc_to(&self.receiver)
                .pid(process.pid())
                .start()
        })
    }

    fn ask(&self, path: &str, more: &[&str]) {
        let url = format!("http://127.0.0.1:{}{path}", self.port);
        let arguments: Vec<&str> = [url.as_str()].iter().chain(more).copied().collect();
        assert_eq!(client::curl(&arguments).1, 200);
    }
}

fn count(exit: &Exit, outcome: &str) -> u64 {
    exit.ledger().injections.get(outcome).copied().unwrap_or(0)
}

const BEFORE: &str = "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const NOT_SAMPLED: &str = "traceparent: 00-0af7651916cd43dd8448eb211c80319d-b7ad6b7169203331-00";

/// Requests between two hosts make one trace, with and without a context from before, and from a
/// thread that was started for the request. On the wire, each request begins with a segment that
/// has the option with the ids of the call's span; no other segment has one.
#[test]
fn two_agents_make_one_trace() {
    require_root!();
    let hosts = Hosts::start();
    let mut wire = Wire::record(&hosts.namespace, &[]);
    let [near, far] = hosts.agents("tcp");
    let paths = ["/plain", "/thread/plain", "/in", "/thread/in"];
    for path in paths {
        let more = ["-H", BEFORE];
        hosts.ask(path, if path.ends_with("/in") { &more } else { &[] });
    }
    let segments = wire.take();
    let exits = [near.stop(), far.stop()];

    let spans = hosts.receiver.spans();
    let mut carried: BTreeMap<&str, &str> = BTreeMap::new();
    for segment in &segments {
        let is_request = segment.target == hosts.back_port && segment.begin.starts_with("GET ");
        assert_eq!(segment.context().is_some(), is_request, "{segment:?}");
        if let Some((trace, span)) = segment.context() {
            assert_eq!(carried.insert(span, trace), None, "{segment:?}");
        }
    }
    assert_eq!(carried.len(), paths.len());
    for path in paths {
        let Joined { call, at_back, .. } = hop::joined(&spans, path);
        assert_eq!(at_back.evidence(), Some("tcp_option"), "{at_back:?}");
        assert_eq!(
            carried.get(call.span_id.as_str()),
            Some(&call.trace_id.as_str()),
            "{call:?}"
        );
        let is_continued = call.trace_id == "0af7651916cd43dd8448eb211c80319c";
        assert_eq!(is_continued, path.ends_with("/in"), "{call:?}");
    }
    let sums = |outcome| exits.each_ref().map(|exit| count(exit, outcome));
    assert_eq!(sums("option_sent"), [4, 0]);
    assert_eq!(sums("option_received"), [0, 4]);
}

/// A context that is not sampled is carried as such: the other agent keeps no span either.
#[test]
fn what_is_not_sampled_stays_so() {
    require_root!();
    let hosts = Hosts::start();
    let mut wire = Wire::record(&hosts.namespace, &[]);
    let [near, far] = hosts.agents("tcp");
    hosts.ask("/in", &["-H", NOT_SAMPLED]);
    let segments = wire.take();
    let [near, far] = [near.stop(), far.stop()];
    let carried: Vec<_> = segments.iter().filter_map(Segment::context).collect();
    assert_eq!(carried.len(), 1);
    assert_eq!(carried[0].0, "0af7651916cd43dd8448eb211c80319d");
    let option = segments.iter().find_map(|segment| segment.options.first());
    assert!(option.is_some_and(|(_, content)| content.starts_with("7ce2")));
    assert_eq!(hosts.receiver.span_count(), 0);
    for exit in [near, far] {
        assert!(exit.ledger().counter("spans.not_sampled") >= 1);
    }
}

/// With both carriers, a request has one or the other: over a blocking connection that is kept,
/// the first request gets a header, the later ones get options. One trace each.
#[test]
fn headers_go_first() {
    require_root!();
    let hosts = Hosts::start();
    let mut wire = Wire::record(&hosts.namespace, &[]);
    let [near, far] = hosts.agents("headers,tcp");
    let kept: Vec<_> = (0..4).map(|number| format!("/kept/{number}")).collect();
    for path in &kept {
        hosts.ask(path, &[]);
    }
    hosts.ask("/plain", &[]);
    let segments = wire.take();
    let exit = near.stop();
    far.stop();
    let spans = hosts.receiver.spans();
    for path in kept.iter().map(String::as_str).chain(["/plain"]) {
        let Joined { call, at_back, .. } = hop::joined(&spans, path);
        let expected = match path {
            "/kept/0" | "/plain" => "header",
            _ => "tcp_option",
        };
        assert_eq!(at_back.evidence(), Some(expected), "{at_back:?}");
        let span = call.span_id.as_str();
        let carried = segments.iter().filter_map(Segment::context);
        let options = carried.filter(|(_, carried)| *carried == span).count();
        assert_eq!(options, usize::from(expected == "tcp_option"), "{call:?}");
    }
    assert_eq!(
        (count(&exit, "injected"), count(&exit, "option_sent")),
        (2, 3)
    );
}

/// Requests through nginx.
const REQUESTS: usize = 96;

/// nginx with a pool of connections, many requests at a time: each request of its own is told to
/// the other host as what it is.
#[test]
fn a_proxy_tells_its_requests_apart() {
    require_root!();
    let namespace = Namespace::create();
    let (back, back_port) = hop::start(namespace.command(), "back", &[namespace.far()]);
    let nginx = Nginx::start_with(&NginxOptions {
        upstream: Some(back_port),
        upstream_address: namespace.far().to_owned(),
        ..NginxOptions::default()
    });
    let receiver = Receiver::start();
    let [near, far] = [nginx.pid(), back.pid()].map(|pid| {
        let command = AgentCommand::new().args(["--inject", "tcp"]);
        command.grpc_to(&receiver).pid(pid).start()
    });
    let url = nginx.url(&format!("/call/[1-{REQUESTS}]"));
    let printed = output(
        client::curl_command(&["--parallel", "--parallel-max", "16", &url])
            .args(["--output", "/dev/null"]),
    );
    assert_eq!(printed.matches("200").count(), REQUESTS, "{printed}");
    let exits = [near.stop(), far.stop()];
    let spans = receiver.spans();
    let proxied = spans.of("nginx", "CLIENT");
    let mut apart = 0;
    for number in 1..=REQUESTS {
        let path = format!("/call/{number}");
        let at_proxy = spans.of("nginx", "SERVER").at(&path).only().clone();
        let at_back = spans.of("back", "SERVER").at(&path).only().clone();
        if at_back.is_root() {
            // A packet that is sent again has no option.
            apart += 1;
            continue;
        }
        assert_eq!(at_back.evidence(), Some("tcp_option"), "{at_back:?}");
        let call = proxied.iter().find(|call| at_back.is_child_of(call));
        let call = call.unwrap_or_else(|| panic!("no call above {at_back:?}"));
        assert!(call.is_child_of(&at_proxy), "{call:?} {at_proxy:?}");
    }
    assert!(apart <= 4, "{apart} of {REQUESTS}");
    for (exit, outcome) in [(&exits[0], "option_sent"), (&exits[1], "option_received")] {
        let counted = count(exit, outcome);
        assert!(
            (REQUESTS - apart..=REQUESTS).contains(&(counted as usize)),
            "{outcome}: {counted}, {apart} apart"
        );
    }
}

/// Bytes that a network of Ethernet's usual frames takes in one packet.
const MTU: u32 = 1500;

/// Bytes of the headers of IPv4 and TCP without options.
const HEADERS: u32 = 40;

/// Requests in every form, and streams that are none (TLS, yamux, HTTP/2, lines, bytes, uploads of
/// megabytes), over a link on which packets are cut into segments before they leave: every byte
/// arrives as it was sent, no packet is too long for the link, and each context is on segments of
/// one packet only.
#[test]
fn every_form_arrives_as_it_was_sent() {
    require_root!();
    let namespace = Namespace::create();
    let mut wire = Wire::record(&namespace, &["segmented"]);
    let forms = |mut command: Command, arguments: &[&str]| {
        command
            .arg(python::interpreter())
            .arg(crate_file("workloads/forms.py"))
            .args(arguments);
        let mut process = Process::spawn("forms", &mut command);
        let first = process.json_line(0);
        (process, first)
    };
    let (mut tap, listening) = forms(namespace.command(), &["tap", namespace.far()]);
    let port = listening["port"].to_string();
    let (mut sender, _) = forms(Command::new("env"), &["send", &port, "2", namespace.far()]);
    let [near, far] = [sender.pid(), tap.pid()].map(|pid| {
        let command = AgentCommand::new().args(["--inject", "tcp", "--exporter", "none"]);
        command.pid(pid).start()
    });
    sender.write_line("");
    assert!(sender.wait().success(), "{}", sender.stderr());
    let sent = json_lines(&sender);
    tap.json_line(sent.len());
    let segments = wire.take();
    let [near, far] = [near.stop(), far.stop()];

    let arrived = json_lines(&tap);
    assert!(sent.len() >= 50 && sent.len() == arrived.len());
    for line in &sent {
        let same = |there: &&Value| there["port"] == line["port"] && there["hash"] == line["hash"];
        let there = arrived.iter().find(same);
        let there = there.unwrap_or_else(|| panic!("something else arrived of {line}"));
        // This link cuts segments, which one form counts.
        if line["form"] != "one_segment" {
            for end in [line, there] {
                assert_eq!(end["error"], Value::Null, "{line} {there}");
            }
        }
        assert_eq!(there["added"], 0, "{line} {there}");
    }
    let mut packets: BTreeMap<&str, Vec<&Segment>> = BTreeMap::new();
    for segment in &segments {
        let length = HEADERS + segment.option_bytes + segment.length;
        assert!(length <= MTU, "{length} bytes: {segment:?}");
        if let Some((_, span)) = segment.context() {
            packets.entry(span).or_default().push(segment);
        }
    }
    assert_eq!(packets.len() as u64, count(&near, "option_sent"));
    assert!(packets.values().any(|packet| packet.len() > 1));
    for packet in packets.values() {
        for (first, second) in packet.iter().zip(packet.iter().skip(1)) {
            assert_eq!(first.source, second.source);
            assert_eq!(
                second.sequence,
                first.sequence.wrapping_add(first.length),
                "{first:?} {second:?}"
            );
        }
    }
    assert_eq!(count(&near, "option_lost"), 0);
    assert!(count(&far, "option_received") > 50);
}

fn json_lines(process: &Process) -> Vec<Value> {
    let lines = process.lines().into_iter().skip(1);
    lines
        .map(|line| serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect()
}

/// Something on the way drops segments with options that it does not know. Their requests arrive
/// all the same, since they are sent again without; and after a few losses options are left out.
#[test]
fn a_firewall_that_drops_options_is_noticed() {
    require_root!();
    let hosts = Hosts::start();
    for rule in [
        "add table inet firewall",
        "add chain inet firewall input { type filter hook input priority 0; }",
        "add rule inet firewall input tcp option 254 exists drop",
    ] {
        output(hosts.namespace.command().arg("nft").arg(rule));
    }
    let [near, far] = hosts.agents("tcp");
    let paths: Vec<_> = (0..6).map(|number| format!("/{number}")).collect();
    for path in &paths {
        hosts.ask(path, &[]);
    }
    let exit = near.stop();
    far.stop();
    for path in &paths {
        let spans = hosts.receiver.spans();
        let at_back = spans.of("back", "SERVER");
        assert!(at_back.at(&format!("/back{path}")).only().is_root());
    }
    let counts = ["option_sent", "option_lost", "option_path_closed"];
    assert_eq!(counts.map(|outcome| count(&exit, outcome)), [3, 3, 3]);
}

/// Agents come and go on both sides, some of them killed, while requests are on their way: none
/// breaks, and no byte is changed.
#[test]
fn switching_on_and_off_breaks_nothing() {
    require_root!();
    let namespace = Namespace::create();
    let mut recorder = Recorder::start_in(&namespace);
    let mut caller = Caller::python_to(namespace.far(), recorder.port());
    caller.begin("until", 0);
    let mut sent = 0;
    for round in 0..6 {
        let start = |pid| {
            let command = AgentCommand::new().args(["--inject", "tcp", "--exporter", "none"]);
            command.pid(pid).start()
        };
        let (near, far) = (start(caller.pid()), start(recorder.pid()));
        if round % 2 == 0 {
            near.kill();
            far.kill();
        } else {
            sent += count(&near.stop(), "option_sent");
            far.stop();
        }
    }
    caller.stop_calling();
    let done = caller.finish();
    let arrived = recorder.take();
    assert_eq!((arrived.total(), arrived.broken), (done, 0));
    assert_eq!(arrived.with_added(0), done);
    for hashes in arrived.paths.values() {
        assert_eq!(hashes.len(), 1, "{arrived:?}");
    }
    assert!(sent > 0);
}

/// Requests over TLS, to which no header can be added: each is joined to the other host by the
/// option, over a connection that is kept, behind a handshake. No byte of plaintext is on the wire.
#[test]
fn requests_over_tls_make_one_trace() {
    require_root!();
    let paths = ["/1", "/2", "/3", "/4"];
    let namespace = Namespace::create();
    let pki = Pki::new();
    let (back, port) = hop::start_over_tls(namespace.command(), "back", &[namespace.far()], &pki);
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--show-error", "--insecure", "--noproxy", "*"])
        .args(["--http1.1", "--config", "-"])
        .env("OTEL_SERVICE_NAME", "curl");
    let mut curl = Process::spawn("curl", &mut curl);
    let receiver = Receiver::start();
    let mut wire = Wire::record(&namespace, &[]);
    let [near, far] = [curl.pid(), back.pid()].map(|pid| {
        let command = AgentCommand::new().args(["--inject", "tcp"]);
        command.grpc_to(&receiver).pid(pid).start()
    });
    for path in paths {
        let url = format!("https://{}:{port}{path}", namespace.far());
        curl.write_line(&format!("url = \"{url}\"\noutput = \"/dev/null\""));
    }
    curl.close_stdin();
    assert!(curl.wait().success(), "{}", curl.stderr());
    let segments = wire.take();
    let exits = [near.stop(), far.stop()];

    assert!(
        segments
            .iter()
            .all(|segment| !segment.begin.contains("GET "))
    );
    let carried: BTreeMap<_, _> = segments
        .iter()
        .filter_map(Segment::context)
        .map(|(trace, span)| (span, trace))
        .collect();
    let spans = receiver.spans();
    for path in paths {
        let call = spans.of("curl", "CLIENT").at(path).only().clone();
        let at_back = spans.of("back", "SERVER").at(path).only().clone();
        assert!(at_back.is_child_of(&call), "{call:?} {at_back:?}");
        assert_eq!(at_back.evidence(), Some("tcp_option"), "{at_back:?}");
        assert_eq!(
            carried.get(call.span_id.as_str()),
            Some(&call.trace_id.as_str())
        );
    }
    for exit in exits {
        assert_eq!(exit.ledger().loss("injection_stopped"), 0);
    }
}

/// Requests over TLS to a proxy, which passes them on over TLS to another host: with a context of
/// their own and without one, each is one trace from the proxy on.
#[test]
fn a_proxy_between_tls_and_tls_makes_one_trace() {
    require_root!();
    let paths = ["/1", "/2", "/3/in", "/4", "/5/in", "/6"];
    let namespace = Namespace::create();
    let pki = Pki::new();
    let (back, port) = hop::start_over_tls(namespace.command(), "back", &[namespace.far()], &pki);
    let behind = format!("{}:{port}", namespace.far());
    let nginx = NginxTls::in_front_of_host(&pki, Twin::Tls, &behind);
    let receiver = Receiver::start();
    let [near, far] = [nginx.pid(), back.pid()].map(|pid| {
        let command = AgentCommand::new().args(["--inject", "tcp"]);
        command.grpc_to(&receiver).pid(pid).start()
    });
    for path in paths {
        let url = Twin::Tls.url(nginx.port(), path);
        let more: &[&str] = if path.ends_with("/in") {
            &["-H", BEFORE]
        } else {
            &[]
        };
        let arguments = [&["--http1.1", url.as_str()], more].concat();
        assert_eq!(curl_tls(&pki, &arguments).1, 200);
    }
    let exits = [near.stop(), far.stop()];
    let spans = receiver.spans();
    for path in paths {
        let at_front = spans.of("nginx", "SERVER").at(path).only().clone();
        let call = spans.of("nginx", "CLIENT").at(path).only().clone();
        let at_back = spans.of("back", "SERVER").at(path).only().clone();
        assert!(call.is_child_of(&at_front), "{call:?} {at_front:?}");
        assert!(at_back.is_child_of(&call), "{call:?} {at_back:?}");
        assert_eq!(at_back.evidence(), Some("tcp_option"), "{at_back:?}");
        let is_continued = call.trace_id == "0af7651916cd43dd8448eb211c80319c";
        assert_eq!(is_continued, path.ends_with("/in"), "{call:?}");
    }
    for exit in exits {
        assert_eq!(exit.ledger().loss("injection_stopped"), 0);
    }
}

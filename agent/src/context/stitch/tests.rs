//! Scenarios of joins, and what must hold of any sequence of them.

use std::net::{IpAddr, Ipv4Addr};

use rand::{Rng as _, SeedableRng as _, rngs::SmallRng};

use opentelemetry::TraceId;

use super::*;

mod remote;

type Name = &'static str;

const MS: u64 = 1_000_000;

#[expect(clippy::unnecessary_wraps, reason = "as `Beginning` takes it")]
fn wire(sequence: u32) -> Option<WireKey> {
    let client = (IpAddr::V4(Ipv4Addr::LOCALHOST), 40_000);
    Some(WireKey::Tcp { client, sequence })
}

fn stitcher<T>() -> Stitcher<T> {
    Stitcher::new(IdGenerator::seeded(7), 1_000, Evidence::Answering)
}

fn begin(kind: Kind, start_ns: u64, wire: Option<WireKey>) -> Beginning {
    Beginning {
        kind,
        start_ns,
        caller: None,
        wire,
        other_end: OtherEnd::Unknown,
        minted: None,
    }
}

fn called(start_ns: u64, caller: NodeKey, wire: Option<WireKey>) -> Beginning {
    Beginning {
        kind: Kind::Client,
        start_ns,
        caller: Some((caller, Evidence::Thread)),
        wire,
        other_end: OtherEnd::Unknown,
        minted: None,
    }
}

fn context(trace: u128, span: u64) -> RemoteContext {
    RemoteContext {
        trace_id: TraceId::from(trace),
        span_id: SpanId::from(span),
        flags: 1,
        state: "k=v".to_owned(),
    }
}

/// All that comes out when nothing more is waited for.
fn settled(stitcher: &mut Stitcher<Name>) -> Vec<(Name, Identity)> {
    stitcher.handle_tick(u64::MAX);
    let mut out: Vec<_> = std::iter::from_fn(|| stitcher.poll()).collect();
    out.sort_by_key(|(name, _)| *name);
    out
}

fn parent(identity: &Identity) -> Option<(SpanId, bool)> {
    identity
        .parent
        .map(|parent| (parent.span_id, parent.is_remote))
}

fn assert_empty<T>(stitcher: &Stitcher<T>) {
    assert_eq!(stitcher.nodes.len(), 0, "nodes");
    assert_eq!(stitcher.clients.len(), 0, "clients");
    assert_eq!(stitcher.servers.len(), 0, "servers");
    assert_eq!(stitcher.held, 0, "held");
    assert_eq!(stitcher.blocked.len(), 0, "blocked");
    assert_eq!(stitcher.waiting.len(), 0, "waiting");
    assert_eq!(stitcher.expiry.len(), 0, "expiry");
    assert_eq!(stitcher.ready.len(), 0, "ready");
}

/// Both ends of a connection join, whichever is recorded first.
#[test]
fn either_end_may_come_first() {
    for order in [[Kind::Client, Kind::Server], [Kind::Server, Kind::Client]] {
        let mut stitcher = stitcher();
        for kind in order {
            let (start_ns, name) = match kind {
                Kind::Client => (10 * MS, "client"),
                Kind::Server => (11 * MS, "server"),
            };
            let key = stitcher.handle_started(begin(kind, start_ns, wire(1)));
            stitcher.handle_ended(key, 12 * MS, name);
        }
        let out = settled(&mut stitcher);
        let [(_, client), (_, server)] = out.as_slice() else {
            panic!("two: {out:?}")
        };
        assert_eq!(parent(client), None);
        assert_eq!(parent(server), Some((client.span_id, true)));
        assert_eq!(server.trace_id, client.trace_id);
        assert_eq!(server.evidence, Some(Evidence::LocalWire));
        assert_empty(&stitcher);
    }
}

/// A server whose client is traced waits for it; one whose client is not, waits for nobody; and
/// both join a client that was recorded first.
#[test]
fn who_is_there_is_waited_for() {
    let server_of = |other_end| Beginning {
        other_end,
        ..begin(Kind::Server, 10 * MS, wire(1))
    };
    for (other_end, until_ns) in [
        (OtherEnd::Traced, 10 * MS + TRACED_HOLD_NS),
        (OtherEnd::Unknown, 10 * MS + HOLD_NS),
    ] {
        let mut stitcher = stitcher();
        let server = stitcher.handle_started(server_of(other_end));
        stitcher.handle_ended(server, 12 * MS, "server");
        stitcher.handle_tick(until_ns - 1);
        assert!(stitcher.poll().is_none(), "{other_end:?}");
        let late_ns = until_ns - 2 * MS;
        let client = stitcher.handle_started(begin(Kind::Client, late_ns, wire(1)));
        stitcher.handle_ended(client, until_ns, "client");
        let out = settled(&mut stitcher);
        let [(_, client), (_, server)] = out.as_slice() else {
            panic!("two: {out:?}")
        };
        assert_eq!(parent(server), Some((client.span_id, true)));
        assert_empty(&stitcher);
    }
    let mut stitcher = stitcher();
    let server = stitcher.handle_started(server_of(OtherEnd::NotTraced));
    stitcher.handle_ended(server, 12 * MS, "alone");
    stitcher.handle_tick(10 * MS + HOLD_NS - 1);
    assert_eq!(stitcher.poll().map(|(name, _)| name), Some("alone"));
    assert_empty(&stitcher);
    let client = stitcher.handle_started(begin(Kind::Client, 9 * MS, wire(1)));
    let server = stitcher.handle_started(server_of(OtherEnd::NotTraced));
    stitcher.handle_ended(server, 12 * MS, "server");
    stitcher.handle_ended(client, 12 * MS, "client");
    let out = settled(&mut stitcher);
    assert!(matches!(out.as_slice(), [(_, client), (_, server)]
        if parent(server) == Some((client.span_id, true))));
}

/// A server that began long before its supposed client, or long after that one gave up, has the
/// same key by chance.
#[test]
fn impossible_times_do_not_join() {
    let late = 12 * MS + WIRE_LINGER_NS + 1;
    for (client_ns, server_ns) in [(201 * MS, 100 * MS), (10 * MS, late)] {
        let mut stitcher = stitcher();
        let client = stitcher.handle_started(begin(Kind::Client, client_ns, wire(1)));
        stitcher.handle_ended(client, client_ns + 2 * MS, "client");
        let server = stitcher.handle_started(begin(Kind::Server, server_ns, wire(1)));
        stitcher.handle_ended(server, server_ns + MS, "server");
        let out = settled(&mut stitcher);
        assert!(
            out.iter().all(|(_, identity)| identity.parent.is_none()),
            "{out:?}"
        );
        assert_empty(&stitcher);
    }
}

/// Header and local wire in one trace: the nearer parent; in two traces: the header, and a link.
#[test]
fn header_against_local_wire() {
    for (inbound, is_linked) in [(context(5, 50), false), (context(6, 60), true)] {
        let mut stitcher = stitcher();
        let client = stitcher.handle_started(begin(Kind::Client, MS, wire(1)));
        stitcher.handle_header(client, context(5, 50));
        let server = stitcher.handle_started(begin(Kind::Server, MS, wire(1)));
        stitcher.handle_header(server, inbound.clone());
        stitcher.handle_ended(server, 2 * MS, "server");
        stitcher.handle_ended(client, 2 * MS, "client");
        let out = settled(&mut stitcher);
        let [(_, client), (_, server)] = out.as_slice() else {
            panic!("two: {out:?}")
        };
        assert_eq!(server.trace_id, inbound.trace_id);
        if is_linked {
            assert_eq!(parent(server), Some((inbound.span_id, true)));
            assert_eq!(server.evidence, Some(Evidence::Header));
            let [link] = server.links.as_slice() else {
                panic!("one link: {server:?}")
            };
            assert_eq!(
                (link.trace_id, link.span_id),
                (client.trace_id, client.span_id)
            );
        } else {
            assert_eq!(parent(server), Some((client.span_id, true)));
            assert!(server.links.is_empty());
        }
        assert_empty(&stitcher);
    }
}

/// A header that was passed on as it came names no nearer parent than the server's own span; one
/// that the program wrote does. Flags and state go down with either.
#[test]
fn forwarded_and_own_headers() {
    let inbound = context(5, 50);
    for (outbound, is_forwarded) in [(inbound.clone(), true), (context(5, 51), false)] {
        let mut stitcher = stitcher();
        let server = stitcher.handle_started(begin(Kind::Server, MS, None));
        stitcher.handle_header(server, inbound.clone());
        let client = stitcher.handle_started(called(2 * MS, server, None));
        stitcher.handle_header(client, outbound.clone());
        stitcher.handle_ended(client, 3 * MS, "client");
        stitcher.handle_ended(server, 4 * MS, "server");
        let out = settled(&mut stitcher);
        let [(_, client), (_, server)] = out.as_slice() else {
            panic!("two: {out:?}")
        };
        assert_eq!(parent(server), Some((inbound.span_id, true)));
        let expected = if is_forwarded {
            (server.span_id, false)
        } else {
            (outbound.span_id, true)
        };
        assert_eq!(parent(client), Some(expected));
        assert_eq!((client.flags, client.state.as_str()), (1, "k=v"));
        assert_eq!(client.remote_flags, Some(1));
        assert_empty(&stitcher);
    }
}

/// A request that is known to have been answered before the call began is not its parent, also
/// when that became known late.
#[test]
fn an_answered_request_is_no_parent() {
    for (answered_ns, expected) in [(3 * MS, true), (MS, false)] {
        let mut stitcher = stitcher();
        let server = stitcher.handle_started(begin(Kind::Server, 0, None));
        let client = stitcher.handle_started(called(2 * MS, server, None));
        stitcher.handle_answered(server);
        stitcher.handle_ended(server, answered_ns, "server");
        stitcher.handle_ended(client, 4 * MS, "client");
        let out = settled(&mut stitcher);
        let [(_, client), _] = out.as_slice() else {
            panic!("two: {out:?}")
        };
        assert_eq!(client.parent.is_some(), expected);
        assert_empty(&stitcher);
    }
}

/// A server's end, and what is below it, waits for the client's; a client without a caller does
/// not wait.
#[test]
fn what_may_still_be_joined_is_held() {
    let mut stitcher = stitcher();
    let root = stitcher.handle_started(begin(Kind::Client, 0, wire(9)));
    stitcher.handle_ended(root, MS, "root");
    let server = stitcher.handle_started(begin(Kind::Server, 10 * MS, wire(1)));
    let below = stitcher.handle_started(called(11 * MS, server, wire(2)));
    stitcher.handle_ended(below, 12 * MS, "below");
    stitcher.handle_ended(server, 13 * MS, "server");
    let mut names = |now_ns| {
        stitcher.handle_tick(now_ns);
        std::iter::from_fn(|| stitcher.poll())
            .map(|(name, _)| name)
            .collect::<Vec<_>>()
    };
    assert_eq!(names(13 * MS), ["root"]);
    assert_eq!(names(10 * MS + HOLD_NS - 1), [""; 0]);
    let mut last = names(20 * MS + HOLD_NS);
    last.sort_unstable();
    assert_eq!(last, ["below", "server"]);
    // The two clients are remembered for their servers a while.
    assert_eq!(stitcher.clients.len(), 2);
    stitcher.handle_tick(22 * MS + WIRE_LINGER_NS);
    assert_empty(&stitcher);
}

/// Scenario: a pool's call, and what its server did for it, end before the request is answered.
/// Guarantee: both wait for the verdict, and stand below the request then.
#[test]
fn an_undecided_call_waits_with_all_below_it() {
    let mut stitcher = stitcher();
    let request = stitcher.handle_started(begin(Kind::Server, 0, None));
    let call = stitcher.handle_started(begin(Kind::Client, MS, wire(1)));
    stitcher.handle_undecided(call, None);
    let server = stitcher.handle_started(begin(Kind::Server, MS, wire(1)));
    stitcher.handle_ended(server, 2 * MS, "server");
    stitcher.handle_ended(call, 3 * MS, "call");
    stitcher.handle_tick(VERDICT_NS - MS);
    assert_eq!(stitcher.poll(), None);
    stitcher.handle_caller(call, request, Evidence::Answering);
    stitcher.handle_ended(request, VERDICT_NS, "request");
    stitcher.handle_tick(VERDICT_NS);
    let mut out: Vec<_> = std::iter::from_fn(|| stitcher.poll()).collect();
    out.sort_by_key(|(name, _)| *name);
    let [(_, call), (_, request), (_, server)] = out.as_slice() else {
        panic!("three: {out:?}")
    };
    assert_eq!(parent(call), Some((request.span_id, false)));
    assert_eq!(call.evidence, Some(Evidence::Answering));
    assert_eq!(parent(server), Some((call.span_id, true)));
    assert_eq!(server.trace_id, request.trace_id);
}

/// Without a verdict they leave by themselves, when it is told and when time is up.
#[test]
fn an_undecided_call_does_not_wait_for_ever() {
    for is_told in [true, false] {
        let mut stitcher = stitcher();
        let call = stitcher.handle_started(begin(Kind::Client, MS, wire(1)));
        stitcher.handle_undecided(call, None);
        let server = stitcher.handle_started(begin(Kind::Server, MS, wire(1)));
        stitcher.handle_ended(server, 2 * MS, "server");
        stitcher.handle_ended(call, 3 * MS, "call");
        let now_ns = if is_told {
            stitcher.handle_no_caller(call);
            20 * MS
        } else {
            VERDICT_NS + 20 * MS
        };
        stitcher.handle_tick(now_ns);
        let mut out: Vec<_> = std::iter::from_fn(|| stitcher.poll()).collect();
        out.sort_by_key(|(name, _)| *name);
        let [(_, call), (_, server)] = out.as_slice() else {
            panic!("two: {out:?}")
        };
        assert_eq!(parent(call), None);
        assert_eq!(parent(server), Some((call.span_id, true)));
        stitcher.handle_tick(2 * VERDICT_NS);
        assert_empty(&stitcher);
    }
}

/// What a call does with the context that its request carried is told, where it carried one.
#[test]
fn what_is_passed_on() {
    use crate::self_metrics::Passing::{Kept, Missing, Replaced};
    let cases = [
        (Some(context(1, 2)), Some(context(1, 3)), Some(Kept)),
        (Some(context(1, 2)), Some(context(1, 2)), Some(Kept)),
        (Some(context(1, 2)), Some(context(7, 2)), Some(Replaced)),
        (Some(context(1, 2)), None, Some(Missing)),
        (None, Some(context(1, 2)), None),
        (None, None, None),
    ];
    for (inbound, outbound, expected) in cases {
        let mut stitcher = stitcher();
        let server = stitcher.handle_started(begin(Kind::Server, 0, None));
        if let Some(inbound) = inbound {
            stitcher.handle_header(server, inbound);
        }
        let call = stitcher.handle_started(called(MS, server, None));
        if let Some(outbound) = outbound {
            stitcher.handle_header(call, outbound);
        }
        stitcher.handle_ended(call, 2 * MS, "call");
        stitcher.handle_ended(server, 3 * MS, "server");
        let out = settled(&mut stitcher);
        let passing = out.iter().map(|(_, identity)| identity.passing);
        assert_eq!(passing.collect::<Vec<_>>(), [expected, None]);
    }
}

/// Evidence weaker than the user asks for makes a link.
#[test]
fn weak_evidence_makes_a_link() {
    for (weakest, is_parent) in [(Evidence::Thread, true), (Evidence::Loop, false)] {
        let mut stitcher = Stitcher::new(IdGenerator::seeded(7), 10, weakest);
        let server = stitcher.handle_started(begin(Kind::Server, 0, None));
        let call = stitcher.handle_started(called(MS, server, None));
        stitcher.handle_ended(call, 2 * MS, "call");
        stitcher.handle_ended(server, 3 * MS, "server");
        let out = settled(&mut stitcher);
        let [(_, call), (_, server)] = out.as_slice() else {
            panic!("two: {out:?}")
        };
        assert_eq!(parent(call).is_some(), is_parent);
        let linked: Vec<SpanId> = call.links.iter().map(|link| link.span_id).collect();
        assert_eq!(linked.is_empty(), is_parent);
        assert!(linked.iter().all(|span_id| *span_id == server.span_id));
        assert_eq!(call.trace_id == server.trace_id, is_parent);
    }
}

/// More than fit: the one that would settle first leaves early, and is counted.
#[test]
fn too_many_leave_early() {
    let mut stitcher = Stitcher::new(IdGenerator::seeded(7), 2, Evidence::Answering);
    for (number, name) in ["first", "second", "third"].into_iter().enumerate() {
        let number = number as u64;
        let start_ns = number * MS;
        let key = stitcher.handle_started(begin(Kind::Server, start_ns, wire(number as u32)));
        stitcher.handle_ended(key, start_ns, name);
    }
    assert_eq!(stitcher.take_forced(), 1);
    assert_eq!(stitcher.poll().map(|(name, _)| name), Some("first"));
    assert!(stitcher.poll().is_none());
    // Its client comes too late: its place is final.
    let client = stitcher.handle_started(begin(Kind::Client, 0, wire(0)));
    stitcher.handle_ended(client, MS, "late");
    assert_eq!(settled(&mut stitcher).len(), 3);
    assert_empty(&stitcher);
}

/// Both ends name each other as what they were made for: no loop comes of it.
#[test]
fn a_request_is_not_made_for_itself() {
    let mut stitcher = stitcher();
    let server = stitcher.handle_started(begin(Kind::Server, MS, wire(1)));
    let client = stitcher.handle_started(called(MS, server, wire(1)));
    stitcher.handle_ended(client, 2 * MS, "client");
    stitcher.handle_ended(server, 2 * MS, "server");
    let out = settled(&mut stitcher);
    let [(_, client), (_, server)] = out.as_slice() else {
        panic!("two: {out:?}")
    };
    assert_eq!(parent(client), Some((server.span_id, false)));
    assert_eq!(parent(server), None);
    assert_empty(&stitcher);
}

/// Guarantee, over random sequences with few keys and colliding times: each exchange comes out
/// once, no parent chain is a loop, local parents come out too, and nothing stays behind.
#[test]
fn nothing_is_lost_or_left_behind() {
    for seed in 0..300 {
        let mut random = SmallRng::seed_from_u64(seed);
        let capacity = if seed % 3 == 0 { 5 } else { 1_000 };
        let mut stitcher: Stitcher<(u64, SpanId)> =
            Stitcher::new(IdGenerator::seeded(seed), capacity, Evidence::Answering);
        let mut open: Vec<NodeKey> = Vec::new();
        let mut out: Vec<((u64, SpanId), Identity)> = Vec::new();
        let (mut now_ns, mut ended) = (0, 0);
        for _ in 0..200 {
            now_ns += random.random_range(0..40 * MS);
            match random.random_range(0..10) {
                0..=4 => {
                    let any = open.get(random.random_range(0..=open.len())).copied();
                    let kind = if random.random() {
                        Kind::Client
                    } else {
                        Kind::Server
                    };
                    let caller = any
                        .filter(|_| kind == Kind::Client)
                        .map(|caller| (caller, Evidence::Thread));
                    let wire = wire(random.random_range(0..6)).filter(|_| random.random());
                    let start_ns = now_ns.saturating_sub(random.random_range(0..60 * MS));
                    let beginning = Beginning {
                        kind,
                        start_ns,
                        caller,
                        wire,
                        other_end: OtherEnd::Unknown,
                        minted: None,
                    };
                    let key = stitcher.handle_started(beginning);
                    if random.random_range(0..4) == 0 {
                        stitcher.handle_header(key, context(random.random_range(1..4), 9));
                    }
                    open.push(key);
                }
                5..=8 if !open.is_empty() => {
                    let key = open.swap_remove(random.random_range(0..open.len()));
                    if random.random() {
                        stitcher.handle_answered(key);
                    }
                    let span_id = stitcher.nodes[key].span_id;
                    stitcher.handle_ended(key, now_ns, (ended, span_id));
                    ended += 1;
                }
                _ => stitcher.handle_tick(now_ns),
            }
            if let Some(call) = open.get(random.random_range(0..=open.len())).copied() {
                let exchange = open.get(random.random_range(0..open.len())).copied();
                match random.random_range(0..12) {
                    0..=2 if stitcher.nodes[call].kind == Kind::Client => {
                        let is_server = |key: &NodeKey| stitcher.nodes[*key].kind == Kind::Server;
                        stitcher.handle_undecided(call, exchange.filter(is_server));
                    }
                    3 => stitcher.handle_no_caller(call),
                    4 => {
                        if let Some(exchange) = exchange {
                            stitcher.handle_caller(call, exchange, Evidence::Answering);
                        }
                    }
                    _ => {}
                }
            }
            out.extend(std::iter::from_fn(|| stitcher.poll()));
        }
        for key in open {
            let span_id = stitcher.nodes[key].span_id;
            stitcher.handle_ended(key, now_ns, (ended, span_id));
            ended += 1;
        }
        stitcher.handle_tick(now_ns + VERDICT_NS);
        stitcher.handle_tick(now_ns + 2 * VERDICT_NS);
        out.extend(std::iter::from_fn(|| stitcher.poll()));
        assert_empty(&stitcher);

        let mut numbers: Vec<u64> = out.iter().map(|((number, _), _)| *number).collect();
        numbers.sort_unstable();
        assert_eq!(
            numbers,
            (0..ended).collect::<Vec<_>>(),
            "seed {seed}: each once"
        );
        for ((_, span_id), identity) in &out {
            assert_eq!(*span_id, identity.span_id, "seed {seed}");
            let mut above = identity;
            for step in 0.. {
                assert!(step <= out.len(), "seed {seed}: a loop above {identity:?}");
                let Some(parent) = above.parent else { break };
                let known = out
                    .iter()
                    .find(|(_, other)| other.span_id == parent.span_id);
                assert!(
                    parent.is_remote || known.is_some(),
                    "seed {seed}: {above:?}"
                );
                let Some((_, known)) = known else { break };
                assert_eq!(known.trace_id, above.trace_id, "seed {seed}");
                above = known;
            }
        }
    }
}

fn minted(trace: u128, span: Option<u64>) -> Minted {
    Minted {
        trace_id: TraceId::from(trace),
        span_id: span.map(SpanId::from),
    }
}

/// Scenario: the kernel side began a trace for a server's request and put it into the call made
/// for it. Guarantee: the request takes that trace, the call that trace and the span id that left.
#[test]
fn what_left_on_the_wire_is_what_the_spans_say() {
    let mut stitcher = stitcher();
    let server = stitcher.handle_started(Beginning {
        minted: Some(minted(5, None)),
        ..begin(Kind::Server, 0, None)
    });
    let call = stitcher.handle_started(Beginning {
        minted: Some(minted(5, Some(6))),
        ..called(1, server, None)
    });
    stitcher.handle_ended(call, 2, "call");
    stitcher.handle_ended(server, 3, "server");
    stitcher.flush();
    let spans: Vec<_> = std::iter::from_fn(|| stitcher.poll()).collect();
    let of = |name: &str| {
        let found = spans.iter().find(|(payload, _)| *payload == name);
        found.map(|(_, identity)| identity).expect("it has ended")
    };
    assert_eq!(of("server").trace_id, TraceId::from(5));
    assert_eq!(of("call").trace_id, TraceId::from(5));
    assert_eq!(of("call").span_id, SpanId::from(6));
    assert_eq!(
        of("call").parent.as_ref().map(|parent| parent.span_id),
        Some(of("server").span_id)
    );
}

/// Scenario: the caller is known only after the call left with a trace of its own. Guarantee: the
/// root above takes that trace; where the root's trace is fixed by a header, the wire wins and the
/// caller is a link.
#[test]
fn a_root_takes_the_trace_of_its_call_and_others_are_linked() {
    for header in [None, Some(context(9, 8))] {
        let mut stitcher = stitcher();
        let server = stitcher.handle_started(begin(Kind::Server, 0, None));
        if let Some(header) = header.clone() {
            stitcher.handle_header(server, header);
        }
        let call = stitcher.handle_started(called(1, server, None));
        stitcher.handle_minted(call, minted(5, Some(6)));
        stitcher.handle_ended(call, 2, "call");
        stitcher.handle_ended(server, 3, "server");
        stitcher.flush();
        let (_, call) = stitcher.poll().expect("the call");
        assert_eq!(call.trace_id, TraceId::from(5));
        assert_eq!(call.parent.is_some(), header.is_none());
        let reasons = call.links.iter().flat_map(|link| &link.attributes);
        assert_eq!(
            reasons.count(),
            usize::from(header.is_some()),
            "{:?}",
            call.links
        );
    }
}

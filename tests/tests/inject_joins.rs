//! Traces that a header of ours carries to another agent: the header is the call's, and the call
//! belongs to the request that it was made for.

use agent_tests::{
    agent::AgentCommand,
    go::Build,
    receiver::Receiver,
    require_root,
    scene::Traced,
    span::Span,
    workload::{
        client,
        server::{Runtime, ServerBuilder},
    },
};

/// The number in a path: `/mixed/17`, `/17` and `/17/later` belong together.
fn number(path: &str) -> Option<u32> {
    path.split('/').find_map(|part| part.parse().ok())
}

/// Calls of two requests. A processor of Go's keeps up to 15 ids that were allotted before a
/// request was read; a goroutine that gets one of them is not known to be younger and has no
/// parent.
const OLD_IDS: usize = 6;

/// Calls that `/mixed/N` makes before it answers.
fn expected_calls(number: u32) -> usize {
    [1, 1, 3, 2, 0][number as usize % 5]
}

/// A server made by Go and its backend, each under an agent of its own, with calls from handlers, a
/// reverse proxy, goroutines they start, such that outlive their request, and a ticker.
fn two_agents(requests: u32, clients: u32) -> Traced {
    let backend = ServerBuilder::new(Runtime::Go(Build::Stripped))
        .service("back")
        .start();
    let front = ServerBuilder::new(Runtime::Go(Build::Stripped))
        .service("front")
        .option("-backend", &format!("127.0.0.1:{}", backend.port()))
        .option("-background", "20ms")
        .start();
    let receiver = Receiver::start();
    let far = AgentCommand::new()
        .grpc_to(&receiver)
        .pid(backend.pid())
        .start();
    let near = AgentCommand::new()
        .grpc_to(&receiver)
        .args(["--inject", "headers"])
        .pid(front.pid())
        .start();
    let answers = client::load(&front.url("/mixed/{}"), requests, clients);
    assert_eq!(answers.get("200"), Some(&requests.into()), "{answers:?}");
    // A call that leaves while its own agent ends has a header and maybe no span.
    far.stop();
    let exit = near.stop();
    Traced {
        spans: receiver.spans(),
        exit,
    }
}

/// Go: what leaves with a header arrives below its call, and the call is below the request it was
/// made for; what belongs to no request has a trace of its own. One client at a time and many.
#[test]
fn goroutines_say_which_trace_goes_on() {
    require_root!();
    for (clients, requests) in [(1, 100), (64, 2_000)] {
        let traced = two_agents(requests, clients);
        let (mut whole, mut background, mut without) = (0, 0, 0);
        let mut apart = Vec::new();
        for arrived in traced.of("back", "SERVER") {
            if arrived.is_root() {
                // At a time from before the agent, or over a connection from then.
                without += usize::from(arrived.path() != "/background");
                continue;
            }
            assert_eq!(arrived.evidence(), Some("header"), "{arrived:#?}");
            let call = parent(&traced, &arrived);
            assert_eq!(
                (call.kind.as_str(), call.path()),
                ("CLIENT", arrived.path())
            );
            assert_eq!(call.trace_id, arrived.trace_id);
            if call.path() == "/background" {
                assert!(call.is_root(), "{call:#?}");
                background += 1;
            } else if !call.is_root() {
                let request = parent(&traced, call);
                assert_eq!(number(request.path()), number(call.path()), "{call:#?}");
                whole += usize::from(!call.path().ends_with("/later"));
            } else {
                apart.push(call);
            }
        }
        let expected: usize = (0..requests).map(expected_calls).sum();
        assert!(
            (whole + without + OLD_IDS) * 100 >= expected * 99 && whole <= expected,
            "{whole} of {expected} at {clients} clients: {apart:#?}"
        );
        assert!(background > 0 && without <= 2, "{background} {without}");
    }
}

fn parent<'a>(traced: &'a Traced, span: &Span) -> &'a Span {
    traced
        .parent(span)
        .unwrap_or_else(|| panic!("the parent is not there: {span:#?}"))
}

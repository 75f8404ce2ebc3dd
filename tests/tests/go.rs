//! Go programs: calls find their request by goroutine, however the program was linked.

use agent_tests::{
    go::{self, Build},
    require_root,
    scene::{Traced, trace, trace_with},
    span::Span,
    workload::{
        client,
        server::{Runtime, Server, ServerBuilder},
    },
};

/// The number in a path: `/mixed/17`, `/17` and `/17/later` belong together.
fn number(path: &str) -> Option<u32> {
    path.split('/').find_map(|part| part.parse().ok())
}

/// Calls that `/mixed/N` makes before it answers.
fn expected_calls(number: u32) -> usize {
    [1, 1, 3, 2, 0][number as usize % 5]
}

struct Pair {
    front: Server,
    _backend: Server,
}

fn start(build: Build) -> Pair {
    let backend = ServerBuilder::new(Runtime::Go(Build::Default)).start();
    let front = ServerBuilder::new(Runtime::Go(build))
        .service("front")
        .option("-backend", &format!("127.0.0.1:{}", backend.port()))
        .option("-background", "20ms")
        .start();
    Pair {
        front,
        _backend: backend,
    }
}

/// Panics unless every parent is right, the background calls and those after the answer have none
/// that is wrong, and at least 99 of 100 calls have theirs.
fn assert_joined(traced: &Traced, requests: u32) {
    assert_eq!(traced.of("front", "SERVER").len(), requests as usize);
    let (mut joined, mut background) = (0, 0);
    for call in traced.of("front", "CLIENT") {
        if call.path() == "/background" {
            assert!(call.is_root(), "{call:#?}");
            background += 1;
        } else if !call.is_root() {
            let parent = parent(traced, &call);
            assert_eq!(number(parent.path()), number(call.path()), "{call:#?}");
            assert_eq!(call.evidence(), Some("goroutine"), "{call:#?}");
            joined += usize::from(!call.path().ends_with("/later"));
        }
    }
    let expected: usize = (0..requests).map(expected_calls).sum();
    assert!(
        joined * 100 >= expected * 99,
        "{joined} of {expected} calls have a parent"
    );
    assert!(joined <= expected && background > 0);
}

fn parent<'a>(traced: &'a Traced, call: &Span) -> &'a Span {
    traced
        .parent(call)
        .unwrap_or_else(|| panic!("the parent is not there: {call:#?}"))
}

/// A pool of kept connections, calls from handlers, from a reverse proxy, from goroutines they
/// start, from such that outlive their request, and from a ticker: one client at a time and many.
#[test]
fn calls_find_their_request_by_goroutine() {
    require_root!();
    for (build, clients, requests) in [
        (Build::Default, 1, 100),
        (Build::Default, 8, 1_000),
        (Build::Default, 64, 2_000),
        (Build::Stripped, 64, 2_000),
        (Build::PositionIndependent, 64, 2_000),
    ] {
        let pair = start(build);
        let traced = trace(&[pair.front.pid()], || {
            let answers = client::load(&pair.front.url("/mixed/{}"), requests, clients);
            assert_eq!(answers.get("200"), Some(&requests.into()), "{answers:?}");
        });
        assert_joined(&traced, requests);
    }
}

/// A program that is started under a running agent is followed like one that ran before, and again
/// when it is started anew.
#[test]
fn programs_started_later_are_followed() {
    require_root!(alone);
    let executable = go::server(Build::Stripped);
    let traced = trace_with(
        |agent| {
            agent
                .arg("--exe")
                .arg(&executable)
                .args(["--log-level", "debug"])
        },
        || {
            for _ in 0..2 {
                let pair = start(Build::Stripped);
                client::load(&pair.front.url("/mixed/{}"), 200, 4);
            }
        },
    );
    assert_joined_twice(&traced, 200);
}

fn assert_joined_twice(traced: &Traced, requests: u32) {
    let calls = traced.of("front", "CLIENT");
    let joined = calls.iter().filter(|call| !call.is_root());
    let expected: usize = (0..requests).map(expected_calls).sum();
    let mut count = 0;
    for call in joined {
        assert_eq!(number(parent(traced, call).path()), number(call.path()));
        count += 1;
    }
    assert!(
        count * 100 >= 2 * expected * 99,
        "{count} of twice {expected} among {}: {}",
        calls.len(),
        traced.exit.stderr
    );
}

/// The agent is started and stopped while requests go on: every one of them is answered.
#[test]
fn probes_come_and_go_under_load() {
    require_root!();
    let pair = start(Build::Default);
    let pid = pair.front.pid();
    let url = pair.front.url("/mixed/{}");
    // They last longer than it takes to start and stop the agent a few times.
    let load = std::thread::spawn(move || client::load(&url, 60_000, 16));
    let mut rounds = 0;
    while !load.is_finished() {
        trace(&[pid], || {});
        rounds += 1;
    }
    let answers = load.join().expect("the load comes to its end");
    assert_eq!(answers.get("200"), Some(&60_000), "{answers:?}");
    assert!(rounds > 1);
}

/// What stripping leaves says the same as debugging information, and the table of releases too.
#[test]
fn what_files_say_of_themselves() {
    use agent::process::binary::{self, Offsets, Release, layout::Source};
    let read = |build| std::fs::read(go::server(build)).expect("just built");
    let default = read(Build::Default);
    let (version, measured) = binary::measured_offsets(default.as_slice())
        .expect("well-formed")
        .expect("has debugging information");
    let release = Release::parse(&version).expect("a release");
    assert_eq!(Offsets::of_release(release), Some(measured));
    for build in Build::ALL {
        let file = read(build);
        let program = binary::analyse(file.as_slice())
            .expect("well-formed")
            .expect("made by Go");
        assert_eq!(program.version, version);
        assert_eq!(program.is_stripped, build != Build::Default);
        assert_eq!(
            program.is_position_independent,
            build == Build::PositionIndependent
        );
        assert_eq!(program.offsets, Some((measured, Source::Table)));
        assert_eq!(program.shortcomings, []);
        let at = program.client_call.expect("net/http is linked in") as usize;
        assert_eq!(file.get(at), Some(&0x55), "push rbp");
        assert!(program.counter.is_some());
        let tls = program.tls.expect("crypto/tls is linked in");
        assert_eq!(tls.writes.len(), 2);
        for at in tls.writes.iter().chain([&tls.read]) {
            assert_eq!(file.get(*at as usize), Some(&0xe8), "call");
        }
    }
}

/// Cut short or changed anywhere, a file is an error or says less, and no more work.
#[test]
fn damaged_files_do_no_harm() {
    let file = std::fs::read(go::server(Build::Stripped)).expect("just built");
    let try_all = |bytes: &[u8]| {
        let _ = agent::process::binary::analyse(bytes);
        let _ = agent::process::binary::measured_offsets(bytes);
    };
    for cut in (0..file.len()).step_by(file.len() / 20) {
        try_all(&file[..cut]);
    }
    // Headers and the beginnings of the parts that are read.
    let mut damaged = file.clone();
    for at in (0..1_024)
        .step_by(4)
        .chain((1_024..file.len()).step_by(file.len() / 50))
    {
        let before = std::mem::replace(&mut damaged[at], 0xff);
        try_all(&damaged);
        damaged[at] = before;
    }
}

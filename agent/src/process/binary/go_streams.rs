//! Where a Go program tells which goroutine serves a stream of HTTP/2, and for which one another
//! begins it. Pure.
//!
//! ```text
//! net/http    starts a goroutine for each request, which writes the headers itself: what starts it
//!             is probed; and one for each stream that is served: what that runs
//! grpc-go     starts a goroutine for each stream that is served: what that runs
//!             (*http2Client).NewStream makes the headers and queues them: executeAndPut(frame rdi)
//!             (*loopyWriter).originateStream, of newer releases clientHeaderHandler, writes them
//!             on another goroutine: writeHeader(stream rbx, headers rdi)
//! ```
//!
//! In grpc-go calls are probed and not the functions, because servers queue and write by the same
//! ones. Arguments go by these registers since Go 1.17. `h2_bundle.go` and
//! `net/http/internal/http2` of Go 1.18 to 1.27; `internal/transport` of grpc-go 1.10 to 1.83.

use object::read::ReadRef;

use super::{calls::Calls, elf::Elf, find_call, functions::Functions, machine_code, tls::Point};

/// Called once for each request of `net/http`'s client, by the goroutine that makes it, before it
/// starts one for it. Of the standard library until Go 1.26 and since, and of `golang.org/x/net`; a
/// program may have more than one. Of each the name since 2024, when `RoundTrip` became a wrapper,
/// and the one before. In Go 1.27 `net/http` has a method of the same name on a type of its own,
/// too.
const BEGUN: [[&str; 2]; 3] = [
    [
        "net/http.(*http2ClientConn).roundTrip",
        "net/http.(*http2ClientConn).RoundTrip",
    ],
    [
        "net/http/internal/http2.(*ClientConn).roundTrip",
        "net/http/internal/http2.(*ClientConn).RoundTrip",
    ],
    [
        "golang.org/x/net/http2.(*ClientConn).roundTrip",
        "golang.org/x/net/http2.(*ClientConn).RoundTrip",
    ],
];

/// What the goroutine of a stream that is served runs first. As [`BEGUN`].
const SERVED: [&str; 3] = [
    "net/http.(*http2serverConn).runHandler",
    "net/http/internal/http2.(*serverConn).runHandler",
    "golang.org/x/net/http2.(*serverConn).runHandler",
];

const GRPC_SERVED: &str = "google.golang.org/grpc.(*Server).handleStream";

const GRPC_CALLS: &str = "google.golang.org/grpc/internal/transport.(*http2Client).NewStream";
const GRPC_QUEUE: &str = "google.golang.org/grpc/internal/transport.(*controlBuffer).executeAndPut";
const GRPC_BEGINS: [&str; 2] = [
    "google.golang.org/grpc/internal/transport.(*loopyWriter).originateStream",
    "google.golang.org/grpc/internal/transport.(*loopyWriter).clientHeaderHandler",
];
const GRPC_WRITE: &str = "google.golang.org/grpc/internal/transport.(*loopyWriter).writeHeader";

/// Takes a stream out of a map by its identifier.
const GRPC_FORGETS: &str = "google.golang.org/grpc/internal/transport.(*http2Server).deleteStream";
const MAP_DELETE: &str = "runtime.mapdelete_fast32";

/// Where grpc-go's streams of a server have their identifier, in bytes, by the code that uses it.
pub(super) fn identifier<'data, R: ReadRef<'data>>(
    file: &Elf<R>,
    functions: &Functions<'data>,
) -> Option<u32> {
    let calls = Calls::find(file, functions, GRPC_FORGETS, MAP_DELETE)?;
    machine_code::third_argument_field(calls.code, calls.only()?)
}

/// Everything of this that the program has.
pub(super) fn find<'data, R: ReadRef<'data>>(
    file: &Elf<R>,
    functions: &Functions<'data>,
    identifier: Option<u32>,
) -> Vec<Point> {
    let begun = BEGUN.iter().filter_map(|names| {
        let mut calls = names.iter();
        calls.find_map(|name| find_call(file, functions, name))
    });
    let served = SERVED
        .iter()
        .filter_map(|name| find_call(file, functions, name));
    // It is of no use where the identifier cannot be read.
    let grpc_served = identifier.and_then(|_| find_call(file, functions, GRPC_SERVED));
    let begun = begun.map(|offset| ("go_stream_call", offset));
    let served = served.map(|offset| ("go_stream_served", offset));
    let grpc_served = grpc_served.map(|offset| ("go_grpc_served", offset));
    begun
        .chain(served)
        .chain(grpc_served)
        .chain(grpc_calls(file, functions).unwrap_or_default())
        .map(|(program, offset)| Point { program, offset })
        .collect()
}

/// Both sides of the queue, or none.
fn grpc_calls<'data, R: ReadRef<'data>>(
    file: &Elf<R>,
    functions: &Functions<'data>,
) -> Option<Vec<(&'static str, u64)>> {
    let one = |within, called| {
        let calls = Calls::find(file, functions, within, called)?;
        calls.offset(file, calls.only()?)
    };
    let queued = one(GRPC_CALLS, GRPC_QUEUE)?;
    let mut begins = GRPC_BEGINS.iter();
    let begun = begins.find_map(|within| one(within, GRPC_WRITE))?;
    Some(vec![("go_grpc_queued", queued), ("go_grpc_begun", begun)])
}

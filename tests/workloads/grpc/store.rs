//! The service and its client by tonic, without code made from a schema: see README.md. The
//! server's HTTP/2 is hyper's, as in tonic's own transport.
#![forbid(unsafe_code)]

mod plain;

use std::{
    collections::BTreeMap,
    convert::Infallible,
    env,
    io::BufRead as _,
    net::Ipv4Addr,
    process,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Result, bail};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use plain::Plain;
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::mpsc, time::sleep};
use tonic::{
    Code, Request, Response, Status, Streaming,
    client::Grpc as Client,
    codegen::{
        BoxFuture, Bytes, Context as TaskContext, Poll, Service,
        http::{self, uri::PathAndQuery},
        tokio_stream::{self, StreamExt as _, wrappers::ReceiverStream},
    },
    metadata::{Ascii, MetadataValue},
    server::Grpc as Server,
    service::interceptor::InterceptedService,
    transport::{Channel, Endpoint},
};

const KINDS: [&str; 8] = [
    "Unary", "Collect", "Watch", "Chat", "Missing", "Broken", "Slow", "Gone",
];
const LARGE: usize = 20_000;
const DEADLINE: Duration = Duration::from_millis(50);
const PAUSE: Duration = Duration::from_millis(10);

const OWN: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// What calls carried, by method.
static SEEN: Mutex<BTreeMap<String, Vec<String>>> = Mutex::new(BTreeMap::new());

type Answers = ReceiverStream<Result<Bytes, Status>>;

/// A method that does what its name says.
struct Method(String);

impl Service<Request<Streaming<Bytes>>> for Method {
    type Response = Response<Answers>;
    type Error = Status;
    type Future = BoxFuture<Self::Response, Status>;

    fn poll_ready(&mut self, _: &mut TaskContext<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        let kind = self.0.clone();
        Box::pin(async move { serve(&kind, request.into_inner()).await })
    }
}

async fn serve(kind: &str, mut requests: Streaming<Bytes>) -> Result<Response<Answers>, Status> {
    let (answers, stream) = mpsc::channel(4);
    if kind == "Chat" {
        tokio::spawn(async move {
            while let Some(message) = requests.next().await {
                if answers.send(message).await.is_err() {
                    return;
                }
            }
        });
        return Ok(Response::new(ReceiverStream::new(stream)));
    }
    while requests.message().await?.is_some() {}
    match kind {
        "Missing" => return Err(Status::not_found("no such thing")),
        // Until the caller goes, which drops this.
        "Slow" => std::future::pending().await,
        _ => {}
    }
    let kind = kind.to_owned();
    tokio::spawn(async move {
        let length = if kind == "Watch" { LARGE } else { 5 };
        let mut messages = vec![Ok(Bytes::from(vec![b'a'; length]))];
        match kind.as_str() {
            "Watch" => messages.extend([Ok(Bytes::from("more")), Ok(Bytes::from("more"))]),
            "Broken" => messages.push(Err(Status::internal("broken"))),
            _ => {}
        }
        for message in messages {
            if answers.send(message).await.is_err() {
                return;
            }
            if kind == "Watch" {
                sleep(PAUSE).await;
            }
        }
        if kind == "Gone" {
            answers.closed().await;
        }
    });
    Ok(Response::new(ReceiverStream::new(stream)))
}

async fn answer(
    request: http::Request<Incoming>,
) -> Result<http::Response<tonic::body::Body>, Infallible> {
    let path = request.uri().path();
    let carried = request.headers().get_all("traceparent").iter();
    let carried = carried.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    SEEN.lock()
        .unwrap_or_else(PoisonError::into_inner)
        .entry(path.trim_start_matches('/').to_owned())
        .or_default()
        .extend(carried);
    let method = path.rsplit('/').next().unwrap_or_default();
    let kind = method.trim_end_matches(|letter: char| letter.is_ascii_digit());
    let method = Method(kind.to_owned());
    Ok(Server::new(Plain).streaming(method, request).await)
}

async fn start_server() -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    say(&json!({"port": listener.local_addr()?.port(), "pid": process::id()}));
    std::thread::spawn(|| {
        let read = std::io::stdin().lock().read_line(&mut String::new());
        let seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
        if read.is_ok() {
            say(&json!(*seen));
        }
    });
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(async move {
            // A client that leaves is no matter of this service.
            let _ = http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service_fn(answer))
                .await;
        });
    }
}

struct Made {
    received: u32,
    status: Code,
}

async fn call(
    channel: Channel,
    kind: &str,
    path: PathAndQuery,
    own: Option<MetadataValue<Ascii>>,
) -> Result<Made, Status> {
    // As an interceptor of a tracing library does it.
    let channel = InterceptedService::new(channel, move |mut request: Request<()>| {
        if let Some(own) = &own {
            request.metadata_mut().insert("traceparent", own.clone());
        }
        Ok(request)
    });
    let mut client = Client::new(channel);
    let unready = |error| Status::unavailable(format!("{error}"));
    client.ready().await.map_err(unready)?;
    let hello = || Request::new(Bytes::from("hello"));
    let three = || Request::new(tokio_stream::iter(["one", "two", "three"].map(Bytes::from)));
    let mut made = Made {
        received: 0,
        status: Code::Ok,
    };
    let mut responses = match kind {
        "Unary" | "Missing" => {
            client.unary(hello(), path, Plain).await?;
            made.received = 1;
            return Ok(made);
        }
        "Collect" => {
            client.client_streaming(three(), path, Plain).await?;
            made.received = 1;
            return Ok(made);
        }
        "Chat" => client.streaming(three(), path, Plain).await?.into_inner(),
        _ => {
            let mut request = hello();
            if kind == "Slow" {
                request.set_timeout(DEADLINE);
            }
            let answered = client.server_streaming(request, path, Plain).await?;
            answered.into_inner()
        }
    };
    while let Some(message) = responses.next().await {
        match message {
            Ok(_) => made.received += 1,
            Err(status) => made.status = status.code(),
        }
        if kind == "Gone" {
            // Dropping the stream cancels the call.
            made.status = Code::Cancelled;
            break;
        }
    }
    Ok(made)
}

async fn worker(
    channel: Channel,
    count: usize,
    next: Arc<AtomicUsize>,
    own: Option<MetadataValue<Ascii>>,
) -> Result<()> {
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= count {
            return Ok(());
        }
        let kind = KINDS.get(number % KINDS.len()).copied().unwrap_or_default();
        let method = format!("shop.Store/{kind}{number}");
        let start_ns = now_ns()?;
        let path = format!("/{method}").parse()?;
        let made = call(channel.clone(), kind, path, own.clone()).await;
        let made = made.unwrap_or_else(|status| Made {
            received: 0,
            status: status.code(),
        });
        let sent = if matches!(kind, "Collect" | "Chat") {
            3
        } else {
            1
        };
        say(&json!({
            "method": method, "status": name(made.status), "sent": sent,
            "received": made.received, "start_ns": start_ns, "end_ns": now_ns()?,
        }));
    }
}

/// As the specification of gRPC writes it.
fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        _ => "UNKNOWN",
    }
}

fn now_ns() -> Result<u64> {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH)?;
    Ok(u64::try_from(elapsed.as_nanos())?)
}

#[expect(clippy::print_stdout, reason = "the test reads it")]
fn say(line: &Value) {
    println!("{line}");
}

async fn start_client(
    port: u16,
    count: usize,
    parallel: usize,
    own: Option<MetadataValue<Ascii>>,
) -> Result<()> {
    say(&json!({"pid": process::id()}));
    std::io::stdin().lock().read_line(&mut String::new())?;
    // Else it ends its connection after 1,024 resets for frames that come behind a cancelled call,
    // which is after some 30,000 of these calls.
    let channel = Endpoint::from_shared(format!("http://127.0.0.1:{port}"))?
        .http2_max_local_error_reset_streams(None)
        .connect()
        .await?;
    let next = Arc::new(AtomicUsize::new(0));
    let workers: Vec<_> = (0..parallel)
        .map(|_| {
            let next = Arc::clone(&next);
            tokio::spawn(worker(channel.clone(), count, next, own.clone()))
        })
        .collect();
    for worker in workers {
        worker.await??;
    }
    Ok(())
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["serve"] => start_server().await,
        ["call", port, count, parallel] => {
            let own = env::var_os("SEND_OWN").map(|_| MetadataValue::from_static(OWN));
            start_client(port.parse()?, count.parse()?, parallel.parse()?, own).await
        }
        _ => bail!("usage: serve | call PORT COUNT PARALLEL"),
    }
}

//! A receiver on loopback that answers as a script says and keeps what it got.

use std::{
    collections::VecDeque,
    convert::Infallible,
    io::Read as _,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, combinators::BoxBody};
use hyper::{
    Request, Response,
    body::Incoming,
    header::{HeaderMap, HeaderValue},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use prost::Message as _;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;

#[derive(Clone, Debug)]
pub(super) enum Reply {
    Ok,
    Partial(i64, &'static str),
    /// A status with one header and a body.
    Http(u16, Option<(&'static str, &'static str)>, &'static str),
    /// A status code with details.
    Grpc(i32, Vec<u8>),
    /// Success with a body that is not OTLP.
    Garbage,
    /// The connection ends without an answer.
    Close,
    /// No answer, ever.
    Hang,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Speaks {
    Http,
    Grpc,
    /// Bytes that are neither, then the end.
    Nonsense,
}

/// One request, decompressed.
#[derive(Clone, Debug)]
pub(super) struct Received {
    pub(super) path: String,
    pub(super) headers: HeaderMap,
    pub(super) body: Vec<u8>,
}

impl Received {
    pub(super) fn decode(&self) -> ExportTraceServiceRequest {
        ExportTraceServiceRequest::decode(self.body.as_slice()).expect("the body is OTLP")
    }

    pub(super) fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().expect("ASCII"))
    }
}

#[derive(Clone)]
pub(super) struct Receiver {
    pub(super) address: SocketAddr,
    state: Arc<Mutex<State>>,
}

struct State {
    script: VecDeque<Reply>,
    received: Vec<Received>,
}

impl Receiver {
    /// Answers by `script`, then `Reply::Ok` for ever.
    pub(super) async fn start(
        speaks: Speaks,
        tls: Option<TlsAcceptor>,
        script: impl IntoIterator<Item = Reply>,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .expect("loopback has a free port");
        let address = listener.local_addr().expect("it is bound");
        let script = script.into_iter().collect();
        let state = Arc::new(Mutex::new(State {
            script,
            received: vec![],
        }));
        let receiver = Self { address, state };
        tokio::spawn(receiver.clone().accept(listener, speaks, tls));
        receiver
    }

    async fn accept(self, listener: TcpListener, speaks: Speaks, tls: Option<TlsAcceptor>) {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (receiver, tls) = (self.clone(), tls.clone());
            tokio::spawn(async move {
                match tls {
                    _ if speaks == Speaks::Nonsense => {
                        let _ = stream.write_all(b"220 mail.example.com ESMTP\r\n").await;
                    }
                    Some(tls) => {
                        if let Ok(stream) = tls.accept(stream).await {
                            receiver.serve(stream, speaks).await;
                        }
                    }
                    None => receiver.serve(stream, speaks).await,
                }
            });
        }
    }

    async fn serve(self, stream: impl AsyncRead + AsyncWrite + Unpin + Send, speaks: Speaks) {
        let io = TokioIo::new(stream);
        let service = service_fn(|request| self.answer(request, speaks));
        // A connection the script closes ends with an error.
        if speaks == Speaks::Grpc {
            let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            let handle = self.clone();
            let service = service_fn(move |request| {
                let handle = handle.clone();
                async move { handle.answer(request, speaks).await }
            });
            let _ = server.serve_connection(io, service).await;
        } else {
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(io, service)
                .await;
        }
    }

    async fn answer(
        &self,
        request: Request<Incoming>,
        speaks: Speaks,
    ) -> Result<Response<BoxBody<Bytes, Infallible>>, &'static str> {
        let (parts, body) = request.into_parts();
        let body = body
            .collect()
            .await
            .map_err(|_| "the request was cut short")?
            .to_bytes();
        let body = match speaks {
            Speaks::Grpc => unframe(&body, &parts.headers),
            _ => decompress(&body, header_text(&parts.headers, "content-encoding")),
        };
        let reply = {
            let mut state = self.state.lock().expect("no test panics with the lock");
            let path = parts.uri.path().to_owned();
            state.received.push(Received {
                path,
                headers: parts.headers,
                body,
            });
            state.script.pop_front().unwrap_or(Reply::Ok)
        };
        match reply {
            Reply::Close => Err("the script says so"),
            Reply::Hang => std::future::pending().await,
            reply if speaks == Speaks::Grpc => Ok(grpc_response(reply)),
            reply => Ok(http_response(reply)),
        }
    }

    pub(super) fn received(&self) -> Vec<Received> {
        self.state
            .lock()
            .expect("no test panics with the lock")
            .received
            .clone()
    }

    /// Span counts of what came, request by request.
    pub(super) fn span_counts(&self) -> Vec<usize> {
        let count = |received: &Received| {
            let groups = received.decode().resource_spans;
            groups
                .iter()
                .flat_map(|group| &group.scope_spans)
                .map(|scope| scope.spans.len())
                .sum()
        };
        self.received().iter().map(count).collect()
    }
}

fn answer_message(reply: &Reply) -> Vec<u8> {
    let partial_success = match reply {
        Reply::Partial(rejected_spans, message) => Some(ExportTracePartialSuccess {
            rejected_spans: *rejected_spans,
            error_message: (*message).to_owned(),
        }),
        Reply::Garbage => return b"<html>welcome</html>".to_vec(),
        _ => None,
    };
    ExportTraceServiceResponse { partial_success }.encode_to_vec()
}

fn http_response(reply: Reply) -> Response<BoxBody<Bytes, Infallible>> {
    let (status, header, body) = match reply {
        Reply::Http(status, header, body) => (status, header, body.as_bytes().to_vec()),
        reply => (200, None, answer_message(&reply)),
    };
    let mut response = Response::new(Full::from(body).boxed());
    *response.status_mut() = status.try_into().expect("a script has valid statuses");
    if let Some((name, value)) = header {
        response
            .headers_mut()
            .insert(name, HeaderValue::from_static(value));
    }
    response
}

fn grpc_response(reply: Reply) -> Response<BoxBody<Bytes, Infallible>> {
    let mut trailers = HeaderMap::new();
    let (code, body) = match reply {
        Reply::Grpc(code, details) => {
            if !details.is_empty() {
                let mut metadata = tonic::metadata::MetadataMap::new();
                let value = tonic::metadata::MetadataValue::from_bytes(&details);
                metadata.insert_bin("grpc-status-details-bin", value);
                trailers = metadata.into_headers();
            }
            (code, vec![])
        }
        reply => {
            let message = answer_message(&reply);
            let mut frame = vec![0];
            frame.extend(u32::try_from(message.len()).expect("short").to_be_bytes());
            frame.extend(message);
            (0, frame)
        }
    };
    trailers.insert("grpc-status", code.into());
    let body = Full::from(body).with_trailers(async move { Some(Ok(trailers)) });
    let mut response = Response::new(body.boxed());
    let content_type = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert("content-type", content_type);
    response
}

/// The message of a unary gRPC call: flag, length, bytes.
fn unframe(body: &[u8], headers: &HeaderMap) -> Vec<u8> {
    let (head, message) = body.split_at(5);
    let length = u32::from_be_bytes(head[1..].try_into().expect("four bytes"));
    assert_eq!(length as usize, message.len(), "one message");
    match head[0] {
        0 => message.to_vec(),
        _ => decompress(message, header_text(headers, "grpc-encoding")),
    }
}

fn header_text<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers
        .get(name)
        .map_or("", |value| value.to_str().expect("ASCII"))
}

fn decompress(body: &[u8], encoding: &str) -> Vec<u8> {
    match encoding {
        "gzip" => {
            let mut plain = vec![];
            flate2::read::GzDecoder::new(body)
                .read_to_end(&mut plain)
                .expect("it is gzip");
            plain
        }
        "zstd" => zstd::decode_all(body).expect("it is zstd"),
        other => {
            assert_eq!(other, "");
            body.to_vec()
        }
    }
}

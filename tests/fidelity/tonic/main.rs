//! A front by tonic on tokio, with hyper's HTTP/2 as in tonic's own transport: a task for each
//! call on two threads, and all share one channel to the back.
#![forbid(unsafe_code)]

#[path = "../../workloads/grpc/plain.rs"]
mod plain;

use std::{convert::Infallible, env, net::Ipv4Addr, time::Duration};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use plain::Plain;
use tokio::net::TcpListener;
use tonic::{
    Request, Response, Status,
    body::Body,
    client::Grpc as Client,
    codegen::{
        BoxFuture, Context as TaskContext, Poll, Service,
        http::{self, uri::PathAndQuery},
    },
    server::Grpc as Server,
    transport::{Channel, Endpoint},
};

#[derive(Clone)]
struct Back(Channel);

impl Back {
    async fn ask(&self, path: PathAndQuery, message: Bytes) -> Result<Response<Bytes>, Status> {
        let mut client = Client::new(self.0.clone());
        let unready = |error| Status::unavailable(format!("{error}"));
        client.ready().await.map_err(unready)?;
        client.unary(Request::new(message), path, Plain).await
    }
}

/// A method that asks the back for the same.
struct Method {
    back: Back,
    path: PathAndQuery,
}

impl Service<Request<Bytes>> for Method {
    type Response = Response<Bytes>;
    type Error = Status;
    type Future = BoxFuture<Self::Response, Status>;

    fn poll_ready(&mut self, _: &mut TaskContext<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let (back, path) = (self.back.clone(), self.path.clone());
        Box::pin(async move { back.ask(path, request.into_inner()).await })
    }
}

async fn forward(
    request: http::Request<Incoming>,
    back: Back,
) -> Result<http::Response<Body>, Infallible> {
    let path = request.uri().path_and_query().cloned();
    let path = path.unwrap_or_else(|| PathAndQuery::from_static("/"));
    let method = Method { back, path };
    Ok(Server::new(Plain).unary(method, request).await)
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<()> {
    let mut arguments = env::args().skip(1).map(|port| port.parse::<u16>());
    let mut port = || arguments.next().context("usage: PORT BACK_PORT");
    let (port, back) = (port()??, port()??);
    let back = Endpoint::from_shared(format!("http://127.0.0.1:{back}"))?;
    let back = Back(back.connect_lazy());
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
    tokio::spawn(background(back.clone()));
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let back = back.clone();
        tokio::spawn(async move {
            let forward = service_fn(|request| forward(request, back.clone()));
            // A client that leaves is no matter of this service.
            let _ = http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), forward)
                .await;
        });
    }
}

async fn background(back: Back) -> Result<()> {
    let mut ticks = tokio::time::interval(Duration::from_millis(50));
    for number in 0_u64.. {
        ticks.tick().await;
        let path = format!("/fidelity/background/{number}").parse()?;
        // The judge sees what is missing.
        let _ = back.ask(path, Bytes::from("?")).await;
    }
    Ok(())
}

//! A server and clients of HTTP over rustls, or in plain text for "-" as certificate or authority:
//!
//!     rustls_hop server CERTIFICATE KEY
//!     rustls_hop http1 | http2 | blocking AUTHORITY URL...
//!
//! The server (hyper on tokio-rustls) sends the number of bytes that a path like /bytes/100 ends
//! with. Clients ask on one connection and print the status and length of each answer: the first
//! two are hyper's with hyper-rustls, the third one is of this file, on rustls' own stream.
#![forbid(unsafe_code)]

use std::{
    convert::Infallible,
    env,
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, TcpStream},
    sync::Arc,
};

use anyhow::{Context as _, Result, bail};
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, Uri, body::Bytes, body::Incoming, service::service_fn};
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::{
    client::legacy::Client,
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, StreamOwned,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};
use serde_json::json;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;

const PLAIN: &str = "-";

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    match arguments.as_slice() {
        ["server", certificate, key] => runtime.block_on(serve(certificate, key)),
        ["blocking", authority, urls @ ..] => ask_blocking(authority, urls),
        [version, authority, urls @ ..] => runtime.block_on(ask(version, authority, urls)),
        _ => bail!("arguments: {arguments:?}"),
    }
}

#[expect(clippy::print_stdout, reason = "the test reads it")]
fn tell(line: &serde_json::Value) {
    println!("{line}");
}

fn body(path: &str) -> Bytes {
    let size = path
        .strip_prefix("/bytes/")
        .and_then(|size| size.parse().ok());
    Bytes::from(vec![b'x'; size.unwrap_or(0)])
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    Ok(Response::new(Full::new(body(request.uri().path()))))
}

async fn serve(certificate: &str, key: &str) -> Result<()> {
    let acceptor = (certificate != PLAIN).then(|| acceptor(certificate, key));
    let acceptor = acceptor.transpose()?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    tell(&json!({"port": listener.local_addr()?.port()}));
    loop {
        let (stream, _) = listener.accept().await?;
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            let Some(acceptor) = acceptor else {
                return serve_stream(stream).await;
            };
            if let Ok(stream) = acceptor.accept(stream).await {
                serve_stream(stream).await;
            }
        });
    }
}

async fn serve_stream(stream: impl AsyncRead + AsyncWrite + Unpin + 'static) {
    // How a client leaves is its own affair.
    let _ = auto::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(stream), service_fn(answer))
        .await;
}

fn acceptor(certificate: &str, key: &str) -> Result<TlsAcceptor> {
    let certificate = CertificateDer::from_pem_file(certificate)?;
    let key = PrivateKeyDer::from_pem_file(key)?;
    let mut config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn trusting(authority: &str) -> Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    if authority != PLAIN {
        roots.add(CertificateDer::from_pem_file(authority)?)?;
    }
    Ok(ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth())
}

async fn ask(version: &str, authority: &str, urls: &[&str]) -> Result<()> {
    let builder = HttpsConnectorBuilder::new()
        .with_tls_config(trusting(authority)?)
        .https_or_http();
    let connector = match version {
        "http1" => builder.enable_http1().build(),
        _ => builder.enable_http2().build(),
    };
    let client: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new())
        .http2_only(version == "http2")
        .build(connector);
    for url in urls {
        let response = client.get(url.parse()?).await?;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await?.to_bytes();
        tell(&json!({"status": status, "bytes": body.len()}));
    }
    Ok(())
}

trait ReadWrite: Read + Write {}
impl<T: Read + Write> ReadWrite for T {}

fn ask_blocking(authority: &str, urls: &[&str]) -> Result<()> {
    let first: Uri = urls.first().context("a URL")?.parse()?;
    let (host, port) = (first.host().context("a host")?, first.port_u16());
    let stream = TcpStream::connect((host, port.context("a port")?))?;
    let stream: Box<dyn ReadWrite> = if authority == PLAIN {
        Box::new(stream)
    } else {
        let name = ServerName::try_from(host.to_owned())?;
        let session = ClientConnection::new(Arc::new(trusting(authority)?), name)?;
        Box::new(StreamOwned::new(session, stream))
    };
    let mut stream = BufReader::new(stream);
    for url in urls {
        let url: Uri = url.parse()?;
        let request = format!(
            "GET {url} HTTP/1.1\r\nHost: {host}\r\n\r\n",
            url = url.path()
        );
        stream.get_mut().write_all(request.as_bytes())?;
        let mut length = 0;
        loop {
            let mut line = String::new();
            stream.read_line(&mut line)?;
            let line = line.trim_end().to_lowercase();
            if let Some(value) = line.strip_prefix("content-length: ") {
                length = value.parse()?;
            }
            if line.is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body)?;
        tell(&json!({"status": 200, "bytes": length}));
    }
    Ok(())
}

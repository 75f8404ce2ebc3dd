//! OTLP/HTTP: a POST with a protobuf or JSON body. Specification, section "OTLP/HTTP".

use std::{io::Write as _, time::SystemTime};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use flate2::write::GzEncoder;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    Method, Request, StatusCode, Uri,
    header::{self, HeaderMap, HeaderValue},
};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use prost::Message as _;

use super::{Answer, USER_AGENT, client, excerpt, unanswered};
use crate::export::otlp::{
    config::{Compression, Config, Protocol},
    json,
    retry::{self, Class, Failure},
};

/// More of an answer than this is not read. The specification has receivers answer briefly.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

pub(super) struct Caller {
    connector: HttpsConnector<HttpConnector>,
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    endpoint: Uri,
    protocol: Protocol,
    compression: Compression,
    headers: HeaderMap,
}

impl Caller {
    pub(super) fn new(config: &Config, connector: HttpsConnector<HttpConnector>) -> Self {
        let mut headers = HeaderMap::new();
        headers.insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
        headers.extend(config.headers.iter().cloned());
        let content_type = match config.protocol {
            Protocol::HttpJson => "application/json",
            Protocol::HttpProtobuf | Protocol::Grpc => "application/x-protobuf",
        };
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        let encoding = match config.compression {
            Compression::None => None,
            Compression::Gzip => Some("gzip"),
            Compression::Zstd => Some("zstd"),
        };
        if let Some(encoding) = encoding {
            headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(encoding));
        }
        Self {
            client: client(connector.clone(), false),
            connector,
            endpoint: config.endpoint.clone(),
            protocol: config.protocol,
            compression: config.compression,
            headers,
        }
    }

    pub(super) fn reconnect(&mut self) {
        self.client = client(self.connector.clone(), false);
    }

    pub(super) fn compress(&self, body: Vec<u8>) -> Result<Bytes> {
        let compressed = match self.compression {
            Compression::None => body,
            Compression::Gzip => {
                let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(&body).context("compressing with gzip")?;
                encoder.finish().context("compressing with gzip")?
            }
            Compression::Zstd => zstd::bulk::compress(&body, zstd::DEFAULT_COMPRESSION_LEVEL)
                .context("compressing with zstd")?,
        };
        Ok(compressed.into())
    }

    pub(super) async fn send(&mut self, body: Bytes) -> Result<Answer, Failure> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.endpoint.clone();
        *request.headers_mut() = self.headers.clone();
        let response = self
            .client
            .request(request)
            .await
            .map_err(|error| unanswered(&error))?;
        let status = response.status();
        let retry_after = response
            .headers()
            .get(header::RETRY_AFTER)
            .and_then(|value| value.to_str().ok())
            .map(str::to_owned);
        let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES)
            .collect()
            .await;
        let body = body.map(http_body_util::Collected::to_bytes);
        if !status.is_success() {
            let said = body.unwrap_or_default();
            return Err(refused(
                status,
                retry_after.as_deref(),
                &said,
                self.protocol,
            ));
        }
        // The status is the receiver's word that it has the spans. An answer cut short takes
        // nothing back.
        Ok(body.map_or_else(|_| Answer::default(), |body| accepted(&body, self.protocol)))
    }
}

fn accepted(body: &[u8], protocol: Protocol) -> Answer {
    let response = match protocol {
        Protocol::HttpJson => json::decode_response(body),
        Protocol::HttpProtobuf | Protocol::Grpc => ExportTraceServiceResponse::decode(body).ok(),
    };
    response.map_or_else(
        || Answer {
            rejected: 0,
            message: "its answer is not one of OTLP; is it an OTLP receiver?".to_owned(),
        },
        |response| response.partial_success.into(),
    )
}

fn refused(
    status: StatusCode,
    retry_after: Option<&str>,
    body: &[u8],
    protocol: Protocol,
) -> Failure {
    let class = retry::classify_http(status.as_u16(), retry_after, SystemTime::now());
    let next_step = match status.as_u16() {
        401 | 403 => "check the credentials in OTEL_EXPORTER_OTLP_HEADERS",
        404 | 405 => {
            "check the path: OTEL_EXPORTER_OTLP_ENDPOINT gets /v1/traces appended, \
             OTEL_EXPORTER_OTLP_TRACES_ENDPOINT is used as it is"
        }
        413 => "lower OTEL_BSP_MAX_EXPORT_BATCH_SIZE",
        415 => "try another OTEL_EXPORTER_OTLP_COMPRESSION or OTEL_EXPORTER_OTLP_PROTOCOL",
        300..=399 => "redirects are not followed: set the endpoint to the final address",
        _ if class == Class::Permanent => "see the receiver's own log",
        _ => "",
    };
    let said = error_message(body, protocol);
    let separator = if said.is_empty() { "" } else { ": " };
    Failure {
        class,
        cause: format!("HTTP {status}{separator}{said}"),
        next_step,
    }
}

/// The message of the `google.rpc.Status` a refusal should carry, else its text, cut short.
fn error_message(body: &[u8], protocol: Protocol) -> String {
    #[derive(Clone, PartialEq, prost::Message)]
    struct RpcStatus {
        #[prost(string, tag = "2")]
        message: String,
    }
    let from_status = match protocol {
        Protocol::HttpJson => None,
        Protocol::HttpProtobuf | Protocol::Grpc => {
            RpcStatus::decode(body).ok().map(|status| status.message)
        }
    };
    let text = from_status
        .or_else(|| std::str::from_utf8(body).ok().map(str::to_owned))
        .unwrap_or_default();
    excerpt(text.trim(), 200)
}

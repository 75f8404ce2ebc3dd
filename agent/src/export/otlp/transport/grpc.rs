//! OTLP/gRPC: `opentelemetry.proto.collector.trace.v1.TraceService/Export`.
//!
//! The message is encoded before it comes here, so that a retry does not encode it again.

use std::{error::Error as _, time::Duration};

use bytes::{BufMut as _, Bytes};
use hyper::{
    Uri,
    header::{self, HeaderMap, HeaderValue},
    http::uri::PathAndQuery,
};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use prost::Message as _;
use tonic::{
    Code, Request, Status,
    body::Body,
    client::Grpc,
    codec::{Codec, CompressionEncoding, DecodeBuf, Decoder, EncodeBuf, Encoder},
    metadata::MetadataMap,
};

use super::{Answer, USER_AGENT, client, excerpt, unanswered};
use crate::export::otlp::{
    config::{Compression, Config},
    retry::{self, Class, Failure},
};

const METHOD: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";

pub(super) struct Caller {
    connector: HttpsConnector<HttpConnector>,
    grpc: Grpc<Client<HttpsConnector<HttpConnector>, Body>>,
    endpoint: Uri,
    compression: Compression,
    metadata: MetadataMap,
}

impl Caller {
    pub(super) fn new(config: &Config, connector: HttpsConnector<HttpConnector>) -> Self {
        let mut headers = HeaderMap::new();
        headers.insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
        headers.extend(config.headers.iter().cloned());
        Self {
            grpc: grpc(connector.clone(), &config.endpoint, config.compression),
            connector,
            endpoint: config.endpoint.clone(),
            compression: config.compression,
            metadata: MetadataMap::from_headers(headers),
        }
    }

    pub(super) fn reconnect(&mut self) {
        self.grpc = grpc(self.connector.clone(), &self.endpoint, self.compression);
    }

    pub(super) async fn send(&mut self, body: Bytes, timeout: Duration) -> Result<Answer, Failure> {
        let mut request = Request::new(body);
        *request.metadata_mut() = self.metadata.clone();
        // Longer than a day says nothing that the wire format of the deadline could hold.
        if timeout < Duration::from_hours(24) {
            request.set_timeout(timeout);
        }
        let path = PathAndQuery::from_static(METHOD);
        self.grpc
            .ready()
            .await
            .map_err(|error| unanswered(&error))?;
        match self.grpc.unary(request, path, ExportCodec).await {
            Ok(response) => Ok(response.into_inner().partial_success.into()),
            Err(status) => Err(refused(&status)),
        }
    }
}

fn grpc(
    connector: HttpsConnector<HttpConnector>,
    endpoint: &Uri,
    compression: Compression,
) -> Grpc<Client<HttpsConnector<HttpConnector>, Body>> {
    let grpc = Grpc::with_origin(client(connector, true), endpoint.clone())
        .accept_compressed(CompressionEncoding::Gzip)
        .accept_compressed(CompressionEncoding::Zstd);
    match compression {
        Compression::None => grpc,
        Compression::Gzip => grpc.send_compressed(CompressionEncoding::Gzip),
        Compression::Zstd => grpc.send_compressed(CompressionEncoding::Zstd),
    }
}

fn refused(status: &Status) -> Failure {
    // A status with a source was made on this side: there was no answer.
    if let Some(source) = status.source() {
        return unanswered(source);
    }
    let class = retry::classify_grpc(status.code(), status.details());
    let next_step = match status.code() {
        Code::Unauthenticated | Code::PermissionDenied => {
            "check the credentials in OTEL_EXPORTER_OTLP_HEADERS"
        }
        Code::Unimplemented => {
            "is this an OTLP/gRPC port? For OTLP/HTTP set \
             OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf; if it is, try another \
             OTEL_EXPORTER_OTLP_COMPRESSION"
        }
        Code::ResourceExhausted => "lower OTEL_BSP_MAX_EXPORT_BATCH_SIZE, or the load",
        _ if class == Class::Permanent => "see the receiver's own log",
        _ => "",
    };
    let message = excerpt(status.message(), 200);
    Failure {
        class,
        cause: format!("gRPC {:?}: {message}", status.code()),
        next_step,
    }
}

/// Sends encoded bytes, receives a message.
struct ExportCodec;

impl Codec for ExportCodec {
    type Encode = Bytes;
    type Decode = ExportTraceServiceResponse;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for ExportCodec {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for ExportCodec {
    type Item = ExportTraceServiceResponse;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Self::Item>, Status> {
        ExportTraceServiceResponse::decode(buffer)
            .map(Some)
            .map_err(|error| Status::internal(format!("its answer is not one of OTLP: {error}")))
    }
}

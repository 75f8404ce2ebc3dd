//! The settings of the OTLP exporter for traces. Pure: the environment comes as a function, and
//! certificate files are only named here.
//!
//! Source: OpenTelemetry Protocol Exporter specification,
//! <https://opentelemetry.io/docs/specs/otel/protocol/exporter/>. Every variable there is read in
//! its general and its `TRACES` form; the signal's form replaces the general one. Not covered:
//! proxies (`HTTPS_PROXY` and the like are not read).
//!
//! One addition: where no protocol is named and the endpoint's port is 4317, the protocol is
//! gRPC. The specification's default, http/protobuf, cannot work on the port it gives to gRPC.

use std::{path::PathBuf, time::Duration};

use hyper::{
    Uri,
    header::{HeaderName, HeaderValue},
};
use thiserror::Error;

use crate::export::setting::{self, Lookup};

/// A variable in the form for traces and in the form for all signals.
struct Variable {
    signal: &'static str,
    general: &'static str,
}

macro_rules! variable {
    ($name:literal) => {
        Variable {
            signal: concat!("OTEL_EXPORTER_OTLP_TRACES_", $name),
            general: concat!("OTEL_EXPORTER_OTLP_", $name),
        }
    };
}

const ENDPOINT: Variable = variable!("ENDPOINT");
const PROTOCOL: Variable = variable!("PROTOCOL");
const HEADERS: Variable = variable!("HEADERS");
const TIMEOUT: Variable = variable!("TIMEOUT");
const COMPRESSION: Variable = variable!("COMPRESSION");
const CERTIFICATE: Variable = variable!("CERTIFICATE");
const CLIENT_KEY: Variable = variable!("CLIENT_KEY");
const CLIENT_CERTIFICATE: Variable = variable!("CLIENT_CERTIFICATE");
const INSECURE: Variable = variable!("INSECURE");
/// The former name of the signal's form, which the specification lets us accept.
const OBSOLETE_INSECURE: &str = "OTEL_EXPORTER_OTLP_SPAN_INSECURE";

const DEFAULT_GRPC_ENDPOINT: &str = "http://localhost:4317";
const DEFAULT_HTTP_ENDPOINT: &str = "http://localhost:4318";
const HTTP_PATH: &str = "v1/traces";
/// The specification's default.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// What to do about an endpoint that is none.
const FORM: &str = "write it as http://HOST:PORT or https://HOST:PORT";

/// Headers that belong to the transport.
const RESERVED_HEADERS: &[&str] = &[
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "grpc-encoding",
    "grpc-timeout",
    "host",
    "te",
    "transfer-encoding",
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Grpc,
    HttpProtobuf,
    HttpJson,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    None,
    Gzip,
    /// Not an encoding every receiver takes; one that does not answers 415.
    Zstd,
}

#[derive(Clone, Debug)]
pub struct Config {
    pub protocol: Protocol,
    /// Scheme, authority and, for HTTP, the whole path.
    pub endpoint: Uri,
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Bound on one attempt; `Duration::MAX` is no bound.
    pub timeout: Duration,
    pub compression: Compression,
    pub tls: Tls,
}

/// PEM files for https endpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// Roots to trust instead of the system's.
    pub roots: Option<FileSetting>,
    pub client: Option<ClientIdentity>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientIdentity {
    pub certificate: FileSetting,
    pub key: FileSetting,
}

/// A file and the variable that named it, for error messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileSetting {
    pub variable: &'static str,
    pub path: PathBuf,
}

#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ConfigError {
    #[error("{variable} is `{value}`: {cause}; {next_step}")]
    Endpoint {
        variable: &'static str,
        value: String,
        cause: String,
        next_step: &'static str,
    },
    #[error(
        "{present} is set without {missing}: mutual TLS needs both; set {missing} to a PEM file"
    )]
    HalfIdentity {
        present: &'static str,
        missing: &'static str,
    },
}

impl Config {
    pub fn from_lookup(
        lookup: Lookup<'_>,
        warnings: &mut Vec<String>,
    ) -> Result<Self, ConfigError> {
        let named_protocol = protocol(lookup, warnings);
        let (protocol, endpoint) = endpoint(lookup, named_protocol, warnings)?;
        Ok(Self {
            protocol,
            endpoint,
            headers: HEADERS
                .get(lookup)
                .map_or_else(Vec::new, |(name, value)| headers(name, &value, warnings)),
            timeout: TIMEOUT.get(lookup).map_or(DEFAULT_TIMEOUT, |(name, _)| {
                setting::timeout(lookup, name, DEFAULT_TIMEOUT, warnings)
            }),
            compression: compression(lookup, warnings),
            tls: tls(lookup)?,
        })
    }
}

impl Variable {
    fn get(&self, lookup: Lookup<'_>) -> Option<(&'static str, String)> {
        [self.signal, self.general]
            .into_iter()
            .find_map(|name| setting::get(lookup, name).map(|value| (name, value)))
    }

    fn file(&self, lookup: Lookup<'_>) -> Option<FileSetting> {
        let (variable, path) = self.get(lookup)?;
        Some(FileSetting {
            variable,
            path: path.into(),
        })
    }
}

fn protocol(lookup: Lookup<'_>, warnings: &mut Vec<String>) -> Option<Protocol> {
    let (name, value) = PROTOCOL.get(lookup)?;
    match value.to_ascii_lowercase().as_str() {
        "grpc" => Some(Protocol::Grpc),
        "http/protobuf" => Some(Protocol::HttpProtobuf),
        "http/json" => Some(Protocol::HttpJson),
        _ => {
            warnings.push(format!(
                "{name} is `{value}`, not one of grpc, http/protobuf, http/json; using the default"
            ));
            None
        }
    }
}

fn compression(lookup: Lookup<'_>, warnings: &mut Vec<String>) -> Compression {
    let Some((name, value)) = COMPRESSION.get(lookup) else {
        return Compression::None;
    };
    match value.to_ascii_lowercase().as_str() {
        "none" => Compression::None,
        "gzip" => Compression::Gzip,
        "zstd" => Compression::Zstd,
        _ => {
            warnings.push(format!(
                "{name} is `{value}`, not one of gzip, zstd, none; not compressing"
            ));
            Compression::None
        }
    }
}

fn endpoint(
    lookup: Lookup<'_>,
    protocol: Option<Protocol>,
    warnings: &mut Vec<String>,
) -> Result<(Protocol, Uri), ConfigError> {
    let Some((variable, text)) = ENDPOINT.get(lookup) else {
        let protocol = protocol.unwrap_or(Protocol::HttpProtobuf);
        let (base, kind) = match protocol {
            Protocol::Grpc => (DEFAULT_GRPC_ENDPOINT, Path::None),
            Protocol::HttpProtobuf | Protocol::HttpJson => (DEFAULT_HTTP_ENDPOINT, Path::Appended),
        };
        return Ok((protocol, checked_endpoint(ENDPOINT.general, base, kind)?));
    };
    let has_scheme = text.contains("://");
    let protocol = protocol.unwrap_or_else(|| match port_of(&text) {
        Some(4317) => Protocol::Grpc,
        _ => Protocol::HttpProtobuf,
    });
    let kind = match protocol {
        Protocol::Grpc => Path::None,
        _ if variable == ENDPOINT.signal => Path::AsIs,
        _ => Path::Appended,
    };
    let full = match (has_scheme, protocol) {
        (true, _) => text.clone(),
        (false, Protocol::Grpc) => {
            format!(
                "{}://{text}",
                if insecure(lookup, warnings) {
                    "http"
                } else {
                    "https"
                }
            )
        }
        (false, _) => {
            return Err(ConfigError::Endpoint {
                variable,
                value: text,
                cause: "it has no scheme".to_owned(),
                next_step: FORM,
            });
        }
    };
    let uri = checked_endpoint(variable, &full, kind)?;
    if protocol == Protocol::Grpc && uri.path() != "/" {
        warnings.push(format!(
            "{variable} has a path, which gRPC does not use: `{}`",
            uri.path()
        ));
    }
    Ok((protocol, uri))
}

/// What becomes of the path of an endpoint.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Path {
    None,
    AsIs,
    Appended,
}

fn checked_endpoint(variable: &'static str, text: &str, path: Path) -> Result<Uri, ConfigError> {
    let error = |value: &str, cause: &str, next_step| ConfigError::Endpoint {
        variable,
        value: value.to_owned(),
        cause: cause.to_owned(),
        next_step,
    };
    // Credentials must not be repeated in an error message.
    let authority = text.split_once("://").map_or(text, |(_, rest)| rest);
    if authority
        .split(['/', '?'])
        .next()
        .is_some_and(|authority| authority.contains('@'))
    {
        return Err(error(
            "(not shown)",
            "it holds credentials",
            "send them with OTEL_EXPORTER_OTLP_HEADERS=authorization=...",
        ));
    }
    let uri: Uri = text
        .parse()
        .map_err(|cause| error(text, &format!("{cause}"), FORM))?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return Err(error(text, "its scheme is neither http nor https", FORM));
    }
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    if uri.host().is_none_or(str::is_empty) {
        return Err(error(text, "it names no host", FORM));
    }
    let has_port = authority
        .rsplit(']')
        .next()
        .is_some_and(|rest| rest.contains(':'));
    if has_port && uri.port_u16().is_none_or(|port| port == 0) {
        return Err(error(
            text,
            "its port is not a number from 1 to 65535",
            FORM,
        ));
    }
    if path != Path::Appended {
        return Ok(uri);
    }
    let scheme = uri.scheme_str().unwrap_or("http");
    let base = uri.path().trim_end_matches('/');
    let query = uri
        .query()
        .map_or_else(String::new, |query| format!("?{query}"));
    format!("{scheme}://{authority}{base}/{HTTP_PATH}{query}")
        .parse()
        .map_err(|cause| error(text, &format!("{cause}"), FORM))
}

fn port_of(endpoint: &str) -> Option<u16> {
    let authority = endpoint
        .split_once("://")
        .map_or(endpoint, |(_, rest)| rest);
    authority
        .split(['/', '?'])
        .next()?
        .rsplit_once(':')?
        .1
        .parse()
        .ok()
}

/// Only matters for a gRPC endpoint without a scheme.
fn insecure(lookup: Lookup<'_>, warnings: &mut Vec<String>) -> bool {
    let signal = setting::get(lookup, INSECURE.signal).map(|value| (INSECURE.signal, value));
    let obsolete =
        || setting::get(lookup, OBSOLETE_INSECURE).map(|value| (OBSOLETE_INSECURE, value));
    let Some((name, value)) = signal.or_else(obsolete).or_else(|| INSECURE.get(lookup)) else {
        return false;
    };
    match value.to_ascii_lowercase().as_str() {
        "true" => true,
        "false" => false,
        _ => {
            warnings.push(format!(
                "{name} is `{value}`, not true or false; using false"
            ));
            false
        }
    }
}

/// `key=value` pairs as in W3C Baggage without its properties; values are percent-encoded. Values
/// may be secrets and appear in no message.
fn headers(
    variable: &str,
    text: &str,
    warnings: &mut Vec<String>,
) -> Vec<(HeaderName, HeaderValue)> {
    let mut headers = Vec::new();
    for (index, pair) in text.split(',').enumerate() {
        if pair.trim().is_empty() {
            continue;
        }
        match header(pair) {
            Ok(header) => headers.push(header),
            Err(cause) => {
                warnings.push(format!(
                    "{variable}: entry {} is ignored: {cause}",
                    index + 1
                ));
            }
        }
    }
    headers
}

fn header(pair: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (key, value) = pair
        .split_once('=')
        .ok_or_else(|| "it is not of the form key=value".to_owned())?;
    let name = HeaderName::from_bytes(key.trim().as_bytes())
        .map_err(|_| "its key is not a header name".to_owned())?;
    if RESERVED_HEADERS.contains(&name.as_str()) {
        return Err(format!("`{name}` is set by the exporter itself"));
    }
    let bytes = percent_decode(value.trim().as_bytes());
    let mut value = HeaderValue::from_bytes(&bytes)
        .map_err(|_| format!("the value of `{name}` has characters a header cannot carry"))?;
    value.set_sensitive(true);
    Ok((name, value))
}

/// What is not a valid escape stays as it is.
fn percent_decode(text: &[u8]) -> Vec<u8> {
    let digit = |byte: &u8| (*byte as char).to_digit(16).map(|digit| digit as u8);
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, tail)) = rest.split_first() {
        rest = tail;
        match (first, tail) {
            (b'%', [high, low, after @ ..]) => match (digit(high), digit(low)) {
                (Some(high), Some(low)) => {
                    decoded.push(high << 4 | low);
                    rest = after;
                }
                _ => decoded.push(b'%'),
            },
            (byte, _) => decoded.push(*byte),
        }
    }
    decoded
}

fn tls(lookup: Lookup<'_>) -> Result<Tls, ConfigError> {
    let client = match (CLIENT_CERTIFICATE.file(lookup), CLIENT_KEY.file(lookup)) {
        (Some(certificate), Some(key)) => Some(ClientIdentity { certificate, key }),
        (None, None) => None,
        (Some(certificate), None) => {
            return Err(ConfigError::HalfIdentity {
                present: certificate.variable,
                missing: CLIENT_KEY.general,
            });
        }
        (None, Some(key)) => {
            return Err(ConfigError::HalfIdentity {
                present: key.variable,
                missing: CLIENT_CERTIFICATE.general,
            });
        }
    };
    Ok(Tls {
        roots: CERTIFICATE.file(lookup),
        client,
    })
}

#[cfg(test)]
mod tests;

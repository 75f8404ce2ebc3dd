//! The independent OTLP receiver, `receiver/otlp_receiver.py`, as a child process.

use std::{collections::BTreeMap, process::Command};

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::{
    http,
    pki::Pki,
    process::{Process, crate_file},
    python,
    span::Span,
    wait::wait_until,
};

/// How the receiver listens. Ports are 0 for any.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReceiverOptions<'a> {
    pub grpc_port: u16,
    pub http_port: u16,
    pub tls: Option<&'a Pki>,
    pub client_certificates: ClientCertificates,
    pub keep: Keep,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientCertificates {
    #[default]
    Ignored,
    Demanded,
}

/// What is remembered of a span.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Keep {
    #[default]
    Spans,
    /// Counts per service, kind, status and path, for large loads.
    Counts,
}

#[derive(Debug)]
pub struct Receiver {
    process: Process,
    scheme: &'static str,
    grpc_port: u16,
    http_port: u16,
    control_port: u16,
}

/// Number of spans that agree in these.
#[derive(Clone, Debug, Deserialize)]
pub struct Count {
    pub service: String,
    pub kind: String,
    pub status: Option<i64>,
    pub path: Option<String>,
    pub count: u64,
}

/// One export call.
#[derive(Clone, Debug, Deserialize)]
pub struct ExportCall {
    /// `grpc` or `http`.
    pub transport: String,
    /// Names in lower case.
    pub headers: BTreeMap<String, String>,
    /// `ok`, or the fault it met.
    pub answer: String,
    pub spans: u64,
    /// Common name of the sender's certificate, where there was one.
    #[serde(default)]
    pub client_certificate: String,
}

impl Receiver {
    /// Any ports, no TLS, all spans kept.
    pub fn start() -> Self {
        Self::start_with(ReceiverOptions::default())
    }

    pub fn start_with(options: ReceiverOptions<'_>) -> Self {
        let mut command = Command::new(python::packages_interpreter());
        command.arg(crate_file("receiver/otlp_receiver.py"));
        command.args(["--grpc-port", &options.grpc_port.to_string()]);
        command.args(["--http-port", &options.http_port.to_string()]);
        if options.keep == Keep::Counts {
            command.arg("--count-only");
        }
        if let Some(pki) = options.tls {
            command
                .arg("--tls-certificate")
                .arg(pki.server_certificate());
            command.arg("--tls-key").arg(pki.server_key());
            if options.client_certificates == ClientCertificates::Demanded {
                command
                    .arg("--tls-client-ca")
                    .arg(pki.authority_certificate());
            }
        }
        let mut process = Process::spawn("receiver", &mut command);
        let ports = process.json_line(0);
        let port = |name: &str| {
            let number = ports[name]
                .as_u64()
                .and_then(|number| u16::try_from(number).ok());
            number.unwrap_or_else(|| panic!("the receiver names its {name} port: {ports}"))
        };
        let scheme = if options.tls.is_some() {
            "https"
        } else {
            "http"
        };
        let (grpc_port, http_port, control_port) = (port("grpc"), port("http"), port("control"));
        Self {
            process,
            scheme,
            grpc_port,
            http_port,
            control_port,
        }
    }

    pub fn grpc_endpoint(&self) -> String {
        format!("{}://127.0.0.1:{}", self.scheme, self.grpc_port)
    }

    pub fn http_endpoint(&self) -> String {
        format!("{}://127.0.0.1:{}", self.scheme, self.http_port)
    }

    pub fn http_port(&self) -> u16 {
        self.http_port
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    pub fn spans(&self) -> Vec<Span> {
        self.ask("/spans")
    }

    pub fn spans_of(&self, service: &str, kind: &str) -> Vec<Span> {
        let mut spans = self.ask::<Vec<Span>>(&format!("/spans?service={service}"));
        spans.retain(|span| span.kind == kind);
        spans
    }

    pub fn counts(&self) -> Vec<Count> {
        self.ask("/counts")
    }

    pub fn calls(&self) -> Vec<ExportCall> {
        self.ask("/requests")
    }

    pub fn span_count(&self) -> u64 {
        let count: Value = self.ask("/count");
        count["spans"].as_u64().expect("the receiver counts spans")
    }

    /// Waits until so many spans are there.
    pub fn wait_for_spans(&self, count: u64) {
        wait_until(&format!("{count} spans"), || self.span_count() >= count);
    }

    /// Lets the next `times` export calls meet a fault, see `Fault` in the script.
    pub fn fault(&self, kind: &str, times: u32) {
        self.fault_with(&json!({"kind": kind, "times": times}));
    }

    pub fn fault_with(&self, fault: &Value) {
        let response = http::post(self.control_port, "/fault", fault.to_string().as_bytes());
        assert_eq!(response.status, 200, "{}", response.text());
    }

    fn ask<T: DeserializeOwned>(&self, path: &str) -> T {
        let response = http::get(self.control_port, path);
        assert_eq!(response.status, 200, "{path}");
        serde_json::from_slice(&response.body)
            .unwrap_or_else(|error| panic!("{path}: {error}: {}", response.text()))
    }
}

//! Attribute keys and values. Every key the agent emits is a constant here.

use std::borrow::Cow;

use compact_str::CompactString;

/// A key and its value. Keys are constants except those that users configure.
#[derive(Clone, Debug, PartialEq)]
pub struct Attribute {
    pub key: Cow<'static, str>,
    pub value: Value,
}

impl Attribute {
    pub fn new(key: impl Into<Cow<'static, str>>, value: impl Into<Value>) -> Self {
        Self {
            key: key.into(),
            value: value.into(),
        }
    }
}

/// A span has a dozen: up to 24 bytes of text stand in the value itself, and constants stay where
/// they are.
/// The value of the first attribute with this key.
pub fn find<'a>(attributes: &'a [Attribute], key: &str) -> Option<&'a Value> {
    let found = attributes.iter().find(|attribute| attribute.key == key);
    found.map(|attribute| &attribute.value)
}

#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    String(CompactString),
    Int(i64),
    Double(f64),
    Bool(bool),
    StringArray(Box<[String]>),
}

const _: () = assert!(size_of::<Value>() == 24);

impl Value {
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(value) => Some(value),
            _ => None,
        }
    }
}

impl From<String> for Value {
    fn from(value: String) -> Self {
        Self::String(value.into())
    }
}

impl From<&'static str> for Value {
    fn from(value: &'static str) -> Self {
        Self::String(CompactString::const_new(value))
    }
}

impl From<CompactString> for Value {
    fn from(value: CompactString) -> Self {
        Self::String(value)
    }
}

impl From<Cow<'_, str>> for Value {
    fn from(value: Cow<'_, str>) -> Self {
        Self::String(value.into())
    }
}

impl From<i64> for Value {
    fn from(value: i64) -> Self {
        Self::Int(value)
    }
}

impl From<u16> for Value {
    fn from(value: u16) -> Self {
        Self::Int(value.into())
    }
}

impl From<u32> for Value {
    fn from(value: u32) -> Self {
        Self::Int(value.into())
    }
}

impl From<f64> for Value {
    fn from(value: f64) -> Self {
        Self::Double(value)
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

// Resource: semantic conventions, docs/resource.
pub const SERVICE_NAME: &str = "service.name";
pub const SERVICE_NAMESPACE: &str = "service.namespace";
pub const SERVICE_VERSION: &str = "service.version";
pub const SERVICE_INSTANCE_ID: &str = "service.instance.id";
pub const TELEMETRY_SDK_NAME: &str = "telemetry.sdk.name";
pub const TELEMETRY_SDK_LANGUAGE: &str = "telemetry.sdk.language";
pub const TELEMETRY_SDK_VERSION: &str = "telemetry.sdk.version";
pub const TELEMETRY_DISTRO_NAME: &str = "telemetry.distro.name";
pub const TELEMETRY_DISTRO_VERSION: &str = "telemetry.distro.version";
pub const PROCESS_PID: &str = "process.pid";
pub const PROCESS_CREATION_TIME: &str = "process.creation.time";
pub const PROCESS_EXECUTABLE_NAME: &str = "process.executable.name";
pub const PROCESS_EXECUTABLE_PATH: &str = "process.executable.path";
pub const CONTAINER_ID: &str = "container.id";
pub const HOST_NAME: &str = "host.name";
pub const HOST_ID: &str = "host.id";
pub const OS_TYPE: &str = "os.type";

// HTTP: semantic conventions, docs/http/http-spans.md.
pub const HTTP_REQUEST_METHOD: &str = "http.request.method";
pub const HTTP_REQUEST_METHOD_ORIGINAL: &str = "http.request.method_original";
pub const HTTP_REQUEST_BODY_SIZE: &str = "http.request.body.size";
pub const HTTP_RESPONSE_BODY_SIZE: &str = "http.response.body.size";
/// Of streams of events alone (`text/event-stream`), which last as long as someone listens.
pub const HTTP_RESPONSE_CONTENT_TYPE: &str = "http.response.header.content-type";
pub const HTTP_RESPONSE_STATUS_CODE: &str = "http.response.status_code";
pub const URL_SCHEME: &str = "url.scheme";
pub const URL_PATH: &str = "url.path";
pub const URL_QUERY: &str = "url.query";
pub const URL_FULL: &str = "url.full";
pub const USER_AGENT_ORIGINAL: &str = "user_agent.original";

// RPC: semantic conventions, docs/rpc/rpc-spans.md.
pub const RPC_SYSTEM_NAME: &str = "rpc.system.name";
pub const RPC_METHOD: &str = "rpc.method";
pub const RPC_RESPONSE_STATUS_CODE: &str = "rpc.response.status_code";

// General: semantic conventions, docs/general/attributes.md and recording-errors.md.
pub const CLIENT_ADDRESS: &str = "client.address";
pub const SERVER_ADDRESS: &str = "server.address";
pub const SERVER_PORT: &str = "server.port";
pub const NETWORK_PEER_ADDRESS: &str = "network.peer.address";
pub const NETWORK_PEER_PORT: &str = "network.peer.port";
pub const NETWORK_TRANSPORT: &str = "network.transport";
pub const NETWORK_PROTOCOL_NAME: &str = "network.protocol.name";
pub const NETWORK_PROTOCOL_VERSION: &str = "network.protocol.version";
pub const ERROR_TYPE: &str = "error.type";

// Our own.
/// How the parent was proven: see `context::Evidence`.
pub const PARENT_EVIDENCE: &str = "ebpf_agent.parent.evidence";
/// Why a link is not a parent.
pub const LINK_REASON: &str = "ebpf_agent.link.reason";
/// Of a link with the reason `weak_evidence`: which.
pub const LINK_EVIDENCE: &str = "ebpf_agent.link.evidence";
/// What of the exchange was not observed (`response`, `response_end`, `request_start`...); absent
/// when all was.
pub const UNOBSERVED: &str = "ebpf_agent.unobserved";
/// Messages that a call sent to its server, where all were seen.
pub const RPC_REQUEST_MESSAGES: &str = "ebpf_agent.rpc.request.messages";
/// Messages that a call got back, where all were seen.
pub const RPC_RESPONSE_MESSAGES: &str = "ebpf_agent.rpc.response.messages";
/// Seconds that the caller gave its call.
pub const RPC_TIMEOUT: &str = "ebpf_agent.rpc.timeout";
/// Seconds from the first byte of the request to the first of the response; absent when the
/// response was over with it.
pub const TIME_TO_FIRST_BYTE: &str = "ebpf_agent.time_to_first_byte";

//! What a span says of one stream: semantic conventions, docs/http/http-spans.md and
//! docs/rpc/rpc-spans.md.

use std::borrow::Cow;

use compact_str::CompactString;

use super::grpc;
use super::stream::{Request, Stream};
use crate::protocol::rpc::{self, Rpc};
use crate::protocol::semantics::{
    Ends, REQUEST_HEAD, RESPONSE, RESPONSE_END, RPC_STATUS, Server, forwarded_scheme, is_error,
    known_method, known_scheme, push, push_client, push_event_stream, push_peer,
    push_response_time, seconds, size_value, status_text,
};
use crate::span::attribute::{self, Attribute};
use crate::span::{Details, Kind, Status, redact};

/// Attributes of a usual server span.
const ATTRIBUTES: usize = 18;

/// How a stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Complete,
    /// The client gave it up. That is no error of HTTP, but a call has then failed for who made it.
    Cancelled {
        error: &'static str,
    },
    /// `error.type` of a transfer that broke.
    Broken(&'static str),
    /// The end was not observed.
    Unobserved,
}

pub(super) fn details(
    ends: &Ends,
    request: &Request,
    stream: &Stream,
    outcome: Outcome,
    end_ns: u64,
) -> Details {
    let mut attributes = Vec::with_capacity(ATTRIBUTES);
    let (name, error) = match stream.rpc {
        Some(rpc) => {
            let call = Call {
                rpc,
                kind: ends.endpoint.kind,
                request,
                stream,
                outcome,
                end_ns,
            };
            call.describe(&mut attributes, ends)
        }
        None => http(&mut attributes, ends, request, stream, outcome),
    };
    let first_ns = stream.response.first_ns.filter(|first| *first < end_ns);
    let waited_ns = first_ns.map(|first| first.saturating_sub(request.start_ns));
    push_response_time(&mut attributes, waited_ns);
    if stream.response.is_event_stream {
        push_event_stream(&mut attributes);
    }
    let status = match &error {
        Some(_) => Status::Error(String::new()),
        None => Status::Unset,
    };
    if let Some(error) = error {
        push(&mut attributes, attribute::ERROR_TYPE, error);
    }
    if let Some(what) = unobserved(request, stream, outcome) {
        push(&mut attributes, attribute::UNOBSERVED, what);
    }
    Details {
        name,
        status,
        attributes,
    }
}

type Name = Cow<'static, str>;

fn http(
    attributes: &mut Vec<Attribute>,
    ends: &Ends,
    request: &Request,
    stream: &Stream,
    outcome: Outcome,
) -> (Name, Option<CompactString>) {
    let original = request.fields.method.as_deref();
    let method = original.and_then(known_method);
    if let Some(original) = original {
        let known = method.unwrap_or("_OTHER");
        push(attributes, attribute::HTTP_REQUEST_METHOD, known);
        if method.is_none() {
            let original = original.to_owned();
            push(
                attributes,
                attribute::HTTP_REQUEST_METHOD_ORIGINAL,
                original,
            );
        }
    }
    match ends.endpoint.kind {
        Kind::Server => server_attributes(attributes, ends, request),
        Kind::Client => client_attributes(attributes, ends, request),
    }
    push_peer(attributes, ends);
    push(attributes, attribute::NETWORK_PROTOCOL_VERSION, "2");
    if let Some(agent) = &request.fields.user_agent {
        push(attributes, attribute::USER_AGENT_ORIGINAL, agent.clone());
    }
    // A request without content says so by ending with its head; one of no bytes is the same.
    if let Some(size) = stream.up.size().filter(|size| *size > 0) {
        let size = size_value(size);
        push(attributes, attribute::HTTP_REQUEST_BODY_SIZE, size);
    }
    let status = stream.response.status;
    if let Some(status) = status {
        push(attributes, attribute::HTTP_RESPONSE_STATUS_CODE, status);
    }
    if let Some(size) = stream.down.size() {
        let size = size_value(size);
        push(attributes, attribute::HTTP_RESPONSE_BODY_SIZE, size);
    }
    let error = status
        .filter(|status| is_error(ends.endpoint.kind, *status))
        .map(status_text)
        .or(match outcome {
            Outcome::Broken(error) => Some(error.into()),
            _ => None,
        });
    (Name::Borrowed(method.unwrap_or("HTTP")), error)
}

/// What names the server.
fn authority(request: &Request) -> Option<&str> {
    let fields = &request.fields;
    fields.authority.as_deref().or(fields.host.as_deref())
}

/// As the head says; where it may have said something that is not known: `None`.
fn scheme(ends: &Ends, request: &Request) -> Option<&'static str> {
    match request.fields.scheme.as_deref() {
        Some(scheme) => known_scheme(scheme),
        None => (!lacks_fields(request)).then_some(ends.endpoint.scheme()),
    }
}

/// Fields of the head are not known.
fn lacks_fields(request: &Request) -> bool {
    request.is_cut || request.fields.unknown > 0
}

fn server_attributes(attributes: &mut Vec<Attribute>, ends: &Ends, request: &Request) {
    let fields = &request.fields;
    let forwarded_proto = fields.forwarded_proto.as_deref().map(str::as_bytes);
    let scheme = forwarded_proto
        .and_then(forwarded_scheme)
        .or_else(|| scheme(ends, request));
    if let Some(scheme) = scheme {
        push(attributes, attribute::URL_SCHEME, scheme);
    }
    push_path(attributes, request);
    Server::of(
        authority(request),
        &ends.endpoint.local,
        scheme.unwrap_or_default(),
    )
    .push(attributes);
    push_client(
        attributes,
        ends,
        fields.forwarded.as_deref().map(str::as_bytes),
        fields.forwarded_for.as_deref().map(str::as_bytes),
    );
}

fn push_path(attributes: &mut Vec<Attribute>, request: &Request) {
    let Some(target) = &request.fields.path else {
        return;
    };
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target.as_str(), None),
    };
    push(attributes, attribute::URL_PATH, path.to_owned());
    if let Some(query) = query {
        let query = redact::query(query).into_owned();
        push(attributes, attribute::URL_QUERY, query);
    }
}

fn client_attributes(attributes: &mut Vec<Attribute>, ends: &Ends, request: &Request) {
    let fields = &request.fields;
    let scheme = scheme(ends, request);
    let named = authority(request);
    let server = Server::of(named, &ends.endpoint.peer, scheme.unwrap_or_default());
    let host = server.authority(named, scheme.unwrap_or_default());
    let scheme = scheme.filter(|_| named.is_some() || !lacks_fields(request));
    let full = match (&fields.path, fields.method.as_deref()) {
        _ if scheme.is_none() => None,
        // An extended CONNECT has a path (RFC 8441, section 4), a plain one does not.
        (None, Some("CONNECT")) => Some(host),
        // RFC 9113, section 8.3.1: the asterisk stands for no path at all.
        (Some(path), _) => {
            let scheme = scheme.unwrap_or_default();
            let path = if path == "*" { "" } else { path };
            Some(redact::url(&format!("{scheme}://{host}{path}")).into())
        }
        (None, _) => None,
    };
    match full {
        Some(full) => push(attributes, attribute::URL_FULL, full),
        // The host is not known: what is known of the URL stands alone.
        None => push_path(attributes, request),
    }
    server.push(attributes);
}

/// A stream that is a call.
struct Call<'a> {
    rpc: Rpc,
    kind: Kind,
    request: &'a Request,
    stream: &'a Stream,
    outcome: Outcome,
    end_ns: u64,
}

impl Call<'_> {
    fn describe(
        &self,
        attributes: &mut Vec<Attribute>,
        ends: &Ends,
    ) -> (Name, Option<CompactString>) {
        let system = self.rpc.system();
        push(attributes, attribute::RPC_SYSTEM_NAME, system);
        let fields = &self.request.fields;
        let method = fields.path.as_deref().and_then(rpc::method);
        if let Some(method) = method {
            push(attributes, attribute::RPC_METHOD, method.to_owned());
        }
        let status = self.status();
        if let Some(code) = status {
            let name = grpc::status_name(code);
            push(attributes, attribute::RPC_RESPONSE_STATUS_CODE, name);
        }
        let socket = match self.kind {
            Kind::Server => &ends.endpoint.local,
            Kind::Client => &ends.endpoint.peer,
        };
        let scheme = scheme(ends, self.request).unwrap_or_default();
        Server::of(authority(self.request), socket, scheme).push(attributes);
        push_peer(attributes, ends);
        // Only where it is not what every call has.
        let http_status = self.stream.response.status.filter(|status| *status != 200);
        if let Some(http_status) = http_status {
            let key = attribute::HTTP_RESPONSE_STATUS_CODE;
            push(attributes, key, http_status);
        }
        if self.rpc.has_envelopes() && self.outcome != Outcome::Unobserved {
            let counts = [
                (attribute::RPC_REQUEST_MESSAGES, &self.stream.up),
                (attribute::RPC_RESPONSE_MESSAGES, &self.stream.down),
            ];
            for (key, side) in counts {
                if let Some(count) = side.messages.count() {
                    push(attributes, key, size_value(count));
                }
            }
        }
        if let Some(timeout_ns) = fields.grpc_timeout_ns {
            push(attributes, attribute::RPC_TIMEOUT, seconds(timeout_ns));
        }
        (
            method.map_or(Name::Borrowed(system), |method| method.to_owned().into()),
            self.error(status, http_status),
        )
    }

    /// The status on the wire; for a client also what gRPC makes of a response that has none.
    fn status(&self) -> Option<u64> {
        let response = &self.stream.response;
        if response.grpc_status.is_some() {
            return response.grpc_status;
        }
        let is_answered = self.outcome == Outcome::Complete
            && self.kind == Kind::Client
            && self.rpc == Rpc::Grpc
            && !self.stream.down.has_hole
            && !response.has_unknown;
        response
            .status
            .filter(|_| is_answered)
            .map(grpc::status_of_http)
    }

    fn error(&self, status: Option<u64>, http_status: Option<u16>) -> Option<CompactString> {
        if let Some(code) = status {
            return grpc::is_error(self.kind, code).then(|| grpc::status_name(code).into());
        }
        if let Some(http_status) = http_status
            && is_error(self.kind, http_status)
        {
            return Some(status_text(http_status));
        }
        match self.outcome {
            Outcome::Broken(error) => Some(error.into()),
            Outcome::Cancelled { .. } if self.is_past_deadline() => {
                Some(grpc::status_name(grpc::DEADLINE_EXCEEDED).into())
            }
            // Who made the call gave it up; its server did nothing wrong.
            Outcome::Cancelled { error } if self.kind == Kind::Client => Some(error.into()),
            _ => None,
        }
    }

    /// The time that the caller gave had passed when it reset the stream.
    fn is_past_deadline(&self) -> bool {
        let lasted_ns = self.end_ns.saturating_sub(self.request.start_ns);
        let timeout_ns = self.request.fields.grpc_timeout_ns;
        timeout_ns.is_some_and(|timeout_ns| lasted_ns >= timeout_ns)
    }
}

/// Names what was not observed, separated by commas.
fn unobserved(request: &Request, stream: &Stream, outcome: Outcome) -> Option<String> {
    let fields = &request.fields;
    let has_path = fields.path.is_some() || fields.method.as_deref() == Some("CONNECT");
    let has_target = has_path && (authority(request).is_some() || !lacks_fields(request));
    let response = &stream.response;
    let is_whole = match outcome {
        Outcome::Complete => true,
        Outcome::Broken(_) => stream.down.ended_ns.is_some() || !stream.down.has_hole,
        Outcome::Cancelled { .. } | Outcome::Unobserved => false,
    };
    let lacks_status = response.status.is_none() && response.grpc_status.is_none();
    let lacks_rpc_status = response.grpc_status.is_none()
        && match stream.rpc {
            Some(Rpc::Grpc) => response.has_unknown || stream.down.has_hole,
            // It stands in the body, which is not read.
            Some(rpc) => rpc.has_status_in_body() && response.status == Some(200),
            None => false,
        };
    let missing = [
        (!has_target || request.is_cut).then_some(REQUEST_HEAD),
        match outcome {
            Outcome::Complete if lacks_status => Some(RESPONSE),
            Outcome::Complete if lacks_rpc_status => Some(RPC_STATUS),
            _ if is_whole => None,
            _ if lacks_status => Some(RESPONSE),
            _ => Some(RESPONSE_END),
        },
    ];
    let missing: Vec<&str> = missing.into_iter().flatten().collect();
    (!missing.is_empty()).then(|| missing.join(","))
}

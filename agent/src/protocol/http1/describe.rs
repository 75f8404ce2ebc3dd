//! What a span says of one exchange: semantic conventions, docs/http/http-spans.md.

use std::borrow::Cow;

use compact_str::{CompactString, format_compact};

use super::parse::{Fields, RequestLine, text};
use crate::protocol::Endpoint;
use crate::protocol::rpc::{self, Rpc};
use crate::protocol::semantics::{
    Ends, RPC_STATUS, Server, forwarded_scheme, is_error, known_method, known_scheme, push,
    push_client, push_event_stream, push_peer, push_response_time, size_value, status_text,
};
use crate::span::attribute::{self, Attribute};
use crate::span::{Details, Kind, Status, redact};

/// The status of HTTP under which calls are answered, whatever became of them.
const OK: u16 = 200;

/// Attributes of a usual server span: more only where a request is unusual.
const ATTRIBUTES: usize = 16;

/// The part of [`Details`] that the request decides.
#[derive(Debug)]
pub(super) struct Draft {
    name: Cow<'static, str>,
    rpc: Option<Rpc>,
    attributes: Vec<Attribute>,
}

/// How an exchange ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Complete,
    /// `error.type` of a transfer that broke.
    Broken(&'static str),
    /// What was not observed.
    Unobserved(&'static str),
}

/// What the rest of an exchange told.
#[derive(Clone, Copy, Debug)]
pub(super) struct Result {
    pub(super) status: Option<u16>,
    pub(super) request_size: Option<u64>,
    pub(super) response_size: Option<u64>,
    /// From the first byte of the request to the first of the response, where more came later.
    pub(super) waited_ns: Option<u64>,
    pub(super) is_event_stream: bool,
    pub(super) outcome: Outcome,
}

pub(super) fn request(ends: &Ends, line: &RequestLine<'_>, fields: &Fields<'_>) -> Draft {
    if let Some(rpc) = fields.rpc() {
        return call(ends, rpc, line, fields);
    }
    let endpoint = &ends.endpoint;
    let mut attributes = Vec::with_capacity(ATTRIBUTES);
    let method = known_method(line.method);
    push(
        &mut attributes,
        attribute::HTTP_REQUEST_METHOD,
        method.unwrap_or("_OTHER"),
    );
    if method.is_none() {
        let original = CompactString::new(line.method);
        push(
            &mut attributes,
            attribute::HTTP_REQUEST_METHOD_ORIGINAL,
            original,
        );
    }
    let target = Target::of(line);
    match endpoint.kind {
        Kind::Server => server_attributes(&mut attributes, ends, &target, fields),
        Kind::Client => client_attributes(&mut attributes, endpoint, &target, fields),
    }
    push_peer(&mut attributes, ends);
    let version = match line.minor {
        0 => CompactString::const_new("1.0"),
        1 => CompactString::const_new("1.1"),
        minor => format_compact!("1.{minor}"),
    };
    push(
        &mut attributes,
        attribute::NETWORK_PROTOCOL_VERSION,
        version,
    );
    if let Some(agent) = fields.user_agent {
        push(&mut attributes, attribute::USER_AGENT_ORIGINAL, text(agent));
    }
    Draft {
        name: Cow::Borrowed(method.unwrap_or("HTTP")),
        rpc: None,
        attributes,
    }
}

/// A request that is a call: semantic conventions, docs/rpc/rpc-spans.md.
fn call(ends: &Ends, rpc: Rpc, line: &RequestLine<'_>, fields: &Fields<'_>) -> Draft {
    let endpoint = &ends.endpoint;
    let mut attributes = Vec::with_capacity(ATTRIBUTES);
    push(&mut attributes, attribute::RPC_SYSTEM_NAME, rpc.system());
    let target = Target::of(line);
    let path = target.path_and_query().map_or("", |(path, _)| path);
    let method = rpc::method(path).map(str::to_owned);
    if let Some(method) = &method {
        push(&mut attributes, attribute::RPC_METHOD, method.clone());
    }
    let socket = match endpoint.kind {
        Kind::Server => &endpoint.local,
        Kind::Client => &endpoint.peer,
    };
    let scheme = target.scheme().unwrap_or(endpoint.scheme());
    Server::of(named(&target, fields), socket, scheme).push(&mut attributes);
    push_peer(&mut attributes, ends);
    Draft {
        name: method.map_or(Cow::Borrowed(rpc.system()), Cow::Owned),
        rpc: Some(rpc),
        attributes,
    }
}

fn server_attributes(
    attributes: &mut Vec<Attribute>,
    ends: &Ends,
    target: &Target<'_>,
    fields: &Fields<'_>,
) {
    let scheme = fields.forwarded_proto.and_then(forwarded_scheme);
    let scheme = scheme.or(target.scheme()).unwrap_or(ends.endpoint.scheme());
    push(attributes, attribute::URL_SCHEME, scheme);
    if let Some((path, query)) = target.path_and_query() {
        push(attributes, attribute::URL_PATH, CompactString::new(path));
        if let Some(query) = query {
            push(attributes, attribute::URL_QUERY, redact::query(query));
        }
    }
    Server::of(named(target, fields), &ends.endpoint.local, scheme).push(attributes);
    push_client(attributes, ends, fields.forwarded, fields.forwarded_for);
}

fn client_attributes(
    attributes: &mut Vec<Attribute>,
    endpoint: &Endpoint,
    target: &Target<'_>,
    fields: &Fields<'_>,
) {
    let scheme = target.scheme().unwrap_or(endpoint.scheme());
    let server = Server::of(named(target, fields), &endpoint.peer, scheme);
    let full = match target {
        Target::Absolute(url) => redact::url(url).into(),
        Target::Authority(authority) => CompactString::new(authority),
        // RFC 9112, section 3.3: the asterisk stands for no path at all.
        Target::Asterisk => {
            format_compact!("{scheme}://{}", server.authority(host(fields), scheme))
        }
        Target::Origin(path) => {
            let authority = server.authority(host(fields), scheme);
            let url = format_compact!("{scheme}://{authority}{path}");
            match redact::url(&url) {
                Cow::Borrowed(_) => url,
                Cow::Owned(clean) => clean.into(),
            }
        }
    };
    push(attributes, attribute::URL_FULL, full);
    server.push(attributes);
}

/// What names the server: the target, else the `Host` field.
fn named<'a>(target: &'a Target<'_>, fields: &Fields<'a>) -> Option<&'a str> {
    target.authority().or_else(|| host(fields))
}

fn host<'a>(fields: &Fields<'a>) -> Option<&'a str> {
    fields.host.and_then(|host| str::from_utf8(host).ok())
}

pub(super) fn finish(draft: Draft, kind: Kind, result: Result) -> Details {
    let Draft {
        name,
        rpc,
        mut attributes,
    } = draft;
    // Of a call messages count and not bytes, and 200 is what each has.
    let is_call = rpc.is_some();
    if let Some(size) = result.request_size.filter(|_| !is_call) {
        push(
            &mut attributes,
            attribute::HTTP_REQUEST_BODY_SIZE,
            size_value(size),
        );
    }
    if let Some(status) = result.status.filter(|status| !is_call || *status != OK) {
        push(
            &mut attributes,
            attribute::HTTP_RESPONSE_STATUS_CODE,
            status,
        );
    }
    if let Some(size) = result.response_size.filter(|_| !is_call) {
        push(
            &mut attributes,
            attribute::HTTP_RESPONSE_BODY_SIZE,
            size_value(size),
        );
    }
    push_response_time(&mut attributes, result.waited_ns);
    if result.is_event_stream {
        push_event_stream(&mut attributes);
    }
    let error = result
        .status
        .filter(|&status| is_error(kind, status))
        .map(status_text);
    let error = error.or(match result.outcome {
        Outcome::Broken(error) => Some(CompactString::const_new(error)),
        _ => None,
    });
    let status = match &error {
        Some(_) => Status::Error(String::new()),
        None => Status::Unset,
    };
    if let Some(error) = error {
        push(&mut attributes, attribute::ERROR_TYPE, error);
    }
    let says_no_status = rpc.is_some_and(Rpc::has_status_in_body) && result.status == Some(OK);
    match result.outcome {
        Outcome::Unobserved(what) => push(&mut attributes, attribute::UNOBSERVED, what),
        Outcome::Complete if says_no_status => {
            push(&mut attributes, attribute::UNOBSERVED, RPC_STATUS);
        }
        Outcome::Complete | Outcome::Broken(_) => {}
    }
    Details {
        name,
        status,
        attributes,
    }
}

/// RFC 9112, section 3.2.
#[derive(Debug)]
enum Target<'a> {
    Origin(Cow<'a, str>),
    Absolute(Cow<'a, str>),
    Authority(Cow<'a, str>),
    Asterisk,
}

impl<'a> Target<'a> {
    fn of(line: &RequestLine<'a>) -> Self {
        let target = String::from_utf8_lossy(line.target);
        if line.method == "CONNECT" {
            Self::Authority(target)
        } else if target == "*" {
            Self::Asterisk
        } else if !target.starts_with('/') && target.contains("://") {
            Self::Absolute(target)
        } else {
            Self::Origin(target)
        }
    }

    fn scheme(&self) -> Option<&'static str> {
        let Self::Absolute(url) = self else {
            return None;
        };
        let (scheme, _) = url.split_once("://")?;
        known_scheme(scheme)
    }

    /// Host and port as the target has them.
    fn authority(&self) -> Option<&str> {
        match self {
            Self::Authority(authority) => Some(authority),
            Self::Absolute(url) => {
                let (_, rest) = url.split_once("://")?;
                let authority = rest.split(['/', '?', '#']).next()?;
                Some(
                    authority
                        .rsplit_once('@')
                        .map_or(authority, |(_, host)| host),
                )
            }
            Self::Origin(_) | Self::Asterisk => None,
        }
    }

    /// `None` for CONNECT, whose target has neither.
    fn path_and_query(&self) -> Option<(&str, Option<&str>)> {
        let from_path = match self {
            Self::Origin(path) => path.as_ref(),
            Self::Absolute(url) => {
                let (_, rest) = url.split_once("://")?;
                let path = rest.find(['/', '?']).and_then(|start| rest.get(start..));
                path.unwrap_or("/")
            }
            Self::Asterisk => "*",
            Self::Authority(_) => return None,
        };
        Some(match from_path.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (from_path, None),
        })
    }
}

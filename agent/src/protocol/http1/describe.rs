//! What a span says of one exchange: semantic conventions, docs/http/http-spans.md.

use std::borrow::Cow;

use compact_str::{CompactString, ToCompactString as _, format_compact};

use super::parse::{Fields, RequestLine, text};
use crate::protocol::{Address, Endpoint};
use crate::span::attribute::{self, Attribute, Value};
use crate::span::{Details, Kind, Status, redact};

/// Attributes of a usual server span: more only where a request is unusual.
const ATTRIBUTES: usize = 16;

/// The part of [`Details`] that the request decides.
#[derive(Debug)]
pub(super) struct Draft {
    name: &'static str,
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
    pub(super) outcome: Outcome,
}

/// What a connection is described by, fixed when its session begins.
#[derive(Debug)]
pub(super) struct Ends {
    pub(super) endpoint: Endpoint,
    /// The peer's address as text: one formatting for all requests of the connection.
    peer: CompactString,
}

impl Ends {
    pub(super) fn new(endpoint: Endpoint) -> Self {
        Self {
            peer: address(&endpoint.peer),
            endpoint,
        }
    }
}

pub(super) fn request(ends: &Ends, line: &RequestLine<'_>, fields: &Fields<'_>) -> Draft {
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
    match &endpoint.peer {
        Address::Inet { port, .. } => {
            let peer = ends.peer.clone();
            push(&mut attributes, attribute::NETWORK_PEER_ADDRESS, peer);
            push(&mut attributes, attribute::NETWORK_PEER_PORT, *port);
        }
        Address::Unix { .. } => {
            if !ends.peer.is_empty() {
                let peer = ends.peer.clone();
                push(&mut attributes, attribute::NETWORK_PEER_ADDRESS, peer);
            }
            push(&mut attributes, attribute::NETWORK_TRANSPORT, "unix");
        }
    }
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
        name: method.unwrap_or("HTTP"),
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
    let scheme = scheme.or(target.scheme()).unwrap_or("http");
    push(attributes, attribute::URL_SCHEME, scheme);
    if let Some((path, query)) = target.path_and_query() {
        push(attributes, attribute::URL_PATH, CompactString::new(path));
        if let Some(query) = query {
            push(attributes, attribute::URL_QUERY, redact::query(query));
        }
    }
    let server = Server::of(target, fields, &ends.endpoint.local, scheme);
    server.push(attributes);
    if let Some(client) = first_hop(fields) {
        push(
            attributes,
            attribute::CLIENT_ADDRESS,
            CompactString::new(client),
        );
    } else if let Address::Inet { .. } = &ends.endpoint.peer {
        push(attributes, attribute::CLIENT_ADDRESS, ends.peer.clone());
    }
}

fn client_attributes(
    attributes: &mut Vec<Attribute>,
    endpoint: &Endpoint,
    target: &Target<'_>,
    fields: &Fields<'_>,
) {
    let scheme = target.scheme().unwrap_or("http");
    let server = Server::of(target, fields, &endpoint.peer, scheme);
    let full = match target {
        Target::Absolute(url) => redact::url(url).into(),
        Target::Authority(authority) => CompactString::new(authority),
        // RFC 9112, section 3.3: the asterisk stands for no path at all.
        Target::Asterisk => format_compact!("http://{}", server.authority(fields)),
        Target::Origin(path) => {
            let url = format_compact!("http://{}{path}", server.authority(fields));
            match redact::url(&url) {
                Cow::Borrowed(_) => url,
                Cow::Owned(clean) => clean.into(),
            }
        }
    };
    push(attributes, attribute::URL_FULL, full);
    server.push(attributes);
}

pub(super) fn finish(draft: Draft, kind: Kind, result: Result) -> Details {
    let Draft {
        name,
        mut attributes,
    } = draft;
    if let Some(size) = result.request_size {
        push(
            &mut attributes,
            attribute::HTTP_REQUEST_BODY_SIZE,
            size_value(size),
        );
    }
    if let Some(status) = result.status {
        push(
            &mut attributes,
            attribute::HTTP_RESPONSE_STATUS_CODE,
            status,
        );
    }
    if let Some(size) = result.response_size {
        push(
            &mut attributes,
            attribute::HTTP_RESPONSE_BODY_SIZE,
            size_value(size),
        );
    }
    let error = result
        .status
        .filter(|&status| is_error(kind, status))
        .map(|status| status.to_compact_string());
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
    if let Outcome::Unobserved(what) = result.outcome {
        push(&mut attributes, attribute::UNOBSERVED, what);
    }
    Details {
        name: name.into(),
        status,
        attributes,
    }
}

/// 4xx is the client's doing, so no error of a server; what is no status of HTTP is one of both.
fn is_error(kind: Kind, status: u16) -> bool {
    match status {
        100..400 => false,
        400..500 => kind == Kind::Client,
        _ => true,
    }
}

fn size_value(size: u64) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}

fn push(attributes: &mut Vec<Attribute>, key: &'static str, value: impl Into<Value>) {
    attributes.push(Attribute::new(key, value));
}

/// Methods of RFC 9110 and RFC 5789, and QUERY; case counts.
fn known_method(method: &str) -> Option<&'static str> {
    const KNOWN: [&str; 10] = [
        "GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "CONNECT", "TRACE", "QUERY",
    ];
    KNOWN.into_iter().find(|known| *known == method)
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

fn known_scheme(scheme: &str) -> Option<&'static str> {
    ["http", "https", "ws", "wss"]
        .into_iter()
        .find(|known| scheme.eq_ignore_ascii_case(known))
}

/// The first scheme of a list, where it is one we know: anyone may send the field.
fn forwarded_scheme(value: &[u8]) -> Option<&'static str> {
    let first = str::from_utf8(value).ok()?.split(',').next()?;
    known_scheme(first.trim())
}

/// The logical destination of a request.
#[derive(Debug)]
struct Server {
    address: CompactString,
    port: Option<u16>,
}

impl Server {
    /// From the target, else the `Host` field, else the socket.
    fn of(target: &Target<'_>, fields: &Fields<'_>, socket: &Address, scheme: &str) -> Self {
        let host = || fields.host.and_then(|host| str::from_utf8(host).ok());
        let named = target
            .authority()
            .or_else(host)
            .filter(|authority| !authority.is_empty());
        if let Some((address, port)) = named.and_then(host_and_port) {
            let default = if matches!(scheme, "https" | "wss") {
                443
            } else {
                80
            };
            return Self {
                address: address.into(),
                port: port.or(Some(default)),
            };
        }
        Self {
            address: address(socket),
            port: match socket {
                Address::Inet { port, .. } => Some(*port),
                Address::Unix { .. } => None,
            },
        }
    }

    fn push(self, attributes: &mut Vec<Attribute>) {
        if !self.address.is_empty() {
            push(attributes, attribute::SERVER_ADDRESS, self.address);
            if let Some(port) = self.port {
                push(attributes, attribute::SERVER_PORT, port);
            }
        }
    }

    /// As it stands in a URL: the `Host` field itself, else made from the address.
    fn authority(&self, fields: &Fields<'_>) -> CompactString {
        let host = fields.host.and_then(|host| str::from_utf8(host).ok());
        if let Some(host) = host.filter(|host| !host.is_empty()) {
            return host.into();
        }
        let is_ipv6 = self.address.contains(':');
        let address = if is_ipv6 {
            format_compact!("[{}]", self.address)
        } else {
            self.address.clone()
        };
        match self.port {
            Some(port) if port != 80 => format_compact!("{address}:{port}"),
            _ => address,
        }
    }
}

/// An IP address, or the path of a unix socket.
fn address(address: &Address) -> CompactString {
    match address {
        Address::Inet { ip, .. } => ip.to_canonical().to_compact_string(),
        Address::Unix { path } => path.into(),
    }
}

/// `host`, `host:port`, `[v6]` or `[v6]:port`; the address is without brackets.
/// `None` where the port is no port: then nothing of it is believed.
fn host_and_port(authority: &str) -> Option<(&str, Option<u16>)> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']')?;
            (host, port.strip_prefix(':'))
        }
        None => match authority.rsplit_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    let port = match port {
        None | Some("") => None,
        Some(port) => Some(port.parse().ok()?),
    };
    (!host.is_empty()).then_some((host, port))
}

/// The client as the first proxy saw it: RFC 7239, section 4, else `X-Forwarded-For`. Hidden and
/// unknown ones are no addresses.
fn first_hop<'a>(fields: &Fields<'a>) -> Option<&'a str> {
    let forwarded = fields.forwarded.and_then(|value| {
        let first = str::from_utf8(value).ok()?.split(',').next()?;
        first.split(';').find_map(|pair| {
            let (key, value) = pair.split_once('=')?;
            key.trim()
                .eq_ignore_ascii_case("for")
                .then(|| value.trim().trim_matches('"'))
        })
    });
    let forwarded_for = || {
        str::from_utf8(fields.forwarded_for?)
            .ok()?
            .split(',')
            .next()
    };
    let hop = forwarded.or_else(forwarded_for)?.trim();
    if hop.is_empty() || hop.starts_with('_') || hop.eq_ignore_ascii_case("unknown") {
        return None;
    }
    // A bare IPv6 address has colons, and no port.
    match hop.parse::<std::net::Ipv6Addr>() {
        Ok(_) => Some(hop),
        Err(_) => host_and_port(hop).map(|(address, _)| address),
    }
}

//! What HTTP says alike in every version (RFC 9110), as attributes of spans: semantic
//! conventions, docs/http/http-spans.md.

use compact_str::{CompactString, ToCompactString as _, format_compact};

use super::{Address, Endpoint};
use crate::span::{
    Kind,
    attribute::{self, Attribute, Value},
};

/// What of an exchange was not observed, as `ebpf_agent.unobserved` says it, in the order of time.
pub(super) const REQUEST_HEAD: &str = "request_head";
pub(super) const RESPONSE: &str = "response";
pub(super) const RESPONSE_END: &str = "response_end";
pub(super) const RPC_STATUS: &str = "rpc_status";

pub(super) fn push(attributes: &mut Vec<Attribute>, key: &'static str, value: impl Into<Value>) {
    attributes.push(Attribute::new(key, value));
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

/// 4xx is the client's doing, so no error of a server; what is no status of HTTP is one of both.
pub(super) fn is_error(kind: Kind, status: u16) -> bool {
    match status {
        100..400 => false,
        400..500 => kind == Kind::Client,
        _ => true,
    }
}

pub(super) fn status_text(status: u16) -> CompactString {
    status.to_compact_string()
}

/// A number of digits alone; `None` where there are none, others, or too many.
pub(super) fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |number, digit| {
        let digit = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
        number.checked_mul(10)?.checked_add(digit)
    })
}

pub(super) fn size_value(size: u64) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}

pub(super) fn seconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e9
}

/// `waited_ns`: how long the first byte of the response took, where its end took longer.
pub(super) fn push_response_time(attributes: &mut Vec<Attribute>, waited_ns: Option<u64>) {
    if let Some(waited_ns) = waited_ns {
        let key = attribute::TIME_TO_FIRST_BYTE;
        push(attributes, key, seconds(waited_ns));
    }
}

const EVENT_STREAM: &str = "text/event-stream";

/// Whether a response with this content type lasts as long as someone listens: server-sent events,
/// <https://html.spec.whatwg.org/multipage/server-sent-events.html>, section 9.2.5.
pub(super) fn is_event_stream(content_type: &[u8]) -> bool {
    let essence = content_type.split(|byte| *byte == b';').next();
    let essence = essence.unwrap_or_default().trim_ascii();
    essence.eq_ignore_ascii_case(EVENT_STREAM.as_bytes())
}

/// Says that a span's duration is that of a stream of events.
pub(super) fn push_event_stream(attributes: &mut Vec<Attribute>) {
    let content_type = Value::StringArray(Box::new([EVENT_STREAM.to_owned()]));
    push(
        attributes,
        attribute::HTTP_RESPONSE_CONTENT_TYPE,
        content_type,
    );
}

/// Methods of RFC 9110 and RFC 5789, and QUERY; case counts.
pub(super) fn known_method(method: &str) -> Option<&'static str> {
    const KNOWN: [&str; 10] = [
        "GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "CONNECT", "TRACE", "QUERY",
    ];
    KNOWN.into_iter().find(|known| *known == method)
}

pub(super) fn known_scheme(scheme: &str) -> Option<&'static str> {
    ["http", "https", "ws", "wss"]
        .into_iter()
        .find(|known| scheme.eq_ignore_ascii_case(known))
}

/// The first scheme of a list, where it is one we know: anyone may send the field.
pub(super) fn forwarded_scheme(value: &[u8]) -> Option<&'static str> {
    let first = str::from_utf8(value).ok()?.split(',').next()?;
    known_scheme(first.trim())
}

/// The socket's other end.
pub(super) fn push_peer(attributes: &mut Vec<Attribute>, ends: &Ends) {
    match &ends.endpoint.peer {
        Address::Inet { port, .. } => {
            let peer = ends.peer.clone();
            push(attributes, attribute::NETWORK_PEER_ADDRESS, peer);
            push(attributes, attribute::NETWORK_PEER_PORT, *port);
        }
        Address::Unix { .. } => {
            if !ends.peer.is_empty() {
                let peer = ends.peer.clone();
                push(attributes, attribute::NETWORK_PEER_ADDRESS, peer);
            }
            push(attributes, attribute::NETWORK_TRANSPORT, "unix");
        }
        Address::Unknown => {}
    }
}

/// Who asked, by the first proxy's word, else by the socket.
pub(super) fn push_client(
    attributes: &mut Vec<Attribute>,
    ends: &Ends,
    forwarded: Option<&[u8]>,
    forwarded_for: Option<&[u8]>,
) {
    if let Some(client) = first_hop(forwarded, forwarded_for) {
        let client = CompactString::new(client);
        push(attributes, attribute::CLIENT_ADDRESS, client);
    } else if let Address::Inet { .. } = &ends.endpoint.peer {
        push(attributes, attribute::CLIENT_ADDRESS, ends.peer.clone());
    }
}

/// An IP address, or the path of a unix socket.
fn address(address: &Address) -> CompactString {
    match address {
        Address::Inet { ip, .. } => ip.to_canonical().to_compact_string(),
        Address::Unix { path } => path.into(),
        Address::Unknown => CompactString::default(),
    }
}

/// The logical destination of a request.
#[derive(Debug)]
pub(super) struct Server {
    address: CompactString,
    port: Option<u16>,
}

impl Server {
    /// From what names it (an authority or a `Host` field), else from the socket.
    pub(super) fn of(named: Option<&str>, socket: &Address, scheme: &str) -> Self {
        let named = named.filter(|authority| !authority.is_empty());
        if let Some((address, port)) = named.and_then(host_and_port) {
            return Self {
                address: address.into(),
                port: port.or(Some(default_port(scheme))),
            };
        }
        Self {
            address: address(socket),
            port: match socket {
                Address::Inet { port, .. } => Some(*port),
                Address::Unix { .. } | Address::Unknown => None,
            },
        }
    }

    pub(super) fn push(self, attributes: &mut Vec<Attribute>) {
        if !self.address.is_empty() {
            push(attributes, attribute::SERVER_ADDRESS, self.address);
            if let Some(port) = self.port {
                push(attributes, attribute::SERVER_PORT, port);
            }
        }
    }

    /// As it stands in a URL: what names it, else made from the address.
    pub(super) fn authority(&self, named: Option<&str>, scheme: &str) -> CompactString {
        if let Some(named) = named.filter(|named| !named.is_empty()) {
            return named.into();
        }
        let is_ipv6 = self.address.contains(':');
        let address = if is_ipv6 {
            format_compact!("[{}]", self.address)
        } else {
            self.address.clone()
        };
        match self.port {
            Some(port) if port != default_port(scheme) => format_compact!("{address}:{port}"),
            _ => address,
        }
    }
}

fn default_port(scheme: &str) -> u16 {
    match scheme {
        "https" | "wss" => 443,
        _ => 80,
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
fn first_hop<'a>(forwarded: Option<&'a [u8]>, forwarded_for: Option<&'a [u8]>) -> Option<&'a str> {
    let forwarded = forwarded.and_then(|value| {
        let first = str::from_utf8(value).ok()?.split(',').next()?;
        first.split(';').find_map(|pair| {
            let (key, value) = pair.split_once('=')?;
            key.trim()
                .eq_ignore_ascii_case("for")
                .then(|| value.trim().trim_matches('"'))
        })
    });
    let forwarded_for = || str::from_utf8(forwarded_for?).ok()?.split(',').next();
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

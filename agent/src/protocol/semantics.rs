//! What HTTP says alike in every version (RFC 9110), as attributes of spans: semantic
//! conventions, docs/http/http-spans.md.

use std::borrow::Cow;

use super::{Address, Endpoint};
use crate::span::{
    Kind,
    attribute::{self, Attribute, Value},
};

pub(super) fn push(attributes: &mut Vec<Attribute>, key: &'static str, value: impl Into<Value>) {
    attributes.push(Attribute::new(key, value));
}

/// 4xx is the client's doing, so no error of a server; what is no status of HTTP is one of both.
pub(super) fn is_error(kind: Kind, status: u16) -> bool {
    match status {
        100..400 => false,
        400..500 => kind == Kind::Client,
        _ => true,
    }
}

pub(super) fn status_text(status: u16) -> Cow<'static, str> {
    match status {
        404 => Cow::Borrowed("404"),
        500 => Cow::Borrowed("500"),
        502 => Cow::Borrowed("502"),
        503 => Cow::Borrowed("503"),
        _ => Cow::Owned(status.to_string()),
    }
}

pub(super) fn size_value(size: u64) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
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
pub(super) fn push_peer(attributes: &mut Vec<Attribute>, endpoint: &Endpoint) {
    match &endpoint.peer {
        Address::Inet { ip, port } => {
            let ip = ip.to_canonical().to_string();
            push(attributes, attribute::NETWORK_PEER_ADDRESS, ip);
            push(attributes, attribute::NETWORK_PEER_PORT, *port);
        }
        Address::Unix { path } => {
            if !path.is_empty() {
                push(attributes, attribute::NETWORK_PEER_ADDRESS, path.clone());
            }
            push(attributes, attribute::NETWORK_TRANSPORT, "unix");
        }
    }
}

/// Who asked, by the first proxy's word, else by the socket.
pub(super) fn push_client(
    attributes: &mut Vec<Attribute>,
    endpoint: &Endpoint,
    forwarded: Option<&[u8]>,
    forwarded_for: Option<&[u8]>,
) {
    if let Some(client) = first_hop(forwarded, forwarded_for) {
        push(attributes, attribute::CLIENT_ADDRESS, client);
    } else if let Address::Inet { ip, .. } = &endpoint.peer {
        let ip = ip.to_canonical().to_string();
        push(attributes, attribute::CLIENT_ADDRESS, ip);
    }
}

/// The logical destination of a request.
#[derive(Debug)]
pub(super) struct Server {
    address: String,
    port: Option<u16>,
}

impl Server {
    /// From what names it (an authority or a `Host` field), else from the socket.
    pub(super) fn of(named: Option<&str>, socket: &Address, scheme: &str) -> Self {
        let named = named.filter(|authority| !authority.is_empty());
        if let Some((address, port)) = named.and_then(host_and_port) {
            let default = if matches!(scheme, "https" | "wss") {
                443
            } else {
                80
            };
            return Self {
                address,
                port: port.or(Some(default)),
            };
        }
        match socket {
            Address::Inet { ip, port } => Self {
                address: ip.to_canonical().to_string(),
                port: Some(*port),
            },
            Address::Unix { path } => Self {
                address: path.clone(),
                port: None,
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
    pub(super) fn authority(&self, named: Option<&str>) -> String {
        if let Some(named) = named.filter(|named| !named.is_empty()) {
            return named.to_owned();
        }
        let is_ipv6 = self.address.contains(':');
        let address = if is_ipv6 {
            format!("[{}]", self.address)
        } else {
            self.address.clone()
        };
        match self.port {
            Some(port) if port != 80 => format!("{address}:{port}"),
            _ => address,
        }
    }
}

/// `host`, `host:port`, `[v6]` or `[v6]:port`; the address is without brackets.
/// `None` where the port is no port: then nothing of it is believed.
fn host_and_port(authority: &str) -> Option<(String, Option<u16>)> {
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
    (!host.is_empty()).then(|| (host.to_owned(), port))
}

/// The client as the first proxy saw it: RFC 7239, section 4, else `X-Forwarded-For`. Hidden and
/// unknown ones are no addresses.
fn first_hop(forwarded: Option<&[u8]>, forwarded_for: Option<&[u8]>) -> Option<String> {
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
        Ok(_) => Some(hop.to_owned()),
        Err(_) => host_and_port(hop).map(|(address, _)| address),
    }
}

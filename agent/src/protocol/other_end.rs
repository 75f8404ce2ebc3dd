//! What one end of a connection saw of an exchange and the other did not. Both ends see the same
//! bytes, so where both are watched and one of them is older than the agent, or lost records, the
//! other one's knowledge holds for both. Pure.

use super::http2::grpc;
use super::semantics::{REQUEST_HEAD, RESPONSE, RPC_STATUS, is_error, status_text};
use crate::span::attribute::{self, Attribute, Value, find};
use crate::span::{Details, Kind, Status};

/// What a request's head says alike to both ends.
const OF_HEAD: [&str; 10] = [
    attribute::RPC_SYSTEM_NAME,
    attribute::RPC_METHOD,
    attribute::RPC_TIMEOUT,
    attribute::HTTP_REQUEST_METHOD,
    attribute::HTTP_REQUEST_METHOD_ORIGINAL,
    attribute::URL_PATH,
    attribute::URL_QUERY,
    attribute::USER_AGENT_ORIGINAL,
    attribute::SERVER_ADDRESS,
    attribute::SERVER_PORT,
];

/// What a request of HTTP has and a call does not.
const NOT_OF_CALLS: [&str; 8] = [
    attribute::HTTP_REQUEST_METHOD,
    attribute::HTTP_REQUEST_METHOD_ORIGINAL,
    attribute::HTTP_REQUEST_BODY_SIZE,
    attribute::HTTP_RESPONSE_BODY_SIZE,
    attribute::URL_SCHEME,
    attribute::URL_PATH,
    attribute::URL_QUERY,
    attribute::URL_FULL,
];

/// The status of HTTP under which calls are answered, whatever became of them.
const USUAL: i64 = 200;

/// Whether the other end may know more.
#[must_use]
pub fn is_lacking(details: &Details) -> bool {
    [REQUEST_HEAD, RESPONSE, RPC_STATUS]
        .into_iter()
        .any(|what| lacks(details, what))
}

/// Takes over what the other end of the same exchange knows.
pub fn learn(kind: Kind, details: &mut Details, other: &Details) {
    if lacks(details, REQUEST_HEAD) && !lacks(other, REQUEST_HEAD) {
        learn_head(details, other);
    }
    for what in [RPC_STATUS, RESPONSE] {
        if lacks(details, what) && !lacks(other, what) {
            learn_status(kind, details, other, what);
        }
    }
}

fn lacks(details: &Details, what: &str) -> bool {
    let unobserved = find(&details.attributes, attribute::UNOBSERVED).and_then(Value::as_str);
    unobserved.is_some_and(|missing| missing.split(',').any(|known| known == what))
}

fn learn_head(details: &mut Details, other: &Details) {
    if find(&other.attributes, attribute::RPC_METHOD).is_some() {
        let is_usual = |known: &Attribute| {
            known.key == attribute::HTTP_RESPONSE_STATUS_CODE && known.value == Value::Int(USUAL)
        };
        let is_kept = |known: &Attribute| !NOT_OF_CALLS.contains(&&*known.key) && !is_usual(known);
        details.attributes.retain(is_kept);
    }
    for key in OF_HEAD {
        if let Some(value) = find(&other.attributes, key) {
            set(details, key, value.clone());
        }
    }
    // A client's span has the path within its URL.
    if find(&details.attributes, attribute::URL_PATH).is_none()
        && let Some(full) = find(&other.attributes, attribute::URL_FULL).and_then(Value::as_str)
        && let Some((_, rest)) = full.split_once("://")
    {
        let (before_query, query) = match rest.split_once('?') {
            Some((before, query)) => (before, Some(query.to_owned())),
            None => (rest, None),
        };
        let path = before_query.find('/').and_then(|at| before_query.get(at..));
        let path = path.unwrap_or("/").to_owned();
        set(details, attribute::URL_PATH, path.into());
        if let Some(query) = query {
            set(details, attribute::URL_QUERY, query.into());
        }
    }
    details.name.clone_from(&other.name);
    learned(details, REQUEST_HEAD);
}

/// The status, and what it means for this end. That of HTTP is none of a call's unless it is
/// unusual, and never the call's own.
fn learn_status(kind: Kind, details: &mut Details, other: &Details, what: &'static str) {
    if find(&details.attributes, attribute::ERROR_TYPE).is_some() {
        // It ended in its own way, whatever the other end said.
        return;
    }
    let is_call = find(&details.attributes, attribute::RPC_METHOD).is_some();
    let name = find(&other.attributes, attribute::RPC_RESPONSE_STATUS_CODE).and_then(Value::as_str);
    let status = match find(&other.attributes, attribute::HTTP_RESPONSE_STATUS_CODE) {
        Some(Value::Int(status)) => Some(*status),
        _ => None,
    };
    if name.is_none() && (status.is_none() || what == RPC_STATUS) {
        return;
    }
    let mut error = None;
    if let Some(status) = status
        && !(is_call && status == USUAL)
    {
        let key = attribute::HTTP_RESPONSE_STATUS_CODE;
        set(details, key, Value::Int(status));
        let status = u16::try_from(status).unwrap_or(u16::MAX);
        error = is_error(kind, status).then(|| status_text(status));
    }
    if let Some(name) = name {
        let key = attribute::RPC_RESPONSE_STATUS_CODE;
        set(details, key, name.to_owned().into());
        let is_error = grpc::code_of(name).is_some_and(|code| grpc::is_error(kind, code));
        error = is_error.then(|| name.into());
    }
    if let Some(error) = error {
        set(details, attribute::ERROR_TYPE, Value::String(error));
        details.status = Status::Error(String::new());
    }
    // When this end had its response stays unknown.
    if what != RESPONSE {
        learned(details, what);
    }
}

fn set(details: &mut Details, key: &'static str, value: Value) {
    match details.attributes.iter_mut().find(|known| known.key == key) {
        Some(known) => known.value = value,
        None => details.attributes.push(Attribute::new(key, value)),
    }
}

/// One thing less is unobserved.
fn learned(details: &mut Details, what: &str) {
    let missing = find(&details.attributes, attribute::UNOBSERVED).and_then(Value::as_str);
    let left: Vec<&str> = missing
        .unwrap_or_default()
        .split(',')
        .filter(|known| *known != what)
        .collect();
    let left = left.join(",");
    if left.is_empty() {
        let is_kept = |known: &Attribute| known.key != attribute::UNOBSERVED;
        details.attributes.retain(is_kept);
    } else {
        set(details, attribute::UNOBSERVED, left.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn details(name: &'static str, attributes: &[(&'static str, &'static str)]) -> Details {
        let attributes = attributes
            .iter()
            .map(|(key, value)| Attribute::new(*key, *value))
            .collect();
        Details {
            name: name.into(),
            status: Status::Unset,
            attributes,
        }
    }

    fn text<'a>(details: &'a Details, key: &str) -> Option<&'a str> {
        find(&details.attributes, key).and_then(Value::as_str)
    }

    /// A client joined late learns its call from the server, and what its status means for it.
    #[test]
    fn a_call_is_learned_from_its_server() {
        let mut client = details(
            "POST",
            &[
                (attribute::HTTP_REQUEST_METHOD, "POST"),
                (attribute::UNOBSERVED, "request_head,rpc_status"),
            ],
        );
        let server = details(
            "a.B/C",
            &[
                (attribute::RPC_SYSTEM_NAME, "grpc"),
                (attribute::RPC_METHOD, "a.B/C"),
                (attribute::RPC_RESPONSE_STATUS_CODE, "NOT_FOUND"),
            ],
        );
        learn(Kind::Client, &mut client, &server);
        assert_eq!(client.name, "a.B/C");
        assert_eq!(text(&client, attribute::RPC_METHOD), Some("a.B/C"));
        assert_eq!(text(&client, attribute::HTTP_REQUEST_METHOD), None);
        assert_eq!(text(&client, attribute::ERROR_TYPE), Some("NOT_FOUND"));
        assert_eq!(text(&client, attribute::UNOBSERVED), None);
        assert_eq!(client.status, Status::Error(String::new()));
    }

    /// What is known to be a call has no usual status of HTTP, whoever knew what first.
    #[test]
    fn a_call_has_no_usual_status() {
        let status = Attribute::new(attribute::HTTP_RESPONSE_STATUS_CODE, Value::Int(USUAL));
        let mut plain = details("POST", &[(attribute::UNOBSERVED, "request_head")]);
        plain.attributes.push(status.clone());
        let mut call = details(
            "a.B/C",
            &[
                (attribute::RPC_METHOD, "a.B/C"),
                (attribute::UNOBSERVED, "response,rpc_status"),
            ],
        );
        learn(Kind::Server, &mut call, &plain);
        assert_eq!(
            find(&call.attributes, attribute::HTTP_RESPONSE_STATUS_CODE),
            None
        );
        assert_eq!(
            text(&call, attribute::UNOBSERVED),
            Some("response,rpc_status")
        );
        learn(Kind::Client, &mut plain, &call);
        assert_eq!(
            find(&plain.attributes, attribute::HTTP_RESPONSE_STATUS_CODE),
            None
        );
        assert_eq!(text(&plain, attribute::RPC_METHOD), Some("a.B/C"));
    }

    /// A server learns its path from the client's URL; what neither saw stays unobserved.
    #[test]
    fn a_path_is_learned_from_the_url() {
        let mut server = details("HTTP", &[(attribute::UNOBSERVED, "request_head,response")]);
        let client = details(
            "GET",
            &[
                (attribute::HTTP_REQUEST_METHOD, "GET"),
                (attribute::URL_FULL, "http://h:1/a/b?c=d"),
                (attribute::UNOBSERVED, "response"),
            ],
        );
        learn(Kind::Server, &mut server, &client);
        assert_eq!(server.name, "GET");
        assert_eq!(text(&server, attribute::URL_PATH), Some("/a/b"));
        assert_eq!(text(&server, attribute::URL_QUERY), Some("c=d"));
        assert_eq!(text(&server, attribute::UNOBSERVED), Some("response"));
        assert!(is_lacking(&server));
    }
}

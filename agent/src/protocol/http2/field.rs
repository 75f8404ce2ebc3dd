//! Header fields: the names that matter to a span, HPACK's static table, and the fields of one
//! head put together.

use crate::protocol::{
    TraceHeaders,
    rpc::Rpc,
    semantics::{decimal, is_event_stream},
};

/// Names of fields that matter here; all others are alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Name {
    Authority,
    Method,
    Path,
    Scheme,
    Status,
    /// `:protocol` of extended CONNECT (RFC 8441).
    Protocol,
    ConnectProtocolVersion,
    ContentType,
    Forwarded,
    ForwardedFor,
    ForwardedProto,
    GrpcStatus,
    GrpcTimeout,
    Host,
    Traceparent,
    Tracestate,
    UserAgent,
    /// Known, and of no interest.
    Other,
    /// An entry of the dynamic table that was made before it was watched.
    Unknown,
}

impl Name {
    /// Field names are lower case in HTTP/2 (RFC 9113, section 8.2.1).
    pub(super) fn of(name: &[u8]) -> Self {
        match name {
            b":authority" => Self::Authority,
            b":method" => Self::Method,
            b":path" => Self::Path,
            b":scheme" => Self::Scheme,
            b":status" => Self::Status,
            b":protocol" => Self::Protocol,
            b"connect-protocol-version" => Self::ConnectProtocolVersion,
            b"content-type" => Self::ContentType,
            b"forwarded" => Self::Forwarded,
            b"x-forwarded-for" => Self::ForwardedFor,
            b"x-forwarded-proto" => Self::ForwardedProto,
            b"grpc-status" => Self::GrpcStatus,
            b"grpc-timeout" => Self::GrpcTimeout,
            b"host" => Self::Host,
            b"traceparent" => Self::Traceparent,
            b"tracestate" => Self::Tracestate,
            b"user-agent" => Self::UserAgent,
            _ => Self::Other,
        }
    }

    /// The name of a field whose value no other field has. Names of pseudo-header fields stand in
    /// the static table, so they are always known and never inferred: a path is never guessed.
    pub(super) fn inferred(value: &[u8]) -> Self {
        if is_traceparent(value) {
            Self::Traceparent
        } else if value.starts_with(b"application/grpc") {
            Self::ContentType
        } else if grpc_timeout(value).is_some() {
            Self::GrpcTimeout
        } else {
            Self::Unknown
        }
    }

    const fn is_pseudo(self) -> bool {
        matches!(
            self,
            Self::Authority
                | Self::Method
                | Self::Path
                | Self::Scheme
                | Self::Status
                | Self::Protocol
        )
    }
}

/// `00-`, 32 digits, `-`, 16 digits, `-`, 2 digits.
fn is_traceparent(value: &[u8]) -> bool {
    const SHAPE: &[u8] = b"00-################################-################-##";
    let fits = |(byte, shape): (&u8, &u8)| match shape {
        b'#' => matches!(byte, b'0'..=b'9' | b'a'..=b'f'),
        _ => byte == shape,
    };
    value.len() == SHAPE.len() && value.iter().zip(SHAPE).all(fits)
}

/// Nanoseconds of a `grpc-timeout`: up to eight digits and a unit (gRPC over HTTP/2, Requests).
pub(super) fn grpc_timeout(value: &[u8]) -> Option<u64> {
    let (unit, digits) = value.split_last()?;
    let unit_ns = match unit {
        b'H' => 3_600_000_000_000,
        b'M' => 60_000_000_000,
        b'S' => 1_000_000_000,
        b'm' => 1_000_000,
        b'u' => 1_000,
        b'n' => 1,
        _ => return None,
    };
    if !matches!(digits.len(), 1..=8) {
        return None;
    }
    decimal(digits)?.checked_mul(unit_ns)
}

/// Entries of the static table from index 1 on: RFC 7541, appendix A.
pub(super) static STATIC: [(Name, &[u8]); 61] = [
    (Name::Authority, b""),
    (Name::Method, b"GET"),
    (Name::Method, b"POST"),
    (Name::Path, b"/"),
    (Name::Path, b"/index.html"),
    (Name::Scheme, b"http"),
    (Name::Scheme, b"https"),
    (Name::Status, b"200"),
    (Name::Status, b"204"),
    (Name::Status, b"206"),
    (Name::Status, b"304"),
    (Name::Status, b"400"),
    (Name::Status, b"404"),
    (Name::Status, b"500"),
    (Name::Other, b""),              // accept-charset
    (Name::Other, b"gzip, deflate"), // accept-encoding
    (Name::Other, b""),              // accept-language
    (Name::Other, b""),              // accept-ranges
    (Name::Other, b""),              // accept
    (Name::Other, b""),              // access-control-allow-origin
    (Name::Other, b""),              // age
    (Name::Other, b""),              // allow
    (Name::Other, b""),              // authorization
    (Name::Other, b""),              // cache-control
    (Name::Other, b""),              // content-disposition
    (Name::Other, b""),              // content-encoding
    (Name::Other, b""),              // content-language
    (Name::Other, b""),              // content-length
    (Name::Other, b""),              // content-location
    (Name::Other, b""),              // content-range
    (Name::ContentType, b""),
    (Name::Other, b""), // cookie
    (Name::Other, b""), // date
    (Name::Other, b""), // etag
    (Name::Other, b""), // expect
    (Name::Other, b""), // expires
    (Name::Other, b""), // from
    (Name::Host, b""),
    (Name::Other, b""), // if-match
    (Name::Other, b""), // if-modified-since
    (Name::Other, b""), // if-none-match
    (Name::Other, b""), // if-range
    (Name::Other, b""), // if-unmodified-since
    (Name::Other, b""), // last-modified
    (Name::Other, b""), // link
    (Name::Other, b""), // location
    (Name::Other, b""), // max-forwards
    (Name::Other, b""), // proxy-authenticate
    (Name::Other, b""), // proxy-authorization
    (Name::Other, b""), // range
    (Name::Other, b""), // referer
    (Name::Other, b""), // refresh
    (Name::Other, b""), // retry-after
    (Name::Other, b""), // server
    (Name::Other, b""), // set-cookie
    (Name::Other, b""), // strict-transport-security
    (Name::Other, b""), // transfer-encoding
    (Name::UserAgent, b""),
    (Name::Other, b""), // vary
    (Name::Other, b""), // via
    (Name::Other, b""), // www-authenticate
];

/// The fields of one head, or of trailers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Fields {
    pub(super) method: Option<String>,
    pub(super) scheme: Option<String>,
    pub(super) authority: Option<String>,
    pub(super) path: Option<String>,
    pub(super) status: Option<u16>,
    pub(super) host: Option<String>,
    pub(super) content_type: Option<String>,
    pub(super) user_agent: Option<String>,
    pub(super) forwarded: Option<String>,
    pub(super) forwarded_for: Option<String>,
    pub(super) forwarded_proto: Option<String>,
    pub(super) trace: TraceHeaders,
    pub(super) grpc_status: Option<u64>,
    pub(super) grpc_timeout_ns: Option<u64>,
    pub(super) has_connect_version: bool,
    pub(super) has_pseudo: bool,
    /// Fields whose name or value is not known.
    pub(super) unknown: u32,
    traceparents: u32,
}

impl Fields {
    /// What kind of call it begins.
    pub(super) fn rpc(&self) -> Option<Rpc> {
        let content_type = self.content_type.as_deref().unwrap_or_default();
        Rpc::of(content_type, self.has_connect_version)
    }

    pub(super) fn is_event_stream(&self) -> bool {
        let content_type = self.content_type.as_deref().unwrap_or_default();
        is_event_stream(content_type.as_bytes())
    }

    /// Notes a field; `None` is a value that is not known.
    pub(super) fn take(&mut self, name: Name, value: Option<&[u8]>) {
        self.has_pseudo |= name.is_pseudo();
        let Some(value) = value.filter(|_| name != Name::Unknown) else {
            self.unknown += 1;
            return;
        };
        match name {
            Name::Other | Name::Unknown | Name::Protocol => {}
            Name::Status => self.status = status(value),
            Name::Traceparent => {
                self.traceparents += 1;
                self.trace.traceparent = (self.traceparents == 1).then(|| text(value));
            }
            Name::Tracestate => match &mut self.trace.tracestate {
                Some(joined) => {
                    joined.push(',');
                    joined.push_str(&text(value));
                }
                none => *none = Some(text(value)),
            },
            Name::GrpcStatus => self.grpc_status = decimal(value),
            Name::GrpcTimeout => self.grpc_timeout_ns = grpc_timeout(value),
            Name::ConnectProtocolVersion => self.has_connect_version = true,
            Name::Authority => first(&mut self.authority, value),
            Name::Method => first(&mut self.method, value),
            Name::Path => first(&mut self.path, value),
            Name::Scheme => first(&mut self.scheme, value),
            Name::ContentType => first(&mut self.content_type, value),
            Name::Forwarded => first(&mut self.forwarded, value),
            Name::ForwardedFor => first(&mut self.forwarded_for, value),
            Name::ForwardedProto => first(&mut self.forwarded_proto, value),
            Name::Host => first(&mut self.host, value),
            Name::UserAgent => first(&mut self.user_agent, value),
        }
    }
}

fn first(field: &mut Option<String>, value: &[u8]) {
    field.get_or_insert_with(|| text(value));
}

/// What is not UTF-8 is replaced.
fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value).into_owned()
}

/// Three digits.
fn status(value: &[u8]) -> Option<u16> {
    (value.len() == 3)
        .then(|| decimal(value))
        .flatten()
        .and_then(|code| u16::try_from(code).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Only values that no other field has tell their name; a path never does.
    #[test]
    fn names_are_inferred_from_unmistakable_values() {
        let traceparent = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(Name::inferred(traceparent), Name::Traceparent);
        assert_eq!(Name::inferred(b"application/grpc+proto"), Name::ContentType);
        assert_eq!(Name::inferred(b"999920u"), Name::GrpcTimeout);
        for other in [
            &b"/pkg.Service/Method"[..],
            b"01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            b"00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            b"123456789S",
            b"S",
            b"12",
            b"",
            b"200",
        ] {
            assert_eq!(Name::inferred(other), Name::Unknown, "{other:?}");
        }
    }

    /// Two `traceparent` fields are none (W3C Trace Context, section 3.2); states are joined.
    #[test]
    fn trace_headers_are_read_as_the_specification_says() {
        let mut fields = Fields::default();
        fields.take(Name::Traceparent, Some(b"a"));
        fields.take(Name::Tracestate, Some(b"x=1"));
        fields.take(Name::Tracestate, Some(b"y=2"));
        assert_eq!(fields.trace.traceparent.as_deref(), Some("a"));
        assert_eq!(fields.trace.tracestate.as_deref(), Some("x=1,y=2"));
        fields.take(Name::Traceparent, Some(b"a"));
        assert_eq!(fields.trace.traceparent, None);
    }

    #[test]
    fn timeouts_have_units() {
        assert_eq!(grpc_timeout(b"1H"), Some(3_600_000_000_000));
        assert_eq!(grpc_timeout(b"2M"), Some(120_000_000_000));
        assert_eq!(grpc_timeout(b"3S"), Some(3_000_000_000));
        assert_eq!(grpc_timeout(b"4m"), Some(4_000_000));
        assert_eq!(grpc_timeout(b"99999999u"), Some(99_999_999_000));
        assert_eq!(grpc_timeout(b"5n"), Some(5));
    }
}

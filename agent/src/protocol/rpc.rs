//! What tells a call from any other request of HTTP, in whatever version: gRPC, gRPC-Web,
//! <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-WEB.md>, and Connect,
//! <https://connectrpc.com/docs/protocol/>. Pure.

/// What kind of call a head begins, by its content type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rpc {
    /// Of HTTP/2 only.
    Grpc,
    /// Its status stands in the last message of the body, which is not read.
    GrpcWeb,
    /// Messages in envelopes like gRPC's; the status stands in the last one.
    ConnectStreaming,
    /// One message without an envelope; the status is that of HTTP.
    ConnectUnary,
}

impl Rpc {
    /// `has_connect_version`: the head has a field `Connect-Protocol-Version`.
    pub(super) fn of(content_type: &str, has_connect_version: bool) -> Option<Self> {
        let is = |prefix: &str| {
            content_type
                .strip_prefix(prefix)
                .is_some_and(|rest| matches!(rest.bytes().next(), None | Some(b'+' | b';' | b' ')))
        };
        if is("application/grpc") {
            Some(Self::Grpc)
        } else if is("application/grpc-web") || is("application/grpc-web-text") {
            Some(Self::GrpcWeb)
        } else if is("application/connect") {
            Some(Self::ConnectStreaming)
        } else if has_connect_version {
            Some(Self::ConnectUnary)
        } else {
            None
        }
    }

    /// `rpc.system.name`.
    pub(super) const fn system(self) -> &'static str {
        match self {
            Self::Grpc | Self::GrpcWeb => "grpc",
            Self::ConnectStreaming | Self::ConnectUnary => "connectrpc",
        }
    }

    /// Messages have their length before them. That of gRPC-Web as text is coded with them.
    pub(super) const fn has_envelopes(self) -> bool {
        !matches!(self, Self::ConnectUnary)
    }

    /// What says how a call ended is in the body, where HTTP says that all went well.
    pub(super) const fn has_status_in_body(self) -> bool {
        matches!(self, Self::GrpcWeb | Self::ConnectStreaming)
    }
}

/// `package.Service/Method`, when a path is one.
pub(super) fn method(path: &str) -> Option<&str> {
    let method = path.strip_prefix('/')?;
    let (service, name) = method.rsplit_once('/')?;
    (!service.is_empty() && !name.is_empty()).then_some(method)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_recognised_by_content_type() {
        let of = |content_type| Rpc::of(content_type, false);
        assert_eq!(of("application/grpc"), Some(Rpc::Grpc));
        assert_eq!(of("application/grpc+proto"), Some(Rpc::Grpc));
        assert_eq!(of("application/grpc;charset=x"), Some(Rpc::Grpc));
        assert_eq!(of("application/grpc-web+proto"), Some(Rpc::GrpcWeb));
        assert_eq!(of("application/grpc-web-text"), Some(Rpc::GrpcWeb));
        assert_eq!(of("application/connect+json"), Some(Rpc::ConnectStreaming));
        assert_eq!(of("application/grpcish"), None);
        assert_eq!(of("application/json"), None);
        assert_eq!(Rpc::of("application/proto", true), Some(Rpc::ConnectUnary));
    }

    #[test]
    fn a_path_of_two_parts_is_a_method() {
        assert_eq!(
            method("/helloworld.Greeter/SayHello"),
            Some("helloworld.Greeter/SayHello")
        );
        assert_eq!(method("/a/b/c"), Some("a/b/c"));
        for none in ["", "/", "/a", "/a/", "//b", "a/b"] {
            assert_eq!(method(none), None, "{none}");
        }
    }
}

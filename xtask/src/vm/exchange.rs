//! What is asked of the servers in a guest, and the spans that it must leave.

use std::{collections::HashMap, path::Path};

use serde_json::Value;

/// One side of a call, as its span names it: kind and executable.
type Hop = (&'static str, &'static str);

const CURL: Hop = ("client", "curl");
const PYTHON: Hop = ("server", "python");
const NGINX_IN: Hop = ("server", "nginx");
const NGINX_OUT: Hop = ("client", "nginx");
const NODE: Hop = ("server", "node");
const GO_IN: Hop = ("server", "go-server");
const GO_OUT: Hop = ("client", "go-server");

/// A request with a path of its own, and the spans it must leave, each the parent of the next.
pub(super) struct Exchange {
    /// What it proves.
    pub(super) name: &'static str,
    pub(super) path: &'static str,
    pub(super) method: &'static str,
    pub(super) status: u64,
    pub(super) via: Via,
    hops: &'static [Hop],
}

#[derive(Clone, Copy)]
pub(super) enum Via {
    Python,
    Nginx,
    NginxByIpv6,
    NginxByHttp2,
    /// A method of the server by Node; the path is the method's.
    Grpc,
    NginxByUnixSocket,
    NginxByTls,
    /// By a server whose TLS records the kernel makes and opens, a file first and then on the same
    /// connection what [`Via::SameConnection`] asks for.
    NginxByKernelTls,
    /// The server by Go, by HTTP/2 inside TLS; it calls Python's for the path.
    Go,
    /// The last of [`SHORT`] connections, one after the other: each may get the address of the
    /// one before.
    NginxByShortUnixSockets,
    /// The file server, and then on the same connection what [`Via::SameConnection`] asks for.
    NginxTwice,
    SameConnection,
}

/// Before a path that the server by Go calls Python's for.
pub(super) const CALL: &str = "/call";

/// What is asked for on a connection that sent a file before.
pub(super) const NEXT: &str = "/next";
pub(super) const NEXT_BY_KERNEL_TLS: &str = "/next/by/kernel/tls";

/// What the kernel did of TLS, one count a line, where it can.
pub(super) const TLS_COUNTS: &str = "/proc/net/tls_stat";

const EXCHANGES: [Exchange; 15] = [
    Exchange {
        name: "IPv4",
        path: "/plain",
        method: "GET",
        status: 200,
        via: Via::Python,
        hops: &[CURL, PYTHON],
    },
    Exchange {
        name: "error status",
        path: "/missing",
        method: "GET",
        status: 404,
        via: Via::Python,
        hops: &[CURL, PYTHON],
    },
    Exchange {
        name: "request body",
        path: "/body",
        method: "POST",
        status: 200,
        via: Via::Nginx,
        hops: &[CURL, NGINX_IN],
    },
    Exchange {
        name: "IPv6",
        path: "/six",
        method: "GET",
        status: 200,
        via: Via::NginxByIpv6,
        hops: &[CURL, NGINX_IN],
    },
    Exchange {
        name: "HTTP/2",
        path: "/two",
        method: "GET",
        status: 200,
        via: Via::NginxByHttp2,
        hops: &[CURL, NGINX_IN],
    },
    Exchange {
        name: "gRPC",
        path: "/test.Store/Find",
        method: "POST",
        status: 200,
        via: Via::Grpc,
        hops: &[CURL, NODE],
    },
    Exchange {
        name: "unix socket",
        path: "/unix",
        method: "GET",
        status: 200,
        via: Via::NginxByUnixSocket,
        hops: &[CURL, NGINX_IN],
    },
    Exchange {
        name: "short unix sockets",
        path: "/short",
        method: "GET",
        status: 200,
        via: Via::NginxByShortUnixSockets,
        hops: &[CURL, NGINX_IN],
    },
    Exchange {
        name: "sendfile",
        path: "/files/large",
        method: "GET",
        status: 200,
        via: Via::NginxTwice,
        hops: &[CURL, NGINX_IN],
    },
    Exchange {
        name: "after sendfile",
        path: NEXT,
        method: "GET",
        status: 200,
        via: Via::SameConnection,
        hops: &[CURL, NGINX_IN],
    },
    Exchange {
        name: "HTTPS",
        path: "/secret",
        method: "GET",
        status: 200,
        via: Via::NginxByTls,
        hops: &[CURL, NGINX_IN],
    },
    Exchange {
        name: "kTLS, sendfile",
        path: "/files/private",
        method: "GET",
        status: 200,
        via: Via::NginxByKernelTls,
        hops: &[CURL, NGINX_IN],
    },
    Exchange {
        name: "kTLS, after sendfile",
        path: NEXT_BY_KERNEL_TLS,
        method: "GET",
        status: 200,
        via: Via::SameConnection,
        hops: &[CURL, NGINX_IN],
    },
    Exchange {
        name: "proxy",
        path: "/proxied",
        method: "GET",
        status: 200,
        via: Via::Nginx,
        hops: &[CURL, NGINX_IN, NGINX_OUT, PYTHON],
    },
    Exchange {
        name: "Go, HTTP/2 inside TLS",
        path: "/called",
        method: "GET",
        status: 200,
        via: Via::Go,
        hops: &[CURL, GO_IN, GO_OUT, PYTHON],
    },
];

/// Those that this kernel can have.
pub(super) fn exchanges() -> impl Iterator<Item = &'static Exchange> {
    let has_kernel_tls = Path::new(TLS_COUNTS).exists();
    EXCHANGES
        .iter()
        .filter(move |exchange| has_kernel_tls || !exchange.needs_kernel_tls())
}

/// The spans the agent wrote, one JSON object a line; half a line at the end is left out.
pub(super) fn spans(text: &str) -> Vec<Value> {
    text.lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect()
}

impl Exchange {
    fn needs_kernel_tls(&self) -> bool {
        matches!(self.via, Via::NginxByKernelTls) || self.path == NEXT_BY_KERNEL_TLS
    }

    /// What is wrong with the spans of this request.
    pub(super) fn fault(&self, spans: &[Value]) -> Option<String> {
        let own: Vec<&Value> = spans.iter().filter(|span| self.is_about(span)).collect();
        let mut by_hop: HashMap<Hop, &Value> = HashMap::new();
        for hop in self.hops {
            let (kind, program) = *hop;
            let mut found = own.iter().filter(|span| {
                let executable = text(span, &["resource", "process.executable.name"]);
                text(span, &["kind"]) == kind && executable.starts_with(program)
            });
            let Some(span) = found.next() else {
                return Some(format!("no {kind} span of {program}"));
            };
            if found.next().is_some() {
                return Some(format!("two {kind} spans of {program}"));
            }
            by_hop.insert(*hop, span);
        }
        if own.len() != self.hops.len() {
            return Some(format!(
                "{} spans instead of {}",
                own.len(),
                self.hops.len()
            ));
        }
        let in_order: Vec<_> = self.hops.iter().map(|hop| (hop, by_hop[hop])).collect();
        let wrong = in_order
            .iter()
            .find_map(|(hop, span)| self.wrong_content(**hop, span));
        let apart = in_order
            .windows(2)
            .find(|pair| !is_parent(pair[0].1, pair[1].1));
        wrong.or_else(|| {
            apart.map(|pair| {
                let ((from, client), (to, server)) = (pair[0].0, pair[1].0);
                format!("{to} of {server} is no child of {from} of {client}")
            })
        })
    }

    fn is_about(&self, span: &Value) -> bool {
        let attribute = |key| text(span, &["attributes", key]);
        let is_relayed = || {
            let called = attribute("url.path").strip_prefix(CALL);
            matches!(self.via, Via::Go) && called == Some(self.path)
        };
        attribute("url.path") == self.path
            || is_relayed()
            || attribute("url.full").ends_with(self.path)
            || self.path.strip_prefix('/') == Some(attribute("rpc.method"))
    }

    fn wrong_content(&self, (kind, program): Hop, span: &Value) -> Option<String> {
        if matches!(self.via, Via::Grpc) {
            let status = text(span, &["attributes", "rpc.response.status_code"]);
            return (status != "OK")
                .then(|| format!("{kind} span of {program} says status {status:?}"));
        }
        let method = text(span, &["attributes", "http.request.method"]);
        let status = span["attributes"]["http.response.status_code"].as_u64();
        if method != self.method {
            return Some(format!("{kind} span of {program} says {method}"));
        }
        (status != Some(self.status))
            .then(|| format!("{kind} span of {program} says status {status:?}"))
    }
}

fn is_parent(parent: &Value, child: &Value) -> bool {
    let same_trace = text(parent, &["trace_id"]) == text(child, &["trace_id"]);
    same_trace && text(parent, &["span_id"]) == text(child, &["parent_span_id"])
}

/// A string inside a span; empty where there is none.
fn text<'a>(span: &'a Value, path: &[&str]) -> &'a str {
    let mut value = span;
    for name in path {
        value = &value[*name];
    }
    value.as_str().unwrap_or_default()
}

use std::collections::BTreeMap;

use super::*;

fn read(environment: &[(&str, &str)]) -> (Result<Config, ConfigError>, Vec<String>) {
    let environment: BTreeMap<_, _> = environment.iter().copied().collect();
    let mut warnings = vec![];
    let lookup = |name: &str| environment.get(name).map(|value| (*value).to_owned());
    (Config::from_lookup(&lookup, &mut warnings), warnings)
}

fn valid(environment: &[(&str, &str)]) -> Config {
    let (config, warnings) = read(environment);
    assert_eq!(warnings, Vec::<String>::new(), "{environment:?}");
    config.expect("the environment is valid")
}

/// Endpoint and protocol over a table of environments: the specification's examples first.
#[test]
fn endpoints() {
    const GENERAL: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
    const TRACES: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
    const PROTOCOL: &str = "OTEL_EXPORTER_OTLP_PROTOCOL";
    const TRACES_PROTOCOL: &str = "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL";
    const INSECURE: &str = "OTEL_EXPORTER_OTLP_INSECURE";
    use Protocol::{Grpc, HttpJson, HttpProtobuf};
    type Row<'a> = (&'a [(&'a str, &'a str)], Protocol, &'a str);
    let table: &[Row<'_>] = &[
        (&[], HttpProtobuf, "http://localhost:4318/v1/traces"),
        (&[(PROTOCOL, "GRPC")], Grpc, "http://localhost:4317/"),
        (
            &[(PROTOCOL, "http/json")],
            HttpJson,
            "http://localhost:4318/v1/traces",
        ),
        (
            &[(GENERAL, "")],
            HttpProtobuf,
            "http://localhost:4318/v1/traces",
        ),
        (
            &[(GENERAL, "http://collector:4318")],
            HttpProtobuf,
            "http://collector:4318/v1/traces",
        ),
        (
            &[(GENERAL, "http://collector:4318/")],
            HttpProtobuf,
            "http://collector:4318/v1/traces",
        ),
        (
            &[(GENERAL, "http://collector:4318/mycollector/")],
            HttpProtobuf,
            "http://collector:4318/mycollector/v1/traces",
        ),
        (
            &[(GENERAL, "https://api.example.com/otlp?tenant=a")],
            HttpProtobuf,
            "https://api.example.com/otlp/v1/traces?tenant=a",
        ),
        (
            &[(TRACES, "http://collector:4318")],
            HttpProtobuf,
            "http://collector:4318/",
        ),
        (
            &[(TRACES, "http://collector:4318/a")],
            HttpProtobuf,
            "http://collector:4318/a",
        ),
        (
            &[(TRACES, "http://b:1/x"), (GENERAL, "http://c:2")],
            HttpProtobuf,
            "http://b:1/x",
        ),
        (
            &[(TRACES, " "), (GENERAL, "http://c:2")],
            HttpProtobuf,
            "http://c:2/v1/traces",
        ),
        (
            &[(GENERAL, "http://[::1]:4318")],
            HttpProtobuf,
            "http://[::1]:4318/v1/traces",
        ),
        (
            &[(GENERAL, "http://10.0.0.1:4317")],
            Grpc,
            "http://10.0.0.1:4317/",
        ),
        (
            &[(GENERAL, "http://c:4317"), (PROTOCOL, "http/protobuf")],
            HttpProtobuf,
            "http://c:4317/v1/traces",
        ),
        (&[(GENERAL, "c:4317")], Grpc, "https://c:4317/"),
        (
            &[(GENERAL, "c:4317"), (INSECURE, "True")],
            Grpc,
            "http://c:4317/",
        ),
        (
            &[
                (GENERAL, "c:4317"),
                ("OTEL_EXPORTER_OTLP_SPAN_INSECURE", "true"),
            ],
            Grpc,
            "http://c:4317/",
        ),
        (
            &[(GENERAL, "https://c:4317"), (INSECURE, "true")],
            Grpc,
            "https://c:4317/",
        ),
        (
            &[
                (PROTOCOL, "http/protobuf"),
                (TRACES_PROTOCOL, "grpc"),
                (GENERAL, "http://c:9"),
            ],
            Grpc,
            "http://c:9/",
        ),
    ];
    for (environment, protocol, endpoint) in table {
        let config = valid(environment);
        assert_eq!(config.protocol, *protocol, "{environment:?}");
        assert_eq!(config.endpoint.to_string(), *endpoint, "{environment:?}");
    }
}

/// An endpoint nobody can use names the variable, the cause and the next step.
#[test]
fn unusable_endpoints_are_errors() {
    let table = [
        ("collector:4318", "no scheme"),
        ("ftp://collector:4318", "neither http nor https"),
        ("http://", "`http://`"),
        ("http://:4318", "`http://:4318`"),
        ("http://collector:99999", "`http://collector:99999`"),
        ("http://collector:0", "port"),
        ("http://a b:4318", "`http://a b:4318`"),
        ("unix:///run/otlp.sock", "`unix:///run/otlp.sock`"),
    ];
    for (value, cause) in table {
        let (config, _) = read(&[("OTEL_EXPORTER_OTLP_ENDPOINT", value)]);
        let message = config.expect_err(value).to_string();
        assert!(
            message.starts_with("OTEL_EXPORTER_OTLP_ENDPOINT is "),
            "{message}"
        );
        assert!(message.contains(cause), "{message}");
        assert!(
            message.contains("write it as http://HOST:PORT"),
            "{message}"
        );
    }
    let (config, _) = read(&[(
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
        "http://me:secret@host",
    )]);
    let message = config
        .expect_err("credentials do not belong there")
        .to_string();
    assert!(!message.contains("secret"), "{message}");
    assert!(message.contains("OTEL_EXPORTER_OTLP_HEADERS"), "{message}");
}

/// Headers are percent-decoded, trimmed, sensitive, and replaced by the signal's form.
#[test]
fn header_pairs() {
    let config = valid(&[(
        "OTEL_EXPORTER_OTLP_HEADERS",
        "Authorization=Basic%20dXNlcjpwYXNz, x-tenant = a=b ,,x-percent=100%,x-euro=%E2%82%AC",
    )]);
    let shown: Vec<(&str, &[u8])> = config
        .headers
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_bytes()))
        .collect();
    assert_eq!(
        shown,
        [
            ("authorization", &b"Basic dXNlcjpwYXNz"[..]),
            ("x-tenant", b"a=b"),
            ("x-percent", b"100%"),
            ("x-euro", "\u{20ac}".as_bytes()),
        ]
    );
    assert!(
        !format!("{config:?}").contains("dXNlcjpwYXNz"),
        "values are secret"
    );
    let config = valid(&[
        ("OTEL_EXPORTER_OTLP_HEADERS", "a=1,b=2"),
        ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "c=3"),
    ]);
    assert_eq!(config.headers.len(), 1);
}

/// A bad entry is left out with a warning that does not repeat its value.
#[test]
fn bad_headers_warn() {
    let (config, warnings) = read(&[(
        "OTEL_EXPORTER_OTLP_HEADERS",
        "good=1,secret-without-key,bad key=secret,x=secret%0Ainjected,content-type=secret",
    )]);
    assert_eq!(config.expect("bad headers are no error").headers.len(), 1);
    assert_eq!(warnings.len(), 4, "{warnings:?}");
    for warning in warnings {
        assert!(
            warning.starts_with("OTEL_EXPORTER_OTLP_HEADERS: entry "),
            "{warning}"
        );
        assert!(!warning.contains("secret"), "{warning}");
    }
}

/// Numbers and enumerations: case-insensitive, signal before general, bad values fall back.
#[test]
fn timeout_and_compression() {
    let config = valid(&[]);
    assert_eq!(
        (config.timeout, config.compression),
        (DEFAULT_TIMEOUT, Compression::None)
    );
    let config = valid(&[
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "1"),
        ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "2500"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "GZip"),
    ]);
    assert_eq!(config.timeout, Duration::from_millis(2500));
    assert_eq!(config.compression, Compression::Gzip);
    assert_eq!(
        valid(&[("OTEL_EXPORTER_OTLP_TIMEOUT", "0")]).timeout,
        Duration::MAX
    );
    let zstd = valid(&[("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "zstd")]);
    assert_eq!(zstd.compression, Compression::Zstd);
    let (config, warnings) = read(&[
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "brotli"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "thrift"),
    ]);
    let config = config.expect("bad values are no error");
    assert_eq!(
        (config.timeout, config.compression),
        (DEFAULT_TIMEOUT, Compression::None)
    );
    assert_eq!(config.protocol, Protocol::HttpProtobuf);
    assert_eq!(warnings.len(), 3, "{warnings:?}");
}

/// Certificate files are named with their variable; half an identity is an error.
#[test]
fn certificates() {
    let file = |variable, path: &str| FileSetting {
        variable,
        path: path.into(),
    };
    let config = valid(&[
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/ca.pem"),
        ("OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY", "/key.pem"),
        ("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", "/cert.pem"),
    ]);
    assert_eq!(
        config.tls,
        Tls {
            roots: Some(file("OTEL_EXPORTER_OTLP_CERTIFICATE", "/ca.pem")),
            client: Some(ClientIdentity {
                certificate: file("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", "/cert.pem"),
                key: file("OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY", "/key.pem"),
            }),
        }
    );
    for name in [
        "OTEL_EXPORTER_OTLP_CLIENT_KEY",
        "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE",
    ] {
        let message = read(&[(name, "/x.pem")])
            .0
            .expect_err("half an identity")
            .to_string();
        assert!(message.starts_with(name), "{message}");
    }
}

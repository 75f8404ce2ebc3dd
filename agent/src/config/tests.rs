#![expect(
    clippy::disallowed_methods,
    reason = "edge: writes settings files to be read"
)]

use std::{fs, path::PathBuf};

use super::*;

type Pairs<'a> = &'a [(&'a str, &'a str)];

/// A file of settings that is removed with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str, text: &str) -> Self {
        let path = std::env::temp_dir().join(format!("agent-{}-{name}.yaml", std::process::id()));
        fs::write(&path, text).expect("scratch space");
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(fs::remove_file(&self.0));
    }
}

fn gather(flags: Pairs<'_>, environment: Pairs<'_>) -> Result<(Config, Vec<String>), Failure> {
    gather_with(flags, environment, Vec::new())
}

fn gather_with(
    flags: Pairs<'_>,
    environment: Pairs<'_>,
    command: Vec<OsString>,
) -> Result<(Config, Vec<String>), Failure> {
    let mut given = Flags::new();
    for &(key, value) in flags {
        let known = ["config"]
            .into_iter()
            .chain(setting::SETTINGS.iter().map(|row| row.key));
        let key = known
            .into_iter()
            .find(|known| *known == key)
            .expect("a known flag");
        given.entry(key).or_default().push(value.to_owned());
    }
    let lookup = |name: &str| {
        environment
            .iter()
            .find(|(key, _)| *key == name)
            .map(|(_, value)| (*value).to_owned())
    };
    Config::gather(&given, command, &lookup)
}

fn config(flags: Pairs<'_>, environment: Pairs<'_>) -> Config {
    let (config, warnings) = gather(flags, environment).expect("valid settings");
    assert_eq!(warnings, Vec::<String>::new());
    config
}

/// Built-in, then file, then environment, then flag; an empty variable is unset.
#[test]
fn precedence() {
    assert_eq!(config(&[], &[]).log_level, LogLevel::Info);

    let file = Scratch::new("precedence", "log-level: warn\nlisten: 127.0.0.1:1\n");
    let path = file.0.to_str().expect("a plain path");
    let by_flag = [("config", path)];
    assert_eq!(config(&by_flag, &[]).log_level, LogLevel::Warn);
    assert_eq!(
        config(&[], &[("EBPF_AGENT_CONFIG", path)]).log_level,
        LogLevel::Warn
    );
    assert_eq!(
        config(&by_flag, &[("EBPF_AGENT_LOG_LEVEL", "")]).log_level,
        LogLevel::Warn
    );

    let variables = [
        ("OTEL_LOG_LEVEL", "error"),
        ("OTEL_EBPF_LOG_LEVEL", "TRACE"),
        ("EBPF_AGENT_LOG_LEVEL", "debug"),
    ];
    assert_eq!(config(&by_flag, &variables[..1]).log_level, LogLevel::Error);
    assert_eq!(config(&by_flag, &variables[..2]).log_level, LogLevel::Trace);
    let all = config(&by_flag, &variables);
    assert_eq!(all.log_level, LogLevel::Debug);
    assert_eq!(all.listen, Some("127.0.0.1:1".parse().expect("an address")));

    let flags = [("config", path), ("log-level", "info")];
    assert_eq!(config(&flags, &variables).log_level, LogLevel::Info);
}

/// What to trace comes from the highest source that says anything about it, as a whole.
#[test]
fn selections_replace_each_other() {
    let variables = [
        ("EBPF_AGENT_PORT", "80, 8000-8999"),
        ("EBPF_AGENT_EXE", "/opt/{a,b}"),
    ];
    let selection = config(&[], &variables).selection;
    assert!(selection.ports.contains(80) && selection.ports.contains(8500));
    assert_eq!(selection.executables.len(), 1);

    let selection = config(&[("pid", "7,8"), ("pid", "9")], &variables).selection;
    assert_eq!(selection.pids, [7, 8, 9].into());
    assert!(selection.ports.is_empty() && selection.executables.is_empty() && !selection.all);

    let command = vec![OsString::from("true")];
    let (config, _) = gather_with(&[], &variables, command).expect("valid settings");
    assert!(config.selection.is_empty());
    assert!(config.require_targets().is_ok());
}

/// Names of OBI mean the same; ours win.
#[test]
fn names_of_others() {
    let foreign = [
        ("OTEL_EBPF_OPEN_PORT", "80-81"),
        ("OTEL_EBPF_TARGET_PID", "5"),
        ("OTEL_EBPF_AUTO_TARGET_EXE", "*node*"),
        ("OTEL_EBPF_BPF_CONTEXT_PROPAGATION", "disabled"),
    ];
    let selection = config(&[], &foreign).selection;
    assert!(selection.ports.contains(81) && selection.pids.contains(&5));
    assert_eq!(selection.executables.len(), 1);

    let both = [("OTEL_EBPF_OPEN_PORT", "80"), ("EBPF_AGENT_PORT", "90")];
    let ports = config(&[], &both).selection.ports;
    assert!(ports.contains(90) && !ports.contains(80));
}

/// Where spans go, by what is said about it.
#[test]
fn exporters_of_each_setting() {
    use Exporter::{Console, Json, Otlp};

    let endpoint = (
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
        "http://localhost:4318/v1/traces",
    );
    let table: [(Pairs<'_>, Pairs<'_>, &[Exporter]); 14] = [
        (&[], &[], &[Console]),
        (&[], &[("OTEL_EXPORTER_OTLP_ENDPOINT", "")], &[Console]),
        (
            &[],
            &[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4317")],
            &[Otlp],
        ),
        (&[], &[endpoint], &[Otlp]),
        (&[("exporter", "json")], &[endpoint], &[Json]),
        (
            &[("exporter", "otlp,Console"), ("exporter", "otlp")],
            &[],
            &[Otlp, Console],
        ),
        (&[("exporter", "none")], &[endpoint], &[]),
        (
            &[],
            &[("OTEL_TRACES_EXPORTER", "otlp,console")],
            &[Otlp, Console],
        ),
        (
            &[],
            &[
                ("OTEL_TRACES_EXPORTER", "otlp"),
                ("EBPF_AGENT_EXPORTER", "json"),
            ],
            &[Json],
        ),
        (
            &[],
            &[("OTEL_EBPF_TRACE_PRINTER", "text"), endpoint],
            &[Otlp, Console],
        ),
        (&[], &[("OTEL_EBPF_TRACE_PRINTER", "json")], &[Json]),
        (&[], &[("OTEL_EBPF_TRACE_PRINTER", "disabled")], &[Console]),
        (
            &[("exporter", "otlp")],
            &[("OTEL_EBPF_TRACE_PRINTER", "json")],
            &[Otlp],
        ),
        (&[], &[("OTEL_TRACES_EXPORTER", "none")], &[]),
    ];
    for (flags, environment, expected) in table {
        assert_eq!(
            config(flags, environment).export.kinds(),
            expected,
            "{flags:?} {environment:?}"
        );
    }
    let (disabled, warnings) =
        gather(&[], &[("OTEL_SDK_DISABLED", "true"), endpoint]).expect("valid");
    assert_eq!((disabled.export.kinds().len(), warnings.len()), (0, 1));
}

/// What is wrong in other tools' variables is warned about and left out.
#[test]
fn wrong_values_of_others_warn() {
    let table = [
        ("OTEL_TRACES_EXPORTER", "zipkin"),
        ("OTEL_LOG_LEVEL", "loud"),
        ("OTEL_EBPF_OPEN_PORT", "http"),
        ("OTEL_EBPF_TRACE_PRINTER", "counter"),
        ("OTEL_EBPF_BPF_CONTEXT_PROPAGATION", "ip"),
        ("OTEL_TRACES_SAMPLER", "nonsense"),
    ];
    for (name, value) in table {
        let (config, warnings) = gather(&[("pid", "1")], &[(name, value)]).expect("no failure");
        // A port beside a pid flag is not even looked at.
        let expected = usize::from(name != "OTEL_EBPF_OPEN_PORT");
        assert_eq!(warnings.len(), expected, "{name}: {warnings:?}");
        assert!(
            warnings.iter().all(|warning| warning.contains(name)),
            "{warnings:?}"
        );
        assert_eq!(
            (config.log_level, config.export.kinds().len()),
            (LogLevel::Info, 1)
        );
    }
    let (_, warnings) = gather(&[], &[("OTEL_EBPF_OPEN_PORT", "http")]).expect("no failure");
    assert_eq!(warnings.len(), 1, "{warnings:?}");
}

/// Context is injected only when asked for, in our words or in OBI's.
#[test]
fn injection_is_asked_for() {
    let obi = "OTEL_EBPF_BPF_CONTEXT_PROPAGATION";
    let table: [(Pairs<'_>, Pairs<'_>, &[&str]); 11] = [
        (&[], &[], &[]),
        (&[("inject", "none")], &[(obi, "headers")], &[]),
        (&[("inject", "headers")], &[], &["headers"]),
        (&[("inject", "tcp")], &[], &["tcp"]),
        (&[("inject", "headers,tcp")], &[], &["headers", "tcp"]),
        (&[("inject", "all")], &[], &["headers", "tcp"]),
        (&[], &[("EBPF_AGENT_INJECT", "headers")], &["headers"]),
        (&[], &[(obi, "headers")], &["headers"]),
        (&[], &[(obi, "http")], &["headers"]),
        (&[], &[(obi, "headers,tcp")], &["headers", "tcp"]),
        (&[], &[(obi, "disabled")], &[]),
    ];
    for (flags, environment, expected) in table {
        let config = config(flags, environment);
        let carriers = Carriers {
            headers: expected.contains(&"headers"),
            option: expected.contains(&"tcp"),
        };
        assert_eq!(config.inject, carriers, "{flags:?} {environment:?}");
    }
}

/// What is wrong in our own settings stops the agent with exit code 2, and names where it was.
#[test]
fn wrong_values_of_ours_stop() {
    let table: [(Pairs<'_>, Pairs<'_>, &[&str]); 15] = [
        (&[("pid", "abc")], &[], &["--pid", "\"abc\""]),
        (&[("pid", "0")], &[], &["--pid", "\"0\""]),
        (&[("pid", "1,")], &[], &["--pid", "\"\""]),
        (&[("port", "99999")], &[], &["--port", "65535"]),
        (
            &[],
            &[("EBPF_AGENT_PORT", "90-80")],
            &["EBPF_AGENT_PORT", "ends before"],
        ),
        (&[("exe", "[")], &[], &["--exe", "\"[\""]),
        (&[("exe", "")], &[], &["--exe", "empty"]),
        (
            &[("exporter", "jaeger")],
            &[],
            &["--exporter", "otlp, console, json, none"],
        ),
        (&[("inject", "magic")], &[], &["none, headers, tcp, all"]),
        (&[("listen", "9464")], &[], &["--listen", "127.0.0.1:9464"]),
        (
            &[("log-level", "loud")],
            &[],
            &["error, warn, info, debug, trace"],
        ),
        (
            &[("capture", "x")],
            &[],
            &["auto, tracepoint, fexit, kretprobe"],
        ),
        (
            &[],
            &[("EBPF_AGENT_ALL", "maybe")],
            &["EBPF_AGENT_ALL", "true, false"],
        ),
        (
            &[("config", "/nonexistent/a.yaml")],
            &[],
            &["/nonexistent/a.yaml", "--config"],
        ),
        (
            &[("port", "1,3,5,7,9,11,13,15,17,19,21,23,25,27,29,31,33")],
            &[],
            &["17 port ranges", "holds 16"],
        ),
    ];
    for (flags, environment, parts) in table {
        let failure = gather(flags, environment).expect_err("a wrong value");
        let text = failure.to_string();
        assert_eq!(failure.exit_code(), 2, "{text}");
        for part in parts {
            assert!(text.contains(part), "{text:?} lacks {part:?}");
        }
    }
}

/// Nothing selected is refused; `all: false` selects nothing.
#[test]
fn something_must_be_selected() {
    for environment in [&[][..], &[("EBPF_AGENT_ALL", "false")]] {
        let failure = config(&[], environment)
            .require_targets()
            .expect_err("nothing selected");
        assert!(matches!(failure, Failure::NothingSelected));
    }
    assert!(config(&[("all", "true")], &[]).require_targets().is_ok());
}

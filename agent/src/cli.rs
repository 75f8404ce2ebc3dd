//! What the user types.

use std::{collections::BTreeMap, ffi::OsString};

use clap::{Args, Parser, Subcommand};

const EXAMPLES: &str = "\
Examples:
  sudo agent --pid 1234                       one process and its descendants
  sudo agent --port 80,8000-8999              whatever listens there
  sudo agent --exe '/usr/bin/python*' --exporter console
  sudo agent -- python3 app.py                start a command and trace it
  sudo agent check --pid 1234                 what would work here, and what to do about the rest

Every option has a variable (--ready-file: EBPF_AGENT_READY_FILE) and a key of the same name in the
file given by --config (ready-file: /run/agent.ready). Flags win over variables, variables over the
file. OTEL_EXPORTER_OTLP_*, OTEL_TRACES_EXPORTER and OTEL_TRACES_SAMPLER mean what OpenTelemetry
says; sudo passes them on with -E.

Exit codes: 0 clean stop (or COMMAND's own code), 1 runtime failure, 2 bad usage or configuration,
3 not permitted or unsupported kernel.";

/// Trace unmodified programs with eBPF and send OpenTelemetry spans.
#[derive(Debug, Parser)]
#[command(
    name = "agent",
    version,
    override_usage = "agent [OPTIONS] [-- COMMAND ARGS...]\n       agent check [--pid PID ...]",
    after_help = EXAMPLES,
    args_conflicts_with_subcommands = true,
    disable_help_subcommand = true
)]
pub struct Cli {
    #[command(subcommand)]
    pub action: Option<Action>,

    #[command(flatten)]
    pub targets: Targets,

    #[command(flatten)]
    pub options: Options,

    /// Command to start as the invoking user and to trace with all its children
    #[arg(last = true, value_name = "COMMAND ARGS", hide = true)]
    pub command: Vec<OsString>,
}

#[derive(Debug, Subcommand)]
pub enum Action {
    /// Tell what this kernel, these capabilities and these targets allow
    Check {
        #[command(flatten)]
        targets: Targets,

        /// Configuration file (YAML)
        #[arg(long, value_name = "FILE")]
        config: Option<String>,

        /// Do not try injection, which takes longest
        #[arg(long)]
        quick: bool,
    },
    /// Wait for the agent's word, then become the command
    #[command(hide = true)]
    LaunchGate {
        /// Name of the agent's abstract socket
        #[arg(long)]
        socket: String,
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
}

/// What is traced. Several of them add up.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "What to trace")]
pub struct Targets {
    /// These processes and their descendants
    #[arg(long, value_name = "PID", num_args = 1..)]
    pub pid: Vec<String>,

    /// Processes listening on these TCP ports, such as 80,8000-8999
    #[arg(long, value_name = "PORTS", num_args = 1..)]
    pub port: Vec<String>,

    /// Processes by executable: a full path, or a file name where there is no /
    #[arg(long, value_name = "GLOB", num_args = 1..)]
    pub exe: Vec<String>,

    /// Every process but the agent itself
    #[arg(long)]
    pub all: bool,
}

/// Everything else.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Options")]
pub struct Options {
    /// Where spans go: otlp, console, json, none [default: otlp if an OTLP endpoint is
    /// configured, else console]
    #[arg(long, value_name = "EXPORTER", num_args = 1..)]
    pub exporter: Vec<String>,

    /// Add trace context to outgoing traffic: none, headers (HTTP in plain text), tcp (an option
    /// of TCP, for agents on other hosts), all; repeatable [default: none]
    #[arg(long, value_name = "WHAT")]
    pub inject: Vec<String>,

    #[arg(
        long,
        value_name = "GRADE",
        help = "Weakest evidence that makes a parent: header, local_wire, tcp_option, \
                goroutine, loop, thread, answering, started, handed_off, handed_back, sole; a \
                weaker one makes a link [default: handed_off]"
    )]
    pub parent_evidence: Option<String>,

    /// File that is created when every probe is attached
    #[arg(long, value_name = "PATH")]
    pub ready_file: Option<String>,

    /// Serve /healthz, /readyz and /metrics there [default: off]
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<String>,

    /// Configuration file (YAML)
    #[arg(long, value_name = "FILE")]
    pub config: Option<String>,

    /// error, warn, info, debug or trace, on stderr [default: info]
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<String>,

    /// Kernel hooks: auto, tracepoint, fexit, kretprobe
    #[arg(long, value_name = "HOOKS", hide_short_help = true)]
    pub capture: Option<String>,
}

/// Flags that were given, by the key of their setting.
pub type Flags = BTreeMap<&'static str, Vec<String>>;

impl Cli {
    /// Flags of the action, or those of tracing.
    pub fn flags(&self) -> Flags {
        let (targets, options) = match &self.action {
            Some(Action::Check {
                targets, config, ..
            }) => (
                targets,
                &Options {
                    config: config.clone(),
                    ..Options::default()
                },
            ),
            _ => (&self.targets, &self.options),
        };
        let mut flags = targets.flags();
        flags.extend(options.flags());
        flags
    }
}

impl Targets {
    fn flags(&self) -> Flags {
        let all = if self.all {
            vec!["true".to_owned()]
        } else {
            Vec::new()
        };
        given([
            ("pid", self.pid.clone()),
            ("port", self.port.clone()),
            ("exe", self.exe.clone()),
            ("all", all),
        ])
    }
}

impl Options {
    fn flags(&self) -> Flags {
        let one = |value: &Option<String>| value.iter().cloned().collect();
        given([
            ("exporter", self.exporter.clone()),
            ("inject", self.inject.clone()),
            ("parent-evidence", one(&self.parent_evidence)),
            ("ready-file", one(&self.ready_file)),
            ("listen", one(&self.listen)),
            ("config", one(&self.config)),
            ("log-level", one(&self.log_level)),
            ("capture", one(&self.capture)),
        ])
    }
}

fn given<const COUNT: usize>(values: [(&'static str, Vec<String>); COUNT]) -> Flags {
    values
        .into_iter()
        .filter(|(_, values)| !values.is_empty())
        .collect()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split(' '))
    }

    /// clap's own consistency check of the definition.
    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    /// Several values by repetition or in a row, and a command with flags of its own.
    #[test]
    fn command_lines() {
        let cli = parse("agent --pid 1 2 --pid 3,4 --port 80 --all -- sh --pid 9").expect("valid");
        assert_eq!(cli.targets.pid, ["1", "2", "3,4"]);
        assert_eq!(cli.command, ["sh", "--pid", "9"]);
        let flags = cli.flags();
        assert_eq!(flags["all"], ["true"]);
        assert!(!flags.contains_key("exe"));

        let cli = parse("agent check --pid 7 --config x").expect("valid");
        assert!(matches!(cli.action, Some(Action::Check { .. })));
        assert_eq!(cli.flags()["pid"], ["7"]);
        assert_eq!(cli.flags()["config"], ["x"]);
        assert!(parse("agent --nonsense").is_err());
        assert!(parse("agent stray").is_err());
    }

    /// The help names every way to choose, shows examples, and hides what is internal.
    #[test]
    fn help() {
        let help = Cli::command().render_help().to_string();
        for part in [
            "--pid",
            "--port",
            "--exe",
            "--all",
            "-- COMMAND",
            "Examples:",
            "Exit codes",
        ] {
            assert!(help.contains(part), "{part} is not in\n{help}");
        }
        assert!(
            !help.contains("launch-gate") && !help.contains("--capture"),
            "{help}"
        );
    }
}

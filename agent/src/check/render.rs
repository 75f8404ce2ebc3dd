//! The page of `agent check`. Pure.

use std::fmt::Write as _;

use super::{
    Hook, KernelReport, Outcome,
    inside::{Inside, Tls},
    system::System,
    targets::{LISTED_TARGETS, Target},
};
use crate::failure::Failure;

/// How a line begins.
#[derive(Clone, Copy)]
enum Mark {
    Fine,
    Note,
    Bad,
}

struct Writer(String);

impl Writer {
    fn section(&mut self, title: &str) {
        if !self.0.is_empty() {
            self.0.push('\n');
        }
        let _ = writeln!(self.0, "{title}");
    }

    fn line(&mut self, mark: Mark, text: &str) {
        let mark = match mark {
            Mark::Fine => "ok  ",
            Mark::Note => "note",
            Mark::Bad => "no  ",
        };
        let _ = writeln!(self.0, "  {mark}  {text}");
    }
}

pub fn page(
    system: &System,
    obstacle: Option<&Failure>,
    kernel: &KernelReport,
    targets: &[Target],
) -> String {
    let mut page = Writer(String::new());
    write_system(&mut page, system);
    write_kernel(&mut page, kernel);
    write_targets(&mut page, targets);
    page.section("Result");
    match obstacle {
        Some(failure) => page.line(Mark::Bad, &failure.to_string()),
        None => match &kernel.capture {
            Some(capture) => page.line(Mark::Fine, &format!("tracing works here, by {capture}")),
            None if kernel
                .hooks
                .iter()
                .any(|hook| hook.outcome == Outcome::Works) =>
            {
                page.line(Mark::Note, "some hooks work, none of them for socket data");
            }
            None if kernel.hooks.is_empty() => {
                page.line(
                    Mark::Note,
                    "nothing stands in the way; loading was not tried",
                );
            }
            None => page.line(
                Mark::Bad,
                "no hook for socket data loads; see the causes above",
            ),
        },
    }
    page.0
}

fn write_system(page: &mut Writer, system: &System) {
    page.section("System");
    let (release, architecture) = (&system.release, &system.architecture);
    page.line(Mark::Fine, &format!("Linux {release} on {architecture}"));
    if system.has_type_information {
        page.line(Mark::Fine, "the kernel describes its types (BTF)");
    } else {
        page.line(
            Mark::Bad,
            "no BTF: the kernel was built without CONFIG_DEBUG_INFO_BTF",
        );
    }
    let missing = system.missing_capabilities();
    if missing.is_empty() {
        page.line(Mark::Fine, "all capabilities are there");
    }
    for (name, reason) in missing.needs() {
        page.line(Mark::Bad, &format!("{name} is missing, needed to {reason}"));
    }
    if let Some(mode) = &system.lockdown {
        let text = format!("the kernel is locked down ({mode}): it may refuse kprobes and fexit");
        page.line(Mark::Note, &text);
    }
    if !system.in_initial_pid_namespace {
        page.line(
            Mark::Note,
            "the agent has its own process ids; the kernel's differ. Use hostPID: true or \
             --pid=host",
        );
    }
}

fn write_kernel(page: &mut Writer, kernel: &KernelReport) {
    if kernel.hooks.is_empty() && kernel.missing_fields.is_empty() {
        return;
    }
    page.section("Kernel hooks");
    for Hook {
        name,
        purpose,
        outcome,
    } in &kernel.hooks
    {
        match outcome {
            Outcome::Works => page.line(Mark::Fine, &format!("{purpose}: {name}")),
            Outcome::Fails { cause } => {
                page.line(Mark::Bad, &format!("{purpose}: {name}: {cause}"));
            }
            Outcome::NotTried { reason } => {
                page.line(
                    Mark::Note,
                    &format!("{purpose}: {name}: not tried, {reason}"),
                );
            }
        }
    }
    for (field, feature) in &kernel.missing_fields {
        page.line(
            Mark::Note,
            &format!("this kernel has no {field}; without it: no {feature}"),
        );
    }
}

fn write_targets(page: &mut Writer, targets: &[Target]) {
    page.section("Targets");
    if targets.is_empty() {
        page.line(
            Mark::Note,
            "no process is chosen now; choose by --pid, --port, --exe or --all",
        );
    }
    for target in targets.iter().take(LISTED_TARGETS) {
        let process = &target.candidate.process;
        let executable = match process.facts.executable.to_str() {
            None | Some("") => process.facts.command.as_str(),
            Some(path) => path,
        };
        let (pid, service, reason) = (process.id.pid, &target.service, &target.reason);
        page.line(
            Mark::Fine,
            &format!("{pid} {executable}, service {service}: {reason}"),
        );
        write_inside(page, pid, &target.inside);
    }
    if targets.len() > LISTED_TARGETS {
        let more = targets.len() - LISTED_TARGETS;
        page.line(Mark::Fine, &format!("and {more} more"));
    }
}

fn write_inside(page: &mut Writer, pid: u32, inside: &Inside) {
    if let Some(runtime) = &inside.runtime {
        page.line(Mark::Fine, &format!("{pid} runs {runtime}"));
    }
    for tls in &inside.tls {
        match tls {
            Tls::Captured {
                file,
                library,
                probes,
                cost,
            } => {
                let text = format!(
                    "{pid} encrypts with {library} ({file}): captured by {probes} probes; {cost}"
                );
                page.line(Mark::Fine, &text);
            }
            Tls::Missed { what, reason } => {
                let text = format!("{pid} may encrypt with {what}: not captured, {reason}");
                page.line(Mark::Note, &text);
            }
            Tls::None => {
                let text = format!(
                    "{pid} has no TLS library that is known; one that it loads later is probed \
                     when it is used"
                );
                page.line(Mark::Fine, &text);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        capability::CapabilitySet,
        event::ProcessId,
        process::{
            Facts, Process,
            select::{Candidate, Reason},
        },
    };

    fn system() -> System {
        System {
            release: "6.1.0".to_owned(),
            architecture: "x86_64".to_owned(),
            has_type_information: true,
            capabilities: CapabilitySet::from_mask(1 << 39 | 1 << 38),
            lockdown: Some("integrity".to_owned()),
            in_initial_pid_namespace: false,
        }
    }

    fn hook(name: &str, outcome: Outcome) -> Hook {
        Hook {
            name: name.to_owned(),
            purpose: "socket data".to_owned(),
            outcome,
        }
    }

    /// One line for everything that was looked at, with cause and next step where it is bad.
    #[test]
    fn a_page() {
        let system = system();
        let kernel = KernelReport {
            hooks: vec![
                hook(
                    "sock_send_length",
                    Outcome::NotTried {
                        reason: "since Linux 6.3".into(),
                    },
                ),
                hook(
                    "fexit",
                    Outcome::Fails {
                        cause: "refused by lockdown".into(),
                    },
                ),
                hook("kretprobe", Outcome::Works),
            ],
            capture: Some("kretprobe".to_owned()),
            missing_fields: vec![("tcp_sock.copied_seq".to_owned(), "gap detection".to_owned())],
        };
        let facts = Facts {
            executable: "/usr/bin/node".into(),
            ..Facts::default()
        };
        let process = Process {
            id: ProcessId {
                pid: 7,
                start_ticks: 1,
            },
            facts,
        };
        let target = Target {
            candidate: Candidate {
                process,
                listening: [80].into(),
            },
            reason: Reason::Port(80),
            service: "shop".to_owned(),
            inside: Inside {
                runtime: Some("Node 20.20.2".to_owned()),
                tls: vec![
                    Tls::Captured {
                        file: "/usr/bin/node".to_owned(),
                        library: "OpenSSL 3.0.19".to_owned(),
                        probes: 20,
                        cost: "cheap",
                    },
                    Tls::Missed {
                        what: "/usr/lib/libwolfssl.so".to_owned(),
                        reason: "wolfSSL is not supported",
                    },
                ],
            },
        };
        let obstacle = system.obstacle();
        let text = page(&system, obstacle.as_ref(), &kernel, &[target]);
        for line in [
            "  ok    Linux 6.1.0 on x86_64\n",
            "  no    CAP_SYS_PTRACE is missing, needed to read /proc of other users' processes\n",
            "locked down (integrity)",
            "hostPID: true",
            "  note  socket data: sock_send_length: not tried, since Linux 6.3\n",
            "  no    socket data: fexit: refused by lockdown\n",
            "  ok    socket data: kretprobe\n",
            "no tcp_sock.copied_seq; without it: no gap detection\n",
            "  ok    7 /usr/bin/node, service shop: listens on port 80\n",
            "  ok    7 runs Node 20.20.2\n",
            "  ok    7 encrypts with OpenSSL 3.0.19 (/usr/bin/node): captured by 20 probes",
            "  note  7 may encrypt with /usr/lib/libwolfssl.so: not captured, wolfSSL",
            "  no    the capabilities CAP_SYS_PTRACE, CAP_DAC_READ_SEARCH are missing",
        ] {
            assert!(text.contains(line), "{line:?} is not in\n{text}");
        }
        let able = System {
            capabilities: CapabilitySet::from_mask(u64::MAX),
            ..system
        };
        let text = page(&able, None, &kernel, &[]);
        assert!(
            text.ends_with("  ok    tracing works here, by kretprobe\n"),
            "{text}"
        );
    }
}

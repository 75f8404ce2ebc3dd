//! `hop.py`: a service that answers, or asks the next one first.

use std::process::Command;

use crate::{
    pki::Pki,
    process::{Process, crate_file},
    python,
    span::{Span, Spans},
};

/// The service, and the port on which it listens. `command` says where it runs: the program and its
/// arguments are added.
///
/// # Panics
/// When it does not start.
#[must_use]
pub fn start(mut command: Command, service: &str, arguments: &[&str]) -> (Process, u16) {
    command
        .arg(python::interpreter())
        .arg(crate_file("workloads/hop.py"))
        .args(arguments)
        .env("OTEL_SERVICE_NAME", service);
    let mut process = Process::spawn(service, &mut command);
    let port = process.announced_port();
    (process, port)
}

/// The same, answering over TLS.
///
/// # Panics
/// When it does not start.
#[must_use]
pub fn start_over_tls(
    mut command: Command,
    service: &str,
    arguments: &[&str],
    pki: &Pki,
) -> (Process, u16) {
    command.arg("env").args([
        &format!("HOP_CERTIFICATE={}", pki.server_certificate().display()),
        &format!("HOP_KEY={}", pki.server_key().display()),
    ]);
    start(command, service, arguments)
}

/// A request at `front`, the call that it made, and the request at `back` that this became.
#[derive(Clone, Debug)]
pub struct Joined {
    pub at_front: Span,
    pub call: Span,
    pub at_back: Span,
}

/// The request of this path.
///
/// # Panics
/// Unless all three are there and each is the child of the one before.
#[must_use]
pub fn joined(spans: &[Span], path: &str) -> Joined {
    let at_front = spans.of("front", "SERVER").at(path).only().clone();
    let at_back = spans
        .of("back", "SERVER")
        .at(&format!("/back{path}"))
        .only()
        .clone();
    let calls = spans.of("front", "CLIENT");
    let call = calls
        .iter()
        .find(|call| at_back.is_child_of(call))
        .unwrap_or_else(|| panic!("no call above {at_back:?}"))
        .clone();
    assert!(call.is_child_of(&at_front), "{call:?} {at_front:?}");
    Joined {
        at_front,
        call,
        at_back,
    }
}

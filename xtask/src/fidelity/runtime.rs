//! The services: one back for all, and a front in each runtime, whose sources are in
//! `tests/fidelity/`.

mod fronts;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result};
use fronts::{
    WEBRICK_VERSION, example, first_line, go, grpc_go, grpc_go_version, grpc_js_version, grpc_node,
    grpcio_version, gunicorn, locked, nginx, nginx_version, package_version, puma,
};

use super::receiver::BACK;
use crate::{
    child::Running,
    setup,
    steps::{self, capture},
};

/// A Java program is compiled when it starts, and the machine may be busy.
const START: Duration = Duration::from_mins(1);

pub(super) struct Runtime {
    /// For `--runtimes`.
    pub(super) name: &'static str,
    pub(super) title: &'static str,
    pub(super) programs: Programs,
    pub(super) proof: Proof,
    pub(super) background: BackgroundJob,
    /// What the front is asked by, and what it asks the back by.
    pub(super) speaks: Speaks,
    calls: Speaks,
    /// Of what is traced, as the program says it.
    pub(super) version: fn() -> Result<String>,
    front: fn(&Place) -> Result<Command>,
}

/// What has to be installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Programs {
    /// What the tests need anyway.
    OfTests,
    OfFidelity,
}

/// What says which request a call is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Proof {
    /// The agent has evidence for it: nearly every parent must be right.
    Known,
    /// The agent cannot know it yet; what it lacks, as the rest of a sentence.
    Lacking(&'static str),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Speaks {
    Http1,
    /// The same inside TLS; calls only.
    Https,
    Grpc,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BackgroundJob {
    Present,
    /// The program knows no such thing.
    Absent,
}

/// A worker that is never idle takes one piece of work after the other.
const QUEUED: Proof = Proof::Lacking(
    "which piece of work a thread takes from a queue that has several, and for which of them it \
     called out",
);

pub(super) const RUNTIMES: [Runtime; 22] = [
    Runtime {
        name: "python_threads",
        title: "Python threads",
        programs: Programs::OfTests,
        proof: Proof::Known,
        background: BackgroundJob::Present,
        speaks: Speaks::Http1,
        calls: Speaks::Http1,
        version: || first_line(Command::new(setup::python()?).arg("--version")),
        front: |place| Ok(place.script(setup::python()?, "python_threads/front.py")),
    },
    Runtime {
        name: "gunicorn",
        title: "Python pre-fork (gunicorn sync)",
        programs: Programs::OfFidelity,
        proof: Proof::Known,
        background: BackgroundJob::Present,
        speaks: Speaks::Http1,
        calls: Speaks::Http1,
        version: || package_version("gunicorn"),
        front: gunicorn,
    },
    Runtime {
        name: "asyncio",
        title: "Python asyncio (aiohttp)",
        programs: Programs::OfFidelity,
        proof: Proof::Lacking(
            "which asyncio task runs: one thread serves all requests, and a call may wait for the \
             pool",
        ),
        background: BackgroundJob::Present,
        speaks: Speaks::Http1,
        calls: Speaks::Http1,
        version: || package_version("aiohttp"),
        front: |place| Ok(place.script(setup::fidelity_python()?, "asyncio/front.py")),
    },
    Runtime {
        name: "node",
        title: "Node http",
        programs: Programs::OfTests,
        proof: Proof::Lacking(
            "the async id of the callback that runs: one thread serves all requests, and a call \
             may wait for a socket that another request's response frees",
        ),
        background: BackgroundJob::Present,
        speaks: Speaks::Http1,
        calls: Speaks::Http1,
        version: || {
            Ok(format!(
                "Node {}",
                first_line(Command::new("node").arg("--version"))?
            ))
        },
        front: |place| Ok(place.script("node".into(), "node/front.js")),
    },
    Runtime {
        name: "nginx",
        title: "nginx proxy_pass",
        programs: Programs::OfTests,
        proof: Proof::Known,
        background: BackgroundJob::Absent,
        speaks: Speaks::Http1,
        calls: Speaks::Http1,
        version: nginx_version,
        front: nginx,
    },
    Runtime {
        name: "go",
        title: "Go net/http",
        programs: Programs::OfFidelity,
        proof: Proof::Known,
        background: BackgroundJob::Present,
        speaks: Speaks::Http1,
        calls: Speaks::Http1,
        version: || first_line(Command::new(setup::fidelity_go()?).arg("version")),
        front: go,
    },
    Runtime {
        name: "go_tls",
        title: "Go net/http, calls inside TLS",
        programs: Programs::OfFidelity,
        proof: Proof::Known,
        background: BackgroundJob::Present,
        speaks: Speaks::Http1,
        calls: Speaks::Https,
        version: || first_line(Command::new(setup::fidelity_go()?).arg("version")),
        front: go,
    },
    Runtime {
        name: "python_tls",
        title: "Python threads, calls inside TLS",
        programs: Programs::OfTests,
        proof: Proof::Known,
        background: BackgroundJob::Present,
        speaks: Speaks::Http1,
        calls: Speaks::Https,
        version: || first_line(Command::new(setup::python()?).arg("--version")),
        front: |place| Ok(place.script(setup::python()?, "python_threads/front.py")),
    },
    Runtime {
        name: "java",
        title: "Java thread pool (JDK)",
        programs: Programs::OfFidelity,
        proof: Proof::Known,
        background: BackgroundJob::Present,
        speaks: Speaks::Http1,
        calls: Speaks::Http1,
        version: || first_line(Command::new("java").arg("--version")),
        front: |place| Ok(place.script("java".into(), "java/Front.java")),
    },
    Runtime {
        name: "puma",
        title: "Ruby Puma",
        programs: Programs::OfFidelity,
        proof: Proof::Known,
        background: BackgroundJob::Present,
        speaks: Speaks::Http1,
        calls: Speaks::Http1,
        version: || first_line(Command::new("puma").arg("--version")),
        front: |place| Ok(puma(place)),
    },
    Runtime {
        name: "webrick",
        title: "Ruby WEBrick",
        programs: Programs::OfFidelity,
        proof: Proof::Known,
        background: BackgroundJob::Present,
        speaks: Speaks::Http1,
        calls: Speaks::Http1,
        version: || first_line(Command::new("ruby").args(["-rwebrick", "-e", WEBRICK_VERSION])),
        front: |place| Ok(place.script("ruby".into(), "webrick/front.rb")),
    },
    Runtime {
        name: "hyper",
        title: "Rust hyper on tokio",
        programs: Programs::OfTests,
        proof: Proof::Lacking(
            "which tokio task runs: the threads serve all requests in turn, and a task may move \
             between them",
        ),
        background: BackgroundJob::Present,
        speaks: Speaks::Http1,
        calls: Speaks::Http1,
        version: || {
            Ok(format!(
                "hyper {}, tokio {}",
                locked("hyper")?,
                locked("tokio")?
            ))
        },
        front: |place| example(place, "fidelity_hyper"),
    },
    Runtime {
        name: "threads_grpc",
        title: "Python threads calling by grpcio",
        programs: Programs::OfTests,
        proof: Proof::Lacking(
            "which thread made a call: all share a connection, and one writes for another",
        ),
        background: BackgroundJob::Present,
        speaks: Speaks::Http1,
        calls: Speaks::Grpc,
        version: grpcio_version,
        front: |place| Ok(place.script(setup::python()?, "threads_grpc/front.py")),
    },
    Runtime {
        name: "grpc_python",
        title: "gRPC in Python (grpcio)",
        programs: Programs::OfTests,
        proof: Proof::Lacking(
            "which thread serves a call: others read and write for it, on connections that all \
             calls share",
        ),
        background: BackgroundJob::Present,
        speaks: Speaks::Grpc,
        calls: Speaks::Grpc,
        version: grpcio_version,
        front: |place| Ok(place.script(setup::python()?, "grpc_python/front.py")),
    },
    Runtime {
        name: "grpc_node",
        title: "gRPC in Node (grpc-js)",
        programs: Programs::OfTests,
        proof: Proof::Lacking("the async id of the callback that runs"),
        background: BackgroundJob::Present,
        speaks: Speaks::Grpc,
        calls: Speaks::Grpc,
        version: grpc_js_version,
        front: grpc_node,
    },
    Runtime {
        name: "grpc_go",
        title: "gRPC in Go (grpc-go)",
        programs: Programs::OfTests,
        proof: Proof::Known,
        background: BackgroundJob::Present,
        speaks: Speaks::Grpc,
        calls: Speaks::Grpc,
        version: grpc_go_version,
        front: grpc_go,
    },
    Runtime {
        name: "grpc_go_http",
        title: "grpc-go calling by net/http",
        programs: Programs::OfTests,
        proof: Proof::Known,
        background: BackgroundJob::Present,
        speaks: Speaks::Grpc,
        calls: Speaks::Http1,
        version: grpc_go_version,
        front: |place| {
            let mut command = grpc_go(place)?;
            command.arg("http");
            Ok(command)
        },
    },
    Runtime {
        name: "tonic",
        title: "gRPC in Rust (tonic)",
        programs: Programs::OfTests,
        proof: Proof::Lacking(
            "which tokio task runs: the threads serve all calls in turn, and write for all",
        ),
        background: BackgroundJob::Present,
        speaks: Speaks::Grpc,
        calls: Speaks::Grpc,
        version: || Ok(format!("tonic {}", locked("tonic")?)),
        front: |place| example(place, "fidelity_tonic"),
    },
    Runtime {
        name: "python_pool",
        title: "Python threads, calls by a pool",
        programs: Programs::OfTests,
        proof: QUEUED,
        background: BackgroundJob::Present,
        speaks: Speaks::Http1,
        calls: Speaks::Http1,
        version: || first_line(Command::new(setup::python()?).arg("--version")),
        front: |place| Ok(place.script(setup::python()?, "python_pool/front.py")),
    },
    Runtime {
        name: "python_pipes",
        title: "Python threads, calls by workers at pipes",
        programs: Programs::OfTests,
        proof: QUEUED,
        background: BackgroundJob::Present,
        speaks: Speaks::Http1,
        calls: Speaks::Http1,
        version: || first_line(Command::new(setup::python()?).arg("--version")),
        front: |place| Ok(place.script(setup::python()?, "python_pipes/front.py")),
    },
    Runtime {
        name: "java_pool",
        title: "Java, calls by CompletableFuture",
        programs: Programs::OfFidelity,
        proof: QUEUED,
        background: BackgroundJob::Present,
        speaks: Speaks::Http1,
        calls: Speaks::Http1,
        version: || first_line(Command::new("java").arg("--version")),
        front: |place| Ok(place.script("java".into(), "java_pool/Front.java")),
    },
    Runtime {
        name: "ruby_pool",
        title: "Ruby WEBrick, calls by a pool",
        programs: Programs::OfFidelity,
        proof: QUEUED,
        background: BackgroundJob::Present,
        speaks: Speaks::Http1,
        calls: Speaks::Http1,
        version: || first_line(Command::new("ruby").args(["-rwebrick", "-e", WEBRICK_VERSION])),
        front: |place| Ok(place.script("ruby".into(), "ruby_pool/front.rb")),
    },
];

impl Runtime {
    pub(super) fn named(name: &str) -> Result<&'static Self> {
        let known = RUNTIMES.iter().map(|runtime| runtime.name);
        let found = RUNTIMES.iter().find(|runtime| runtime.name == name);
        found.with_context(|| {
            let known: Vec<_> = known.collect();
            format!("{name} is none of {}", known.join(", "))
        })
    }

    /// Starts the back and waits until it listens.
    pub(super) fn start_back(&self, directory: &Path, port: u16) -> Result<Running> {
        let script = match self.calls {
            Speaks::Http1 | Speaks::Https => "back/server.js",
            Speaks::Grpc => "back/grpc.js",
        };
        let mut command = Command::new("node");
        command
            .arg(source(script))
            .arg(port.to_string())
            .env("OTEL_SERVICE_NAME", BACK);
        if self.calls == Speaks::Https {
            command.env(CERTIFICATE, make_certificate(directory)?);
        }
        start(BACK, directory, &mut command, port)
    }

    /// Ends what the front connected inside TLS before the agent came: the two ends of such a
    /// session are not joined, as the README says.
    pub(super) fn connect_anew(&self, back: &Running) -> Result<()> {
        match self.calls {
            Speaks::Https => back.signal("HUP"),
            Speaks::Http1 | Speaks::Grpc => Ok(()),
        }
    }

    /// Starts the front and waits until it listens.
    pub(super) fn start(&self, place: &Place) -> Result<Running> {
        let mut command = (self.front)(place)?;
        command
            .env("OTEL_SERVICE_NAME", "front")
            .env("BACK_PORT", place.back_port.to_string());
        if self.calls == Speaks::Https {
            command.env(CERTIFICATE, certificate(place.directory));
        }
        start("front", place.directory, &mut command, place.port)
    }
}

/// Names the file with the back's certificate and key.
const CERTIFICATE: &str = "BACK_CERTIFICATE";

fn certificate(directory: &Path) -> PathBuf {
    directory.join("back.pem")
}

/// One that signs itself and is good for a day.
fn make_certificate(directory: &Path) -> Result<PathBuf> {
    let file = certificate(directory);
    let mut openssl = Command::new("openssl");
    openssl
        .args(["req", "-x509", "-nodes", "-days", "1", "-subj", "/CN=back"])
        .args(["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"])
        .args(["-addext", "subjectAltName=IP:127.0.0.1"]);
    openssl.arg("-keyout").arg(&file);
    let made = capture(&mut openssl)?;
    let key = fs::read_to_string(&file).context("openssl wrote no key")?;
    fs::write(&file, key + &made).context("cannot write the certificate")?;
    Ok(file)
}

/// Where a front runs.
pub(super) struct Place<'a> {
    /// For its files and output.
    pub(super) directory: &'a Path,
    pub(super) port: u16,
    pub(super) back_port: u16,
}

fn start(name: &str, directory: &Path, command: &mut Command, port: u16) -> Result<Running> {
    let mut running = Running::start(name, directory, command)?;
    running.wait_for_port_within(port, START)?;
    Ok(running)
}

impl Place<'_> {
    fn script(&self, interpreter: PathBuf, script: &str) -> Command {
        let mut command = Command::new(interpreter);
        command.arg(source(script));
        self.with_ports(command)
    }

    fn with_ports(&self, mut command: Command) -> Command {
        command.args([self.port, self.back_port].map(|port| port.to_string()));
        command
    }
}

pub(super) fn source(name: &str) -> PathBuf {
    steps::workspace().join("tests/fidelity").join(name)
}

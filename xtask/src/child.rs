//! Child processes of bench and demo: bounded by deadlines, ended by pid, never left behind.

use std::{
    env, fs,
    fs::File,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{self, Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::steps::{Privilege, capture, find_program, remove_directory};

/// How often a condition is looked at while waiting for it.
const POLL: Duration = Duration::from_millis(10);

/// How long a process may take to end after it was asked to: the agent's last flush is bounded.
const END: Duration = Duration::from_secs(15);

/// A running program with its output in files. Ended on drop.
pub(crate) struct Running {
    name: String,
    child: Child,
    /// As whom it runs, and so who may end it.
    privilege: Privilege,
    pub(crate) stdout: PathBuf,
    pub(crate) stderr: PathBuf,
}

impl Running {
    /// Starts `command` as the user who runs this.
    pub(crate) fn start(name: &str, directory: &Path, command: &mut Command) -> Result<Self> {
        Self::start_as(Privilege::Root, name, directory, command)
    }

    /// Starts nginx with `configuration`, and `directory` as its prefix.
    pub(crate) fn start_nginx(directory: &Path, configuration: &str) -> Result<Self> {
        let file = directory.join("nginx.conf");
        fs::write(&file, configuration).context("cannot write nginx's configuration")?;
        let program = find_program("nginx").context("nginx is not installed")?;
        let mut command = Command::new(program);
        command.arg("-p").arg(directory).arg("-c").arg(&file);
        Self::start("nginx", directory, &mut command)
    }

    /// Starts `command`, which reaches root by `privilege`.
    pub(crate) fn start_as(
        privilege: Privilege,
        name: &str,
        directory: &Path,
        command: &mut Command,
    ) -> Result<Self> {
        let stdout = directory.join(format!("{name}.out"));
        let stderr = directory.join(format!("{name}.err"));
        let child = command
            .stdin(Stdio::null())
            .stdout(File::create(&stdout)?)
            .stderr(File::create(&stderr)?)
            .spawn()
            .with_context(|| format!("cannot start {name}: {command:?}"))?;
        Ok(Self {
            name: name.to_owned(),
            child,
            privilege,
            stdout,
            stderr,
        })
    }

    /// The program itself: below sudo, the process that `sudo` started.
    pub(crate) fn pid(&self) -> u32 {
        let own = self.child.id();
        if self.privilege == Privilege::Sudo {
            last_descendant(own)
        } else {
            own
        }
    }

    /// Waits until `condition` holds; fails when the program ends first or `deadline` passes.
    pub(crate) fn wait_until(
        &mut self,
        what: &str,
        deadline: Duration,
        mut condition: impl FnMut() -> bool,
    ) -> Result<()> {
        let started = Instant::now();
        while !condition() {
            if let Some(status) = self.child.try_wait()? {
                bail!(
                    "{} ended before {what} ({status}): {}",
                    self.name,
                    self.said()
                );
            }
            ensure!(
                started.elapsed() < deadline,
                "{}: no {what} in {deadline:?}",
                self.name
            );
            thread::sleep(POLL);
        }
        Ok(())
    }

    /// Whether it ended by itself.
    pub(crate) fn has_ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// Waits until something listens on `port`.
    pub(crate) fn wait_for_port(&mut self, port: u16) -> Result<()> {
        self.wait_for_port_within(port, Duration::from_secs(10))
    }

    /// As [`Self::wait_for_port`], for a program that takes longer to start.
    pub(crate) fn wait_for_port_within(&mut self, port: u16, deadline: Duration) -> Result<()> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        self.wait_until("listening", deadline, || {
            TcpStream::connect_timeout(&address, Duration::from_millis(100)).is_ok()
        })
    }

    /// Waits until it says on its standard output, in a line of JSON, which port it listens on.
    pub(crate) fn announced_port(&mut self, deadline: Duration) -> Result<u16> {
        let output = self.stdout.clone();
        let port = || {
            let said = fs::read_to_string(&output).ok()?;
            // More may follow.
            let said: serde_json::Value = serde_json::from_str(said.lines().next()?).ok()?;
            u16::try_from(said.get("port")?.as_u64()?).ok()
        };
        self.wait_until("port", deadline, || port().is_some())?;
        port().context("the port was there")
    }

    /// Asks it to end and waits for its last words. Not as Ctrl-C does: a shell has its background
    /// jobs ignore that, and what they start inherits it.
    pub(crate) fn stop(&mut self) -> Result<()> {
        self.stop_within(END)
    }

    /// As [`Self::stop`], where a process takes longer than it does on real hardware.
    pub(crate) fn stop_within(&mut self, deadline: Duration) -> Result<()> {
        self.stop_by("TERM", deadline)
    }

    /// As [`Self::stop_within`], by a signal of this name.
    pub(crate) fn stop_by(&mut self, signal: &str, deadline: Duration) -> Result<()> {
        if self.child.try_wait()?.is_some() {
            return Ok(());
        }
        self.signal(signal)?;
        let started = Instant::now();
        while self.child.try_wait()?.is_none() {
            if started.elapsed() > deadline {
                self.signal("KILL")?;
                self.child.wait()?;
                bail!("{} did not end {deadline:?} after SIG{signal}", self.name);
            }
            thread::sleep(POLL);
        }
        Ok(())
    }

    /// What it wrote to standard error.
    pub(crate) fn said(&self) -> String {
        fs::read_to_string(&self.stderr).unwrap_or_default()
    }

    /// Sends a signal by its name without `SIG`.
    pub(crate) fn signal(&self, signal: &str) -> Result<()> {
        let mut kill = match self.privilege {
            Privilege::Sudo => {
                let mut command = Command::new("sudo");
                command.args(["-n", "kill"]);
                command
            }
            Privilege::Root | Privilege::Missing => Command::new("kill"),
        };
        capture(kill.args(["-s", signal, &self.pid().to_string()])).map(drop)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Nothing can be done about a failure here, and a process that ended already is one.
        let _ = self.stop();
    }
}

/// Follows the first child down from `pid`, as sudo may stand in between more than once.
fn last_descendant(mut pid: u32) -> u32 {
    while let Some(child) = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))
        .ok()
        .and_then(|children| children.split_whitespace().next()?.parse().ok())
    {
        pid = child;
    }
    pid
}

/// A directory for one run, removed at its end.
pub(crate) struct TemporaryDirectory(pub(crate) PathBuf);

impl TemporaryDirectory {
    pub(crate) fn create(name: &str) -> Result<Self> {
        let path = env::temp_dir().join(format!("ebpf-agent-{name}-{}", process::id()));
        remove_directory(&path)?;
        fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for TemporaryDirectory {
    fn drop(&mut self) {
        // A directory left behind in the place for temporary files does no harm.
        let _ = remove_directory(&self.0);
    }
}

/// A certificate signed by itself, and its key: `own.crt` and `own.key`.
pub(crate) fn make_certificate(directory: &Path) -> Result<()> {
    let mut openssl = Command::new("openssl");
    openssl.args(["req", "-x509", "-newkey", "ec", "-nodes", "-days", "2"]);
    openssl.args([
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-subj",
        "/CN=localhost",
    ]);
    openssl.arg("-keyout").arg(directory.join("own.key"));
    openssl.arg("-out").arg(directory.join("own.crt"));
    capture(&mut openssl)?;
    Ok(())
}

/// Ports of the loopback address that nothing listens on now, all different.
pub(crate) fn free_ports<const N: usize>() -> Result<[u16; N]> {
    let mut listeners = Vec::new();
    let mut ports = [0; N];
    for port in &mut ports {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port")?;
        *port = listener.local_addr()?.port();
        listeners.push(listener);
    }
    Ok(ports)
}

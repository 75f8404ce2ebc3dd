//! The launch gate with real children of the real binary.
#![expect(
    clippy::disallowed_methods,
    reason = "edge: starts processes and looks at them"
)]

use std::{
    ffi::OsString,
    fs,
    io::{Read as _, Write as _},
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            fs::MetadataExt as _,
            net::{SocketAddr, UnixListener},
        },
    },
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use agent::launch::Held;

const AGENT: &str = env!("CARGO_BIN_EXE_agent");

/// Ample for a shell to start; only reached when something is broken.
const DEADLINE: Duration = Duration::from_secs(20);

fn shell(script: &str) -> Vec<OsString> {
    ["sh", "-c", script].map(OsString::from).to_vec()
}

fn block_on<Answer>(future: impl Future<Output = Answer>) -> Answer {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.expect("a runtime").block_on(async {
        tokio::time::timeout(DEADLINE, future)
            .await
            .expect("the child hangs")
    })
}

fn command_of(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default()
}

/// Starts `command`, lets it go, and gives its exit code.
fn run(command: &[OsString]) -> u8 {
    block_on(async {
        let held = Held::start(AGENT.as_ref(), command)
            .await
            .expect("the gate starts");
        let pid = held.pid();
        let mut running = held.release().expect("the gate opens");
        assert_eq!(running.pid(), pid);
        running.wait().await.expect("the command ends")
    })
}

/// The agent's code is the command's: its own, a signal's as shells say it, or why it could not
/// be started.
#[test]
fn exit_codes() {
    assert_eq!(run(&shell("exit 0")), 0);
    assert_eq!(run(&shell("exit 7")), 7);
    assert_eq!(run(&shell("kill -KILL $$")), 137);
    assert_eq!(run(&["/nonexistent/command".into()]), 127);
    assert_eq!(run(&["/etc/passwd".into()]), 126);
}

/// Until it is released the command has not begun, and the process id stays the same.
#[test]
fn a_held_command_has_not_begun() {
    let trace = std::env::temp_dir().join(format!("agent-launch-{}", std::process::id()));
    let script = format!("echo $$ > {}", trace.display());
    block_on(async {
        let held = Held::start(AGENT.as_ref(), &shell(&script))
            .await
            .expect("the gate starts");
        let pid = held.pid();
        assert!(!command_of(pid).starts_with("sh"), "{}", command_of(pid));
        assert!(!trace.exists());
        let mut running = held.release().expect("the gate opens");
        assert_eq!(running.wait().await.expect("the command ends"), 0);
        let written = fs::read_to_string(&trace).expect("the command ran");
        assert_eq!(written.trim(), pid.to_string());
    });
    fs::remove_file(trace).expect("scratch space");
}

/// When the agent gives up, the command never begins and the gate goes away.
#[test]
fn an_abandoned_command_never_begins() {
    let trace = std::env::temp_dir().join(format!("agent-abandoned-{}", std::process::id()));
    let script = format!("touch {}", trace.display());
    block_on(async {
        let held = Held::start(AGENT.as_ref(), &shell(&script))
            .await
            .expect("the gate starts");
        let pid = held.pid();
        drop(held);
        let deadline = Instant::now() + DEADLINE;
        let is_alive = || {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            !stat.is_empty() && !stat.contains(") Z ")
        };
        while is_alive() {
            assert!(Instant::now() < deadline, "the gate stays");
            tokio::task::yield_now().await;
        }
    });
    assert!(!trace.exists());
}

/// A request to end goes on to the command, whose answer counts.
#[test]
fn termination_is_passed_on() {
    let script = "trap 'exit 5' TERM; echo ready > $0; while :; do read -r line < $0.pipe; done";
    let path = std::env::temp_dir().join(format!("agent-term-{}", std::process::id()));
    let pipe = path.with_extension("pipe");
    let made = Command::new("mkfifo")
        .arg(&pipe)
        .status()
        .expect("mkfifo runs");
    assert!(made.success());
    let script = script.replace("$0.pipe", &pipe.to_string_lossy());
    let script = script.replace("$0", &path.to_string_lossy());
    block_on(async {
        let held = Held::start(AGENT.as_ref(), &shell(&script))
            .await
            .expect("the gate starts");
        let mut running = held.release().expect("the gate opens");
        let deadline = Instant::now() + DEADLINE;
        while !fs::read_to_string(&path).is_ok_and(|text| text == "ready\n") {
            assert!(Instant::now() < deadline, "the command does not begin");
            tokio::task::yield_now().await;
        }
        running.terminate();
        assert_eq!(running.wait().await.expect("the command ends"), 5);
    });
    fs::remove_file(path).expect("scratch space");
    fs::remove_file(pipe).expect("scratch space");
}

/// What a gate that is let go prints, with these variables in its environment.
fn output_of(script: &str, variables: &[(&str, &str)], input: &str) -> String {
    let name = format!("agent-test-{}-{}", std::process::id(), variables.len());
    let address = SocketAddr::from_abstract_name(&name).expect("a short name");
    let listener = UnixListener::bind_addr(&address).expect("a free name");
    let mut child = Command::new(AGENT)
        .args(["launch-gate", "--socket", &name, "--", "sh", "-c", script])
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .envs(variables.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the gate starts");
    let (mut gate, _) = listener.accept().expect("the gate connects");
    gate.write_all(b"G").expect("the gate reads");
    let mut stdin = child.stdin.take().expect("piped");
    stdin
        .write_all(input.as_bytes())
        .expect("the command reads");
    drop(stdin);
    let mut output = String::new();
    child
        .stdout
        .take()
        .expect("piped")
        .read_to_string(&mut output)
        .expect("text");
    assert!(child.wait().expect("the command ends").success());
    output
}

/// Standard streams and environment are the agent's own.
#[test]
fn streams_and_environment_pass_through() {
    let output = output_of(
        "cat; echo $OTEL_SERVICE_NAME",
        &[("OTEL_SERVICE_NAME", "x")],
        "in\n",
    );
    assert_eq!(output, "in\nx\n");
}

/// Under sudo the command runs as who called it, with that user's groups and home, and cannot
/// become root again. Root is needed to see it; without, the variables change nothing.
#[test]
fn the_invoking_user_runs_the_command() {
    let variables = [
        ("SUDO_UID", "65534"),
        ("SUDO_GID", "65534"),
        ("SUDO_USER", "nobody"),
        ("HOME", "/root"),
    ];
    let script = "id -u; id -g; id -G; echo $HOME; echo \"[$SUDO_UID]\"; \
                  grep -E '^(Uid|Gid|Groups|CapEff)' /proc/self/status";
    let output = output_of(script, &variables, "");
    let lines: Vec<&str> = output.lines().collect();
    let own = fs::metadata("/proc/self").expect("/proc is mounted").uid();
    if own != 0 {
        assert_eq!(lines[0], own.to_string());
        return;
    }
    let passwd = fs::read_to_string("/etc/passwd").expect("accounts");
    let nobody = passwd
        .lines()
        .find(|line| line.contains(":65534:65534:"))
        .expect("nobody");
    let home = nobody.split(':').nth(5).expect("a home");
    assert_eq!(
        lines[..5],
        ["65534", "65534", "65534", home, "[]"],
        "{output}"
    );
    assert_eq!(lines[5], "Uid:\t65534\t65534\t65534\t65534");
    assert_eq!(lines[6], "Gid:\t65534\t65534\t65534\t65534");
    // None of root's groups is left.
    assert_eq!(lines[7].trim_end(), "Groups:\t65534");
    assert_eq!(lines[8], "CapEff:\t0000000000000000");
}

//! What the real binary says and returns when it cannot do what was asked.
#![expect(
    clippy::disallowed_methods,
    reason = "edge: starts processes and looks at them"
)]

use std::{
    ffi::OsStr,
    fs,
    io::ErrorKind,
    os::unix::{fs::MetadataExt as _, process::CommandExt as _},
    process::{Command, Output},
    sync::mpsc,
};

fn agent(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_agent"));
    command
        .args(arguments)
        .env_clear()
        .env("PATH", "/usr/bin:/bin");
    command
}

fn outcome(output: &Output) -> (Option<i32>, String) {
    (
        output.status.code(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

/// Exit code 2, nothing on standard output, and a message with these parts.
fn refuses(arguments: &[&str], parts: &[&str]) {
    let output = agent(arguments).output().expect("the agent runs");
    let (code, message) = outcome(&output);
    assert_eq!(code, Some(2), "{arguments:?}: {message}");
    assert!(output.stdout.is_empty(), "{arguments:?}");
    for part in parts {
        assert!(
            message.contains(part),
            "{arguments:?}: {message:?} lacks {part:?}"
        );
    }
}

/// Bad usage, each with cause and next step.
#[test]
fn bad_usage() {
    refuses(
        &[],
        &[
            "error: nothing is selected",
            "--pid",
            "--port",
            "--exe",
            "--all",
            "--",
        ],
    );
    refuses(
        &["--pid", "4294967295"],
        &["no process has the id 4294967295", "pgrep"],
    );
    refuses(&["--port", "80-70"], &["--port", "\"80-70\""]);
    refuses(&["--exe", "["], &["--exe", "not a glob"]);
    refuses(&["--all", "--inject", "udp"], &["--inject", "udp"]);
    refuses(
        &["--all", "--config", "/nonexistent.yaml"],
        &["/nonexistent.yaml"],
    );
    refuses(&["--such"], &["--such"]);
    refuses(
        &["check", "--pid", "4294967295"],
        &["no process has the id"],
    );
}

/// A thread of a process names the process.
#[test]
fn a_thread_is_no_process() {
    let own = std::process::id();
    let (tell, told) = mpsc::channel();
    let (end, ended) = mpsc::channel::<()>();
    let lives = std::thread::spawn(move || {
        let link = fs::read_link("/proc/thread-self").expect("/proc is mounted");
        tell.send(link).expect("the test listens");
        // Returns when the test drops its end.
        ended.recv().expect_err("nothing is sent");
    });
    let link = told.recv().expect("the thread tells its id");
    let thread = link
        .file_name()
        .and_then(OsStr::to_str)
        .expect("PID/task/TID")
        .to_owned();
    refuses(
        &["--pid", &thread],
        &["is a thread of process", &format!("Use --pid {own}")],
    );
    drop(end);
    lives.join().expect("the thread ends");
}

/// Kernel threads have nothing to trace. Containers without the host's processes show none.
#[test]
fn a_kernel_thread_has_no_program() {
    if fs::read_to_string("/proc/2/comm").is_ok_and(|name| name.trim() == "kthreadd") {
        refuses(
            &["--pid", "2"],
            &["process 2 (kthreadd) is a kernel thread"],
        );
    }
}

/// Without privilege: exit code 3, with what to grant and how. Root is needed to give it up.
#[test]
fn without_privilege() {
    let is_root = fs::metadata("/proc/self").expect("/proc is mounted").uid() == 0;
    let nobody = 65_534;
    // The build may lie where only root can read.
    let copy = std::env::temp_dir().join(format!("agent-unprivileged-{}", std::process::id()));
    fs::copy(env!("CARGO_BIN_EXE_agent"), &copy).expect("scratch space");
    let mut command = Command::new(&copy);
    command.arg("--all").env_clear();
    if is_root {
        command.uid(nobody).gid(nobody);
    }
    let output = loop {
        match command.output() {
            // A child that another test forks meanwhile may hold the copy open for writing.
            Err(error) if error.kind() == ErrorKind::ExecutableFileBusy => {}
            output => break output.expect("the agent runs"),
        }
    };
    fs::remove_file(&copy).expect("scratch space");
    let (code, message) = outcome(&output);
    assert_eq!(code, Some(3), "{message}");
    for part in [
        "CAP_BPF",
        "CAP_PERFMON",
        "sudo -E",
        "setcap",
        "AmbientCapabilities",
    ] {
        assert!(message.contains(part), "{message:?} lacks {part:?}");
    }
}

/// `agent check` prints its page to standard output and finds this test's own process.
#[test]
fn check_of_a_process() {
    let own = std::process::id().to_string();
    let output = agent(&["check", "--pid", &own])
        .output()
        .expect("the agent runs");
    let page = String::from_utf8_lossy(&output.stdout);
    for part in [
        "System",
        "Linux ",
        "Targets",
        &format!("{own} /"),
        "chosen by its id",
        "Result",
    ] {
        assert!(page.contains(part), "{page:?} lacks {part:?}");
    }
}

/// Help and version are no errors.
#[test]
fn help_and_version() {
    for argument in ["--help", "-h", "--version"] {
        let output = agent(&[argument]).output().expect("the agent runs");
        assert_eq!(output.status.code(), Some(0), "{argument}");
        assert!(
            output.stderr.is_empty() && !output.stdout.is_empty(),
            "{argument}"
        );
    }
}

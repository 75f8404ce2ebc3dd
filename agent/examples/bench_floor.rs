//! Attaches the pair of probes of `agent-ebpf/src/bin/bench_floor.rs` for `cargo xtask bench`,
//! until it is ended: `bench_floor OBJECT READY`. READY is created when both are attached.
#![expect(
    clippy::disallowed_methods,
    reason = "reads an object, and says when it is attached"
)]

use std::{env, fs, thread};

use anyhow::{Context as _, Result};
use aya::{Btf, Ebpf, programs::BtfTracePoint};

/// Program and tracepoint.
const PROBES: [(&str, &str); 2] = [
    ("count_send", "sock_send_length"),
    ("count_receive", "sock_recv_length"),
];

fn main() -> Result<()> {
    let mut arguments = env::args().skip(1);
    let object = arguments.next().context("no object")?;
    let ready = arguments.next().context("no file to create")?;
    let mut programs = Ebpf::load_file(&object).with_context(|| format!("cannot load {object}"))?;
    let types = Btf::from_sys_fs().context("no types of the running kernel")?;
    for (name, tracepoint) in PROBES {
        let program = programs.program_mut(name).context("not in the object")?;
        let program: &mut BtfTracePoint = program.try_into()?;
        program
            .load(tracepoint, &types)
            .with_context(|| format!("cannot load {name}"))?;
        program
            .attach()
            .with_context(|| format!("cannot attach to {tracepoint}"))?;
    }
    fs::write(ready, [])?;
    // The kernel removes both with the process.
    loop {
        thread::park();
    }
}

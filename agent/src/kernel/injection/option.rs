//! EDGE: the program that writes and reads TCP options with trace context.
//!
//! It is attached beside whatever else is at the root of the control groups, another agent's
//! included: the kernel runs all of them.

use anyhow::{Context as _, Result, anyhow};
use aya::{
    Ebpf,
    programs::{CgroupAttachMode, SockOps},
};

use super::{cgroup, program};
use crate::kernel::attach::program_reason;

/// Loads and attaches. Before the program that joins sockets to the map of headers: of two that
/// want the callbacks for options, the first one says so, and the other one leaves them on.
pub(super) fn start(ebpf: &mut Ebpf) -> Result<()> {
    let carrier: &mut SockOps = program(ebpf, "carry_context")?.try_into()?;
    carrier
        .load()
        .map_err(|error| anyhow!("sockops for TCP options: {}", program_reason(&error)))?;
    carrier
        .attach(cgroup::root()?, CgroupAttachMode::Single)
        .context("cannot attach to the root of the control groups")?;
    Ok(())
}

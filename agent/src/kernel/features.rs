//! What this kernel offers, as far as its type information tells. Whether a program really loads
//! is only known by loading it: see `attach`.

use agent_common::{kernel_config::KernelConfig, limits};

use super::btf::KernelTypes;

/// Helpers that exist on newer kernels only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Helpers {
    /// `bpf_task_pt_regs` and `bpf_get_current_task_btf`, since Linux 5.15.
    pub task_registers: bool,
    /// `bpf_get_socket_cookie` in tracing programs, since Linux 5.12.
    pub socket_cookie: bool,
    /// `bpf_loop`, since Linux 5.17; stands for a verifier that follows long searches, too.
    pub long_searches: bool,
}

impl Helpers {
    pub fn of(types: &KernelTypes) -> Self {
        Self {
            task_registers: types.has_helper("task_pt_regs")
                && types.has_helper("get_current_task_btf"),
            // The variant of the helper that tracing programs get.
            socket_cookie: types.has_function("bpf_get_socket_ptr_cookie"),
            long_searches: types.has_helper("loop"),
        }
    }

    pub fn apply(self, config: &mut KernelConfig) {
        config.has_task_registers_helper = u32::from(self.task_registers);
        config.has_socket_cookie = u32::from(self.socket_cookie);
        config.context_bytes = if self.long_searches {
            limits::CONTEXT_BYTES as u32
        } else {
            limits::SHORT_CONTEXT_BYTES as u32
        };
    }
}

//! Log lines for developers; compiled to nothing without feature `debug`.

/// Logs on the kernel side. Arguments as for `aya_log_ebpf::debug`.
#[cfg(feature = "debug")]
#[allow(unused_macros, reason = "used while debugging")]
macro_rules! log {
    ($($argument:tt)*) => { aya_log_ebpf::debug!($($argument)*) };
}

/// Logs on the kernel side: not in this build.
#[cfg(not(feature = "debug"))]
#[allow(unused_macros, reason = "used while debugging")]
macro_rules! log {
    ($($argument:tt)*) => {};
}
#[allow(unused_imports, reason = "used while debugging")]
pub(crate) use log;

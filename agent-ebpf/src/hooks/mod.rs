//! Attached functions: one file per kernel subject, small hooks over shared bodies.

pub(crate) mod go;
pub(crate) mod kretprobe;
pub(crate) mod process;
pub(crate) mod socket_data;
pub(crate) mod socket_lifecycle;

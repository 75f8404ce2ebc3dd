//! EDGE to the kernel: load, attach, read.
//!
//! [`load`] resolves kernel layouts, chooses a capture path by really loading it, attaches, and
//! hands out the maps that others use. When [`Kernel`] is dropped everything is detached; the
//! kernel does the same when the process dies.

pub mod attach;
pub mod btf;
pub mod features;
pub mod frames;
pub mod go;
pub mod hand_off;
pub mod injection;
pub mod layout;
pub mod maps;
pub mod object;
pub mod ring;
mod skipped;
pub mod tls;
mod uprobes;

pub use attach::CapturePath;
pub use object::{Kernel, LoadError, Settings, load};

//! The kernel's type information, from which the offsets of its fields are taken.

use agent::kernel::btf::KernelTypes;

/// Panics when a question does; the answers are the kernel's.
pub fn run(data: &[u8]) {
    // More types than this only take longer.
    if data.len() > 16 * 1024 {
        return;
    }
    let Ok(types) = KernelTypes::parse(data.to_vec()) else {
        return;
    };
    types.has_function("f");
    types.has_tracepoint("t");
    types.has_helper("h");
    types.size("s");
    for path in ["s", "s.a", "s.a.b", "s.a.b.c"] {
        types.offset(path);
    }
}

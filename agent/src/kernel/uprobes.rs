//! EDGE: whether this kernel takes the programs that are put on functions of programs and
//! libraries, which are loaded when the first of their kind is met.

use aya::programs::Program;

use super::{go::lock, object::Guard};

/// By the beginning of the programs' names, and whose functions they see; the first that fits.
const KINDS: [(&str, &str); 5] = [
    ("go_tls_", "Go's crypto/tls"),
    ("go_grpc_", "grpc-go"),
    ("go_", "Go's net/http"),
    ("rustls_", "rustls"),
    ("tls_", "OpenSSL, BoringSSL and GnuTLS"),
];

/// Stand in for others where context is injected, on newer kernels.
const INJECTING: &str = "_injecting";

impl Guard {
    /// Loads them all. For each kind why the kernel refuses one of its programs, if it does.
    pub fn try_uprobes(&self) -> Vec<(&'static str, Option<String>)> {
        let mut verdicts: Vec<_> = KINDS.iter().map(|(_, whose)| (*whose, None)).collect();
        let Ok(mut ebpf) = lock(self.ebpf()) else {
            return verdicts;
        };
        for (name, program) in ebpf.programs_mut() {
            let kind = KINDS.iter().position(|(start, _)| name.starts_with(start));
            let (Some(kind), Program::UProbe(program)) = (kind, program) else {
                continue;
            };
            if name.ends_with(INJECTING) || program.fd().is_ok() {
                continue;
            }
            let loaded = program.load();
            let info = program.info();
            // The kernel counts since Linux 5.16.
            let instructions = info.ok().and_then(|info| info.verified_instruction_count());
            tracing::debug!(name, instructions, "uprobe loaded");
            if let Err(error) = loaded
                && let Some((_, verdict)) = verdicts.get_mut(kind)
            {
                let cause = format!("{:#}", anyhow::Error::new(error));
                verdict.get_or_insert_with(|| format!("{name}: {cause}"));
            }
        }
        verdicts
    }
}

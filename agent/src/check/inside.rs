//! What a process runs and what of its TLS is captured: [`look_into`] reads, the rest is pure.
#![expect(clippy::disallowed_methods, reason = "edge: reads /proc and libraries")]

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::Path,
};

use object::read::ReadCache;

use crate::process::{
    binary::{
        self, GoProgram,
        tls::{self, FoundBy, Library, TlsLibrary},
    },
    runtime, text, tls_file,
};

/// What is known of a process's inside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inside {
    /// Name and version.
    pub runtime: Option<String>,
    pub tls: Vec<Tls>,
}

/// One way in which a process speaks TLS, or may.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tls {
    Captured {
        file: String,
        /// With its version.
        library: String,
        probes: usize,
        /// What a request costs.
        cost: &'static str,
    },
    /// It is there, and not captured.
    Missed { what: String, reason: &'static str },
    /// None is there now.
    None,
}

/// What probes on a TLS library cost, as docs/bench.md has it: a call of the library is two hits.
const COST: &str = "a request costs 4 to 6 hits of about 2 us";
const GO_COST: &str = "a request of HTTP/1 costs 2 to 3 hits of about 3 us";

/// Libraries that are known and not captured, by what their file is called.
const MISSED: [(&str, &str); 6] = [
    (
        "libssl3.so",
        "NSS: the calls that carry bytes are those for every file",
    ),
    ("libwolfssl.so", "wolfSSL is not supported"),
    ("libmbedtls.so", "mbed TLS is not supported"),
    ("libs2n.so", "s2n-tls is not supported"),
    (
        "libnetty_tcnative",
        "its library is linked in without symbols",
    ),
    ("libconscrypt", "its library is linked in without symbols"),
];

const JAVA: &str = "Java's own TLS is compiled while it runs: there is no function to probe";
const GO: &str = "where crypto/tls of Go has plaintext was not found";
const STRIPPED: &str = "it is linked into the program, whose symbols were stripped, and its \
                        functions do not say which they are; the debug file of its build id \
                        would, below EBPF_AGENT_DEBUG_FILE_DIRECTORY (/usr/lib/debug) when the \
                        agent starts";
const STRIPPED_FOUND: &str =
    ", without symbols: its functions found by what they report errors with";
const SEPARATE: &str = ", without symbols: its functions found by those in its debug file";
const RUSTLS: &str = "rustls is linked in without symbols, in a version older than 0.23, or taken \
                      apart by an optimiser: its functions cannot be found";

/// What the process with this number has mapped.
pub fn look_into(pid: u32) -> Inside {
    let executable = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
    let executable = executable.to_string_lossy().into_owned();
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    // One mapping of each file.
    let mapped: BTreeMap<&str, &str> = text::executable_mappings(&maps)
        .map(|mapping| (mapping.path, mapping.range))
        .collect();
    let own = Path::new("/proc").join(format!("{pid}/exe"));
    let program = File::open(&own).ok().map(ReadCache::new);
    let go = program
        .as_ref()
        .and_then(|file| binary::analyse(file).ok().flatten());
    let paths = std::iter::once(executable.as_str()).chain(mapped.keys().copied());
    let runtime = match &go {
        Some(go) => Some(go.version.clone()),
        None => runtime::describe(paths).map(|found| {
            let version = match found.name {
                "Node" => program.as_ref().and_then(tls::node_version),
                _ => None,
            };
            let version = version.unwrap_or(found.version);
            format!("{} {version}", found.name).trim_end().to_owned()
        }),
    };
    let mut found = Vec::new();
    if let Some(file) = &program {
        let captured = captured(file, &executable);
        let has_rustls = matches!(&captured, Some(Tls::Captured { library, .. })
            if library.starts_with(Library::Rustls.name()));
        if captured.is_none()
            && let Some(version) = tls::version(file, Library::OpenSsl)
        {
            found.push(missed(&version, STRIPPED));
        }
        found.extend(captured);
        if let Some(go) = &go {
            found.extend(captured_go(go, file, &executable));
        } else if !has_rustls && tls::mentions(file, b"/rustls-") {
            found.push(missed(&executable, RUSTLS));
        }
    }
    for (path, range) in &mapped {
        let name = path.rsplit_once('/').map_or(*path, |(_, name)| name);
        if let Some((_, reason)) = MISSED.iter().find(|(file, _)| name.starts_with(file)) {
            found.push(missed(path, reason));
        } else if name == "libjvm.so" {
            found.push(missed("Java", JAVA));
        } else if tls::is_library_name(name)
            && let Ok(file) = File::open(format!("/proc/{pid}/map_files/{range}"))
        {
            found.extend(captured(&ReadCache::new(file), path));
        }
    }
    if found.is_empty() {
        found.push(Tls::None);
    }
    Inside {
        runtime,
        tls: found,
    }
}

fn missed(what: &str, reason: &'static str) -> Tls {
    Tls::Missed {
        what: what.to_owned(),
        reason,
    }
}

fn captured(file: &ReadCache<File>, path: &str) -> Option<Tls> {
    let found = tls_file::library(file).ok().flatten()?;
    let TlsLibrary {
        library, points, ..
    } = &found;
    let version = tls::version(file, *library);
    let mut library = version.unwrap_or_else(|| library.name().to_owned());
    library.push_str(match found.found_by {
        FoundBy::Symbols => "",
        FoundBy::SeparateSymbols => SEPARATE,
        FoundBy::Reports => STRIPPED_FOUND,
    });
    Some(Tls::Captured {
        file: path.to_owned(),
        library,
        probes: points.len(),
        cost: COST,
    })
}

/// Go's own TLS, if the program has it.
fn captured_go(go: &GoProgram, file: &ReadCache<File>, path: &str) -> Option<Tls> {
    let points = go.tls_points();
    if points.is_empty() {
        return tls::mentions(file, b"crypto/tls.(*Conn).Write").then(|| missed(path, GO));
    }
    Some(Tls::Captured {
        file: path.to_owned(),
        library: format!("crypto/tls of {}", go.version),
        probes: points.len(),
        cost: GO_COST,
    })
}

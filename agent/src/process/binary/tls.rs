//! Functions of TLS libraries in a library's or program's file, and the probes they get. Pure.
//!
//! A function is found by its symbol. A file that links the library statically and was stripped has
//! none; there a separate file of the same build id may have them ([`separate`]), or those of
//! OpenSSL 3 and `BoringSSL` are found by what they say of themselves ([`stripped`],
//! [`boringssl`]).

mod boringssl;
mod code;
mod rustls;
pub mod separate;
mod stripped;

use memchr::memmem;
use object::{LittleEndian as LE, elf, read::ReadRef};

use super::{Unreadable, elf::Elf};

/// A function and the eBPF programs that are put on it; what each expects of the arguments is in
/// the kernel side's `hooks/openssl.rs`.
struct Function {
    symbol: &'static str,
    programs: &'static [&'static str],
}

const fn function(symbol: &'static str, programs: &'static [&'static str]) -> Function {
    Function { symbol, programs }
}

/// The order is that of attaching: sessions must not be used before their making is seen.
const FUNCTIONS: &[Function] = &[
    function("SSL_new", &["tls_made"]),
    function("SSL_free", &["tls_freed"]),
    function("SSL_do_handshake", &["tls_handshake", "tls_return"]),
    function("SSL_read", &["tls_read", "tls_return"]),
    function("SSL_read_ex", &["tls_read_ex", "tls_return"]),
    function("SSL_read_early_data", &["tls_read_ex", "tls_return"]),
    function("SSL_write", &["tls_write", "tls_return"]),
    function("SSL_write_ex", &["tls_write_ex", "tls_return"]),
    function("SSL_write_ex2", &["tls_write_ex2", "tls_return"]),
    function("SSL_write_early_data", &["tls_write_early", "tls_return"]),
    function("SSL_sendfile", &["tls_send_file", "tls_return"]),
    function("gnutls_init", &["tls_make", "tls_return"]),
    function("gnutls_deinit", &["tls_freed"]),
    function("gnutls_handshake", &["tls_handshake", "tls_return"]),
    function("gnutls_record_recv", &["tls_read", "tls_return"]),
    function("gnutls_record_send", &["tls_write", "tls_return"]),
];

/// Functions without which nothing of a library is understood.
const NEEDED: [(Library, [&str; 2]); 2] = [
    (Library::OpenSsl, ["SSL_read", "SSL_write"]),
    (
        Library::GnuTls,
        ["gnutls_record_recv", "gnutls_record_send"],
    ),
];

/// Bytes of a symbol table read at most. Node has some 5 MB.
const SYMBOL_BYTES: u64 = 64 << 20;

/// Whose functions they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Library {
    /// Or `BoringSSL`, `LibreSSL`, AWS-LC, which have the same ones.
    OpenSsl,
    GnuTls,
    Rustls,
}

impl Library {
    pub const fn name(self) -> &'static str {
        match self {
            Self::OpenSsl => "OpenSSL",
            Self::GnuTls => "GnuTLS",
            Self::Rustls => "rustls",
        }
    }
}

/// Where to put an eBPF program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point {
    pub program: &'static str,
    /// Offset in the file.
    pub offset: u64,
}

/// A TLS library in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsLibrary {
    pub library: Library,
    pub found_by: FoundBy,
    pub points: Vec<Point>,
}

/// How its functions were found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FoundBy {
    Symbols,
    /// By symbols in a file of their own.
    SeparateSymbols,
    /// By what they report errors with.
    Reports,
}

/// Reads the symbols of a file; `None`: it has no TLS library that is known.
pub fn find<'data, R: ReadRef<'data>>(data: R) -> Result<Option<TlsLibrary>, Unreadable> {
    let file = Elf::open(data)?;
    let mut found: Vec<Option<u64>> = vec![None; FUNCTIONS.len()];
    for (table, names) in [(".dynsym", ".dynstr"), (".symtab", ".strtab")] {
        look_up(&file, table, names, &mut found)?;
        if let Some(library) = library(&found) {
            let points = points_of(&file, &probes(&found))?;
            let found_by = FoundBy::Symbols;
            return Ok(Some(TlsLibrary {
                library,
                found_by,
                points,
            }));
        }
    }
    if let Some(probes) = find_rustls(&file)? {
        return Ok(Some(TlsLibrary {
            library: Library::Rustls,
            found_by: FoundBy::Symbols,
            points: points_of(&file, &probes)?,
        }));
    }
    find_stripped(data, &file)
}

/// eBPF programs and the addresses where they belong.
type Probes = Vec<(&'static str, u64)>;

fn find_rustls<'data, R: ReadRef<'data>>(file: &Elf<R>) -> Result<Option<Probes>, Unreadable> {
    let Some((symbols, names)) = symbols(file, ".symtab", ".strtab")? else {
        return Ok(None);
    };
    if memmem::find(names, rustls::MARK).is_none() {
        return Ok(None);
    }
    let mut found = rustls::Found::default();
    for (name, address) in functions(symbols, names) {
        let end = memchr::memchr(0, name).unwrap_or(name.len());
        found.note(name.get(..end).unwrap_or_default(), address);
    }
    Ok(found.probes())
}

/// Where in the file these eBPF programs belong.
fn points_of<'data, R: ReadRef<'data>>(
    file: &Elf<R>,
    probes: &[(&'static str, u64)],
) -> Result<Vec<Point>, Unreadable> {
    let point = |(program, address): &(&'static str, u64)| {
        let offset = file.file_offset(*address);
        let offset = offset.ok_or(Unreadable::Truncated("function"))?;
        Ok(Point { program, offset })
    };
    probes.iter().map(point).collect()
}

/// OpenSSL 3 or `BoringSSL` that was linked into a file without symbols.
fn find_stripped<'data, R: ReadRef<'data>>(
    data: R,
    file: &Elf<R>,
) -> Result<Option<TlsLibrary>, Unreadable> {
    let release = version(data, Library::OpenSsl).and_then(|text| release(&text));
    let found = match stripped::find(file, release)? {
        None => boringssl::find(file)?,
        found => found,
    };
    let Some(probes) = found else {
        return Ok(None);
    };
    Ok(Some(TlsLibrary {
        library: Library::OpenSsl,
        found_by: FoundBy::Reports,
        points: points_of(file, &probes)?,
    }))
}

/// Major and minor version of `OpenSSL 3.0.19 27 Jan 2026`.
fn release(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.strip_prefix("OpenSSL ")?.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn library(found: &[Option<u64>]) -> Option<Library> {
    let has = |symbol: &&str| {
        let mut functions = FUNCTIONS.iter().zip(found);
        functions.any(|(function, address)| function.symbol == *symbol && address.is_some())
    };
    NEEDED
        .iter()
        .find(|(_, symbols)| symbols.iter().all(has))
        .map(|(library, _)| *library)
}

fn probes(found: &[Option<u64>]) -> Probes {
    let functions = FUNCTIONS.iter().zip(found);
    let functions = functions.filter_map(|(function, address)| Some((function, (*address)?)));
    functions
        .flat_map(|(function, address)| {
            let probe = move |program: &&'static str| (*program, address);
            function.programs.iter().map(probe)
        })
        .collect()
}

/// Notes the addresses of functions that a symbol table defines.
fn look_up<'data, R: ReadRef<'data>>(
    file: &Elf<R>,
    table: &str,
    names: &str,
    found: &mut [Option<u64>],
) -> Result<(), Unreadable> {
    let Some((symbols, names)) = symbols(file, table, names)? else {
        return Ok(());
    };
    for (name, value) in functions(symbols, names) {
        if !name.starts_with(b"SSL_") && !name.starts_with(b"gnutls_") {
            continue;
        }
        for (function, address) in FUNCTIONS.iter().zip(&mut *found) {
            let rest = name.strip_prefix(function.symbol.as_bytes());
            if rest.is_some_and(|rest| rest.first() == Some(&0)) {
                address.get_or_insert(value);
            }
        }
    }
    Ok(())
}

type Symbols<'data> = (&'data [elf::Sym64<LE>], &'data [u8]);

/// A symbol table and its names; `None` where the file has none.
fn symbols<'data, R: ReadRef<'data>>(
    file: &Elf<R>,
    table: &str,
    names: &str,
) -> Result<Option<Symbols<'data>>, Unreadable> {
    let (Some(table), Some(names)) = (file.section(table), file.section(names)) else {
        return Ok(None);
    };
    if table.size > SYMBOL_BYTES || names.size > SYMBOL_BYTES {
        return Err(Unreadable::TooLarge("symbol table"));
    }
    let names = file.contents(names)?;
    Ok(Some((file.records("symbol table", table)?, names)))
}

/// Functions that a table defines: the names from each one's on, and its address.
fn functions<'data>(
    symbols: &'data [elf::Sym64<LE>],
    names: &'data [u8],
) -> impl Iterator<Item = (&'data [u8], u64)> {
    symbols.iter().filter_map(|symbol| {
        let is_function = symbol.st_info & 0xf == elf::STT_FUNC;
        let is_defined = is_function && symbol.st_shndx.get(LE) != elf::SHN_UNDEF;
        let name = names.get(symbol.st_name.get(LE) as usize..)?;
        is_defined.then_some((name, symbol.st_value.get(LE)))
    })
}

/// Name and version as the library has them among its strings; `None` where it does not.
pub fn version<'data, R: ReadRef<'data>>(data: R, library: Library) -> Option<String> {
    let begins = match library {
        Library::OpenSsl => b"OpenSSL ".as_slice(),
        Library::GnuTls => return None,
        Library::Rustls => {
            let version = version_behind(data, RUSTLS_SOURCES)?;
            return Some(format!("{} {version}", library.name()));
        }
    };
    string_with_version(data, begins)
}

/// In names of source files, where panics and logs say them.
const RUSTLS_SOURCES: &str = "/rustls-";

/// Version of Node, which has the address of its sources among its strings.
pub fn node_version<'data, R: ReadRef<'data>>(data: R) -> Option<String> {
    version_behind(data, "/node-v")
}

/// Digits and points behind the first string that begins so.
fn version_behind<'data, R: ReadRef<'data>>(data: R, begins: &str) -> Option<String> {
    let text = string_with_version(data, begins.as_bytes())?;
    let version = text.strip_prefix(begins)?;
    let end = version.find(|character: char| !character.is_ascii_digit() && character != '.')?;
    version
        .get(..end)
        .map(|text| text.trim_end_matches('.').to_owned())
}

/// Whether these bytes are among a program's constants or names.
pub fn mentions<'data, R: ReadRef<'data>>(data: R, bytes: &[u8]) -> bool {
    let Ok(file) = Elf::open(data) else {
        return false;
    };
    [".rodata", ".gopclntab"].iter().any(|name| {
        file.section_ending(name)
            .and_then(|section| file.contents(section).ok())
            .is_some_and(|contents| memmem::find(contents, bytes).is_some())
    })
}

/// The first string that begins so and goes on with a digit, up to its end.
fn string_with_version<'data, R: ReadRef<'data>>(data: R, begins: &[u8]) -> Option<String> {
    const LONGEST: usize = 40;

    let file = Elf::open(data).ok()?;
    let contents = file.contents(file.section(".rodata")?).ok()?;
    memmem::find_iter(contents, begins).find_map(|at| {
        let rest = contents.get(at..)?;
        rest.get(begins.len())
            .filter(|next| next.is_ascii_digit())?;
        let end = rest.iter().take(LONGEST).position(|byte| *byte == 0);
        let text = rest.get(..end.unwrap_or(LONGEST.min(rest.len())))?;
        String::from_utf8(text.to_vec()).ok()
    })
}

/// Whether a file of this name may hold a TLS library that is probed.
pub fn is_library_name(name: &str) -> bool {
    const LIBRARIES: [&str; 7] = [
        "libssl.so",
        "libssl-",
        "libssl3.so",
        "libboringssl",
        "libgnutls.so",
        "libgnutls-",
        // grpcio's extension of Python, with BoringSSL in it.
        "cygrpc.",
    ];
    LIBRARIES.iter().any(|library| name.starts_with(library))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_libraries() {
        for name in [
            "libssl.so.3",
            "libssl-3b1a2c.so.1.1",
            "libgnutls.so.30.34.3",
        ] {
            assert!(is_library_name(name), "{name}");
        }
        for name in ["libcrypto.so.3", "libsslcommon.so", "ssl.so", ""] {
            assert!(!is_library_name(name), "{name}");
        }
    }

    /// What is no ELF file, or the beginning of one, is refused.
    #[test]
    fn what_is_no_program() {
        for bytes in [b"#!/bin/sh\n".as_slice(), b"\x7fELF\x02\x01\x01", b""] {
            assert_eq!(find(bytes), Err(Unreadable::NotElf));
        }
    }

    /// Every eBPF program that a row names is one of the few there are.
    #[test]
    fn rows() {
        for function in FUNCTIONS {
            assert!(!function.programs.is_empty(), "{}", function.symbol);
        }
        let none = vec![None; FUNCTIONS.len()];
        assert_eq!(library(&none), None);
        let all = vec![Some(1); FUNCTIONS.len()];
        assert_eq!(library(&all), Some(Library::OpenSsl));
    }
}

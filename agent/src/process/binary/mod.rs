//! What a program's file says of it: whether Go made it, and where in it is what we want to know.
//! Pure: the edge opens the file and gives a reader of its bytes.
//!
//! A Go program keeps enough for this when it is stripped: its version, and the table of its
//! functions. Offsets of structure fields come from [`layout`]'s table for releases, and from
//! debugging information for what the table does not know: reading that of a large program takes
//! a second, and the table was made from the same source.
#![deny(clippy::indexing_slicing)]

mod build_info;
mod calls;
mod dwarf;
mod elf;
mod functions;
mod go_streams;
pub mod go_tls;
pub mod layout;
mod machine_code;
pub mod tls;
mod unwind;

use object::read::ReadRef;
use thiserror::Error;

pub use build_info::Release;
use elf::Elf;
use functions::Functions;
use go_tls::GoTls;
pub use layout::Offsets;
use layout::Source;
use tls::Point;

/// Called once for each request of `net/http`'s client over HTTP/1, by the goroutine that makes
/// the request, after it was given a connection.
const CLIENT_CALL: &str = "net/http.(*persistConn).roundTrip";

/// Starts a goroutine.
const START_GOROUTINE: &str = "runtime.newproc1";

/// Bytes of `runtime.newproc1` looked at; it has some 1,200.
const START_GOROUTINE_BYTES: u64 = 2_048;

/// Bytes of a function's beginning.
const PROLOGUE_BYTES: u64 = 32;

#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Unreadable {
    #[error("not an ELF file for x86-64")]
    NotElf,
    #[error("the {0} lies outside of the file")]
    Truncated(&'static str),
    #[error("the {0} is larger than any known one")]
    TooLarge(&'static str),
    #[error("the {0} is malformed")]
    Malformed(&'static str),
    #[error("there is no {0}")]
    Absent(&'static str),
    #[error("the {0} is of a version that is not understood")]
    Unsupported(&'static str),
}

/// Why a Go program's goroutines cannot be followed, or not all the way.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Shortcoming {
    #[error("structures of {0} are not known, and it has no debugging information")]
    UnknownStructures(String),
    #[error("its functions cannot be found: {0}")]
    NoFunctions(Unreadable),
    #[error("no function begins where `{0}` should")]
    NoFunctionThere(&'static str),
    #[error("where it counts goroutines was not found: some calls of child goroutines stay alone")]
    NoCounter,
    #[error("before Go 1.21 goroutines do not know their parents")]
    NoParents,
    #[error("where `crypto/tls` has plaintext was not found: what it encrypts is not understood")]
    NoTls,
}

/// A program made by Go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GoProgram {
    /// As `go version` prints it.
    pub version: String,
    /// `None`: nothing can be read in it.
    pub offsets: Option<(Offsets, Source)>,
    /// Where to probe the client's call, as a file offset; `None`: `net/http`'s client is not in
    /// the program, or not found.
    pub client_call: Option<u64>,
    /// Where to probe what is done for streams of HTTP/2, the client's calls among them.
    pub streams: Vec<Point>,
    /// Where grpc-go's streams of a server have their identifier, in bytes.
    pub stream_identifier: Option<u32>,
    /// Where its own TLS has plaintext; `None`: it is not in the program, or not found.
    pub tls: Option<GoTls>,
    /// Address of the count of goroutine ids given out.
    pub counter: Option<u64>,
    /// First address of the program and the one behind the last.
    pub image: (u64, u64),
    pub is_position_independent: bool,
    pub is_stripped: bool,
    pub shortcomings: Vec<Shortcoming>,
}

/// Reads a program's file. `None`: not made by Go.
pub fn analyse<'data, R: ReadRef<'data>>(data: R) -> Result<Option<GoProgram>, Unreadable> {
    let file = Elf::open(data)?;
    let Some(version) = build_info::version(&file)? else {
        return Ok(None);
    };
    let mut shortcomings = Vec::new();
    let offsets = Release::parse(&version)
        .and_then(Offsets::of_release)
        .map(|offsets| (offsets, Source::Table))
        .or_else(|| Some((dwarf::offsets(&file)?, Source::DebugInformation)));
    match &offsets {
        None => shortcomings.push(Shortcoming::UnknownStructures(version.clone())),
        Some((offsets, _)) if offsets.parent_id.is_none() => {
            shortcomings.push(Shortcoming::NoParents);
        }
        Some(_) => {}
    }
    let mut program = GoProgram {
        version,
        offsets,
        client_call: None,
        streams: Vec::new(),
        stream_identifier: None,
        tls: None,
        counter: None,
        image: file.image(),
        is_position_independent: file.is_position_independent,
        is_stripped: file.section(".symtab").is_none(),
        shortcomings,
    };
    if program.offsets.is_some() {
        match Functions::open(&file) {
            Ok(functions) => program.find_functions(&file, &functions),
            Err(error) => program.shortcomings.push(Shortcoming::NoFunctions(error)),
        }
    }
    Ok(Some(program))
}

/// Offsets by debugging information alone, to make and to check the table.
pub fn measured_offsets<'data, R: ReadRef<'data>>(
    data: R,
) -> Result<Option<(String, Offsets)>, Unreadable> {
    let file = Elf::open(data)?;
    let version = build_info::version(&file)?;
    Ok(version.zip(dwarf::offsets(&file)))
}

impl GoProgram {
    /// The probe on the client's calls; none where its structures are not known.
    pub fn client_points(&self) -> Vec<Point> {
        let call = self.client_call.filter(|_| self.offsets.is_some());
        let point = |offset| Point {
            program: "go_client_call",
            offset,
        };
        call.map(point).into_iter().collect()
    }

    /// The probes on streams; none where its structures are not known.
    pub fn stream_points(&self) -> &[Point] {
        if self.offsets.is_some() {
            &self.streams
        } else {
            &[]
        }
    }

    /// The probes on its TLS.
    pub fn tls_points(&self) -> Vec<Point> {
        let tls = self.tls.as_ref().filter(|_| self.offsets.is_some());
        tls.map(GoTls::points).unwrap_or_default()
    }

    fn find_functions<'data, R: ReadRef<'data>>(
        &mut self,
        file: &Elf<R>,
        functions: &Functions<'data>,
    ) {
        self.client_call = find_call(file, functions, CLIENT_CALL);
        if self.client_call.is_none() && functions.find(CLIENT_CALL).is_some() {
            let missing = Shortcoming::NoFunctionThere(CLIENT_CALL);
            self.shortcomings.push(missing);
        }
        self.stream_identifier = go_streams::identifier(file, functions);
        self.streams = go_streams::find(file, functions, self.stream_identifier);
        self.tls = go_tls::find(file, functions);
        if self.tls.is_none() && go_tls::is_linked(functions) {
            self.shortcomings.push(Shortcoming::NoTls);
        }
        self.counter = functions.find(START_GOROUTINE).and_then(|found| {
            let (entry, _) = beginning(file, &found.entries)?;
            let code = file.at_address(entry, START_GOROUTINE_BYTES).ok()?;
            machine_code::goroutine_counter(code, entry)
        });
        if self.counter.is_none() {
            self.shortcomings.push(Shortcoming::NoCounter);
        }
    }
}

/// Where to probe a function, as a file offset; `None`: it is not there, or not found.
fn find_call<'data, R: ReadRef<'data>>(
    file: &Elf<R>,
    functions: &Functions<'data>,
    name: &str,
) -> Option<u64> {
    let found = functions.find(name)?;
    let (entry, probe) = beginning(file, &found.entries)?;
    file.file_offset(entry.checked_add(probe)?)
}

/// The first of these addresses at which a function begins, and how far behind it to probe.
fn beginning<'data, R: ReadRef<'data>>(file: &Elf<R>, entries: &[u64]) -> Option<(u64, u64)> {
    entries.iter().find_map(|entry| {
        let code = file.at_address(*entry, PROLOGUE_BYTES).ok()?;
        Some((*entry, machine_code::probe_offset(code)?))
    })
}

#[cfg(test)]
mod tests;

//! Where a Go program's own TLS (`crypto/tls`) has plaintext in its hands. Pure.
//!
//! Two calls inside of `Read` and `Write` are probed, not the functions. They are made when bytes
//! are there, after a handshake, and under the locks that order a connection's readers and writers;
//! their arguments say all; and the kernel emulates `call`, whereas it executes the returns of a
//! function in a single step out of line, which takes several times as long. A probe on the return
//! address, as for C, is out of the question: Go moves its stacks.
//!
//! ```text
//! func (c *Conn) Read(b []byte) (int, error)
//!     copies what was decrypted: memmove(to rax, from rbx, length rcx), c on the stack
//! func (c *Conn) Write(b []byte) (int, error)
//!     c.writeRecordLocked(c rax, type rbx, data rcx, its length rdi)
//! ```
//!
//! Since Go 1.17 arguments go by these registers. `crypto/tls/conn.go` of Go 1.18 to 1.27.

use object::read::ReadRef;

use super::{calls::Calls, elf::Elf, functions::Functions, machine_code, tls::Point};

const READ: &str = "crypto/tls.(*Conn).Read";
const WRITE: &str = "crypto/tls.(*Conn).Write";
const COPY: &str = "runtime.memmove";
const WRITE_RECORD: &str = "crypto/tls.(*Conn).writeRecordLocked";

/// Calls of [`WRITE_RECORD`]: TLS 1.0 sends the first byte by itself.
const WRITES: usize = 2;

/// Calls to probe, as file offsets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GoTls {
    pub read: u64,
    pub writes: Vec<u64>,
    /// Where `Read` keeps the connection meanwhile, in bytes above the stack pointer.
    pub connection: u32,
}

impl GoTls {
    pub(super) fn points(&self) -> Vec<Point> {
        let read = Point {
            program: "go_tls_read",
            offset: self.read,
        };
        let write = |offset: &u64| Point {
            program: "go_tls_write",
            offset: *offset,
        };
        let writes = self.writes.iter().map(write);
        std::iter::once(read).chain(writes).collect()
    }
}

/// Whether the program has it linked in.
pub(super) fn is_linked(functions: &Functions<'_>) -> bool {
    functions.find(WRITE).is_some()
}

pub(super) fn find<'data, R: ReadRef<'data>>(
    file: &Elf<R>,
    functions: &Functions<'data>,
) -> Option<GoTls> {
    let reads = Calls::find(file, functions, READ, COPY)?;
    let read = reads.only()?;
    let connection = machine_code::first_argument(reads.code, read)?;
    let writes = Calls::find(file, functions, WRITE, WRITE_RECORD)?;
    if writes.at.is_empty() || writes.at.len() > WRITES {
        return None;
    }
    Some(GoTls {
        read: reads.offset(file, read)?,
        writes: writes.offsets(file)?,
        connection,
    })
}

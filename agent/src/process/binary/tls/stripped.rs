//! Functions of OpenSSL 3 in a program without symbols, found by what they report errors with.
//! Pure.
//!
//! Where a function of OpenSSL raises an error it says which file, line and function it is, in
//! whatever order the compiler chose:
//!
//! ```text
//! 48 8d 15 xx xx xx xx              lea rdx, [rip+name]    or  ba xx xx xx xx  mov edx, name
//! be xx xx xx xx                    mov esi, line
//! 48 8d 3d xx xx xx xx              lea rdi, [rip+file]    or  bf xx xx xx xx  mov edi, file
//! e8 xx xx xx xx                    call ERR_set_debug
//! ```
//!
//! Names and file are constants of the program, and where the function begins is in the table that
//! unwinds stacks, which `strip` keeps.
//!
//! All plaintext goes through `ssl_read_internal` and `ssl_write_internal`, of which `SSL_read` and
//! the others are shells. Where a compiler copied one of the two into its shells, each function
//! that reports its name is probed instead: there is no other way for the bytes.
//!
//! OpenSSL 1.1 reports numbers instead of names: it is not found. For `BoringSSL` see
//! [`super::boringssl`].

use memchr::memmem;
use object::read::ReadRef;

use super::{
    super::{Unreadable, elf::Elf, unwind::Unwinding},
    code::{Bytes, Load, Parts, Probe},
};

/// Functions without which sessions would be mixed up whose memory is used again, or what a
/// handshake moves taken for the program's own; each with its probes.
const OF_SESSIONS: [(&str, &[&str]); 2] = [
    ("SSL_new", &["tls_made"]),
    ("SSL_do_handshake", &["tls_handshake", "tls_return"]),
];

/// A way that all plaintext of one direction goes.
struct Way {
    internal: &'static str,
    /// The shell that takes and returns a length as an `int`, and its probe.
    shell: (&'static str, &'static str),
    /// Of `internal` itself, and of the shell that has the same arguments.
    probe: &'static str,
}

const READ: Way = Way {
    internal: "ssl_read_internal",
    shell: ("SSL_read", "tls_read"),
    probe: "tls_read_ex",
};
const WRITE: Way = Way {
    internal: "ssl_write_internal",
    shell: ("SSL_write", "tls_write"),
    probe: "tls_write_ex",
};

/// Since OpenSSL 3.3 `ssl_write_internal` has an argument more, like `SSL_write_ex2`, which is
/// another function then than `SSL_write_ex`.
const WRITE_SINCE_EX2: Way = Way {
    probe: "tls_write_ex2",
    ..WRITE
};

/// A function itself, the shells around it, and that for early data.
const COPIES: usize = 4;

/// End of the name of the file that they are in.
const FILE: &[u8] = b"ssl_lib.c\0";

/// Arguments of `ERR_set_debug` (System V ABI, AMD64 supplement, section 3.2.3).
const NAME_ARGUMENT: Load = Load {
    relative: [0x48, 0x8d, 0x15],
    absolute: 0xba,
};
const FILE_ARGUMENT: Load = Load {
    relative: [0x48, 0x8d, 0x3d],
    absolute: 0xbf,
};

/// All probes of the library, in the order of attaching; `None` unless each function was found.
/// `release` is the version where the program tells it.
pub(super) fn find<'data, R: ReadRef<'data>>(
    file: &Elf<R>,
    release: Option<(u32, u32)>,
) -> Result<Option<Vec<Probe>>, Unreadable> {
    let Some(Parts { constants, code }) = Parts::of(file)? else {
        return Ok(None);
    };
    let files = constants.strings_ending(FILE);
    if files.is_empty() || constants.strings(READ.internal).is_empty() {
        return Ok(None);
    }
    let program = Program {
        file,
        constants,
        files,
        code,
        functions: Unwinding::open(file)?,
    };
    Ok(program.probes(release))
}

struct Program<'file, 'data, R> {
    file: &'file Elf<R>,
    constants: Bytes<'data>,
    /// Where the name of the source file is.
    files: Vec<u64>,
    code: Bytes<'data>,
    functions: Unwinding<'data>,
}

impl<'data, R: ReadRef<'data>> Program<'_, 'data, R> {
    fn probes(&self, release: Option<(u32, u32)>) -> Option<Vec<Probe>> {
        let mut probes = Vec::new();
        for (name, programs) in OF_SESSIONS {
            let [function] = *self.reporting(name)?.as_slice() else {
                return None;
            };
            probes.extend(programs.iter().map(|program| (*program, function)));
        }
        self.follow(&READ, &mut probes)?;
        let write = match release {
            Some((3, minor)) => minor >= 3,
            Some(_) => return None,
            None => self.passes_flags()?,
        };
        self.follow(if write { &WRITE_SINCE_EX2 } else { &WRITE }, &mut probes)?;
        Some(probes)
    }

    fn follow(&self, way: &Way, probes: &mut Vec<Probe>) -> Option<()> {
        let functions = self.reporting(way.internal)?;
        let shells = self.reporting(way.shell.0)?;
        let is_copied = functions.len() > 1;
        // Then those with and without the argument could not be told apart.
        if functions.len() > COPIES || (is_copied && way.probe == WRITE_SINCE_EX2.probe) {
            return None;
        }
        for function in functions {
            let is_shell = shells.contains(&function);
            let program = if is_shell { way.shell.1 } else { way.probe };
            probes.extend([(program, function), ("tls_return", function)]);
        }
        Some(())
    }

    /// Functions that report errors by this name; `None` for none, where something reports so that
    /// is no function, and where nobody calls any of them.
    fn reporting(&self, name: &str) -> Option<Vec<u64>> {
        let names = self.constants.strings(name);
        let mut functions = self
            .code
            .loads(&NAME_ARGUMENT, &names)
            .filter(|at| self.code.loads_near(*at, &FILE_ARGUMENT, &self.files))
            .map(|at| {
                let address = self.code.address.checked_add(at as u64)?;
                self.functions.beginning(self.file, address)
            })
            .collect::<Option<Vec<u64>>>()?;
        functions.sort_unstable();
        functions.dedup();
        let are_called = functions
            .iter()
            .any(|function| self.code.calls(*function).next().is_some());
        are_called.then_some(functions)
    }

    /// Whether `SSL_write` passes flags, which are none, before the address for the count:
    ///
    /// ```text
    /// 31 c9                             xor ecx, ecx
    /// ```
    ///
    /// or that address in the same register, where a function keeps its variables:
    ///
    /// ```text
    /// 48 89 e1                          mov rcx, rsp
    /// 48 8d 4c 24 xx                    lea rcx, [rsp+xx]
    /// 48 8d 4d xx                       lea rcx, [rbp-xx]
    /// ```
    fn passes_flags(&self) -> Option<bool> {
        const ARGUMENTS_BYTES: usize = 24;
        const NONE: [u8; 2] = [0x31, 0xc9];
        const ADDRESSES: [&[u8]; 3] = [
            &[0x48, 0x89, 0xe1],
            &[0x48, 0x8d, 0x4c, 0x24],
            &[0x48, 0x8d, 0x4d],
        ];
        let [internal] = *self.reporting(WRITE.internal)?.as_slice() else {
            return None;
        };
        let [shell] = *self.reporting(WRITE.shell.0)?.as_slice() else {
            return None;
        };
        let from = usize::try_from(shell.checked_sub(self.code.address)?).ok()?;
        let call = self.code.calls(internal).find(|at| *at > from)?;
        let start = call.saturating_sub(ARGUMENTS_BYTES).max(from);
        let arguments = self.code.bytes.get(start..call)?;
        let has = |bytes: &[u8]| memmem::find(arguments, bytes).is_some();
        match (has(&NONE), ADDRESSES.into_iter().any(has)) {
            (true, false) => Some(true),
            (false, true) => Some(false),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CODE: u64 = 0x7_b817;
    const NAME: u64 = 0x2f_cd08;
    const FILE_NAME: u64 = 0x2f_c450;

    /// `SSL_read` of a static OpenSSL 3.0 reports a bad length, by relative addresses; Node's
    /// `ssl_read_internal` an error by absolute ones.
    const RELATIVE: [u8; 29] = [
        0xe8, 0x04, 0xfa, 0x09, 0, 0x48, 0x8d, 0x15, 0xe5, 0x14, 0x28, 0, 0xbe, 0x4c, 0x07, 0, 0,
        0x48, 0x8d, 0x3d, 0x21, 0x0c, 0x28, 0, 0xe8, 0x0c, 0xfb, 0x09, 0,
    ];
    const ABSOLUTE: [u8; 20] = [
        0xba, 0x60, 0xfc, 0xd4, 0x02, 0xbe, 0x2b, 0x07, 0, 0, 0xbf, 0x48, 0xef, 0xd4, 0x02, 0xe8,
        0, 0, 0, 0,
    ];

    /// A report is known by its name and its file, near each other, and by nothing else.
    #[test]
    fn reports() {
        let table: [(&[u8], u64, u64); 2] = [
            (&RELATIVE, NAME, FILE_NAME),
            (&ABSOLUTE, 0x2d4_fc60, 0x2d4_ef48),
        ];
        for (bytes, name, file) in table {
            let code = Bytes {
                address: CODE,
                bytes,
            };
            let loads: Vec<usize> = code.loads(&NAME_ARGUMENT, &[name]).collect();
            let [at] = *loads.as_slice() else {
                panic!("{loads:?}");
            };
            assert!(code.loads_near(at, &FILE_ARGUMENT, &[file]));
            assert!(!code.loads_near(at, &FILE_ARGUMENT, &[file + 1]));
            assert_eq!(code.loads(&NAME_ARGUMENT, &[name + 1]).next(), None);
            assert_eq!(code.loads(&FILE_ARGUMENT, &[name]).next(), None);
            for cut in 0..bytes.len() {
                let code = Bytes {
                    address: CODE,
                    bytes: &bytes[..cut],
                };
                let whole = code.loads(&NAME_ARGUMENT, &[name]).next();
                let is_report =
                    whole.is_some_and(|at| code.loads_near(at, &FILE_ARGUMENT, &[file]));
                assert_eq!(is_report, cut >= bytes.len() - 5, "{cut}");
            }
        }
    }
}

//! Functions of `BoringSSL` in a file without symbols, found by what they report errors with. Pure.
//!
//! Where a function raises an error it says the library, the reason, the file and the line, in
//! whatever order the compiler chose:
//!
//! ```text
//! bf 10 00 00 00                    mov edi, 16 (ERR_LIB_SSL)
//! 31 f6                             xor esi, esi
//! ba xx xx xx xx                    mov edx, reason
//! 48 8d 0d xx xx xx xx              lea rcx, [rip+file]    or  b9 xx xx xx xx  mov ecx, file
//! 41 b8 xx xx xx xx                 mov r8d, line
//! e8 xx xx xx xx                    call ERR_put_error
//! ```
//!
//! Which reasons a function has, and in which order by their lines, says which one it is, in
//! `ssl/ssl_lib.cc` of 2022 to 2026. Reasons are numbers of the public interface
//! (`openssl/ssl.h`, `openssl/err.h`); lines differ from version to version.
//!
//! | function | reasons |
//! |---|---|
//! | `SSL_new` | no context, and nobody else has that |
//! | `SSL_do_handshake`, and each that it was copied into | neither client nor server |
//! | `ssl_read_impl` | not begun, then a failed handshake |
//! | `SSL_peek`, and `SSL_read` around a copy of it | a call that QUIC must not make |
//! | `SSL_write` | such a call, then not begun, then a failed handshake |
//!
//! The line of `SSL_peek` is between those of the row above and the row below. Not covered: an
//! `SSL_peek` that was not copied into `SSL_read`, which reports nothing itself then.

use std::{collections::BTreeMap, ops::Range};

use object::read::ReadRef;

use super::{
    super::{Unreadable, elf::Elf, unwind::Unwinding},
    code::{Bytes, LOAD_BYTES, Load, Parts, Probe},
};

/// End of the name of the file that they are in.
const FILE: &[u8] = b"ssl_lib.cc\0";

/// Bytes before and behind the instruction with the file in which the others are.
const NEAR_BYTES: usize = 18;

/// `ERR_put_error(int library, int unused, int reason, const char *file, unsigned line)`.
const FILE_ARGUMENT: Load = Load {
    relative: [0x48, 0x8d, 0x0d],
    absolute: 0xb9,
};
const LIBRARY: [u8; 5] = [0xbf, 16, 0, 0, 0];
const REASON_ARGUMENT: [u8; 1] = [0xba];
const LINE_ARGUMENT: [u8; 2] = [0x41, 0xb8];

/// `ERR_R_SHOULD_NOT_HAVE_BEEN_CALLED`.
const NOT_FOR_QUIC: u32 = 66;
/// `SSL_R_CONNECTION_TYPE_NOT_SET`.
const NEITHER_END: u32 = 134;
/// `SSL_R_NULL_SSL_CTX`.
const NO_CONTEXT: u32 = 185;
/// `SSL_R_SSL_HANDSHAKE_FAILURE`.
const FAILED: u32 = 215;
/// `SSL_R_UNINITIALIZED`.
const NOT_BEGUN: u32 = 226;

/// `SSL_do_handshake`, `SSL_connect` and `SSL_accept`.
const HANDSHAKES: usize = 3;

/// All probes of the library, in the order of attaching; `None` unless each function was found.
pub(super) fn find<'data, R: ReadRef<'data>>(
    file: &Elf<R>,
) -> Result<Option<Vec<Probe>>, Unreadable> {
    let Some(Parts { constants, code }) = Parts::of(file)? else {
        return Ok(None);
    };
    let names = constants.strings_ending(FILE);
    if names.is_empty() {
        return Ok(None);
    }
    let unwinding = Unwinding::open(file)?;
    let mut functions = Functions::default();
    for (at, report) in reports(&code, &names) {
        let address = code.address.saturating_add(at as u64);
        if let Some(function) = unwinding.function(file, address) {
            functions.note(function, report);
        }
    }
    Ok(functions.probes())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Report {
    line: u32,
    reason: u32,
}

/// Where in the code errors are reported from a file that has one of these names.
fn reports(code: &Bytes, names: &[u64]) -> Vec<(usize, Report)> {
    let loads = code.loads(&FILE_ARGUMENT, names);
    let report = |at: usize| {
        let from = at.saturating_sub(NEAR_BYTES);
        let to = (at + LOAD_BYTES + NEAR_BYTES).min(code.bytes.len());
        let near = code.bytes.get(from..to)?;
        let is_of_library = near.windows(LIBRARY.len()).any(|window| window == LIBRARY);
        is_of_library.then_some(())?;
        let report = Report {
            line: nearest(near, at - from, &LINE_ARGUMENT)?,
            reason: nearest(near, at - from, &REASON_ARGUMENT)?,
        };
        Some((at, report))
    };
    loads.filter_map(report).collect()
}

/// The number of 32 bits that the instruction nearest to `at` puts into a register, of those that
/// begin so. None of ours has more than 16 bits, so the middle of another instruction is none.
fn nearest(near: &[u8], at: usize, begin: &[u8]) -> Option<u32> {
    let numbers = near
        .windows(begin.len() + 4)
        .enumerate()
        .filter_map(|(place, window)| {
            let number = window.strip_prefix(begin)?.try_into().ok()?;
            let number = u32::from_le_bytes(number);
            (number <= u16::MAX.into()).then_some((place.abs_diff(at), number))
        });
    numbers.min().map(|(_, number)| number)
}

/// Functions by where they begin.
#[derive(Debug, Default)]
struct Functions(BTreeMap<u64, Function>);

#[derive(Debug, Default)]
struct Function {
    bytes: u64,
    reports: Vec<Report>,
}

impl Function {
    /// The first line with this reason, behind another line.
    fn line(&self, reason: u32, behind: u32) -> Option<u32> {
        let lines = self.reports.iter();
        lines
            .filter(|report| report.reason == reason && report.line > behind)
            .map(|report| report.line)
            .min()
    }

    fn has(&self, reason: u32) -> bool {
        self.line(reason, 0).is_some()
    }

    /// Lines of a function that has these reasons one behind the other.
    fn sequence(&self, reasons: &[u32]) -> Option<u32> {
        let (first, rest) = reasons.split_first()?;
        let begin = self.line(*first, 0)?;
        rest.iter()
            .try_fold(begin, |line, reason| self.line(*reason, line))?;
        Some(begin)
    }
}

impl Functions {
    fn note(&mut self, function: Range<u64>, report: Report) {
        let known = self.0.entry(function.start).or_default();
        known.bytes = function.end.saturating_sub(function.start);
        known.reports.push(report);
    }

    fn probes(&self) -> Option<Vec<Probe>> {
        let having = |reason: u32| {
            let functions = self.0.iter();
            functions.filter(move |(_, function)| function.has(reason))
        };
        let made: Vec<u64> = having(NO_CONTEXT).map(|(address, _)| *address).collect();
        let handshakes: Vec<u64> = having(NEITHER_END).map(|(address, _)| *address).collect();
        let [made] = *made.as_slice() else {
            return None;
        };
        if handshakes.is_empty() || handshakes.len() > HANDSHAKES {
            return None;
        }
        let (write, write_line) = self.only(&[NOT_FOR_QUIC, NOT_BEGUN, FAILED])?;
        let read = self.read(write, write_line)?;
        let mut probes = vec![("tls_made", made)];
        for handshake in handshakes {
            probes.extend([("tls_handshake", handshake), ("tls_return", handshake)]);
        }
        probes.extend([("tls_read", read), ("tls_return", read)]);
        probes.extend([("tls_write", write), ("tls_return", write)]);
        Some(probes)
    }

    /// The one function that has these reasons one behind the other, and the line of the first.
    fn only(&self, reasons: &[u32]) -> Option<(u64, u32)> {
        let mut found = self
            .0
            .iter()
            .filter_map(|(address, function)| Some((*address, function.sequence(reasons)?)));
        let first = found.next()?;
        found.next().is_none().then_some(first)
    }

    /// `SSL_read`: of the two functions with the line of `SSL_peek` the larger one.
    fn read(&self, write: u64, write_line: u32) -> Option<u64> {
        let others = self.0.iter().filter(|(address, _)| **address != write);
        let begin = others
            .filter_map(|(_, function)| function.sequence(&[NOT_BEGUN, FAILED]))
            .find(|line| *line < write_line)?;
        let peek_line = |function: &Function| {
            let line = function.line(NOT_FOR_QUIC, begin)?;
            (line < write_line).then_some(line)
        };
        let mut found = self
            .0
            .iter()
            .filter_map(|(address, function)| Some((*address, function, peek_line(function)?)));
        let (one, other) = (found.next()?, found.next()?);
        let is_pair = one.2 == other.2 && found.next().is_none();
        let larger = match one.1.bytes.cmp(&other.1.bytes) {
            std::cmp::Ordering::Less => Some(other.0),
            std::cmp::Ordering::Equal => None,
            std::cmp::Ordering::Greater => Some(one.0),
        };
        larger.filter(|_| is_pair)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `SSL_write` of grpcio 1.85.3 reports that QUIC must not call it.
    const CODE: [u8; 30] = [
        0x41, 0xb8, 0xbc, 0x03, 0, 0, 0x48, 0x8d, 0x0d, 0x86, 0x40, 0x27, 0, 0xba, 0x42, 0, 0, 0,
        0x31, 0xf6, 0xbf, 0x10, 0, 0, 0, 0xe8, 0x1d, 0x5d, 0xea, 0xff,
    ];
    const ADDRESS: u64 = 0xbb_36e5;
    const NAME: u64 = 0xe2_7778;

    /// Reports of files of some releases of grpcio: address, bytes, then lines and reasons.
    type Row = (u64, u64, &'static [(u32, u32)]);
    const NEWEST: &[Row] = &[
        (0xbb_1670, 0xc00, &[(443, 68), (416, 186)]),
        (0xbb_2270, 0xbe0, &[(498, 185)]),
        (0xbb_2e50, 0x150, &[(719, 150), (712, 299), (707, 66)]),
        (0xbb_2fa0, 0x1e0, &[(730, 134)]),
        (0xbb_3180, 0x210, &[(730, 134)]),
        (0xbb_3390, 0x210, &[(730, 134)]),
        (
            0xbb_35a0,
            0x195,
            &[(982, 111), (976, 215), (956, 66), (961, 226)],
        ),
        (
            0xbb_3740,
            0x130,
            &[(1001, 66), (1006, 284), (1011, 246), (996, 226)],
        ),
        (
            0xbb_4d40,
            0x3e0,
            &[(876, 215), (791, 110), (784, 182), (843, 226)],
        ),
        (0xbb_5120, 0xa0, &[(935, 66)]),
        (0xbb_51c0, 0x1c0, &[(1022, 226), (1069, 291)]),
        (0xbb_5380, 0x11e, &[(935, 66)]),
        (0xbb_54a0, 0x420, &[(791, 110), (784, 182), (816, 66)]),
    ];
    const OF_2022: &[Row] = &[
        (0x70_f5e0, 0x8c0, &[(613, 185)]),
        (0x70_fff0, 0x1e0, &[(829, 134)]),
        (0x71_05f0, 0x120, &[(1065, 215), (1046, 66), (1051, 226)]),
        (
            0x71_0710,
            0x130,
            &[(1085, 66), (1090, 284), (1080, 226), (1095, 246)],
        ),
        (
            0x71_1bb0,
            0x3e0,
            &[(890, 110), (883, 182), (966, 215), (942, 226)],
        ),
        (0x71_1f90, 0xa0, &[(1025, 66)]),
        (0x71_2030, 0x1c0, &[(1111, 226), (1158, 291)]),
        (0x71_21f0, 0x11e, &[(1025, 66)]),
        (0x71_2310, 0x400, &[(890, 110), (883, 182), (915, 66)]),
    ];

    fn functions(rows: &[Row]) -> Functions {
        let mut functions = Functions::default();
        for (address, bytes, reports) in rows {
            for (line, reason) in *reports {
                let report = Report {
                    line: *line,
                    reason: *reason,
                };
                functions.note(*address..address + bytes, report);
            }
        }
        functions
    }

    /// A report is whole or none.
    #[test]
    fn a_report() {
        for cut in 0..=CODE.len() {
            let code = Bytes {
                address: ADDRESS,
                bytes: &CODE[..cut],
            };
            let expected = (cut >= 25).then_some((
                6,
                Report {
                    line: 956,
                    reason: 66,
                },
            ));
            assert_eq!(reports(&code, &[NAME]), Vec::from_iter(expected), "{cut}");
            assert_eq!(reports(&code, &[NAME + 1]), []);
        }
    }

    #[test]
    fn functions_of_releases() {
        let probes = functions(NEWEST).probes().expect("all of them");
        let expected = [
            ("tls_made", 0xbb_2270),
            ("tls_handshake", 0xbb_2fa0),
            ("tls_return", 0xbb_2fa0),
            ("tls_handshake", 0xbb_3180),
            ("tls_return", 0xbb_3180),
            ("tls_handshake", 0xbb_3390),
            ("tls_return", 0xbb_3390),
            ("tls_read", 0xbb_5380),
            ("tls_return", 0xbb_5380),
            ("tls_write", 0xbb_35a0),
            ("tls_return", 0xbb_35a0),
        ];
        assert_eq!(probes, expected);
        let probes = functions(OF_2022).probes().expect("all of them");
        assert!(probes.contains(&("tls_read", 0x71_21f0)));
        assert!(probes.contains(&("tls_write", 0x71_05f0)));
    }

    /// Without one of them there are no probes, and none where it is not certain which is which.
    #[test]
    fn all_or_none() {
        const NEEDED: [u64; 6] = [
            0x70_f5e0, 0x70_fff0, 0x71_05f0, 0x71_1bb0, 0x71_1f90, 0x71_21f0,
        ];
        for missing in NEEDED {
            let mut functions = functions(OF_2022);
            assert!(functions.0.remove(&missing).is_some());
            assert_eq!(functions.probes(), None, "{missing:x}");
        }
        let mut alike = functions(OF_2022);
        for peek in [0x71_1f90, 0x71_21f0] {
            alike.note(peek..peek + 0x100, Report { line: 1, reason: 1 });
        }
        assert_eq!(alike.probes(), None);
    }
}

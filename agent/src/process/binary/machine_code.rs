//! What is read off x86-64 instructions that Go's compiler emits: where a function's prologue can
//! be probed cheaply, where it calls another one, where it keeps its first argument, and where the
//! runtime counts its goroutines. Intel SDM volume 2.

/// How a Go function with a stack frame begins: the stack check, which also proves that this is
/// where a function begins.
///
/// ```text
/// 49 3b 66 10                       cmp rsp, [r14+16]      small frames
/// 4c 8d 64 24 xx                    lea r12, [rsp-xx]      larger ones, or
/// 4c 8d a4 24 xx xx xx xx           lea r12, [rsp-xxxxxxxx]
/// 4d 3b 66 10                       cmp r12, [r14+16]
/// 76 xx  or  0f 86 xx xx xx xx      jbe
/// 55                                push rbp               since Go 1.21
/// ```
///
/// Returns how many bytes behind the entry to probe; `None`: no function begins here. The kernel
/// emulates `push`, and executes most other instructions in a single step out of line, which takes
/// several times as long. Up to there the stack check changes no register but r12.
pub(super) fn probe_offset(code: &[u8]) -> Option<u64> {
    const COMPARE: [u8; 4] = [0x49, 0x3b, 0x66, 0x10];
    const COMPARE_FRAME: [u8; 4] = [0x4d, 0x3b, 0x66, 0x10];
    let after = match code {
        [0x4c, 0x8d, 0x64, 0x24, _, rest @ ..]
        | [0x4c, 0x8d, 0xa4, 0x24, _, _, _, _, rest @ ..] => rest.strip_prefix(&COMPARE_FRAME)?,
        _ => code.strip_prefix(&COMPARE)?,
    };
    let ([0x76, _, after @ ..] | [0x0f, 0x86, _, _, _, _, after @ ..]) = after else {
        return None;
    };
    match after {
        [0x55, ..] => Some((code.len() - after.len()) as u64),
        _ => Some(0),
    }
}

/// Address of `runtime.sched.goidgen`, the ids given out so far, from the code of
/// `runtime.newproc1` at `entry`: it takes a batch of 16 ids by
///
/// ```text
/// [41] b8+r 10 00 00 00             mov r32, 16
/// 48|4c 8d /r xx xx xx xx           lea r64, [rip+xxxxxxxx]
/// f0 48..4f 0f c1 /r                lock xadd [r64], r64
/// ```
///
/// `None` unless there is exactly one such place.
pub(super) fn goroutine_counter(code: &[u8], entry: u64) -> Option<u64> {
    const ADD_BYTES: usize = 5;
    const LEA_BYTES: usize = 7;
    let mut found = code
        .windows(ADD_BYTES + LEA_BYTES + ADD_BYTES)
        .enumerate()
        .filter_map(|(at, window)| {
            let (load, rest) = window.split_at(ADD_BYTES);
            let (address, add) = rest.split_at(LEA_BYTES);
            // With the prefix for r8 to r15 the constant's instruction is a byte longer; its last
            // five bytes are the same.
            let is_batch = matches!(load, [0xb8..=0xbf, 16, 0, 0, 0]);
            let is_add = matches!(add, [0xf0, 0x48..=0x4f, 0x0f, 0xc1, modrm] if modrm >> 6 == 0);
            let [0x48 | 0x4c, 0x8d, modrm, distance @ ..] = address else {
                return None;
            };
            if !is_batch || !is_add || modrm & 0xc7 != 0x05 {
                return None;
            }
            let distance = i32::from_le_bytes(distance.try_into().ok()?);
            let next = entry.checked_add((at + ADD_BYTES + LEA_BYTES) as u64)?;
            next.checked_add_signed(distance.into())
        });
    let address = found.next()?;
    found.next().is_none().then_some(address)
}

/// Bytes of `e8 xx xx xx xx`, a call of an address relative to the next instruction. The kernel
/// emulates it as it does `push`.
const CALL_BYTES: usize = 5;

/// Where in the code of a function at `entry` another one is called, in bytes behind the entry.
/// Instructions are not told apart: that five bytes of others look like a call of just this address
/// does not happen by chance.
pub(super) fn calls(code: &[u8], entry: u64, callee: u64) -> Vec<u64> {
    let calls = code.windows(CALL_BYTES).enumerate().filter(|(at, window)| {
        let [0xe8, distance @ ..] = window else {
            return false;
        };
        let distance = <[u8; 4]>::try_from(distance).map(i32::from_le_bytes);
        let next = entry.checked_add((at + CALL_BYTES) as u64);
        let target = |distance: i32| next?.checked_add_signed(distance.into());
        distance.ok().and_then(target) == Some(callee)
    });
    calls.map(|(at, _)| at as u64).collect()
}

/// Where a function keeps its first argument when it makes the call at `call`, in bytes above
/// the stack pointer: it puts `rax` there before its own first call, and takes it from there
/// behind this one, whatever register it wants it in.
///
/// ```text
/// 48 89 44 24 xx  or  48 89 84 24 xx xx xx xx           mov [rsp+x], rax
/// 48|4c 8b 44..7c 24 xx  or  .. 84..bc 24 xx xx xx xx   mov r64, [rsp+x]
/// ```
pub(super) fn first_argument(code: &[u8], call: u64) -> Option<u32> {
    /// A reload stands among the first instructions behind the call.
    const BEHIND: usize = 16;

    let kept = code.windows(SLOT_BYTES).find_map(|window| {
        let rest = window.strip_prefix(&[0x48, 0x89])?;
        matches!(rest, [0x44 | 0x84, ..]).then(|| slot(rest))?
    })?;
    let behind = usize::try_from(call).ok()?.checked_add(CALL_BYTES)?;
    let rest = code.get(behind..)?;
    let is_taken = rest.windows(SLOT_BYTES).take(BEHIND).any(
        |window| matches!(window, [0x48 | 0x4c, 0x8b, operand @ ..] if slot(operand) == Some(kept)),
    );
    is_taken.then_some(kept)
}

/// Which field of a structure is the third argument of the call at `call`, a number of 32 bits, in
/// bytes from the structure's beginning: among the last instructions before stands
///
/// ```text
/// 8b /r                             mov ecx, [r64]
/// 8b /r xx  or  8b /r xx xx xx xx   mov ecx, [r64+x]
/// ```
///
/// `None` where none does, or where what stands there may be of more than one reading.
pub(super) fn third_argument_field(code: &[u8], call: u64) -> Option<u32> {
    /// Between the two stands what sets the other arguments.
    const BEFORE: usize = 16;

    let call = usize::try_from(call).ok()?;
    let before = code.get(call.checked_sub(BEFORE)?..call)?;
    let mut found = before.windows(2).enumerate().filter_map(|(at, window)| {
        let [0x8b, modrm] = *window else { return None };
        // Into ecx, by a register that needs no further byte.
        if modrm & 0x38 != 0x08 || matches!(modrm & 7, 4 | 5) {
            return None;
        }
        let rest = before.get(at + 2..)?;
        match modrm >> 6 {
            0 => Some(0),
            1 => u32::try_from(i8::from_le_bytes([*rest.first()?])).ok(),
            2 => u32::try_from(i32::from_le_bytes(rest.get(..4)?.try_into().ok()?)).ok(),
            _ => None,
        }
    });
    let field = found.next()?;
    found.next().is_none().then_some(field)
}

/// Bytes of an instruction with a register and a place on the stack at most.
const SLOT_BYTES: usize = 8;

/// The place on the stack that an operand names: `modrm`, `sib`, then a distance of one byte or
/// four.
fn slot(operand: &[u8]) -> Option<u32> {
    match operand {
        [modrm, 0x24, distance, ..] if modrm & 0xc7 == 0x44 => i8::try_from(*distance)
            .ok()
            .and_then(|distance| u32::try_from(distance).ok()),
        [modrm, 0x24, distance @ ..] if modrm & 0xc7 == 0x84 => {
            let distance = distance.get(..4)?.try_into().ok()?;
            u32::try_from(i32::from_le_bytes(distance)).ok()
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Prologues of `net/http.(*persistConn).roundTrip` (large frame: Go 1.27 and 1.19) and of
    /// smaller functions.
    #[test]
    fn prologues() {
        let large = [
            0x4c, 0x8d, 0xa4, 0x24, 0x58, 0xfe, 0xff, 0xff, 0x4d, 0x3b, 0x66, 0x10,
        ];
        let jump = [0x0f, 0x86, 0x74, 0x0e, 0, 0];
        let table: [(&[&[u8]], Option<u64>); 7] = [
            (&[&large, &jump, &[0x55, 0x48, 0x89, 0xe5]], Some(18)),
            (&[&large, &jump, &[0x48, 0x81, 0xec]], Some(0)),
            (&[&[0x49, 0x3b, 0x66, 0x10, 0x76, 0x20, 0x55]], Some(6)),
            (
                &[&[
                    0x4c, 0x8d, 0x64, 0x24, 0x80, 0x4d, 0x3b, 0x66, 0x10, 0x76, 1, 0x55,
                ]],
                Some(11),
            ),
            (&[&large], None),
            (&[&[0x55, 0x48, 0x89, 0xe5]], None),
            (&[], None),
        ];
        for (pieces, expected) in table {
            let code = pieces.concat();
            assert_eq!(probe_offset(&code), expected, "{code:x?}");
        }
    }

    /// From `runtime.newproc1` of Go 1.27. Guarantee: found once, and not at all if twice.
    #[test]
    fn counter() {
        let code = [
            0x41, 0xba, 0x10, 0, 0, 0, 0x4c, 0x8d, 0x1d, 0xc9, 0x0b, 0x68, 0, 0xf0, 0x4d, 0x0f,
            0xc1, 0x13,
        ];
        let expected = 0x45_8697 + 0x68_0bc9;
        assert_eq!(goroutine_counter(&code, 0x45_868a), Some(expected));
        assert_eq!(goroutine_counter(&code.repeat(2), 0x45_868a), None);
        assert_eq!(goroutine_counter(&code[..17], 0x45_868a), None);
    }

    /// The end of a loop that calls its own function's entry at 0x1000, and another function.
    #[test]
    fn calls_of_one_function() {
        let code = [
            0x90, 0xe8, 0xfa, 0x0f, 0, 0, // call 0x2000
            0xe8, 0xf5, 0xff, 0xff, 0xff, // call 0x1000
            0xe8, 0xf0, 0x0f, 0, 0, // call 0x2000
        ];
        assert_eq!(calls(&code, 0x1000, 0x2000), [1, 11]);
        assert_eq!(calls(&code, 0x1000, 0x1000), [6]);
        assert_eq!(calls(&code[..15], 0x1000, 0x2000), [1], "cut");
        assert_eq!(calls(&code, 0x1001, 0x2000), [0; 0]);
    }

    /// From `crypto/tls.(*Conn).Read` of Go 1.27: the beginning, and what follows the copy.
    #[test]
    fn first_arguments() {
        const KEPT: [u8; 5] = [0x48, 0x89, 0x44, 0x24, 0x68];
        const CALL: [u8; 5] = [0xe8, 0x18, 0x72, 0xe7, 0xff];
        const TAKEN: [u8; 5] = [0x48, 0x8b, 0x74, 0x24, 0x68];
        let beginning = [0x66, 0x4c, 0x0f, 0x7e, 0x7c, 0x24, 0x50];
        let between = [0x48, 0x8b, 0x4c, 0x24, 0x28];
        let code = [&beginning[..], &KEPT, &CALL, &between, &TAKEN, &[0x90; 8]].concat();
        let call = (beginning.len() + KEPT.len()) as u64;
        assert_eq!(first_argument(&code, call), Some(0x68));
        // Taken from elsewhere, or only much later.
        let other = [&beginning[..], &KEPT, &CALL, &between, &[0x90; 16]].concat();
        assert_eq!(first_argument(&other, call), None);
        let late = [&KEPT[..], &CALL, &[0x90; 32], &TAKEN, &[0x90; 8]].concat();
        assert_eq!(first_argument(&late, KEPT.len() as u64), None);
        assert_eq!(first_argument(&code, 1_000), None);
        // A larger frame.
        let kept = [0x48, 0x89, 0x84, 0x24, 0xc8, 1, 0, 0];
        let taken = [0x4c, 0x8b, 0x84, 0x24, 0xc8, 1, 0, 0];
        let large = [&kept[..], &CALL, &taken].concat();
        assert_eq!(first_argument(&large, kept.len() as u64), Some(0x1c8));
    }

    /// From `(*http2Server).deleteStream` of grpc-go 1.83 (Go 1.26), 1.33 (Go 1.27) and 1.46
    /// (Go 1.20).
    #[test]
    fn fields_of_third_arguments() {
        let newest = [
            0x54, 0x24, 0x40, 0x8b, 0x4a, 0x6c, 0x48, 0x8d, 0x05, 0xca, 0x80, 0x80, 0x02,
        ];
        let oldest = [
            0x54, 0x24, 0x38, 0x8b, 0x0a, 0x48, 0x8d, 0x05, 0xa1, 0x17, 0x57, 0, 0x90,
        ];
        let other = [
            0x74, 0x24, 0x38, 0x8b, 0x0e, 0x48, 0x8d, 0x05, 0x78, 0x59, 0x47, 0xff,
        ];
        let far = [0x8b, 0x8a, 0x6c, 1, 0, 0, 0x48, 0x8d, 0x05, 1, 2, 3, 0];
        let register = [0x8b, 0xca, 0x48, 0x8d, 0x05, 1, 2, 3, 0];
        let table: [(&[u8], Option<u32>); 5] = [
            (&newest, Some(0x6c)),
            (&oldest, Some(0)),
            (&other, Some(0)),
            (&far, Some(0x16c)),
            (&register, None),
        ];
        for (before, expected) in table {
            let code = [&[0x90; 16], before].concat();
            let call = code.len() as u64;
            assert_eq!(third_argument_field(&code, call), expected, "{before:x?}");
        }
        let twice = [&[0x90; 16][..], &[0x8b, 0x4a, 0x6c], &newest].concat();
        assert_eq!(third_argument_field(&twice, twice.len() as u64), None);
        assert_eq!(third_argument_field(&newest, newest.len() as u64), None);
    }
}

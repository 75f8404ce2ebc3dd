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
}

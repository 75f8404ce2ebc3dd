//! Huffman-coded strings of HPACK: RFC 7541, section 5.2 and appendix B,
//! <https://www.rfc-editor.org/rfc/rfc7541>.
//!
//! The code of appendix B is canonical: codes of one length follow each other in the order of
//! their symbols, and shorter ones come first. So the lengths alone give the table, which is built
//! at compile time: a tree of 256 inner nodes, and from it what four bits more lead to. No code is
//! shorter than five bits, so four bits end one symbol at most.

/// Bits of the code of each byte, and of the end of string (256).
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28,
    28, 28, 28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5,
    5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, 15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6,
    6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22,
    23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22,
    21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20,
    22, 22, 22, 23, 22, 22, 23, 26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19,
    21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22,
    22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26, 30,
];

const LONGEST: u8 = 30;
const END_OF_STRING: u16 = 256;
const NODES: usize = 256;

/// A child of an inner node: another inner node (never 0, the root), or `LEAF` plus a symbol.
type Child = u16;
const LEAF: Child = 256;

/// What four bits lead to.
#[derive(Clone, Copy, Debug)]
struct Step {
    /// The node after them.
    node: u8,
    emits: Emits,
}

#[derive(Clone, Copy, Debug)]
enum Emits {
    Nothing,
    Byte(u8),
    /// The end of string must not stand in a string.
    Refused,
}

static STEPS: [[Step; 16]; NODES] = steps();

/// Nodes at which a string may end: after fewer than eight bits, all of them ones.
static ENDS: [bool; NODES] = ends();

/// Adds the decoded string to `out`. `None` when it is not one; `out` then holds its beginning.
pub(super) fn decode(coded: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let mut node = 0_u8;
    for byte in coded {
        for nibble in [byte >> 4, byte & 15] {
            let step = STEPS
                .get(usize::from(node))
                .and_then(|steps| steps.get(usize::from(nibble)))?;
            node = step.node;
            match step.emits {
                Emits::Nothing => {}
                Emits::Byte(byte) => out.push(byte),
                Emits::Refused => return None,
            }
        }
    }
    ENDS.get(usize::from(node))
        .copied()
        .unwrap_or_default()
        .then_some(())
}

#[expect(clippy::indexing_slicing, reason = "runs at compile time")]
const fn tree() -> [[Child; 2]; NODES] {
    let mut children = [[0; 2]; NODES];
    let mut used = 1;
    let mut code = 0_u32;
    let mut length = 1;
    while length <= LONGEST {
        let mut symbol = 0;
        while symbol < LENGTHS.len() {
            if LENGTHS[symbol] == length {
                let mut node = 0;
                let mut bit = length;
                while bit > 1 {
                    bit -= 1;
                    let side = (code >> bit & 1) as usize;
                    if children[node][side] == 0 {
                        children[node][side] = used;
                        used += 1;
                    }
                    node = children[node][side] as usize;
                }
                children[node][(code & 1) as usize] = LEAF + symbol as Child;
                code += 1;
            }
            symbol += 1;
        }
        code <<= 1;
        length += 1;
    }
    children
}

#[expect(clippy::indexing_slicing, reason = "runs at compile time")]
const fn steps() -> [[Step; 16]; NODES] {
    let children = tree();
    let nothing = Step {
        node: 0,
        emits: Emits::Nothing,
    };
    let mut steps = [[nothing; 16]; NODES];
    let mut node = 0;
    while node < NODES {
        let mut nibble = 0;
        while nibble < 16 {
            let mut emits = Emits::Nothing;
            let mut at = node as Child;
            let mut bit = 4;
            while bit > 0 {
                bit -= 1;
                let child = children[at as usize][nibble >> bit & 1];
                if child < LEAF {
                    at = child;
                } else {
                    let symbol = child - LEAF;
                    emits = if symbol == END_OF_STRING {
                        Emits::Refused
                    } else {
                        Emits::Byte(symbol as u8)
                    };
                    at = 0;
                }
            }
            steps[node][nibble] = Step {
                node: at as u8,
                emits,
            };
            nibble += 1;
        }
        node += 1;
    }
    steps
}

#[expect(clippy::indexing_slicing, reason = "runs at compile time")]
const fn ends() -> [bool; NODES] {
    let children = tree();
    let mut ends = [false; NODES];
    let mut node = 0;
    let mut depth = 0;
    while depth < 8 {
        ends[node] = true;
        node = children[node][1] as usize;
        depth += 1;
    }
    ends
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(hexadecimal: &str) -> Option<String> {
        let coded: Vec<u8> = (0..hexadecimal.len() / 2)
            .map(|at| u8::from_str_radix(&hexadecimal[2 * at..2 * at + 2], 16).expect("digits"))
            .collect();
        let mut out = Vec::new();
        decode(&coded, &mut out)?;
        Some(String::from_utf8(out).expect("text"))
    }

    /// Strings of RFC 7541, appendix C.4 and C.6.
    #[test]
    fn decodes_the_examples_of_the_specification() {
        for (coded, text) in [
            ("f1e3c2e5f23a6ba0ab90f4ff", "www.example.com"),
            ("a8eb10649cbf", "no-cache"),
            ("25a849e95ba97d7f", "custom-key"),
            ("25a849e95bb8e8b4bf", "custom-value"),
            ("6402", "302"),
            ("aec3771a4b", "private"),
            (
                "d07abe941054d444a8200595040b8166e082a62d1bff",
                "Mon, 21 Oct 2013 20:13:21 GMT",
            ),
            (
                "9d29ad171863c78f0b97c8e9ae82ae43d3",
                "https://www.example.com",
            ),
            (
                "94e7821dd7f2e6c7b335dfdfcd5b3960d5af27087f3672c1ab270fb5291f9587316065c003ed4ee5b1063d5007",
                "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1",
            ),
        ] {
            assert_eq!(decoded(coded).as_deref(), Some(text));
        }
        assert_eq!(decoded("").as_deref(), Some(""));
    }

    /// Section 5.2: padding is fewer than eight ones; the end of string has no place in a string.
    #[test]
    fn refuses_bad_padding_and_the_end_of_string() {
        assert_eq!(decoded("a8eb10649cbe"), None, "a padding of 0");
        assert_eq!(decoded("a8eb10649cbfff"), None, "eight bits of padding");
        assert_eq!(decoded("fffffffc"), None, "the end of string");
        assert_eq!(decoded("ffffffff"), None);
        assert_eq!(decoded("00").as_deref(), None, "a code that is cut");
    }

    /// Every byte has a code, and no code is the beginning of another: the lengths fill the tree.
    #[test]
    fn the_code_is_complete() {
        let filled: u64 = LENGTHS
            .iter()
            .map(|length| 1_u64 << (LONGEST - length))
            .sum();
        assert_eq!(filled, 1 << LONGEST);
        let children = tree();
        let leaves: std::collections::BTreeSet<Child> = children
            .iter()
            .flatten()
            .copied()
            .filter(|child| *child >= LEAF)
            .collect();
        assert_eq!(leaves.len(), LENGTHS.len());
        assert!(children.iter().flatten().all(|child| *child != 0));
    }

    /// Whatever the bytes, there is an answer.
    #[test]
    fn never_panics() {
        let mut state = 1_u32;
        let mut out = Vec::new();
        for _ in 0..20_000 {
            let bytes: Vec<u8> = (0..state % 9)
                .map(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    (state >> 24) as u8
                })
                .collect();
            state = state.wrapping_add(1);
            out.clear();
            let _ = decode(&bytes, &mut out);
            assert!(out.len() <= bytes.len() * 8 / 5 + 1);
        }
    }
}

use super::*;
use crate::process::binary::layout::Source;

const BASE: u64 = 0x40_0000;
const HEADER_BYTES: usize = 64;
const PROGRAM_BYTES: usize = 56;
const SECTION_BYTES: usize = 64;

/// A function with a large frame that pushes behind its stack check, as Go 1.21 and newer emit.
const PUSHING: [u8; 19] = [
    0x4c, 0x8d, 0xa4, 0x24, 0x58, 0xfe, 0xff, 0xff, 0x4d, 0x3b, 0x66, 0x10, 0x0f, 0x86, 0x74, 0x0e,
    0, 0, 0x55,
];

/// A function table of Go 1.20 and newer with these functions, each with its offset in the text.
fn function_table(text: u64, functions: &[(&str, u32)]) -> Vec<u8> {
    const HEADER: usize = 72;
    let mut names = b"\0".to_vec();
    let mut entries = Vec::new();
    let mut records = Vec::new();
    let table_bytes = functions.len() * 8 + 4;
    for (name, entry) in functions {
        let offset = (table_bytes + records.len()) as u32;
        entries.extend([entry.to_le_bytes(), offset.to_le_bytes()].concat());
        records.extend([entry.to_le_bytes(), (names.len() as u32).to_le_bytes()].concat());
        names.extend([name.as_bytes(), b"\0"].concat());
    }
    entries.extend([0; 4]);
    let mut table = vec![0xf1, 0xff, 0xff, 0xff, 0, 0, 1, 8];
    let units = (HEADER + names.len()) as u64;
    for word in [
        functions.len() as u64,
        0,
        text,
        HEADER as u64,
        units,
        units,
        units,
        units,
    ] {
        table.extend(word.to_le_bytes());
    }
    assert_eq!(table.len(), HEADER);
    table.extend([names, entries, records].concat());
    table
}

fn build_information(version: &str) -> Vec<u8> {
    let mut information = b"\xff Go buildinf:\x08\x02".to_vec();
    information.resize(32, 0);
    information.push(version.len() as u8);
    information.extend(version.as_bytes());
    information.push(0);
    information
}

/// An ELF file whose sections lie one behind the other, mapped as a whole at [`BASE`].
fn elf(sections: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut names = b"\0".to_vec();
    let mut headers = vec![0; SECTION_BYTES];
    let mut contents = Vec::new();
    let start = HEADER_BYTES + PROGRAM_BYTES;
    let mut add = |name: &str, bytes: &[u8], contents: &mut Vec<u8>, names: &mut Vec<u8>| {
        let offset = (start + contents.len()) as u64;
        let mut header = Vec::new();
        header.extend((names.len() as u32).to_le_bytes());
        header.extend(1u32.to_le_bytes());
        for word in [0, BASE + offset, offset, bytes.len() as u64, 0, 1, 0] {
            header.extend(word.to_le_bytes());
        }
        headers.extend(header);
        names.extend([name.as_bytes(), b"\0"].concat());
        contents.extend(bytes);
    };
    for (name, bytes) in sections {
        add(name, bytes, &mut contents, &mut names);
    }
    let mut all_names = names.clone();
    all_names.extend(b".shstrtab\0");
    add(".shstrtab", &all_names, &mut contents, &mut names);
    let section_headers = (start + contents.len()) as u64;
    let size = section_headers + headers.len() as u64;

    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    for half in [2u16, 62] {
        file.extend(half.to_le_bytes());
    }
    file.extend(1u32.to_le_bytes());
    for word in [BASE, HEADER_BYTES as u64, section_headers] {
        file.extend(word.to_le_bytes());
    }
    file.extend(0u32.to_le_bytes());
    let count = sections.len() as u16 + 2;
    for half in [64, 56, 1, 64, count, count - 1] {
        file.extend(half.to_le_bytes());
    }
    file.extend(1u32.to_le_bytes());
    file.extend(5u32.to_le_bytes());
    for word in [0, BASE, BASE, size, size, 0x1000] {
        file.extend(word.to_le_bytes());
    }
    file.extend(contents);
    file.extend(headers);
    file
}

const TEXT: usize = HEADER_BYTES + PROGRAM_BYTES;

/// A program with `net/http`'s client behind another function of some bytes.
fn sample(version: &str) -> Vec<u8> {
    let mut text = vec![0xcc; 48];
    text.extend(PUSHING);
    text.resize(4_096, 0xcc);
    let table = function_table(
        BASE + TEXT as u64,
        &[("main.main", 0), (CLIENT_CALL, 48), ("runtime.exit", 80)],
    );
    elf(&[
        (".text", text),
        (".gopclntab", table),
        (".go.buildinfo", build_information(version)),
    ])
}

#[test]
fn a_stripped_program_says_enough() {
    let file = sample("go1.22.10");
    let program = analyse(file.as_slice())
        .expect("well-formed")
        .expect("made by Go");
    assert_eq!(program.version, "go1.22.10");
    assert_eq!(program.client_call, Some((TEXT + 48 + 18) as u64));
    assert!(program.is_stripped && !program.is_position_independent);
    assert_eq!(program.image, (BASE, BASE + file.len() as u64));
    let offsets = program
        .offsets
        .map(|(offsets, source)| (offsets.parent_id, source));
    assert_eq!(offsets, Some((Some(272), Source::Table)));
    assert_eq!(program.shortcomings, [Shortcoming::NoCounter]);
}

/// Guarantee: what cannot be known is named, and nothing is probed on a guess.
#[test]
fn what_is_missing_is_named() {
    let shortcomings = |file: &[u8]| {
        let program = analyse(file).expect("well-formed").expect("made by Go");
        (program.client_call, program.shortcomings)
    };
    let development = "devel go1.99-0123456";
    assert_eq!(
        shortcomings(&sample(development)),
        (
            None,
            vec![Shortcoming::UnknownStructures(development.to_owned())]
        )
    );
    // A function that does not begin where the table says.
    let mut moved = sample("go1.22.10");
    moved[TEXT + 48] = 0x90;
    let (probe, reasons) = shortcomings(&moved);
    assert_eq!(probe, None);
    assert!(reasons.contains(&Shortcoming::NoFunctionThere(CLIENT_CALL)));
    // A function table of another format.
    let file = elf(&[
        (".gopclntab", vec![0xfb; 80]),
        (".go.buildinfo", build_information("go1.22.10")),
    ]);
    let unsupported = Shortcoming::NoFunctions(Unreadable::Unsupported("function table"));
    assert_eq!(shortcomings(&file), (None, vec![unsupported]));
}

#[test]
fn other_files_are_not_made_by_go() {
    assert_eq!(analyse(&b"#!/bin/sh\n"[..]), Err(Unreadable::NotElf));
    assert_eq!(analyse(&b""[..]), Err(Unreadable::NotElf));
    assert_eq!(analyse(elf(&[(".text", vec![0; 16])]).as_slice()), Ok(None));
}

/// Before Go 1.18 the build information points to the version.
#[test]
fn a_version_that_is_pointed_to() {
    let text = (TEXT + 48) as u64 + BASE;
    let mut information = b"\xff Go buildinf:\x08\x00".to_vec();
    information.extend((BASE + TEXT as u64 + 32).to_le_bytes());
    information.extend([0; 8]);
    information.extend(text.to_le_bytes());
    information.extend(8u64.to_le_bytes());
    information.extend(b"go1.17.3");
    let file = elf(&[(".go.buildinfo", information)]);
    let program = analyse(file.as_slice()).expect("well-formed");
    assert_eq!(
        program.map(|program| program.version).as_deref(),
        Some("go1.17.3")
    );
}

/// Scenario: a file is cut short, and each byte of it is changed. Guarantee: an error or less, but
/// never a panic, and never memory for what the file does not have.
#[test]
fn damaged_files_do_no_harm() {
    let file = sample("go1.22.10");
    for length in 0..file.len() {
        let _ = analyse(&file[..length]);
    }
    let mut damaged = file.clone();
    for at in 0..file.len() {
        for value in [0, 0x7f, 0xff] {
            damaged[at] = value;
            let _ = analyse(damaged.as_slice());
        }
        damaged[at] = file[at];
    }
}

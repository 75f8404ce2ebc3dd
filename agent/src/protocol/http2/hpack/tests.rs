//! The examples of the specification, joining late, and an encoder of another make.

use super::*;

type Field = (Name, Option<String>);

fn bytes(hexadecimal: &str) -> Vec<u8> {
    (0..hexadecimal.len() / 2)
        .map(|at| u8::from_str_radix(&hexadecimal[2 * at..2 * at + 2], 16).expect("digits"))
        .collect()
}

fn decode(decoder: &mut Decoder, block: &[u8]) -> (Vec<Field>, Reading) {
    let mut fields = Vec::new();
    let reading = decoder.decode(block, |name, value| {
        let value = value.map(|value| String::from_utf8_lossy(value).into_owned());
        fields.push((name, value));
    });
    (fields, reading)
}

fn known(name: Name, value: &str) -> Field {
    (name, Some(value.to_owned()))
}

const UNKNOWN: Field = (Name::Unknown, None);

/// RFC 7541, appendix C.3 (plain) and C.4 (Huffman): three requests on one connection.
#[test]
fn requests_of_the_specification() {
    for blocks in [
        [
            "828684410f7777772e6578616d706c652e636f6d",
            "828684be58086e6f2d6361636865",
            "828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565",
        ],
        [
            "828684418cf1e3c2e5f23a6ba0ab90f4ff",
            "828684be5886a8eb10649cbf",
            "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
        ],
    ] {
        let mut decoder = Decoder::new(Join::Whole);
        let [first, second, third] = blocks.map(|block| decode(&mut decoder, &bytes(block)));
        let common = [
            known(Name::Method, "GET"),
            known(Name::Scheme, "http"),
            known(Name::Path, "/"),
            known(Name::Authority, "www.example.com"),
        ];
        assert_eq!(first, (common.to_vec(), Reading::Whole));
        let cache = [&common[..], &[known(Name::Other, "")]].concat();
        assert_eq!(second, (cache, Reading::Whole));
        let last = [
            known(Name::Method, "GET"),
            known(Name::Scheme, "https"),
            known(Name::Path, "/index.html"),
            known(Name::Authority, "www.example.com"),
            known(Name::Other, ""),
        ];
        assert_eq!(third, (last.to_vec(), Reading::Whole));
    }
}

/// Appendix C.5: responses to a table of 256 bytes, so that entries are evicted on the way.
#[test]
fn responses_of_the_specification() {
    let mut decoder = Decoder::new(Join::Whole);
    let status = |decoder: &mut Decoder, block: &str| {
        let (fields, reading) = decode(decoder, &bytes(block));
        assert_eq!(reading, Reading::Whole);
        fields.first().cloned().expect("a status")
    };
    let first = "4803333032580770726976617465611d4d6f6e2c203231204f637420323031332032303a31333a3231\
                 20474d546e1768747470733a2f2f7777772e6578616d706c652e636f6d";
    assert_eq!(status(&mut decoder, first), known(Name::Status, "302"));
    let second = "4803333037c1c0bf";
    assert_eq!(status(&mut decoder, second), known(Name::Status, "307"));
}

/// Scenario: the decoder comes after the first request. Guarantee: what the table held before is
/// unknown, what is made later is right, and the static part always is.
#[test]
fn joining_late_leaves_old_entries_unknown() {
    let mut decoder = Decoder::new(Join::Late);
    let (fields, reading) = decode(&mut decoder, &bytes("828684be58086e6f2d6361636865"));
    assert_eq!(reading, Reading::Whole);
    assert_eq!(
        fields[..3],
        [
            known(Name::Method, "GET"),
            known(Name::Scheme, "http"),
            known(Name::Path, "/")
        ]
    );
    assert_eq!(fields[3], UNKNOWN);
    // cache-control is the newest entry now, the authority is behind it.
    let (fields, _) = decode(&mut decoder, &bytes("bebf"));
    assert_eq!(fields, [known(Name::Other, ""), UNKNOWN]);
    // A new authority takes the front.
    let (fields, _) = decode(&mut decoder, &bytes("410161bebfc0"));
    assert_eq!(
        fields,
        [
            known(Name::Authority, "a"),
            known(Name::Authority, "a"),
            known(Name::Other, ""),
            UNKNOWN
        ]
    );
}

/// A literal whose name is an unknown entry: its name is inferred where the value leaves no doubt,
/// and the inferred entry serves later.
#[test]
fn names_behind_unknown_entries_are_inferred() {
    let mut decoder = Decoder::new(Join::Late);
    let traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let mut block = vec![0x40 + 62, traceparent.len() as u8];
    block.extend(traceparent.bytes());
    block.extend(b"\x7f\x00\x06/a.B/C");
    block.extend([0xbf, 0xbe]);
    let (fields, reading) = decode(&mut decoder, &block);
    assert_eq!(reading, Reading::Whole);
    assert_eq!(
        fields,
        [
            known(Name::Traceparent, traceparent),
            known(Name::Unknown, "/a.B/C"),
            known(Name::Traceparent, traceparent),
            known(Name::Unknown, "/a.B/C"),
        ]
    );
}

/// Section 6.3: a size of 0 empties the table; other sizes leave what a valid block may name.
#[test]
fn a_size_of_zero_empties_the_table() {
    let mut decoder = Decoder::new(Join::Whole);
    decode(&mut decoder, b"\x41\x01a");
    let (fields, _) = decode(&mut decoder, b"\x3f\x09\xbe");
    assert_eq!(fields, [known(Name::Authority, "a")]);
    let (fields, _) = decode(&mut decoder, b"\x20\xbe");
    assert_eq!(fields, [UNKNOWN]);
}

/// Scenario: a block ends within a field. Guarantee: its whole fields are read, and the table is
/// that of a fresh join.
#[test]
fn a_cut_block_forgets_the_table() {
    let block = b"\x82\x41\x03abc\x44\x04/abc\x0f\x10\x03xyz\xbf";
    let mut whole = Decoder::new(Join::Whole);
    let (expected, _) = decode(&mut whole, block);
    for length in 0..block.len() {
        let mut decoder = Decoder::new(Join::Whole);
        decode(&mut decoder, b"\x41\x01a");
        let (fields, reading) = decode(&mut decoder, &block[..length]);
        assert_eq!(fields[..], expected[..fields.len()], "cut at {length}");
        let is_between = matches!(length, 0 | 1 | 6 | 12 | 18);
        assert_eq!(reading == Reading::Whole, is_between, "cut at {length}");
        if !is_between {
            let (fields, _) = decode(&mut decoder, b"\xbe");
            assert_eq!(fields, [UNKNOWN]);
        }
    }
}

/// Numbers beyond any sense, index 0, and a length beyond the block end the reading.
#[test]
fn nonsense_is_cut() {
    for block in [
        &b"\x80"[..],
        b"\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        b"\xff\x80\x80\x80\x80\x80\x80\x80\x80\x00",
        b"\x40\x7f\xff\xff\xff\x7f",
        b"\x00\x05ab",
        b"\x41",
        b"\x7f",
    ] {
        let (_, reading) = decode(&mut Decoder::new(Join::Whole), block);
        assert_eq!(reading, Reading::Cut, "{block:?}");
    }
    // A bad Huffman string is one value that is not known.
    let (fields, reading) = decode(&mut Decoder::new(Join::Whole), b"\x41\x81\x00\x82");
    assert_eq!(reading, Reading::Whole);
    assert_eq!(
        fields,
        [(Name::Authority, None), known(Name::Method, "GET")]
    );
}

/// A sender that never repeats itself does not fill memory, and keeps what it may still name.
#[test]
fn the_table_is_bounded() {
    let mut decoder = Decoder::new(Join::Late);
    for number in 0..20_000_u32 {
        let block = format!("\x41\x08{number:08}");
        decode(&mut decoder, block.as_bytes());
        assert!(decoder.bytes <= UNKNOWN_BYTES);
    }
    assert!(decoder.entries.len() <= UNKNOWN_BYTES / ENTRY_OVERHEAD);
    let (fields, _) = decode(&mut decoder, b"\xbe\xff\x40");
    assert_eq!(fields[0], known(Name::Authority, "00019999"));
    assert_eq!(fields[1], known(Name::Authority, "00019870"));
    let mut decoder = Decoder::new(Join::Whole);
    decoder.allow(u32::MAX);
    assert_eq!(decoder.limit, MOST_BYTES);
}

/// Scenario: an encoder of another make writes requests, and the decoder joins at each of them.
/// Guarantee: from the first block on it reads what that encoder's own decoder reads, and after
/// joining late never anything else.
#[test]
fn agrees_with_another_implementation() {
    let requests: Vec<Vec<(Vec<u8>, Vec<u8>)>> = (0..40_u32)
        .map(|number| {
            [
                (":method", "POST".to_owned()),
                (":path", format!("/pkg.Service/Method{}", number % 5)),
                (":authority", "localhost:50051".to_owned()),
                ("content-type", "application/grpc".to_owned()),
                ("user-agent", format!("agent/{}", number / 10)),
                ("x-other", "o".repeat(number as usize * 7 % 90)),
            ]
            .map(|(name, value)| (name.as_bytes().to_vec(), value.into_bytes()))
            .to_vec()
        })
        .collect();
    let mut encoder = loona_hpack::Encoder::new();
    let blocks: Vec<Vec<u8>> = requests
        .iter()
        .map(|fields| encoder.encode(fields.iter().map(|(name, value)| (&name[..], &value[..]))))
        .collect();
    let mut oracle = loona_hpack::Decoder::new();
    for (fields, block) in requests.iter().zip(&blocks) {
        assert_eq!(&oracle.decode(block).expect("its own block"), fields);
    }
    for join in 0..blocks.len() {
        let mut decoder = Decoder::new(if join == 0 { Join::Whole } else { Join::Late });
        for (block, expected) in blocks.iter().zip(&requests).skip(join) {
            let (fields, reading) = decode(&mut decoder, block);
            assert_eq!(reading, Reading::Whole);
            assert_eq!(fields.len(), expected.len());
            for ((name, value), (expected_name, expected_value)) in fields.iter().zip(expected) {
                if join > 0 && *name == Name::Unknown {
                    continue;
                }
                assert_eq!(*name, Name::of(expected_name));
                let expected_value = match *name {
                    Name::Other => "",
                    _ => str::from_utf8(expected_value).expect("text"),
                };
                assert_eq!(value.as_deref(), Some(expected_value));
            }
        }
    }
}

/// Whatever the bytes, there is an answer, and the bounds hold.
#[test]
fn never_panics() {
    let mut state = 7_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut decoder = Decoder::new(Join::Whole);
    for _ in 0..50_000 {
        let length = random() % 40;
        let block: Vec<u8> = (0..length).map(|_| random() as u8).collect();
        decode(&mut decoder, &block);
        assert!(decoder.bytes <= decoder.limit.max(UNKNOWN_BYTES) || decoder.bytes <= MOST_BYTES);
    }
}

//! Functions of rustls in a program's symbol table. Pure.
//!
//! Those are probed that all plaintext goes through and that are there in optimised programs, with
//! thin link-time optimisation too: two that are too long and too often called to be copied into
//! others, and the ciphers, which are called by way of a trait object. Names are mangled in one of
//! two ways, which agree on what is looked for: a type and, with its length before it, the
//! function.
//!
//! ```text
//! _ZN6rustls6vecbuf14ChunkVecBuffer8write_to17ha4c0c8744c1a8d81E                         legacy
//! _RNvMNtCsP_6rustls6vecbufNtB2_14ChunkVecBuffer8write_to                                v0
//! ```

/// Where plaintext is given to a connection, where what is encrypted is sent, and where a record is
/// decrypted. A connection is not understood if one of the three is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Write,
    Send,
    Open,
}

/// A function, by what its name has in it, from left to right, and its probes.
struct Function {
    part: Part,
    has: &'static [&'static str],
    name: &'static str,
    programs: &'static [&'static str],
}

const TRAIT_OF_OPEN: &str = "MessageDecrypter";

const FUNCTIONS: [Function; 5] = [
    Function {
        part: Part::Open,
        has: &["tls13", TRAIT_OF_OPEN],
        name: "7decrypt",
        programs: &["rustls_open_13", "rustls_opened"],
    },
    Function {
        part: Part::Open,
        has: &["tls12", "GcmMessageDecrypter", TRAIT_OF_OPEN],
        name: "7decrypt",
        programs: &["rustls_open_12_gcm", "rustls_opened"],
    },
    Function {
        part: Part::Open,
        has: &["tls12", "ChaCha20Poly1305MessageDecrypter", TRAIT_OF_OPEN],
        name: "7decrypt",
        programs: &["rustls_open_12_chacha", "rustls_opened"],
    },
    Function {
        part: Part::Write,
        has: &["rustls", "CommonState"],
        name: "16buffer_plaintext",
        programs: &["rustls_write", "rustls_written"],
    },
    // Last: a session is whole if its first bytes were seen to leave, and all else must be probed
    // by then.
    Function {
        part: Part::Send,
        has: &["rustls", "ChunkVecBuffer"],
        name: "8write_to",
        programs: &["rustls_send", "rustls_sent"],
    },
];

/// In every name that is looked for, and in the table of names if there is any at all.
pub(super) const MARK: &[u8] = b"ChunkVecBuffer8write_to";

/// Functions found so far, each with its row.
#[derive(Debug, Default)]
pub(super) struct Found(Vec<(usize, u64)>);

impl Found {
    pub(super) fn note(&mut self, name: &[u8], address: u64) {
        let Ok(name) = str::from_utf8(name) else {
            return;
        };
        let row = FUNCTIONS.iter().position(|function| function.is(name));
        if let Some(row) = row
            && !self.0.contains(&(row, address))
        {
            self.0.push((row, address));
        }
    }

    /// eBPF programs and addresses, in the order of attaching; `None` where a part is missing.
    pub(super) fn probes(mut self) -> Option<Vec<(&'static str, u64)>> {
        self.0.sort_unstable();
        let rows = || self.0.iter().filter_map(|(row, _)| FUNCTIONS.get(*row));
        let is_whole = [Part::Write, Part::Send, Part::Open]
            .iter()
            .all(|part| rows().any(|function| function.part == *part));
        let probes = self.0.iter().filter_map(|(row, address)| {
            let programs = FUNCTIONS.get(*row)?.programs.iter();
            Some(programs.map(|program| (*program, *address)))
        });
        is_whole.then(|| probes.flatten().collect())
    }
}

impl Function {
    fn is(&self, name: &str) -> bool {
        let mut rest = name;
        let Some((last, before)) = self.has.split_last() else {
            return false;
        };
        for part in before {
            let Some((_, behind)) = rest.split_once(part) else {
                return false;
            };
            rest = behind;
        }
        // Types are named after the trait.
        let Some((_, rest)) = rest.rsplit_once(last) else {
            return false;
        };
        // The implementation for a type ends so in legacy names.
        let rest = rest.strip_prefix("$GT$").unwrap_or(rest);
        let Some(behind) = rest.strip_prefix(self.name) else {
            return false;
        };
        // A hash, nothing, or a suffix of the compiler's; not a closure inside of it.
        behind.is_empty() || behind.starts_with("17h") || behind.starts_with('.')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRITE: &str =
        "_ZN6rustls12common_state11CommonState16buffer_plaintext17h6b52206d95e6fb6eE";
    const SEND: &str = "_ZN6rustls6vecbuf14ChunkVecBuffer8write_to17ha4c0c8744c1a8d81E";
    const OPEN: &str = "_ZN111_$LT$rustls..crypto..ring..tls13..Tls13MessageDecrypter$u20$as$u20$\
                        rustls..crypto..cipher..MessageDecrypter$GT$7decrypt17hcf507f652999249fE";
    const OPEN_12: &str = "_ZN109_$LT$rustls..crypto..ring..tls12..GcmMessageDecrypter$u20$as$u20$\
                           rustls..crypto..cipher..MessageDecrypter$GT$7decrypt17h420c9c09ab91066eE";
    const OPEN_V0: &str = "_RNvXs0_NtNtNtCs3_6rustls6crypto4ring5tls13NtB5_20Tls13MessageDecrypter\
                           NtNtB9_6cipher16MessageDecrypter7decrypt";
    const OTHERS: [&str; 4] = [
        "_ZN6rustls12common_state11CommonState10send_plain17h831bd32fa39ad676E",
        "_ZN108_$LT$rustls..crypto..cipher..InvalidMessageDecrypter$u20$as$u20$rustls..crypto..\
         cipher..MessageDecrypter$GT$7decrypt17h9ca91a85c08e52aaE.llvm.9012385225876642649",
        "_ZN6rustls6vecbuf14ChunkVecBuffer8write_to28_$u7b$$u7b$closure$u7d$$u7d$17h0E",
        "SSL_read",
    ];

    fn probes(names: &[&str]) -> Option<Vec<&'static str>> {
        let mut found = Found::default();
        for (address, name) in names.iter().enumerate() {
            found.note(name.as_bytes(), address as u64);
        }
        let probes = found.probes()?;
        Some(probes.into_iter().map(|(program, _)| program).collect())
    }

    /// Names from a release build, in both manglings: each is what it is, in the order of
    /// attaching, and what is similar is none of them.
    #[test]
    fn names() {
        let opened = "rustls_opened";
        let expected = ["rustls_open_13", opened, "rustls_open_12_gcm", opened];
        let behind = [
            "rustls_write",
            "rustls_written",
            "rustls_send",
            "rustls_sent",
        ];
        let all = [SEND, WRITE, OPEN_12, OPEN];
        assert_eq!(probes(&all), Some([expected, behind].concat()));
        assert_eq!(
            probes(&[SEND, WRITE, OPEN_V0]),
            Some([&expected[..2], &behind].concat())
        );
        assert_eq!(probes(&OTHERS), None);
    }

    /// Without one of the parts there is nothing to be understood.
    #[test]
    fn parts() {
        for names in [[SEND, WRITE], [SEND, OPEN], [WRITE, OPEN]] {
            assert_eq!(probes(&names), None, "{names:?}");
        }
    }
}

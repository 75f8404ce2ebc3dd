//! Offsets of the fields of Go's own structures that are read in a running program, by release.

use super::build_info::Release;

/// Byte offsets; `None` where the release has no such field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offsets {
    /// `runtime.g`: its thread, its id, and the id of the goroutine that started it (Go 1.21).
    pub thread: u32,
    pub id: u32,
    pub parent_id: Option<u32>,
    /// `runtime.m`: the goroutine it runs, its processor, and the one it left for a system call.
    pub running: u32,
    pub processor: u32,
    pub left_processor: u32,
    /// `runtime.p`: the next id it gives to a goroutine; behind it the end of its batch of ids.
    pub next_id: u32,
    /// `net/http.persistConn`: the connection.
    pub connection: u32,
}

/// Where offsets came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    Table,
    DebugInformation,
}

/// A field of [`Offsets`] as Go names it.
pub(super) const FIELDS: [(&str, &str); 8] = [
    ("runtime.g", "m"),
    ("runtime.g", "goid"),
    ("runtime.g", "parentGoid"),
    ("runtime.m", "curg"),
    ("runtime.m", "p"),
    ("runtime.m", "oldp"),
    ("runtime.p", "goidcache"),
    ("net/http.persistConn", "conn"),
];

impl Offsets {
    /// From offsets in the order of [`FIELDS`].
    pub(super) fn of(fields: [Option<u32>; FIELDS.len()]) -> Option<Self> {
        let [
            thread,
            id,
            parent_id,
            running,
            processor,
            left_processor,
            next_id,
            connection,
        ] = fields;
        Some(Self {
            thread: thread?,
            id: id?,
            parent_id,
            running: running?,
            processor: processor?,
            left_processor: left_processor?,
            next_id: next_id?,
            // Without net/http there is nothing to read it from.
            connection: connection.unwrap_or(0),
        })
    }

    /// What the table says of a release. A patch release newer than the table's last one of its
    /// minor version is taken to be like it: no minor version has changed these structures so far.
    pub fn of_release(release: Release) -> Option<Self> {
        let row = TABLE.iter().find(|(minor, _)| *minor == release.minor)?;
        Self::of(row.1.map(|offset| (offset != ABSENT).then_some(offset)))
    }
}

const ABSENT: u32 = u32::MAX;

/// Minor version, then offsets in the order of [`FIELDS`]. From the debugging information of
/// programs built by each release, `cargo run -p agent --example go_layouts -- PROGRAM...`; the
/// structures are in `runtime/runtime2.go` and `net/http/transport.go` of Go's source. Those of 1.18
/// and 1.20 are computed from there, and up to these fields the same as those of 1.19.
const TABLE: [(u16, [u32; FIELDS.len()]); 10] = [
    (18, [48, 152, ABSENT, 192, 208, 224, 384, 80]),
    (19, [48, 152, ABSENT, 192, 208, 224, 384, 80]),
    (20, [48, 152, ABSENT, 192, 208, 224, 384, 80]),
    (21, [48, 152, 272, 192, 208, 224, 384, 80]),
    (22, [48, 152, 272, 192, 208, 224, 384, 80]),
    (23, [48, 160, 280, 192, 208, 224, 376, 80]),
    (24, [48, 160, 280, 192, 208, 224, 376, 80]),
    (25, [48, 152, 272, 184, 200, 216, 376, 80]),
    (26, [48, 152, 280, 184, 208, 224, 384, 80]),
    (27, [48, 152, 280, 184, 208, 224, 384, 80]),
];

#[cfg(test)]
mod tests {
    use super::*;

    /// Guarantee: each release is there once, in order, and parents are known from Go 1.21 on.
    #[test]
    fn the_table_is_in_order() {
        assert!(TABLE.is_sorted_by(|(one, _), (next, _)| one < next));
        for (minor, _) in TABLE {
            let offsets = Offsets::of_release(Release { minor, patch: 99 }).expect("in the table");
            assert_eq!(offsets.parent_id.is_some(), minor >= 21, "1.{minor}");
        }
        assert_eq!(
            Offsets::of_release(Release {
                minor: 17,
                patch: 0
            }),
            None
        );
    }
}

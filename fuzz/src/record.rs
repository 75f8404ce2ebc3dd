//! Records as the kernel side writes them, one after the other.

use agent::{
    engine::replay,
    event::{EventKind, decode},
};

/// Panics when a batch is not walked from its beginning to its end, or an event holds more than
/// its record.
pub fn run(data: &[u8]) {
    let mut walked = 0;
    for record in replay::records(data) {
        assert!(!record.is_empty(), "a walk that stands still");
        walked += record.len();
        if let Ok(event) = decode::decode(record)
            && let EventKind::Data(data) = event.kind
        {
            assert!(data.bytes.len() <= record.len());
        }
    }
    assert!(walked <= data.len());
}

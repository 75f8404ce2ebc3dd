//! What a receiver answers: a status, when to come again, and the details of an error.

use std::time::{Duration, SystemTime};

use agent::export::otlp::retry::{self, Decision, Retry};
use tonic::Code;

/// One answer must not silence the agent for longer.
const LONGEST: Duration = Duration::from_mins(10);

/// Panics when an answer makes the agent wait longer than it may.
pub fn run(data: &[u8]) {
    let [status, code, details @ ..] = data else {
        return;
    };
    let limit = Duration::from_mins(1);
    let header = String::from_utf8_lossy(details);
    let status = 400 + u16::from(*status);
    let classes = [
        retry::classify_http(status, Some(&header), SystemTime::UNIX_EPOCH),
        retry::classify_grpc(Code::from_i32(i32::from(*code % 17)), details),
    ];
    for class in classes {
        let elapsed = Duration::from_secs(u64::from(*code));
        match Retry::new(limit).after_failure(class, elapsed, 0.5) {
            Decision::Again(delay) => assert!(elapsed + delay <= limit, "{delay:?}"),
            Decision::GiveUp(delay) => assert!(delay <= LONGEST, "{delay:?}"),
        }
    }
}

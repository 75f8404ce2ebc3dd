//! What to do after a failed export call. Pure: time and randomness are arguments.
//!
//! Source: OTLP specification 1.x, "Failures" of OTLP/gRPC and OTLP/HTTP
//! (<https://opentelemetry.io/docs/specs/otlp/>).
//!
//! | answer                                                        | decision                  |
//! |---------------------------------------------------------------|---------------------------|
//! | gRPC CANCELLED, DEADLINE_EXCEEDED, ABORTED, OUT_OF_RANGE,     | again                     |
//! | UNAVAILABLE, DATA_LOSS                                        |                           |
//! | gRPC RESOURCE_EXHAUSTED                                       | again only with RetryInfo |
//! | HTTP 429, 502, 503, 504                                       | again, after Retry-After  |
//! | no answer: refused, unreachable, reset, timed out             | again                     |
//! | anything else                                                 | give the batch up         |

use std::time::{Duration, SystemTime};

use prost::Message as _;
use tonic::Code;

/// First wait. One second is what OpenTelemetry SDKs use.
const INITIAL_DELAY: Duration = Duration::from_secs(1);
/// Longest wait of our own choosing: short enough that a restarted collector is found soon, long
/// enough to be no load on one that struggles.
const MAX_DELAY: Duration = Duration::from_secs(10);
/// The longest wait a receiver may ask for. Without a bound one absurd `Retry-After` would end
/// the export for good.
const MAX_REQUESTED_DELAY: Duration = Duration::from_mins(5);

/// Why an export call failed, as far as the next step depends on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub class: Class,
    /// For people: what happened, without secrets.
    pub cause: String,
    /// For people: what to do about it; empty when there is no advice.
    pub next_step: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The same bytes may be sent again, not before the receiver's delay if it named one.
    Retryable(Option<Duration>),
    /// The receiver will not take these bytes.
    Permanent,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Send the same batch again after this wait.
    Again(Duration),
    /// The batch is lost. Leave the receiver alone for this long before the next one.
    GiveUp(Duration),
}

/// The state of one batch under delivery.
#[derive(Debug)]
pub struct Retry {
    /// Bound on the whole delivery, first attempt included.
    limit: Duration,
    next_delay: Duration,
}

impl Retry {
    pub fn new(limit: Duration) -> Self {
        Self {
            limit,
            next_delay: INITIAL_DELAY,
        }
    }

    /// `elapsed` counts from the first attempt; `random` is uniform in 0..1.
    pub fn after_failure(&mut self, class: Class, elapsed: Duration, random: f64) -> Decision {
        let Class::Retryable(requested) = class else {
            return Decision::GiveUp(Duration::ZERO);
        };
        // Half of the wait is fixed, half is random, so that agents that lost the same
        // collector do not return in step.
        let own = self
            .next_delay
            .mul_f64(random.clamp(0.0, 1.0).mul_add(0.5, 0.5));
        let delay = requested.map_or(own, |requested| requested.min(MAX_REQUESTED_DELAY).max(own));
        if elapsed.saturating_add(delay) >= self.limit {
            return Decision::GiveUp(delay);
        }
        self.next_delay = self.next_delay.saturating_mul(2).min(MAX_DELAY);
        Decision::Again(delay)
    }
}

/// `details` is the content of `grpc-status-details-bin`, decoded from base64.
pub fn classify_grpc(code: Code, details: &[u8]) -> Class {
    match code {
        Code::Cancelled
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unavailable
        | Code::DataLoss => Class::Retryable(retry_info(details)),
        Code::ResourceExhausted => match retry_info(details) {
            Some(delay) => Class::Retryable(Some(delay)),
            None => Class::Permanent,
        },
        _ => Class::Permanent,
    }
}

/// `now` is needed because `Retry-After` may be a date (RFC 9110, section 10.2.3).
pub fn classify_http(status: u16, retry_after: Option<&str>, now: SystemTime) -> Class {
    match status {
        429 | 502 | 503 | 504 => {
            Class::Retryable(retry_after.and_then(|text| parse_retry_after(text, now)))
        }
        _ => Class::Permanent,
    }
}

fn parse_retry_after(text: &str, now: SystemTime) -> Option<Duration> {
    let text = text.trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    // A date that has passed means "now".
    Some(date.duration_since(now).unwrap_or_default())
}

/// The delay of the first `google.rpc.RetryInfo` in a `google.rpc.Status`.
fn retry_info(details: &[u8]) -> Option<Duration> {
    let status = RpcStatus::decode(details).ok()?;
    let any = status
        .details
        .iter()
        .find(|any| any.type_url.ends_with("/google.rpc.RetryInfo"))?;
    let delay = RetryInfo::decode(any.value.as_slice()).ok()?.retry_delay?;
    let (seconds, nanos) = (
        u64::try_from(delay.seconds).ok()?,
        u32::try_from(delay.nanos).ok()?,
    );
    Some(Duration::from_secs(seconds).saturating_add(Duration::from_nanos(nanos.into())))
}

// The few messages of google/rpc/status.proto, google/rpc/error_details.proto and
// google/protobuf/{any,duration}.proto that carry the delay.

#[derive(Clone, PartialEq, prost::Message)]
struct RpcStatus {
    #[prost(message, repeated, tag = "3")]
    details: Vec<Any>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Any {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RetryInfo {
    #[prost(message, optional, tag = "1")]
    retry_delay: Option<ProtoDuration>,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
struct ProtoDuration {
    #[prost(int64, tag = "1")]
    seconds: i64,
    #[prost(int32, tag = "2")]
    nanos: i32,
}

/// The encoded `google.rpc.Status` a throttling receiver sends.
#[cfg(test)]
pub(super) fn retry_info_details(seconds: i64, nanos: i32) -> Vec<u8> {
    let info = RetryInfo {
        retry_delay: Some(ProtoDuration { seconds, nanos }),
    };
    let any = Any {
        type_url: "type.googleapis.com/google.rpc.RetryInfo".to_owned(),
        value: info.encode_to_vec(),
    };
    let other = Any {
        type_url: "type.googleapis.com/google.rpc.Help".to_owned(),
        value: vec![],
    };
    RpcStatus {
        details: vec![other, any],
    }
    .encode_to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// Every gRPC code has exactly the fate the specification gives it.
    #[test]
    fn grpc_codes_follow_the_specification() {
        let retryable = [
            Code::Cancelled,
            Code::DeadlineExceeded,
            Code::Aborted,
            Code::OutOfRange,
            Code::Unavailable,
            Code::DataLoss,
        ];
        for number in 0..=16 {
            let code = Code::from_i32(number);
            let expected = if retryable.contains(&code) {
                Class::Retryable(None)
            } else {
                Class::Permanent
            };
            assert_eq!(classify_grpc(code, &[]), expected, "{code:?}");
        }
    }

    /// `RESOURCE_EXHAUSTED` is retried only when the receiver says when.
    #[test]
    fn retry_info_names_the_delay() {
        let details = retry_info_details(2, 500_000_000);
        let delay = Some(Duration::from_millis(2500));
        assert_eq!(
            classify_grpc(Code::ResourceExhausted, &details),
            Class::Retryable(delay)
        );
        assert_eq!(
            classify_grpc(Code::Unavailable, &details),
            Class::Retryable(delay)
        );
        assert_eq!(
            classify_grpc(Code::InvalidArgument, &details),
            Class::Permanent
        );
        for garbage in [
            &b"\xff\xff\xff"[..],
            b"\x1a\x05ab",
            &details[..details.len() - 3],
        ] {
            assert_eq!(
                classify_grpc(Code::ResourceExhausted, garbage),
                Class::Permanent
            );
        }
        let negative = retry_info_details(-1, 0);
        assert_eq!(
            classify_grpc(Code::ResourceExhausted, &negative),
            Class::Permanent
        );
    }

    /// Statuses and both forms of Retry-After.
    #[test]
    fn http_statuses_follow_the_specification() {
        // 784_111_777 is Sun, 06 Nov 1994 08:49:37 GMT, the date of RFC 9110, section 5.6.7.
        let now = SystemTime::UNIX_EPOCH + seconds(784_111_770);
        let again = |delay| Class::Retryable(delay);
        let table = [
            (429, None, again(None)),
            (502, None, again(None)),
            (503, Some("120"), again(Some(seconds(120)))),
            (503, Some(" 0 "), again(Some(seconds(0)))),
            (
                504,
                Some("Sun, 06 Nov 1994 08:49:37 GMT"),
                again(Some(seconds(7))),
            ),
            (
                503,
                Some("Sunday, 06-Nov-94 08:49:37 GMT"),
                again(Some(seconds(7))),
            ),
            (
                503,
                Some("Sun, 06 Nov 1994 08:00:00 GMT"),
                again(Some(seconds(0))),
            ),
            (503, Some("soon"), again(None)),
            (503, Some("-5"), again(None)),
            (400, None, Class::Permanent),
            (401, Some("1"), Class::Permanent),
            (404, None, Class::Permanent),
            (408, None, Class::Permanent),
            (413, None, Class::Permanent),
            (500, Some("1"), Class::Permanent),
            (501, None, Class::Permanent),
            (301, None, Class::Permanent),
        ];
        for (status, retry_after, expected) in table {
            assert_eq!(
                classify_http(status, retry_after, now),
                expected,
                "{status} {retry_after:?}"
            );
        }
    }

    /// Waits double up to the bound, then the batch is given up before the limit is passed.
    #[test]
    fn delays_grow_and_end() {
        let mut retry = Retry::new(seconds(60));
        let mut elapsed = Duration::ZERO;
        let mut delays = vec![];
        let last = loop {
            match retry.after_failure(Class::Retryable(None), elapsed, 1.0) {
                Decision::Again(delay) => {
                    delays.push(delay.as_secs());
                    elapsed += delay;
                }
                Decision::GiveUp(delay) => break delay,
            }
        };
        assert_eq!(delays, [1, 2, 4, 8, 10, 10, 10, 10]);
        assert_eq!(
            last,
            seconds(10),
            "the outage is not hammered by the next batch"
        );
    }

    /// Jitter keeps at least half of the wait; a receiver's wish is a lower bound.
    #[test]
    fn jitter_and_requested_delays() {
        let class = Class::Retryable(None);
        let half = Retry::new(seconds(60)).after_failure(class, Duration::ZERO, 0.0);
        assert_eq!(half, Decision::Again(Duration::from_millis(500)));
        let wish = Class::Retryable(Some(seconds(20)));
        let asked = Retry::new(seconds(60)).after_failure(wish, Duration::ZERO, 0.3);
        assert_eq!(asked, Decision::Again(seconds(20)));
        let now = Class::Retryable(Some(Duration::ZERO));
        let floor = Retry::new(seconds(60)).after_failure(now, Duration::ZERO, 0.0);
        assert_eq!(
            floor,
            Decision::Again(Duration::from_millis(500)),
            "never a busy loop"
        );
        let absurd = Class::Retryable(Some(seconds(86_400)));
        let given_up = Retry::new(seconds(60)).after_failure(absurd, Duration::ZERO, 0.3);
        assert_eq!(given_up, Decision::GiveUp(MAX_REQUESTED_DELAY));
        let permanent =
            Retry::new(seconds(60)).after_failure(Class::Permanent, Duration::ZERO, 0.3);
        assert_eq!(permanent, Decision::GiveUp(Duration::ZERO));
    }
}

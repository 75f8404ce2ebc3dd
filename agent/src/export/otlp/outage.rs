//! What to log about the receiver, and what not to. Pure: time is an argument.
//!
//! | state    | a failed attempt                          | an accepted request            |
//! |----------|-------------------------------------------|--------------------------------|
//! | reached  | one warning; now failing                  | nothing                        |
//! | failing  | one warning when the cause is a new one,  | one line: how long, what was   |
//! |          | at most once a minute                     | lost; now reached              |

use std::time::Duration;

use super::retry::Failure;

/// Between two warnings of the same kind.
const QUIET: Duration = Duration::from_mins(1);

/// Times are since any fixed point, the same for all calls.
#[derive(Debug)]
pub struct Outage {
    endpoint: String,
    failing: Option<Failing>,
    rejection_logged: Option<Duration>,
}

#[derive(Debug)]
struct Failing {
    since: Duration,
    logged: Duration,
    cause: String,
    lost: u64,
}

impl Outage {
    pub fn new(endpoint: String) -> Self {
        Self {
            endpoint,
            failing: None,
            rejection_logged: None,
        }
    }

    /// The warning for this failed attempt, if it deserves one.
    pub fn failed(&mut self, failure: &Failure, now: Duration) -> Option<String> {
        let since = match &mut self.failing {
            Some(failing) => {
                let is_news = failing.cause != failure.cause;
                if !is_news || now.saturating_sub(failing.logged) < QUIET {
                    return None;
                }
                failing.since
            }
            None => now,
        };
        let lost = self.failing.as_ref().map_or(0, |failing| failing.lost);
        self.failing = Some(Failing {
            since,
            logged: now,
            cause: failure.cause.clone(),
            lost,
        });
        let (endpoint, cause) = (&self.endpoint, &failure.cause);
        let advice = if failure.next_step.is_empty() {
            String::new()
        } else {
            format!("; {}", failure.next_step)
        };
        Some(format!(
            "cannot deliver spans to {endpoint}: {cause}{advice}"
        ))
    }

    /// Spans were given up.
    pub fn lost(&mut self, count: u64) {
        if let Some(failing) = &mut self.failing {
            failing.lost += count;
        }
    }

    /// The line about the end of an outage, if there was one.
    pub fn reached(&mut self, now: Duration) -> Option<String> {
        let failing = self.failing.take()?;
        Some(format!(
            "{} is reached again after {} s, {} spans lost",
            self.endpoint,
            now.saturating_sub(failing.since).as_secs(),
            failing.lost
        ))
    }

    /// The warning about an accepted request the receiver had something to say about.
    pub fn complained(&mut self, rejected: u64, message: &str, now: Duration) -> Option<String> {
        if self
            .rejection_logged
            .is_some_and(|last| now.saturating_sub(last) < QUIET)
        {
            return None;
        }
        self.rejection_logged = Some(now);
        let endpoint = &self.endpoint;
        Some(if rejected > 0 {
            format!("{endpoint} rejected {rejected} spans of a request: {message}")
        } else {
            format!("{endpoint} took the spans but says: {message}")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::otlp::retry::Class;

    fn failure(cause: &str) -> Failure {
        Failure {
            class: Class::Retryable(None),
            cause: cause.to_owned(),
            next_step: "start a collector",
        }
    }

    /// A long outage is two lines: its beginning with the next step, its end with the loss.
    #[test]
    fn an_outage_is_two_lines() {
        let mut outage = Outage::new("http://c:4318".to_owned());
        let at = Duration::from_secs;
        assert_eq!(outage.reached(at(0)), None);
        let first = outage
            .failed(&failure("refused"), at(1))
            .expect("the first is logged");
        assert_eq!(
            first,
            "cannot deliver spans to http://c:4318: refused; start a collector"
        );
        for second in 2..500 {
            assert_eq!(outage.failed(&failure("refused"), at(second)), None);
        }
        outage.lost(7);
        outage.lost(5);
        let last = outage.reached(at(501)).expect("the recovery is logged");
        assert_eq!(
            last,
            "http://c:4318 is reached again after 500 s, 12 spans lost"
        );
        assert_eq!(outage.reached(at(502)), None);
        assert!(
            outage.failed(&failure("refused"), at(503)).is_some(),
            "a new outage"
        );
    }

    /// A new cause is told, but causes that alternate do not flood.
    #[test]
    fn a_new_cause_is_told_at_most_once_a_minute() {
        let mut outage = Outage::new("http://c:4318".to_owned());
        let logged = (0..600)
            .filter(|second| {
                let cause = if second % 2 == 0 {
                    "refused"
                } else {
                    "HTTP 401"
                };
                outage
                    .failed(&failure(cause), Duration::from_secs(*second))
                    .is_some()
            })
            .count();
        assert_eq!(logged, 10);
    }

    /// Partial successes are told once a minute.
    #[test]
    fn complaints_are_limited() {
        let mut outage = Outage::new("http://c:4318".to_owned());
        let logged = (0..180)
            .filter(|second| {
                outage
                    .complained(1, "no", Duration::from_secs(*second))
                    .is_some()
            })
            .count();
        assert_eq!(logged, 3);
    }
}

//! Which traces are kept. Pure.
//!
//! Source: OpenTelemetry specification, trace/sdk.md (built-in samplers) and
//! configuration/sdk-environment-variables.md (`OTEL_TRACES_SAMPLER`, `OTEL_TRACES_SAMPLER_ARG`).
//! Not covered: `jaeger_remote`, `parentbased_jaeger_remote` and `xray`, which ask a server.

use opentelemetry::TraceId;

/// Bit 0 of W3C trace flags.
const FLAG_SAMPLED: u8 = 1;

/// Decides by trace id, so that every agent and SDK with the same ratio keeps the same traces.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampler {
    root: Root,
    parent: FollowParent,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Root {
    AlwaysOn,
    AlwaysOff,
    /// Kept when the lower 63 bits of the trace id are below this.
    Below(u64),
}

/// Whether the verdict that came with a remote parent is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FollowParent {
    Follow,
    Ignore,
}

impl Default for Sampler {
    fn default() -> Self {
        Self {
            root: Root::AlwaysOn,
            parent: FollowParent::Follow,
        }
    }
}

impl Sampler {
    /// From `lookup` of an environment. What the specification does not allow is reported in the
    /// warnings and replaced by the default, as the specification asks.
    pub fn from_lookup(lookup: &dyn Fn(&str) -> Option<String>) -> (Self, Vec<String>) {
        let mut warnings = Vec::new();
        let set = |name| {
            lookup(name)
                .map(|value| value.trim().to_owned())
                .filter(|v| !v.is_empty())
        };
        let Some(name) = set("OTEL_TRACES_SAMPLER") else {
            return (Self::default(), warnings);
        };
        let name = name.to_ascii_lowercase();
        let (base, parent) = match name.strip_prefix("parentbased_") {
            Some(base) => (base, FollowParent::Follow),
            None => (name.as_str(), FollowParent::Ignore),
        };
        let root = match base {
            "always_on" => Root::AlwaysOn,
            "always_off" => Root::AlwaysOff,
            "traceidratio" => match set("OTEL_TRACES_SAMPLER_ARG").map(|text| parse_ratio(&text)) {
                None => Root::AlwaysOn,
                Some(Ok(ratio)) => Root::of_ratio(ratio),
                Some(Err(text)) => {
                    warnings.push(format!(
                        "OTEL_TRACES_SAMPLER_ARG: {text:?} is not a ratio from 0 to 1; using 1"
                    ));
                    Root::AlwaysOn
                }
            },
            _ => {
                warnings.push(format!(
                    "OTEL_TRACES_SAMPLER: {name:?} is not a sampler of this agent; using \
                     parentbased_always_on"
                ));
                return (Self::default(), warnings);
            }
        };
        (Self { root, parent }, warnings)
    }

    /// Whether the trace is kept. `remote_parent_flags` are the W3C flags of the parent when its
    /// context came over the wire; without one the trace begins here.
    pub fn decide(&self, trace_id: TraceId, remote_parent_flags: Option<u8>) -> bool {
        if let (FollowParent::Follow, Some(flags)) = (self.parent, remote_parent_flags) {
            return flags & FLAG_SAMPLED != 0;
        }
        match self.root {
            Root::AlwaysOn => true,
            Root::AlwaysOff => false,
            Root::Below(bound) => lower_63_bits(trace_id) < bound,
        }
    }
}

impl Root {
    fn of_ratio(ratio: f64) -> Self {
        if ratio >= 1.0 {
            return Self::AlwaysOn;
        }
        Self::Below((ratio * (1_u64 << 63) as f64) as u64)
    }
}

fn parse_ratio(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(ratio) if (0.0..=1.0).contains(&ratio) => Ok(ratio),
        _ => Err(text.to_owned()),
    }
}

/// The upper 63 of the last 64 bits, which the SDKs compare (Go, Java, Rust alike).
fn lower_63_bits(trace_id: TraceId) -> u64 {
    let bytes = trace_id.to_bytes();
    bytes[8..]
        .iter()
        .fold(0_u64, |number, &byte| number << 8 | u64::from(byte))
        >> 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(name: &str, argument: &str) -> (Sampler, Vec<String>) {
        Sampler::from_lookup(&|key| match key {
            "OTEL_TRACES_SAMPLER" => Some(name.to_owned()),
            "OTEL_TRACES_SAMPLER_ARG" => Some(argument.to_owned()),
            _ => None,
        })
    }

    fn trace(lower: u64) -> TraceId {
        TraceId::from((u128::MAX << 64) | u128::from(lower))
    }

    /// Every sampler: verdict without a parent on a low and a high trace id, then with a remote
    /// parent that is, and is not, sampled.
    #[test]
    fn verdicts() {
        let table = [
            ("", "", [true, true, true, false]),
            ("always_on", "", [true, true, true, true]),
            ("always_off", "", [false, false, false, false]),
            ("traceidratio", "0.5", [true, false, true, true]),
            ("traceidratio", "0", [false, false, false, false]),
            ("traceidratio", "", [true, true, true, true]),
            ("parentbased_always_on", "", [true, true, true, false]),
            ("parentbased_always_off", "", [false, false, true, false]),
            (
                "ParentBased_TraceIdRatio",
                "0.5",
                [true, false, true, false],
            ),
        ];
        for (name, argument, expected) in table {
            let (sampler, warnings) = sampler(name, argument);
            let (low, high) = (trace(1), trace(u64::MAX));
            let verdicts = [
                sampler.decide(low, None),
                sampler.decide(high, None),
                sampler.decide(low, Some(1)),
                sampler.decide(low, Some(0)),
            ];
            assert_eq!(verdicts, expected, "{name} {argument}");
            assert_eq!(warnings, Vec::<String>::new(), "{name} {argument}");
        }
    }

    /// What the specification does not allow warns and falls back.
    #[test]
    fn wrong_values_fall_back() {
        for (name, argument) in [
            ("xray", ""),
            ("half", ""),
            ("traceidratio", "2"),
            ("traceidratio", "x"),
        ] {
            let (sampler, warnings) = sampler(name, argument);
            assert!(sampler.decide(trace(u64::MAX), None), "{name} {argument}");
            assert_eq!(warnings.len(), 1, "{name} {argument}");
        }
    }

    /// The same verdicts as the reference SDK for many trace ids.
    #[test]
    fn agrees_with_the_sdk() {
        use opentelemetry_sdk::trace::{
            Sampler as SdkSampler, SamplingDecision, ShouldSample as _,
        };

        let (ours, _) = sampler("traceidratio", "0.3");
        let theirs = SdkSampler::TraceIdRatioBased(0.3);
        let mut state = 1_u128;
        for _ in 0..1000 {
            // A multiplicative congruential sequence is random enough to spread over the range.
            state = state
                .wrapping_mul(0x2360_ed05_1fc6_5da4_4385_df64_9fcc_f645)
                .wrapping_add(1);
            let trace_id = TraceId::from(state);
            let kind = opentelemetry::trace::SpanKind::Server;
            let verdict = theirs
                .should_sample(None, trace_id, "", &kind, &[], &[])
                .decision;
            assert_eq!(
                ours.decide(trace_id, None),
                verdict == SamplingDecision::RecordAndSample,
                "{trace_id}"
            );
        }
    }
}

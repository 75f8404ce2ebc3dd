//! How much goes into one export call, and how long a span may wait for it. Pure.
//!
//! Source: OpenTelemetry SDK environment variables, "Batch Span Processor". The variables mean
//! what is written there; our defaults differ where the reason is given.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use crate::{
    export::setting,
    span::{Attribute, Resource, Span, Status, Value},
};

/// The SDK default of 2,048 is sized for one process. An agent speaks for all processes of a
/// node: 16,384 spans hold three seconds at 5,000 spans/s, and about 16 MiB at 1 KiB a span.
const DEFAULT_QUEUE_SPANS: usize = 16_384;
/// The SDK default of 512 would need 40 calls a second at 20,000 spans/s, more than a receiver
/// 50 ms away can answer one after the other. About 1 MiB at 512 bytes a span.
const DEFAULT_BATCH_SPANS: usize = 2_048;
/// The SDK default is five seconds; people wait for their first span.
const DEFAULT_DELAY_MS: u64 = 1_000;
/// The SDK default of 30 seconds is shorter than the restart of a collector, which the queue of
/// a quiet node survives.
const DEFAULT_EXPORT_TIMEOUT_MS: u64 = 120_000;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Spans that may wait, per exporter.
    pub queue_spans: usize,
    /// Spans in one call.
    pub batch_spans: usize,
    /// How long a span may wait for company.
    pub delay: Duration,
    /// Bound on the delivery of one batch, retries included; `Duration::MAX` is no bound.
    pub export_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            queue_spans: DEFAULT_QUEUE_SPANS,
            batch_spans: DEFAULT_BATCH_SPANS,
            delay: Duration::from_millis(DEFAULT_DELAY_MS),
            export_timeout: Duration::from_millis(DEFAULT_EXPORT_TIMEOUT_MS),
        }
    }
}

impl Config {
    pub fn from_lookup(lookup: setting::Lookup<'_>, warnings: &mut Vec<String>) -> Self {
        let default = Self::default();
        let queue_spans = setting::count(
            lookup,
            "OTEL_BSP_MAX_QUEUE_SIZE",
            default.queue_spans,
            warnings,
        );
        let mut batch_spans = setting::count(
            lookup,
            "OTEL_BSP_MAX_EXPORT_BATCH_SIZE",
            default.batch_spans,
            warnings,
        );
        if batch_spans > queue_spans {
            if setting::get(lookup, "OTEL_BSP_MAX_EXPORT_BATCH_SIZE").is_some() {
                warnings.push(format!(
                    "OTEL_BSP_MAX_EXPORT_BATCH_SIZE is {batch_spans}, more than the queue holds; \
                     using {queue_spans}"
                ));
            }
            batch_spans = queue_spans;
        }
        let delay =
            setting::milliseconds(lookup, "OTEL_BSP_SCHEDULE_DELAY", default.delay, warnings);
        let export_timeout = setting::timeout(
            lookup,
            "OTEL_BSP_EXPORT_TIMEOUT",
            default.export_timeout,
            warnings,
        );
        Self {
            queue_spans,
            batch_spans,
            delay,
            export_timeout,
        }
    }
}

/// Bounds of one batch.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub spans: usize,
    /// Upper bound of the protobuf encoding of the batch.
    pub bytes: usize,
}

/// Takes the next batch off the front of the queue: at least one span unless the queue is empty.
/// A single span over the byte limit goes alone; the receiver decides about it.
pub fn take(queue: &mut VecDeque<Span>, limits: Limits) -> Vec<Span> {
    let mut bytes = 0;
    let mut count = 0;
    let mut resource: Option<&Arc<Resource>> = None;
    for span in queue.iter().take(limits.spans) {
        bytes += encoded_len_bound(span);
        if !resource.is_some_and(|last| Arc::ptr_eq(last, &span.resource)) {
            bytes += resource_len_bound(&span.resource);
            resource = Some(&span.resource);
        }
        if bytes > limits.bytes && count > 0 {
            break;
        }
        count += 1;
    }
    queue.drain(..count).collect()
}

/// Tag and length of one field: one byte of tag (all our field numbers are below 16 except
/// `flags`), at most five bytes of length.
const FIELD: usize = 6;
/// Ids, times, kind, flags and status of a span with their tags.
const SPAN_FIXED: usize = 128;
/// Scope, two schema URLs and the nesting around the spans of one resource.
const RESOURCE_FIXED: usize = 256;

fn encoded_len_bound(span: &Span) -> usize {
    let status = match &span.status {
        Status::Unset => 0,
        Status::Error(message) => message.len(),
    };
    let links: usize = span
        .links
        .iter()
        .map(|link| SPAN_FIXED + attributes_len_bound(&link.attributes))
        .sum();
    SPAN_FIXED
        + span.name.len()
        + span.trace_state.len()
        + status
        + attributes_len_bound(&span.attributes)
        + links
}

fn resource_len_bound(resource: &Resource) -> usize {
    RESOURCE_FIXED + attributes_len_bound(&resource.attributes)
}

fn attributes_len_bound(attributes: &[Attribute]) -> usize {
    let value_len = |value: &Value| match value {
        Value::String(text) => text.len(),
        Value::Int(_) | Value::Double(_) | Value::Bool(_) => 10,
        Value::StringArray(texts) => texts.iter().map(|text| 2 * FIELD + text.len()).sum(),
    };
    attributes
        .iter()
        .map(|attribute| 5 * FIELD + attribute.key.len() + value_len(&attribute.value))
        .sum()
}

/// Spans by service, for the books.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally(BTreeMap<String, u64>);

impl Tally {
    pub fn of<'a>(spans: impl IntoIterator<Item = &'a Span>) -> Self {
        let mut tally = Self::default();
        let mut run: Option<(&Arc<Resource>, u64)> = None;
        for span in spans {
            match &mut run {
                Some((resource, count)) if Arc::ptr_eq(resource, &span.resource) => *count += 1,
                _ => {
                    if let Some((resource, count)) = run.replace((&span.resource, 1)) {
                        tally.add(resource.service_name(), count);
                    }
                }
            }
        }
        if let Some((resource, count)) = run {
            tally.add(resource.service_name(), count);
        }
        tally
    }

    pub fn add(&mut self, service: &str, count: u64) {
        if let Some(known) = self.0.get_mut(service) {
            *known += count;
        } else if count > 0 {
            self.0.insert(service.to_owned(), count);
        }
    }

    pub fn merge(&mut self, other: &Self) {
        for (service, count) in other.iter() {
            self.add(service, count);
        }
    }

    /// Takes `other` away as far as it is here, and says what was.
    #[must_use]
    pub fn subtract(&mut self, other: &Self) -> Self {
        let mut taken = Self::default();
        for (service, count) in other.iter() {
            if let Some(known) = self.0.get_mut(service) {
                let part = count.min(*known);
                *known -= part;
                taken.add(service, part);
            }
        }
        self.0.retain(|_, count| *count > 0);
        taken
    }

    pub fn total(&self) -> u64 {
        self.0.values().sum()
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, u64)> {
        self.0
            .iter()
            .map(|(service, count)| (service.as_str(), *count))
    }

    /// Splits `count` losses over the services. Which spans were meant is unknown when there are
    /// several services, so each gets its share by size, and the sum is exact.
    #[must_use]
    pub fn share(&self, count: u64) -> Self {
        let total = self.total();
        let count = count.min(total);
        let mut shares = Self::default();
        let (mut seen, mut given) = (0, 0);
        for (service, spans) in self.iter() {
            seen += spans;
            let due = (u128::from(count) * u128::from(seen) / u128::from(total)) as u64;
            shares.add(service, due - given);
            given = due;
        }
        shares
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::{
        export::{
            otlp::request,
            tests::{checkout, remote_span, spans_of},
        },
        span::Link,
    };

    fn read(environment: &[(&str, &str)]) -> (Config, Vec<String>) {
        let mut warnings = vec![];
        let lookup = |name: &str| {
            let set = environment.iter().find(|(known, _)| *known == name);
            set.map(|(_, value)| (*value).to_owned())
        };
        (Config::from_lookup(&lookup, &mut warnings), warnings)
    }

    /// The variables of the specification, and what happens to values that make no sense.
    #[test]
    fn settings() {
        assert_eq!(read(&[]), (Config::default(), vec![]));
        let (config, warnings) = read(&[
            ("OTEL_BSP_MAX_QUEUE_SIZE", "4096"),
            ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", " 512 "),
            ("OTEL_BSP_SCHEDULE_DELAY", "5000"),
            ("OTEL_BSP_EXPORT_TIMEOUT", "0"),
        ]);
        assert_eq!(
            config,
            Config {
                queue_spans: 4096,
                batch_spans: 512,
                delay: Duration::from_secs(5),
                export_timeout: Duration::MAX,
            }
        );
        assert_eq!(warnings, Vec::<String>::new());
        let (config, warnings) = read(&[
            ("OTEL_BSP_MAX_QUEUE_SIZE", "0"),
            ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "-1"),
            ("OTEL_BSP_SCHEDULE_DELAY", "1s"),
            ("OTEL_BSP_EXPORT_TIMEOUT", ""),
        ]);
        assert_eq!(config, Config::default());
        assert_eq!(warnings.len(), 3, "{warnings:?}");
        let (config, warnings) = read(&[("OTEL_BSP_MAX_QUEUE_SIZE", "100")]);
        assert_eq!((config.batch_spans, warnings.len()), (100, 0));
        let (config, warnings) = read(&[
            ("OTEL_BSP_MAX_QUEUE_SIZE", "5"),
            ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "6"),
        ]);
        assert_eq!((config.batch_spans, warnings.len()), (5, 1));
    }

    /// A batch ends at the number of spans, in order, and leaves the rest.
    #[test]
    fn batches_end_at_the_count() {
        let all = spans_of("cart", 25);
        let mut queue: VecDeque<Span> = all.clone().into();
        let limits = Limits {
            spans: 10,
            bytes: usize::MAX,
        };
        let batches: Vec<Vec<Span>> = std::iter::repeat_with(|| take(&mut queue, limits))
            .take(4)
            .collect();
        assert_eq!(
            batches.iter().map(Vec::len).collect::<Vec<_>>(),
            [10, 10, 5, 0]
        );
        assert_eq!(batches.concat(), all);
    }

    /// No request is longer than the limit, unless one span alone is.
    #[test]
    fn batches_end_at_the_bytes() {
        let mut spans: Vec<Span> = (0..40)
            .flat_map(|_| checkout().into_iter().chain([remote_span()]))
            .collect();
        for (index, span) in spans.iter_mut().enumerate() {
            span.name = "n".repeat(index * 7 % 300).into();
        }
        // One resource is as long as many spans.
        let model = spans[0].clone();
        spans.extend((0..20_u8).map(|index| {
            let long = Attribute::new("x.long", format!("{index:02}").repeat(350));
            let resource = Arc::new(Resource {
                attributes: vec![long],
            });
            Span {
                resource,
                ..model.clone()
            }
        }));
        let total = spans.len();
        for bytes in [2_000, 5_000, 20_000] {
            let mut queue: VecDeque<Span> = spans.clone().into();
            let mut taken = 0;
            while !queue.is_empty() {
                let batch = take(
                    &mut queue,
                    Limits {
                        spans: usize::MAX,
                        bytes,
                    },
                );
                taken += batch.len();
                let encoded = request::build(&batch).encoded_len();
                assert!(encoded <= bytes, "{encoded} of {bytes}");
            }
            assert_eq!(taken, total);
        }
        let mut queue: VecDeque<Span> = spans.into();
        assert_eq!(
            take(
                &mut queue,
                Limits {
                    spans: 10,
                    bytes: 1
                }
            )
            .len(),
            1,
            "never stuck"
        );
    }

    /// The bound holds for a span of everything at its longest, and is not far off for ordinary
    /// ones.
    #[test]
    fn the_bound_is_a_bound() {
        let mut span = remote_span();
        span.start_ns = u64::MAX;
        span.end_ns = u64::MAX;
        span.trace_flags = u8::MAX;
        span.links = (0..50)
            .map(|_| Link {
                attributes: vec![],
                ..span.links[0].clone()
            })
            .collect();
        let strings = (0..100).map(|_| String::new()).collect();
        span.attributes = (0..100)
            .flat_map(|_| {
                [
                    Attribute::new("", i64::MIN),
                    Attribute::new("", f64::MAX),
                    Attribute::new("", ""),
                ]
            })
            .chain([Attribute {
                key: "".into(),
                value: Value::StringArray(strings),
            }])
            .collect();
        for spans in [vec![span], checkout(), spans_of("cart", 500)] {
            let bound: usize = spans.iter().map(encoded_len_bound).sum();
            let bound = bound + 5 * resource_len_bound(&spans[0].resource);
            let encoded = request::build(&spans).encoded_len();
            assert!(encoded <= bound && bound < 8 * encoded, "{encoded} {bound}");
        }
    }

    fn tally<const N: usize>(rows: [(&str, u64); N]) -> Tally {
        Tally(
            rows.into_iter()
                .map(|(service, count)| (service.to_owned(), count))
                .collect(),
        )
    }

    /// Spans are counted by service whatever their order and allocation.
    #[test]
    fn tallies() {
        let mut spans = checkout();
        spans.extend(checkout());
        let expected = tally([("cart", 2), ("frontend", 6), ("payment", 2)]);
        assert_eq!(Tally::of(&spans), expected);
        assert_eq!(Tally::of(&[]), tally([]));
        let mut left = expected;
        let taken = left.subtract(&tally([("cart", 1), ("frontend", 9), ("other", 1)]));
        assert_eq!(taken, tally([("cart", 1), ("frontend", 6)]));
        assert_eq!(left, tally([("cart", 1), ("payment", 2)]));
    }

    /// The shares of a loss add up, and no service loses more than it has.
    #[test]
    fn shares_add_up() {
        let whole = tally([("a", 1), ("b", 10), ("c", 100)]);
        for count in 0..=111 {
            let mut shares = whole.share(count);
            assert_eq!(shares.total(), count);
            assert_eq!(whole.clone().subtract(&shares), shares);
            assert_eq!(shares.subtract(&whole).total(), count);
        }
        assert_eq!(whole.share(500), whole);
        assert_eq!(tally([]).share(5), tally([]));
    }
}

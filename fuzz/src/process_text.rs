//! What processes and the kernel say of processes: `/proc`, environments, and the texts in them.

use agent::{
    enrich::{Host, apply, resource_attributes},
    event::ProcessId,
    process::{Facts, text},
    span::redact,
};

/// Panics when a parser does, or when what it gives was not in its input.
pub fn run(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    text::Stat::parse(&text);
    text::boot_seconds(&text);
    text::container_id(&text);
    text::executable_mappings(&text).for_each(drop);
    text::status_value(&text, "NSpid:");
    if let [a, b, c, d, e, f, g, h, ..] = data {
        let ticks = u64::from_le_bytes([*a, *b, *c, *d, *e, *f, *g, *h]);
        text::creation_time(1_700_000_000, ticks);
    }
    let arguments = text::parse_arguments(data);
    let environment = text::Environment::parse(data).variables;
    let malformed = resource_attributes::parse(&text).is_err();
    redact::query(&text);
    redact::url(&text);

    let mut lines = text.lines();
    let facts = Facts {
        executable: lines.next().unwrap_or_default().into(),
        command: lines.next().unwrap_or_default().to_owned(),
        arguments,
        environment: if environment.is_empty() {
            vec![("OTEL_RESOURCE_ATTRIBUTES".to_owned(), text.into_owned())]
        } else {
            environment
        },
        ..Facts::default()
    };
    let is_whole = facts.variable("OTEL_RESOURCE_ATTRIBUTES").is_none() || !malformed;
    let id = ProcessId {
        pid: 7,
        start_ticks: 9,
    };
    let (resource, complaint) = apply(id, &facts, &Host::default());
    assert!(!resource.service_name().is_empty() || is_whole || complaint.is_some());
    let mut keys: Vec<_> = resource.attributes.iter().map(|each| &each.key).collect();
    let count = keys.len();
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), count, "keys are unique: {resource:?}");
}

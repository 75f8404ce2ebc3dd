//! What is known of a process, as the OpenTelemetry resource of its spans. Pure.
//!
//! Source: semantic conventions, docs/resource (`service.md`, `process.md`, `container.md`), and
//! the specification's resource/sdk.md for `OTEL_RESOURCE_ATTRIBUTES`. What the target says about
//! itself outranks what is derived; what only the kernel knows (process id and start) and who
//! made the data (`telemetry.*`) do not give way. Not covered: Kubernetes, cloud, build ids.

pub mod language;
pub mod resource_attributes;
pub mod service_name;

use std::sync::Arc;

use rustc_hash::FxHashMap;

use crate::{
    event::ProcessId,
    process::{Facts, table::ProcessTable},
    span::{
        Attribute, Resource,
        attribute::{
            CONTAINER_ID, HOST_ID, HOST_NAME, OS_TYPE, PROCESS_CREATION_TIME,
            PROCESS_EXECUTABLE_NAME, PROCESS_EXECUTABLE_PATH, PROCESS_PID, SERVICE_INSTANCE_ID,
            SERVICE_NAME, TELEMETRY_DISTRO_NAME, TELEMETRY_DISTRO_VERSION, TELEMETRY_SDK_LANGUAGE,
            TELEMETRY_SDK_NAME, TELEMETRY_SDK_VERSION,
        },
    },
};

/// Name of this agent. `telemetry.sdk.name` is `opentelemetry` only for an unmodified SDK, and
/// the prefix `opentelemetry-` is for official distributions.
const AGENT_NAME: &str = "ebpf-agent";
const AGENT_VERSION: &str = env!("CARGO_PKG_VERSION");

/// Attributes that the target cannot override: a worker inherits its parent's environment, and
/// with it values that are not its own.
const OBSERVED: [&str; 7] = [
    PROCESS_PID,
    PROCESS_CREATION_TIME,
    TELEMETRY_SDK_NAME,
    TELEMETRY_SDK_LANGUAGE,
    TELEMETRY_SDK_VERSION,
    TELEMETRY_DISTRO_NAME,
    TELEMETRY_DISTRO_VERSION,
];

/// The machine, the same for every process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    pub name: Option<String>,
    pub id: Option<String>,
}

/// One resource per process, shared by its spans.
#[derive(Debug)]
pub struct Enricher {
    host: Host,
    by_process: FxHashMap<ProcessId, (u64, Arc<Resource>)>,
}

impl Enricher {
    pub fn new(host: Host) -> Self {
        Self {
            host,
            by_process: FxHashMap::default(),
        }
    }

    /// The resource of `process`, made anew when what is known of it changed.
    pub fn resource(&mut self, process: ProcessId, table: &ProcessTable) -> Arc<Resource> {
        let revision = table.revision(process);
        if let Some((made_from, resource)) = self.by_process.get(&process)
            && *made_from == revision
        {
            return Arc::clone(resource);
        }
        let unknown = Facts::default();
        let facts = table.facts(process).unwrap_or(&unknown);
        let (resource, malformed) = apply(process, facts, &self.host);
        if let Some(malformed) = malformed {
            tracing::warn!(
                pid = process.pid,
                "OTEL_RESOURCE_ATTRIBUTES is left out: {malformed}"
            );
        }
        let resource = Arc::new(resource);
        // Of a process that the table forgot nobody would say when to forget it here.
        if revision != 0 {
            self.by_process
                .insert(process, (revision, Arc::clone(&resource)));
        }
        resource
    }

    /// Follows [`ProcessTable::handle_tick`].
    pub fn forget(&mut self, processes: &[ProcessId]) {
        for process in processes {
            self.by_process.remove(process);
        }
    }
}

/// The resource of one process, and what is wrong with its `OTEL_RESOURCE_ATTRIBUTES`, which is
/// then left out as a whole.
pub fn apply(
    process: ProcessId,
    facts: &Facts,
    host: &Host,
) -> (Resource, Option<resource_attributes::Malformed>) {
    let (given, malformed) = match facts.variable("OTEL_RESOURCE_ATTRIBUTES") {
        None => (Vec::new(), None),
        Some(text) => match resource_attributes::parse(text) {
            Ok(given) => (given, None),
            Err(malformed) => (Vec::new(), Some(malformed)),
        },
    };
    let mut attributes = derived(process, facts, host);
    for (key, value) in given {
        if !OBSERVED.contains(&key.as_str()) {
            put(&mut attributes, Attribute::new(key, value));
        }
    }
    // OTEL_SERVICE_NAME takes precedence over service.name in OTEL_RESOURCE_ATTRIBUTES.
    if let Some(name) = facts.variable("OTEL_SERVICE_NAME") {
        put(
            &mut attributes,
            Attribute::new(SERVICE_NAME, name.to_owned()),
        );
    }
    (Resource { attributes }, malformed)
}

fn derived(process: ProcessId, facts: &Facts, host: &Host) -> Vec<Attribute> {
    let mut attributes = vec![
        Attribute::new(SERVICE_NAME, service_name::derive(facts)),
        Attribute::new(SERVICE_INSTANCE_ID, instance_id(process, host)),
        Attribute::new(TELEMETRY_SDK_NAME, AGENT_NAME),
        Attribute::new(TELEMETRY_SDK_LANGUAGE, language::of(facts)),
        Attribute::new(TELEMETRY_SDK_VERSION, AGENT_VERSION),
        Attribute::new(TELEMETRY_DISTRO_NAME, AGENT_NAME),
        Attribute::new(TELEMETRY_DISTRO_VERSION, AGENT_VERSION),
        Attribute::new(PROCESS_PID, process.pid),
        Attribute::new(OS_TYPE, "linux"),
    ];
    let path = facts.executable.to_str().filter(|path| !path.is_empty());
    let optional = [
        (PROCESS_EXECUTABLE_NAME, facts.executable_name()),
        (PROCESS_EXECUTABLE_PATH, path),
        (PROCESS_CREATION_TIME, facts.creation_time.as_deref()),
        (CONTAINER_ID, facts.container_id.as_deref()),
        (HOST_NAME, host.name.as_deref()),
        (HOST_ID, host.id.as_deref()),
    ];
    for (key, value) in optional {
        attributes.extend(value.map(|value| Attribute::new(key, value.to_owned())));
    }
    attributes
}

/// Unique among the instances of a service, and the same after a restart of the agent.
fn instance_id(process: ProcessId, host: &Host) -> String {
    let host = host.name.as_deref().unwrap_or("localhost");
    format!("{host}.{}.{}", process.pid, process.start_ticks)
}

fn put(attributes: &mut Vec<Attribute>, attribute: Attribute) {
    match attributes
        .iter_mut()
        .find(|known| known.key == attribute.key)
    {
        Some(known) => known.value = attribute.value,
        None => attributes.push(attribute),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{process::Process, span::attribute};

    const ID: ProcessId = ProcessId {
        pid: 42,
        start_ticks: 700,
    };

    fn facts(environment: &[(&str, &str)]) -> Facts {
        Facts {
            executable: "/usr/bin/python3.11".into(),
            arguments: vec!["python3".to_owned(), "/srv/cart.py".to_owned()],
            environment: environment
                .iter()
                .map(|&(k, v)| (k.to_owned(), v.to_owned()))
                .collect(),
            container_id: Some("c0ffee".to_owned()),
            creation_time: Some("2024-01-01T00:00:00.00Z".to_owned()),
            ..Facts::default()
        }
    }

    fn value<'a>(resource: &'a Resource, key: &str) -> Option<&'a str> {
        attribute::find(&resource.attributes, key)?.as_str()
    }

    fn host() -> Host {
        Host {
            name: Some("node-1".to_owned()),
            id: None,
        }
    }

    /// Who wins for `service.name`, by what the target's environment holds.
    #[test]
    fn service_name_precedence() {
        let table: [(&[(&str, &str)], &str); 5] = [
            (&[], "cart"),
            (&[("OTEL_SERVICE_NAME", "")], "cart"),
            (
                &[("OTEL_RESOURCE_ATTRIBUTES", "service.name=from%20attributes")],
                "from attributes",
            ),
            (
                &[
                    ("OTEL_RESOURCE_ATTRIBUTES", "service.name=attributes"),
                    ("OTEL_SERVICE_NAME", "variable"),
                ],
                "variable",
            ),
            (
                &[("OTEL_RESOURCE_ATTRIBUTES", "service.name=a,broken")],
                "cart",
            ),
        ];
        for (environment, expected) in table {
            let (resource, _) = apply(ID, &facts(environment), &host());
            assert_eq!(resource.service_name(), expected, "{environment:?}");
            let names = resource
                .attributes
                .iter()
                .filter(|a| a.key == SERVICE_NAME)
                .count();
            assert_eq!(names, 1, "{environment:?}");
        }
    }

    /// Every derived attribute, under its conventional key.
    #[test]
    fn derived_attributes() {
        let (resource, malformed) = apply(ID, &facts(&[]), &host());
        assert_eq!(malformed, None);
        let expected = [
            ("service.instance.id", "node-1.42.700"),
            ("telemetry.sdk.name", "ebpf-agent"),
            ("telemetry.sdk.language", "python"),
            ("telemetry.distro.name", "ebpf-agent"),
            ("process.executable.name", "python3.11"),
            ("process.executable.path", "/usr/bin/python3.11"),
            ("process.creation.time", "2024-01-01T00:00:00.00Z"),
            ("container.id", "c0ffee"),
            ("host.name", "node-1"),
            ("os.type", "linux"),
        ];
        for (key, expected) in expected {
            assert_eq!(value(&resource, key), Some(expected), "{key}");
        }
        assert!(
            resource
                .attributes
                .contains(&Attribute::new("process.pid", 42_u32))
        );
        assert_eq!(value(&resource, "host.id"), None);
    }

    /// The target's attributes are added and outrank derived ones, save what was observed.
    #[test]
    fn given_attributes() {
        let text = "service.version=1.2,service.instance.id=i1,process.pid=1,host.name=h,\
                    telemetry.sdk.name=x,deployment.environment.name=prod";
        let (resource, _) = apply(ID, &facts(&[("OTEL_RESOURCE_ATTRIBUTES", text)]), &host());
        assert_eq!(value(&resource, "service.version"), Some("1.2"));
        assert_eq!(value(&resource, "service.instance.id"), Some("i1"));
        assert_eq!(value(&resource, "host.name"), Some("h"));
        assert_eq!(
            value(&resource, "deployment.environment.name"),
            Some("prod")
        );
        assert_eq!(value(&resource, "telemetry.sdk.name"), Some("ebpf-agent"));
        assert!(
            resource
                .attributes
                .contains(&Attribute::new("process.pid", 42_u32))
        );
    }

    /// Spans of one process share one resource until more is known of it; one that is not known
    /// at all says so.
    #[test]
    fn resources_are_shared() {
        let mut table = ProcessTable::new(8, 0);
        let mut enricher = Enricher::new(host());
        assert_eq!(
            enricher.resource(ID, &table).service_name(),
            "unknown_service"
        );
        table.handle_found(Process {
            id: ID,
            facts: facts(&[]),
        });
        let first = enricher.resource(ID, &table);
        assert!(Arc::ptr_eq(&first, &enricher.resource(ID, &table)));
        assert_eq!(first.service_name(), "cart");
        table.handle_read(Process {
            id: ID,
            facts: facts(&[("OTEL_SERVICE_NAME", "shop")]),
        });
        assert_eq!(enricher.resource(ID, &table).service_name(), "shop");
        enricher.forget(&[ID]);
        assert!(enricher.by_process.is_empty());
    }

    /// Scenario: a span comes after its process was forgotten. Guarantee: it has a resource, and
    /// nothing is kept of it.
    #[test]
    fn unknown_processes_are_not_remembered() {
        let mut enricher = Enricher::new(host());
        let resource = enricher.resource(ID, &ProcessTable::new(8, 0));
        assert_eq!(resource.service_name(), "unknown_service");
        assert!(enricher.by_process.is_empty());
    }
}

//! What becomes of an exchange whose place is settled: a span, or nothing. Pure.

use std::sync::Arc;

use super::{Engine, exchange::Finished};
use crate::{
    context::stitch::Identity,
    event::ProcessId,
    self_metrics::{Counter, Loss},
    span::{Attribute, Resource, Span, Value, attribute},
};

impl Engine {
    pub(super) fn finish_spans(&mut self) {
        let forced = self.stitcher.take_forced();
        if forced > 0 {
            self.metrics.lose(Loss::TraceHoldFull, "", forced);
        }
        // Spans come in runs of one process: it is looked up once for each run.
        let mut run: Option<(ProcessId, Arc<Resource>)> = None;
        let (mut created, mut not_sampled) = (0, 0);
        while let Some((finished, identity)) = self.stitcher.poll() {
            let process = finished.process;
            if self.rejected.contains_key(&process) {
                continue;
            }
            created += 1;
            let resource = match &run {
                Some((last, resource)) if *last == process => Arc::clone(resource),
                _ => {
                    let resource = self.enricher.resource(process, &self.processes);
                    run = Some((process, Arc::clone(&resource)));
                    resource
                }
            };
            if let Some(passing) = identity.passing {
                let destination = destination(&finished.details.attributes);
                self.metrics
                    .pass(passing, resource.service_name(), &destination);
            }
            if !self
                .sampler
                .decide(identity.trace_id, identity.remote_flags)
            {
                not_sampled += 1;
                continue;
            }
            let span = self.span(finished, identity, resource);
            self.spans.push(span);
        }
        self.metrics.add(Counter::SpansCreated, created);
        self.metrics.add(Counter::SpansNotSampled, not_sampled);
    }

    fn span(&self, finished: Finished, identity: Identity, resource: Arc<Resource>) -> Span {
        let mut details = finished.details;
        if let Some(evidence) = identity.evidence {
            details
                .attributes
                .push(Attribute::new(attribute::PARENT_EVIDENCE, evidence.name()));
        }
        Span {
            trace_id: identity.trace_id,
            span_id: identity.span_id,
            parent: identity.parent,
            trace_flags: identity.flags,
            trace_state: identity.state,
            start_ns: self.clock.unix_ns(finished.start_ns),
            end_ns: self.clock.unix_ns(finished.end_ns.max(finished.start_ns)),
            kind: finished.kind,
            name: details.name,
            status: details.status,
            attributes: details.attributes,
            links: identity.links,
            resource,
        }
    }
}

/// Where a call went, as its span says it.
fn destination(attributes: &[Attribute]) -> String {
    let address = attribute::find(attributes, attribute::SERVER_ADDRESS)
        .and_then(Value::as_str)
        .unwrap_or("");
    match attribute::find(attributes, attribute::SERVER_PORT) {
        Some(Value::Int(port)) => format!("{address}:{port}"),
        _ => address.to_owned(),
    }
}

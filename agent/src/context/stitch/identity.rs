//! Which trace and which parent a span gets, once all that can be known of it is. Pure.

use opentelemetry::{SpanId, TraceId};

use crate::{
    context::{Evidence, RemoteContext},
    self_metrics::Passing,
    span::{Attribute, Link, Parent, attribute},
};

/// Who a span is and where it belongs, final.
#[derive(Clone, Debug, PartialEq)]
pub struct Identity {
    pub trace_id: TraceId,
    pub span_id: SpanId,
    pub parent: Option<Parent>,
    pub evidence: Option<Evidence>,
    pub flags: u8,
    pub state: String,
    pub links: Vec<Link>,
    /// What became of the context that the request carried, in this call made for it.
    pub passing: Option<Passing>,
    /// Flags of the remote context at the root of what we know of the trace, for the sampler.
    pub remote_flags: Option<u8>,
}

/// The caller's identity, how it was proven, and what its own request carried.
pub(super) type Caller = (Identity, Evidence, Option<RemoteContext>);

/// What a request says of its parent on another host.
#[derive(Debug, PartialEq)]
pub(super) enum Remote {
    Unknown,
    Parent(RemoteContext, Evidence),
    /// Known, but by weaker evidence than the user asks for.
    Weak(RemoteContext),
}

/// Puts together what a request's own head and its TCP option say. In one trace the option names
/// the nearer parent, the call of the program that wrote the head. In two the head is right: the
/// agent of that program chose a trace before it could read the head.
pub(super) fn remote(
    header: Option<RemoteContext>,
    carried: Option<RemoteContext>,
    weakest: Evidence,
) -> Remote {
    let is_strong = Evidence::TcpOption <= weakest;
    match (header, carried) {
        (None, None) => Remote::Unknown,
        (None, Some(carried)) if is_strong => Remote::Parent(carried, Evidence::TcpOption),
        (None, Some(carried)) => Remote::Weak(carried),
        (Some(header), Some(carried)) if is_strong && header.trace_id == carried.trace_id => {
            let nearer = RemoteContext {
                span_id: carried.span_id,
                ..header
            };
            Remote::Parent(nearer, Evidence::TcpOption)
        }
        (Some(header), _) => Remote::Parent(header, Evidence::Header),
    }
}

/// Same trace: the nearer parent wins, which is how a proxy that forwards headers untouched appears
/// between its neighbours. Different traces: the header wins and the other end is a link.
///
/// A TCP option says what the local wire does, and says it from another host: where both speak, the
/// local wire was seen to the end.
pub(super) fn server_identity(
    span_id: SpanId,
    remote: Remote,
    caller: Option<Caller>,
    new_trace: &mut dyn FnMut() -> TraceId,
) -> Identity {
    match (remote, caller) {
        (Remote::Parent(header, Evidence::Header), Some((caller, ..)))
            if header.trace_id != caller.trace_id =>
        {
            let link = Link {
                trace_id: caller.trace_id,
                span_id: caller.span_id,
                attributes: vec![Attribute::new(
                    attribute::LINK_REASON,
                    "local_wire_of_another_trace",
                )],
            };
            Identity {
                links: vec![link],
                ..below_remote(span_id, header, Evidence::Header)
            }
        }
        (_, Some((caller, evidence, _))) => below(span_id, caller, evidence),
        (Remote::Parent(parent, evidence), None) => below_remote(span_id, parent, evidence),
        (Remote::Weak(context), None) => Identity {
            links: vec![Link {
                trace_id: context.trace_id,
                span_id: context.span_id,
                attributes: vec![Attribute::new(attribute::LINK_REASON, WEAK_EVIDENCE)],
            }],
            ..root(span_id, new_trace())
        },
        (Remote::Unknown, None) => root(span_id, new_trace()),
    }
}

/// What a call did with the context of the request that it was made for; `None` where that is not
/// known, or the request carried none.
pub(super) fn passing(own: Option<&RemoteContext>, caller: Option<&Caller>) -> Option<Passing> {
    let (_, evidence, inbound) = caller?;
    if *evidence == Evidence::LocalWire {
        return None;
    }
    let inbound = inbound.as_ref()?;
    Some(match own {
        None => Passing::Missing,
        Some(own) if own.trace_id == inbound.trace_id => Passing::Kept,
        Some(_) => Passing::Replaced,
    })
}

const WEAK_EVIDENCE: &str = "weak_evidence";

/// What would be the parent, were its evidence as strong as the user asks.
pub(super) fn weak_link(caller: &Identity, evidence: Evidence) -> Link {
    Link {
        trace_id: caller.trace_id,
        span_id: caller.span_id,
        attributes: vec![
            Attribute::new(attribute::LINK_REASON, WEAK_EVIDENCE),
            Attribute::new(attribute::LINK_EVIDENCE, evidence.name()),
        ],
    }
}

/// A header the program wrote itself names the parent; one that it merely passed on does not.
pub(super) fn client_identity(
    span_id: SpanId,
    header: Option<RemoteContext>,
    caller: Option<Caller>,
    new_trace: &mut dyn FnMut() -> TraceId,
) -> Identity {
    match (header, caller) {
        (Some(header), Some((caller, evidence, Some(inbound))))
            if (header.trace_id, header.span_id) == (inbound.trace_id, inbound.span_id) =>
        {
            below(span_id, caller, evidence)
        }
        (Some(header), _) => below_remote(span_id, header, Evidence::Header),
        (None, Some((caller, evidence, _))) => below(span_id, caller, evidence),
        (None, None) => root(span_id, new_trace()),
    }
}

/// A request that left with a header of ours: whatever is known of its caller, the receiver has
/// been told this trace.
pub(super) fn injected_identity(
    span_id: SpanId,
    trace_id: TraceId,
    caller: Option<Caller>,
) -> Identity {
    match caller {
        Some((caller, evidence, _)) if caller.trace_id == trace_id => {
            below(span_id, caller, evidence)
        }
        Some((caller, ..)) => Identity {
            links: vec![Link {
                trace_id: caller.trace_id,
                span_id: caller.span_id,
                attributes: vec![Attribute::new(
                    attribute::LINK_REASON,
                    "injected_into_another_trace",
                )],
            }],
            ..root(span_id, trace_id)
        },
        None => root(span_id, trace_id),
    }
}

fn below(span_id: SpanId, caller: Identity, evidence: Evidence) -> Identity {
    let is_remote = evidence == Evidence::LocalWire;
    Identity {
        trace_id: caller.trace_id,
        span_id,
        parent: Some(Parent {
            span_id: caller.span_id,
            is_remote,
        }),
        evidence: Some(evidence),
        flags: caller.flags,
        state: caller.state,
        links: Vec::new(),
        passing: None,
        remote_flags: caller.remote_flags,
    }
}

fn below_remote(span_id: SpanId, parent: RemoteContext, evidence: Evidence) -> Identity {
    Identity {
        trace_id: parent.trace_id,
        span_id,
        parent: Some(Parent {
            span_id: parent.span_id,
            is_remote: true,
        }),
        evidence: Some(evidence),
        flags: parent.flags,
        state: parent.state,
        links: Vec::new(),
        passing: None,
        remote_flags: Some(parent.flags),
    }
}

/// `sampled`, and the trace id is random: W3C Trace Context level 2, section 3.2.2.5.
const ROOT_FLAGS: u8 = 0b11;

fn root(span_id: SpanId, trace_id: TraceId) -> Identity {
    Identity {
        trace_id,
        span_id,
        parent: None,
        evidence: None,
        flags: ROOT_FLAGS,
        state: String::new(),
        links: Vec::new(),
        passing: None,
        remote_flags: None,
    }
}

//! Exchanges of which both ends are watched, on connections whose exchanges run side by side: what
//! one end lacks the other one may know, before or after. Pure.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;

use super::exchange::Finished;
use crate::{
    context::stitch::{HOLD_NS, NodeKey, Stitcher},
    protocol::other_end::{is_lacking, learn},
    span::Details,
};

/// Ends that wait, and ends whose knowledge is kept, at most; what is beyond learns nothing.
const ENDS: usize = 16_384;

#[derive(Debug, Default)]
pub(super) struct BothEnds {
    /// By the end that is still open: the other one, which lacks something.
    waiting: FxHashMap<NodeKey, Waiting>,
    /// When those give up, by the end that is open.
    due: VecDeque<(u64, NodeKey)>,
    /// By the end that is still open: what the other one said.
    said: FxHashMap<NodeKey, Details>,
}

#[derive(Debug)]
struct Waiting {
    node: NodeKey,
    end_ns: u64,
    finished: Finished,
}

impl Waiting {
    fn settle(self, stitcher: &mut Stitcher<Finished>) {
        stitcher.handle_ended(self.node, self.end_ns, self.finished);
    }
}

impl BothEnds {
    /// An exchange is over; it goes on to `stitcher`, now or when its other end is over too.
    pub(super) fn handle_finished(
        &mut self,
        node: NodeKey,
        end_ns: u64,
        mut finished: Finished,
        stitcher: &mut Stitcher<Finished>,
    ) {
        if let Some(mut other) = self.waiting.remove(&node) {
            let kind = other.finished.kind;
            learn(kind, &mut other.finished.details, &finished.details);
            learn(
                finished.kind,
                &mut finished.details,
                &other.finished.details,
            );
            other.settle(stitcher);
        }
        if let Some(said) = self.said.remove(&node) {
            learn(finished.kind, &mut finished.details, &said);
        }
        let open = stitcher.opposite(node);
        if let Some(open) = open.filter(|open| stitcher.is_open(*open)) {
            if is_lacking(&finished.details) && self.waiting.len() < ENDS {
                let waiting = Waiting {
                    node,
                    end_ns,
                    finished,
                };
                self.due.push_back((end_ns.saturating_add(HOLD_NS), open));
                if let Some(before) = self.waiting.insert(open, waiting) {
                    before.settle(stitcher);
                }
                return;
            }
            if self.said.len() < ENDS {
                self.said.insert(open, finished.details.clone());
            }
        }
        stitcher.handle_ended(node, end_ns, finished);
    }

    /// Time passes: who waited long enough goes on with what is known.
    pub(super) fn handle_tick(&mut self, now_ns: u64, stitcher: &mut Stitcher<Finished>) {
        while let Some((_, open)) = self.due.pop_front_if(|(due_ns, _)| *due_ns <= now_ns) {
            if let Some(waiting) = self.waiting.remove(&open) {
                waiting.settle(stitcher);
            }
        }
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.said.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::SpanId;

    use super::*;
    use crate::{
        context::{
            Evidence, IdGenerator,
            stitch::{Beginning, WireKey},
        },
        event::{OtherEnd, ProcessId},
        span::{Kind, attribute, attribute::find},
    };

    const WIRE: WireKey = WireKey::Tcp {
        client: (std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 5_000),
        sequence: 1,
    };

    fn finished(kind: Kind, attributes: &[(&'static str, &'static str)]) -> Finished {
        let attributes = attributes
            .iter()
            .map(|(key, value)| attribute::Attribute::new(*key, *value));
        Finished {
            process: ProcessId {
                pid: 1,
                start_ticks: 1,
            },
            kind,
            start_ns: 10,
            end_ns: 20,
            details: Details {
                attributes: attributes.collect(),
                ..Details::default()
            },
        }
    }

    fn known(kind: Kind) -> Finished {
        finished(kind, &[(attribute::RPC_METHOD, "a.B/C")])
    }

    fn lacking(kind: Kind) -> Finished {
        finished(kind, &[(attribute::UNOBSERVED, "request_head")])
    }

    /// Methods of what came out, by kind.
    fn run(ends: [Finished; 2], second: &Second) -> Vec<(Kind, Option<String>)> {
        let ids = IdGenerator::seeded(1);
        let mut stitcher = Stitcher::new(ids, 100, Evidence::default());
        let mut both_ends = BothEnds::default();
        let nodes = ends.each_ref().map(|end| {
            stitcher.handle_started(Beginning {
                kind: end.kind,
                start_ns: 10,
                caller: None,
                wire: Some(WIRE),
                other_end: OtherEnd::Unknown,
                minted: None,
            })
        });
        let [first, last] = ends;
        both_ends.handle_finished(nodes[0], 20, first, &mut stitcher);
        match second {
            Second::Ends => both_ends.handle_finished(nodes[1], 30, last, &mut stitcher),
            Second::IsLate => {
                both_ends.handle_tick(20 + HOLD_NS, &mut stitcher);
                stitcher.handle_tick(u64::MAX / 2);
                assert!(stitcher.poll().is_some(), "it was not waited for");
                both_ends.handle_finished(nodes[1], 30, last, &mut stitcher);
                stitcher.handle_tick(u64::MAX / 2);
                assert!(both_ends.is_empty());
                return Vec::new();
            }
        }
        assert!(both_ends.is_empty());
        stitcher.handle_tick(u64::MAX / 2);
        let mut methods: Vec<_> = std::iter::from_fn(|| stitcher.poll())
            .map(|(finished, identity)| {
                assert_ne!(identity.span_id, SpanId::INVALID);
                let method = find(&finished.details.attributes, attribute::RPC_METHOD);
                let method = method.and_then(attribute::Value::as_str).map(str::to_owned);
                (finished.kind, method)
            })
            .collect();
        methods.sort_by_key(|(kind, _)| *kind == Kind::Client);
        methods
    }

    enum Second {
        Ends,
        IsLate,
    }

    /// Whichever end lacks something and whichever is over first, both say what one knows.
    #[test]
    fn what_one_end_knows_both_say() {
        use Kind::{Client, Server};
        for ends in [
            [known(Server), lacking(Client)],
            [lacking(Server), known(Client)],
            [known(Client), lacking(Server)],
            [lacking(Client), known(Server)],
        ] {
            let method = Some("a.B/C".to_owned());
            let expected = vec![(Server, method.clone()), (Client, method)];
            assert_eq!(run(ends, &Second::Ends), expected);
        }
        let unknown = run([lacking(Server), lacking(Client)], &Second::Ends);
        assert_eq!(unknown, [(Server, None), (Client, None)]);
    }

    /// An end that lacks something waits for the other, and no longer than a moment.
    #[test]
    fn an_end_that_lacks_waits_a_moment() {
        run(
            [lacking(Kind::Server), known(Kind::Client)],
            &Second::IsLate,
        );
    }
}

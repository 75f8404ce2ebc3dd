//! Pairs of runs of one program, one without and one with something beside it, that alternate: a
//! machine that gets slower or faster meanwhile weighs on both sides.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};

use super::{
    condition::{Condition, Ended, Parts},
    load::Load,
    programs::{self, Counted, Runs},
    results::{AgentCost, ProgramCost, Row, Side, SubjectResult},
    spread::Spread,
    subject::Served,
    usage::Usage,
};
use crate::steps::say;

/// How a program is measured.
pub(super) struct Rounds<'a> {
    pub(super) served: &'a Served,
    pub(super) parts: &'a Parts<'a>,
    pub(super) conditions: &'a [Condition],
    /// Pairs for each condition.
    pub(super) pairs: usize,
    /// Of each run.
    pub(super) seconds: u32,
}

/// A run without and a run with.
struct Pair {
    without: Load,
    with: Load,
    usage: Used,
    ended: Ended,
}

/// What the process whose programs are attached used.
struct Used {
    /// During the load.
    cpu_us: u64,
    at_end: Usage,
}

impl Rounds<'_> {
    pub(super) fn run(&self) -> Result<SubjectResult> {
        let mut pairs: Vec<Vec<Pair>> = self.conditions.iter().map(|_| Vec::new()).collect();
        for round in 0..self.pairs.max(1) {
            for (condition, pairs) in self.conditions.iter().zip(&mut pairs) {
                let pair = self.pair(*condition, round)?;
                self.say(*condition, &pair);
                pairs.push(pair);
            }
        }
        let mut rows = vec![Row::without(Side::of(
            pairs.iter().flatten().map(|pair| pair.without),
        ))];
        for (condition, pairs) in self.conditions.iter().zip(&pairs) {
            let ratio = pairs.iter().map(|pair| pair.with.rate / pair.without.rate);
            rows.push(Row {
                condition: Some(*condition),
                ratio: Spread::of(ratio),
                side: Side::of(pairs.iter().map(|pair| pair.with)),
            });
        }
        let traced = self
            .conditions
            .iter()
            .position(|condition| *condition == Condition::Traced);
        let agent = traced.and_then(|index| Some(self.agent_cost(pairs.get(index)?)));
        Ok(SubjectResult {
            name: self.served.subject.name().to_owned(),
            rows,
            agent,
            programs: self.programs()?,
        })
    }

    /// Every second pair begins with the condition, so that neither side is always first.
    fn pair(&self, condition: Condition, round: usize) -> Result<Pair> {
        let without = |index: usize| {
            let wanted = round.is_multiple_of(2) == (index == 0);
            wanted.then(|| self.served.load(self.seconds)).transpose()
        };
        let before = without(0)?;
        let (with, usage, ended) = self.with(condition)?;
        let after = without(1)?;
        Ok(Pair {
            without: before.or(after).context("one of them ran")?,
            with,
            usage,
            ended,
        })
    }

    fn with(&self, condition: Condition) -> Result<(Load, Used, Ended)> {
        let standing = condition.stand(self.parts, self.served.program.pid())?;
        let before = standing.usage()?;
        let load = self.served.load(self.seconds)?;
        let at_end = standing.usage()?;
        let used = Used {
            cpu_us: at_end.cpu_us.saturating_sub(before.cpu_us),
            at_end,
        };
        Ok((load, used, standing.end()?))
    }

    fn say(&self, condition: Condition, pair: &Pair) {
        let lost: u64 = pair.ended.ledger.lost().map(|(_, count)| count).sum();
        say(
            "bench",
            &format!(
                "{:<6} {:<31} {:>7.0} /s without, {:>7.0} /s with, ratio {:.3}; {} requests, \
                 {} spans, {lost} lost",
                self.served.subject.name(),
                condition.title(),
                pair.without.rate,
                pair.with.rate,
                pair.with.rate / pair.without.rate,
                pair.with.requests,
                pair.ended.spans,
            ),
        );
    }

    fn agent_cost(&self, pairs: &[Pair]) -> AgentCost {
        let of = |value: fn(&Pair) -> f64| Spread::of(pairs.iter().map(value));
        let mut lost = BTreeMap::new();
        for (reason, count) in pairs.iter().flat_map(|pair| pair.ended.ledger.lost()) {
            *lost.entry(reason.to_owned()).or_insert(0) += count;
        }
        let is_understood = self.served.subject.is_understood();
        let first = pairs.iter().filter_map(|pair| pair.ended.first_span);
        AgentCost {
            cpu_us_per_request: of(|pair| {
                pair.usage.cpu_us as f64 / pair.with.requests.max(1) as f64
            }),
            rss_mib: of(|pair| pair.usage.at_end.rss_kb as f64 / 1024.0),
            peak_mib: of(|pair| pair.usage.at_end.peak_kb as f64 / 1024.0),
            first_span_ms: Spread::of(first.map(|first| first.as_secs_f64() * 1_000.0)),
            requests: pairs.iter().map(|pair| pair.with.requests).sum(),
            spans: is_understood.then(|| pairs.iter().map(|pair| pair.ended.spans).sum()),
            lost,
        }
    }

    /// One run more for each condition, with the kernel's statistics on: they weigh on the rate.
    fn programs(&self) -> Result<Vec<ProgramCost>> {
        let _counted = Counted::begin()?;
        let mut costs = Vec::new();
        let mut filter = Runs::new();
        // At its filter first: what a hit costs that is not traced is part of the next.
        let order = [Condition::Filter, Condition::Traced, Condition::Counting];
        for condition in order
            .into_iter()
            .filter(|one| self.conditions.contains(one))
        {
            let standing = condition.stand(self.parts, self.served.program.pid())?;
            let before = programs::runs_of(standing.pid())?;
            let load = self.served.load(self.seconds)?;
            let after = programs::runs_of(standing.pid())?;
            standing.end()?;
            let runs = programs::between(&before, &after);
            match condition {
                Condition::Filter => filter = runs,
                _ => costs.extend(runs.iter().map(|(name, run)| {
                    let filter = filter.get(name).copied();
                    let mut cost = ProgramCost::new(condition, name, *run, load.requests, filter);
                    if self.served.subject.is_multiplexed() {
                        cost.traced_ns = None;
                    }
                    cost
                })),
            }
        }
        // What happens once in a while, such as a connection's end, is no cost of a request.
        costs.retain(|cost| cost.hits_per_request >= 0.05);
        for cost in &costs {
            say(
                "bench",
                &format!("{:<6} {}", self.served.subject.name(), cost.line()),
            );
        }
        Ok(costs)
    }
}

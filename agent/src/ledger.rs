//! The loss ledger for people and for programs: what passed, and what was lost with the reason.
//! Pure.

use std::fmt::Write as _;

use agent_common::{drop_reason::DropReason, injection::InjectionOutcome};

use crate::self_metrics::{Counter, Gauge, Loss, SelfMetrics};

/// One look at all counters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ledger {
    counters: Vec<(Counter, u64)>,
    gauges: Vec<(Gauge, u64)>,
    losses: Vec<(Loss, String, u64)>,
    kernel_losses: Vec<(DropReason, u64)>,
    injections: Vec<(InjectionOutcome, u64)>,
}

impl Ledger {
    pub fn new(metrics: &SelfMetrics, kernel_losses: Vec<(DropReason, u64)>) -> Self {
        let losses = metrics.losses().into_iter();
        Self {
            counters: Counter::ALL
                .iter()
                .map(|counter| (*counter, metrics.total(*counter)))
                .collect(),
            gauges: Gauge::ALL
                .iter()
                .map(|gauge| (*gauge, metrics.now(*gauge)))
                .collect(),
            losses: losses
                .map(|((reason, service), count)| (reason, service, count))
                .collect(),
            kernel_losses,
            injections: Vec::new(),
        }
    }

    /// With what became of requests that headers were to be put into.
    #[must_use]
    pub fn with_injections(mut self, injections: Vec<(InjectionOutcome, u64)>) -> Self {
        self.injections = injections;
        self
    }

    /// For people: one line each, losses only where there were any.
    pub fn text(&self) -> String {
        let mut text = String::from("summary\n");
        let mut line = |name: &str, count: u64, meaning: &str| {
            let _ = writeln!(text, "  {name:<28} {count:>12}  {meaning}");
        };
        for (counter, count) in &self.counters {
            line(counter.name(), *count, counter.description().trim());
        }
        for (gauge, count) in &self.gauges {
            line(gauge.name(), *count, gauge.description().trim());
        }
        for (outcome, count) in self.injections.iter().filter(|(_, count)| *count > 0) {
            let name = format!("inject: {}", outcome.name());
            line(&name, *count, outcome.description().trim());
        }
        let mut is_lossless = true;
        for (reason, service, count) in &self.losses {
            is_lossless = false;
            let of = if service.is_empty() {
                String::new()
            } else {
                format!(" [{service}]")
            };
            let name = format!("lost: {}{of}", reason.name());
            line(&name, *count, reason.description().trim());
        }
        for (reason, count) in self.kernel_losses.iter().filter(|(_, count)| *count > 0) {
            is_lossless = false;
            line(
                &format!("kernel: {}", reason.name()),
                *count,
                reason.description().trim(),
            );
        }
        if is_lossless {
            text.push_str("  nothing was lost\n");
        }
        text
    }

    /// For programs: an object with `counters` and `gauges` by name, `losses` as a list of
    /// `reason`, `service` and `count`, and `kernel_losses` and `injections` by name.
    pub fn json(&self) -> serde_json::Value {
        let counters = self
            .counters
            .iter()
            .map(|(counter, count)| (counter.name(), *count));
        let gauges = self
            .gauges
            .iter()
            .map(|(gauge, count)| (gauge.name(), *count));
        let kernel = self
            .kernel_losses
            .iter()
            .map(|(reason, count)| (reason.name(), *count));
        let injections = self
            .injections
            .iter()
            .map(|(outcome, count)| (outcome.name(), *count));
        let losses: Vec<_> = self
            .losses
            .iter()
            .map(|(reason, service, count)| {
                serde_json::json!({ "reason": reason.name(), "service": service, "count": count })
            })
            .collect();
        serde_json::json!({
            "counters": counters.collect::<std::collections::BTreeMap<_, _>>(),
            "gauges": gauges.collect::<std::collections::BTreeMap<_, _>>(),
            "losses": losses,
            "kernel_losses": kernel.collect::<std::collections::BTreeMap<_, _>>(),
            "injections": injections.collect::<std::collections::BTreeMap<_, _>>(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_lost_is_named_with_its_service() {
        let metrics = SelfMetrics::default();
        metrics.add(Counter::SpansCreated, 7);
        metrics.lose(Loss::ExportQueueFull, "shop", 3);
        let kernel = vec![(DropReason::RingFull, 2), (DropReason::IoUring, 0)];
        let ledger = Ledger::new(&metrics, kernel);
        let text = ledger.text();
        assert!(text.contains("lost: export_queue_full [shop]"), "{text}");
        assert!(text.contains("kernel: ring_full"), "{text}");
        assert!(
            !text.contains("io_uring") && !text.contains("nothing was lost"),
            "{text}"
        );
        let json = ledger.json();
        assert_eq!(json["counters"]["spans.created"], 7);
        assert_eq!(json["losses"][0]["count"], 3);
        assert_eq!(json["kernel_losses"]["ring_full"], 2);
    }

    #[test]
    fn no_loss_is_said_plainly() {
        let ledger = Ledger::new(&SelfMetrics::default(), Vec::new());
        assert!(ledger.text().ends_with("nothing was lost\n"));
    }
}

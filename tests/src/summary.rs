//! The agent's ledger, as written to `EBPF_AGENT_SUMMARY_FILE` when it ends.

use std::{collections::BTreeMap, fs, path::Path};

use serde::Deserialize;

#[derive(Clone, Debug, Deserialize)]
pub struct Summary {
    pub counters: BTreeMap<String, u64>,
    /// What user space lost.
    pub losses: Vec<Loss>,
    /// What the kernel side lost, in records or calls.
    pub kernel_losses: BTreeMap<String, u64>,
    /// What became of requests that headers were to be put into, by outcome.
    #[serde(default)]
    pub injections: BTreeMap<String, u64>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Loss {
    pub reason: String,
    /// Empty where it is not known.
    pub service: String,
    pub count: u64,
}

impl Summary {
    /// `None` when there is no such file; panics when it is not what the contract says.
    pub fn read(path: &Path) -> Option<Self> {
        let text = fs::read_to_string(path).ok()?;
        Some(serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}")))
    }

    /// Spans that were made or begun but never sent, for a reason the ledger names.
    pub fn lost_spans(&self) -> u64 {
        // The others lose a link or the detail of a span, not the span.
        let harmless = ["trace_hold_full", "process_table_full"];
        self.losses
            .iter()
            .filter(|loss| !harmless.contains(&loss.reason.as_str()))
            .map(|loss| loss.count)
            .sum()
    }

    /// Spans that may be missing because of what is counted: each record that the kernel side lost
    /// was of one exchange at the most.
    pub fn accounted_spans(&self) -> u64 {
        self.lost_spans() + self.kernel_losses.values().sum::<u64>()
    }

    pub fn loss(&self, reason: &str) -> u64 {
        self.losses
            .iter()
            .filter(|loss| loss.reason == reason)
            .map(|loss| loss.count)
            .sum()
    }

    pub fn counter(&self, name: &str) -> u64 {
        self.counters.get(name).copied().unwrap_or(0)
    }
}

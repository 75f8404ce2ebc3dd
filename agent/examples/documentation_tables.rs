//! Prints the tables of `docs/` that are made from the agent's registries. `cargo xtask codegen`
//! runs it and puts each table behind the marker of the same name.
#![expect(clippy::print_stdout, reason = "its output is the tables")]

use agent::self_metrics::{Counter, Loss};
use agent_common::drop_reason::DropReason;

fn main() {
    let counters = Counter::ALL
        .iter()
        .map(|counter| (counter.name(), counter.description()));
    print_table("counters", "Counter", counters);
    let losses = Loss::ALL
        .iter()
        .map(|loss| (loss.name(), loss.description()));
    print_table("losses", "Reason", losses);
    let reasons = DropReason::ALL
        .iter()
        .map(|reason| (reason.name(), reason.description()));
    print_table("kernel-losses", "Reason", reasons);
}

/// One row a name, under the marker that names the table.
fn print_table<'a>(name: &str, heading: &str, rows: impl Iterator<Item = (&'a str, &'a str)>) {
    println!("<!-- generated: {name} -->");
    println!("| {heading} | What it counts |");
    println!("|---|---|");
    for (name, description) in rows {
        println!("| `{name}` | {} |", description.trim());
    }
}

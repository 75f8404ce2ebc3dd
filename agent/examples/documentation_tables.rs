//! Prints the tables of `docs/` that are made from the agent's registries. `cargo xtask codegen`
//! runs it and puts each table behind the marker of the same name.
#![expect(clippy::print_stdout, reason = "its output is the tables")]

use std::collections::BTreeMap;

use agent::{
    cli::Cli,
    config::setting::SETTINGS,
    kernel::layout::{Feature, needed_by},
    self_metrics::{Counter, Loss},
};
use agent_common::{drop_reason::DropReason, kernel_config::KernelField};
use clap::CommandFactory as _;

fn main() {
    print_settings();
    print_kernel_fields();
    let counters = Counter::ALL
        .iter()
        .map(|counter| (counter.name(), counter.description()));
    print_counts("counters", "Counter", counters);
    let losses = Loss::ALL
        .iter()
        .map(|loss| (loss.name(), loss.description()));
    print_counts("losses", "Reason", losses);
    let reasons = DropReason::ALL
        .iter()
        .map(|reason| (reason.name(), reason.description()));
    print_counts("kernel-losses", "Reason", reasons);
}

/// Flag, variable and file key of each setting, with the words of `--help`.
fn print_settings() {
    let command = Cli::command();
    let help = |key: &str| {
        let argument = command
            .get_arguments()
            .find(|argument| argument.get_long() == Some(key));
        argument
            .and_then(clap::Arg::get_help)
            .map(ToString::to_string)
            .unwrap_or_default()
    };
    let rows = SETTINGS.iter().map(|setting| {
        let foreign: Vec<String> = setting.foreign.iter().map(|name| code(name)).collect();
        let flag = code(&format!("--{}", setting.key));
        [
            flag,
            code(setting.variable),
            foreign.join(", "),
            help(setting.key),
        ]
    });
    print_table(
        "settings",
        ["Flag", "Variable", "Also read", "What it is"],
        rows,
    );
}

/// What does not work where the kernel lacks one of these fields.
fn print_kernel_fields() {
    let mut by_feature: BTreeMap<Feature, Vec<String>> = BTreeMap::new();
    for &field in KernelField::ALL {
        by_feature
            .entry(needed_by(field))
            .or_default()
            .push(code(field.path()));
    }
    let rows = by_feature
        .into_iter()
        .map(|(feature, fields)| [feature.name().to_owned(), fields.join(", ")]);
    print_table(
        "kernel-fields",
        ["Feature", "Fields of the kernel it needs"],
        rows,
    );
}

/// Names with a sentence each.
fn print_counts<'a>(name: &str, head: &str, rows: impl Iterator<Item = (&'a str, &'a str)>) {
    let rows = rows.map(|(name, description)| [code(name), description.trim().to_owned()]);
    print_table(name, [head, "What it counts"], rows);
}

/// Under the marker that names the table.
fn print_table<const COLUMNS: usize>(
    name: &str,
    head: [&str; COLUMNS],
    rows: impl Iterator<Item = [String; COLUMNS]>,
) {
    println!("<!-- generated: {name} -->");
    println!("| {} |", head.join(" | "));
    println!("|{}", "---|".repeat(COLUMNS));
    for row in rows {
        // A bar would end the cell.
        println!(
            "| {} |",
            row.map(|cell| cell.replace('|', "\\|")).join(" | ")
        );
    }
}

fn code(text: &str) -> String {
    format!("`{text}`")
}

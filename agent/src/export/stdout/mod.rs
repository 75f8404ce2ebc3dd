//! EDGE: spans on standard output, for people (`console`) or programs (`json`).
//!
//! Writing happens in a thread of its own: a terminal that is stopped, or a pipe nobody reads,
//! blocks that thread and nothing else. An error, above all a closed pipe, ends the exporter
//! without a word, because the reader chose to leave; what it did not get is counted.

pub mod console;
pub mod json;
pub mod waterfall;

use std::{
    io::{self, IsTerminal as _, Write},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use tokio::sync::oneshot;

use crate::{
    export::{
        batch::Tally,
        queue::Queue,
        setting::{self, Lookup},
    },
    self_metrics::Loss,
    span::Span,
};
use console::Grouping;
use waterfall::{Colour, Style};

/// How long a span may wait for company before it is printed.
pub(super) const MAX_DELAY: Duration = Duration::from_millis(100);

/// Settings of the console.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Colour where standard output is a terminal.
    pub colour: Colour,
}

impl Config {
    /// `NO_COLOR` (<https://no-color.org>) and `TERM=dumb` switch colour off.
    pub fn from_lookup(lookup: Lookup<'_>) -> Self {
        let plain = setting::get(lookup, "NO_COLOR").is_some()
            || setting::get(lookup, "TERM").is_some_and(|term| term == "dumb");
        Self {
            colour: if plain { Colour::Off } else { Colour::On },
        }
    }
}

pub(super) enum Form {
    Console(Config),
    Json,
}

/// The receiver resolves when the thread has ended.
pub(super) fn spawn(form: Form, queue: Arc<Queue>) -> Result<oneshot::Receiver<()>> {
    let (ended, done) = oneshot::channel();
    let body = move || {
        // The lock is taken per write, so that a second exporter can write too.
        let printed = match form {
            Form::Console(config) => print_traces(&queue, &mut io::stdout(), &terminal(config)),
            Form::Json => print_json(&queue, &mut io::stdout()),
        };
        if let Err(error) = printed {
            let lost = queue.end(Loss::ExportFailed);
            tracing::debug!("standard output: {error}; {lost} spans were not printed");
        }
        // Nobody may be waiting any more.
        let _ = ended.send(());
    };
    thread::Builder::new()
        .name("export-stdout".to_owned())
        .spawn(body)
        .context("starting the thread that writes to standard output")?;
    Ok(done)
}

fn terminal(config: Config) -> Style {
    if !io::stdout().is_terminal() {
        return Style::default();
    }
    let width = terminal_size::terminal_size()
        .map_or(waterfall::DEFAULT_WIDTH, |(width, _)| width.0.into());
    Style {
        width,
        colour: config.colour,
    }
}

pub(super) fn print_json(queue: &Queue, out: &mut dyn Write) -> io::Result<()> {
    while let Some(spans) = queue.next_batch_blocking(None) {
        let mut text = Vec::new();
        for span in &spans {
            json::write_line(span, &mut text)?;
        }
        print(queue, out, &text, &spans)?;
    }
    Ok(())
}

pub(super) fn print_traces(queue: &Queue, out: &mut dyn Write, style: &Style) -> io::Result<()> {
    let started = Instant::now();
    let mut grouping = Grouping::default();
    loop {
        let wait = grouping
            .next_due()
            .map(|due| due.saturating_sub(started.elapsed()));
        let Some(spans) = queue.next_batch_blocking(wait) else {
            break;
        };
        let mut ready = grouping.add(spans, started.elapsed());
        ready.extend(grouping.poll(started.elapsed()));
        print_each(queue, out, &ready, style)?;
    }
    print_each(queue, out, &grouping.flush(), style)
}

fn print_each(
    queue: &Queue,
    out: &mut dyn Write,
    traces: &[Vec<Span>],
    style: &Style,
) -> io::Result<()> {
    for spans in traces {
        print(
            queue,
            out,
            waterfall::render(spans, style).as_bytes(),
            spans,
        )?;
    }
    Ok(())
}

fn print(queue: &Queue, out: &mut dyn Write, text: &[u8], spans: &[Span]) -> io::Result<()> {
    out.write_all(text)?;
    out.flush()?;
    queue.settle_exported(&Tally::of(spans));
    Ok(())
}

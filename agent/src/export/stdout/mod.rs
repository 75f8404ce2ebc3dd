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
        return Style {
            width: waterfall::PASTE_WIDTH,
            ..Style::default()
        };
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        export::{
            batch,
            tests::{checkout, span_of_trace, spans_of},
        },
        self_metrics::{Counter, SelfMetrics},
    };

    fn queue(metrics: &Arc<SelfMetrics>) -> Queue {
        let config = batch::Config {
            delay: Duration::ZERO,
            ..batch::Config::default()
        };
        Queue::new(&config, usize::MAX, Arc::clone(metrics))
    }

    /// All spans are printed, those still held back at shutdown too, and counted.
    #[test]
    fn what_is_held_is_printed_at_the_end() {
        let metrics = Arc::new(SelfMetrics::default());
        let queue = queue(&metrics);
        queue.try_send(checkout());
        queue.try_send(vec![span_of_trace(7)]);
        queue.close();
        let mut out = vec![];
        print_traces(&queue, &mut out, &Style::default()).expect("a Vec takes all");
        let text = String::from_utf8(out).expect("UTF-8");
        let expected = waterfall::render(&checkout(), &Style::default())
            + &waterfall::render(&[span_of_trace(7)], &Style::default());
        assert_eq!(text, expected);
        assert_eq!(metrics.total(Counter::SpansExported), 6);
        assert!(metrics.losses().is_empty());
    }

    /// A trace that is quiet is printed although nothing else comes and nothing is closed.
    #[test]
    fn a_quiet_trace_needs_no_other_span() {
        let metrics = Arc::new(SelfMetrics::default());
        let queue = queue(&metrics);
        queue.try_send(checkout());
        thread::scope(|scope| {
            scope.spawn(|| {
                print_traces(&queue, &mut io::sink(), &Style::default()).expect("a sink takes all");
            });
            let deadline = Instant::now() + Duration::from_mins(1);
            while metrics.total(Counter::SpansExported) < 5 {
                assert!(Instant::now() < deadline, "the trace was not printed");
                thread::sleep(Duration::from_millis(2));
            }
            queue.close();
        });
    }

    /// Takes two writes, then breaks as a closed pipe does.
    struct Pipe(u32);

    impl Write for Pipe {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 = self.0.checked_sub(1).ok_or(io::ErrorKind::BrokenPipe)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// A reader that leaves ends the exporter; what it did not get is counted, then and later.
    #[test]
    fn a_closed_pipe_ends_the_exporter() {
        let metrics = Arc::new(SelfMetrics::default());
        let queue = queue(&metrics);
        for trace in 1..=3 {
            queue.try_send(vec![span_of_trace(trace)]);
        }
        queue.close();
        let printed = print_traces(&queue, &mut Pipe(2), &Style::default());
        assert_eq!(
            printed.expect_err("the pipe breaks").kind(),
            io::ErrorKind::BrokenPipe
        );
        assert_eq!(queue.end(Loss::ExportFailed), 1);
        queue.try_send(spans_of("late", 4));
        assert_eq!(metrics.total(Counter::SpansExported), 2);
        let losses = metrics.losses();
        assert_eq!(losses[&(Loss::ExportFailed, "frontend".to_owned())], 1);
        assert_eq!(losses[&(Loss::ExportFailed, "late".to_owned())], 4);
    }

    /// One line a span, in the order of arrival.
    #[test]
    fn json_lines() {
        let metrics = Arc::new(SelfMetrics::default());
        let queue = queue(&metrics);
        queue.try_send(checkout());
        queue.close();
        let mut out = vec![];
        print_json(&queue, &mut out).expect("a Vec takes all");
        let mut expected = vec![];
        for span in checkout() {
            json::write_line(&span, &mut expected).expect("a Vec takes all");
        }
        assert_eq!(out, expected);
        assert_eq!(metrics.total(Counter::SpansExported), 5);
    }
}

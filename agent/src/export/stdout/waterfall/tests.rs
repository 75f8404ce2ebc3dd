use opentelemetry::SpanId;

use super::*;
use crate::{
    export::tests::{Http, checkout, http_span, service},
    span::{Attribute, Parent},
};

/// The whole picture is compared with a file beside this one. To accept a change, read it and
/// copy it there.
fn assert_golden(actual: &str, golden: &str) {
    assert_eq!(
        actual, golden,
        "\n--- actual ---\n{actual}--- golden ---\n{golden}"
    );
}

fn plain(spans: &[Span]) -> String {
    render(spans, &Style::default())
}

/// The picture of a request through three services, one of which fails.
#[test]
fn a_trace_of_three_services() {
    assert_golden(&plain(&checkout()), include_str!("checkout.txt"));
}

/// The order in which spans arrive does not change the picture.
#[test]
fn order_of_arrival_does_not_matter() {
    let mut spans = checkout();
    spans.reverse();
    assert_eq!(plain(&spans), plain(&checkout()));
}

/// A wider terminal gives labels and bars more room; colour marks header and errors.
#[test]
fn a_wide_terminal_with_colour() {
    let style = Style {
        width: 120,
        colour: Colour::On,
    };
    assert_golden(
        &render(&checkout(), &style),
        include_str!("checkout_wide.txt"),
    );
}

/// No line is wider than the terminal, from narrow to wide, whatever the labels.
#[test]
fn lines_fit_the_width() {
    let mut spans = checkout();
    for span in &mut spans {
        span.attributes.push(Attribute::new("x", "y"));
        span.attributes[1].value = "/a/very/long/path/".repeat(20).into();
    }
    for width in MIN_WIDTH..200 {
        let text = render(
            &spans,
            &Style {
                width,
                colour: Colour::Off,
            },
        );
        for line in text.lines().skip(1) {
            assert_eq!(line.chars().count(), width, "{line}");
        }
    }
}

/// A single span is one line.
#[test]
fn a_single_span() {
    let spans = checkout();
    assert_golden(
        &(plain(&spans[..1]) + &plain(&spans[1..2])),
        "trace 4bf92f3577b34da6a3ce929d0e0e4736  frontend GET /check\u{2026}  500  312 ms  ERROR\n\
         trace 4bf92f3577b34da6a3ce929d0e0e4736  frontend \u{2192} GET cart:8080/i\u{2026}  200  120 ms\n",
    );
}

/// No response was seen: the kind of error stands for the status.
#[test]
fn an_error_without_a_status_code() {
    let mut span = checkout().swap_remove(0);
    span.attributes.pop();
    span.attributes
        .push(Attribute::new(attribute::ERROR_TYPE, "timeout"));
    let text = render(
        &[span],
        &Style {
            width: 120,
            colour: Colour::Off,
        },
    );
    assert!(
        text.ends_with("frontend GET /checkout [timeout]  312 ms  ERROR\n"),
        "{text}"
    );
}

/// A parent that was not seen makes a root; a circle of parents is shown and ends.
#[test]
fn missing_and_circular_parents() {
    let set_parent = |span: &mut Span, id: u64| {
        span.parent = Some(Parent {
            span_id: SpanId::from(id),
            is_remote: false,
        });
    };
    let mut spans = checkout();
    set_parent(&mut spans[0], 99);
    assert_eq!(plain(&spans), plain(&checkout()), "a root all the same");
    set_parent(&mut spans[0], 3);
    let text = plain(&spans);
    assert_eq!(
        text.lines().count(),
        1 + spans.len(),
        "every span once:\n{text}"
    );
    set_parent(&mut spans[0], 1);
    let text = plain(&spans);
    assert_eq!(
        text.lines().count(),
        1 + spans.len(),
        "its own parent:\n{text}"
    );
}

/// A long trace is cut, and says by how much.
#[test]
fn a_long_trace_is_cut() {
    let resource = service("batch", 1);
    let spans: Vec<Span> = (1..=200)
        .map(|id| {
            let kind = Kind::Client;
            let (parent, target, status) = (id / 2, "http://x/y", 200);
            let (from_ms, to_ms) = (id, 400 - id);
            http_span(
                &resource,
                Http {
                    id,
                    parent,
                    kind,
                    target,
                    status,
                    from_ms,
                    to_ms,
                },
            )
        })
        .collect();
    let text = plain(&spans);
    assert_eq!(text.lines().count(), 1 + MAX_LINES + 1);
    assert!(text.ends_with("\u{2026} and 140 more spans\n"), "{text}");
}

/// What the network sent cannot steer the terminal.
#[test]
fn control_characters_are_not_printed() {
    let mut spans = checkout();
    spans[0].attributes[1].value = "/\u{1b}[2J\r\n\u{9b}x\u{202e}".into();
    let text = plain(&spans);
    assert!(text.contains("GET /?[2J???x?"), "{text}");
    assert_eq!(text.lines().count(), 1 + spans.len());
}

/// Times without extent, or before the first span's, stay inside the frame.
#[test]
fn degenerate_times() {
    let mut spans = checkout();
    for span in &mut spans {
        span.end_ns = span.start_ns.saturating_sub(1);
        span.start_ns = 5;
    }
    spans[0].end_ns = 0;
    assert_eq!(plain(&spans).lines().count(), 1 + spans.len());
    assert_eq!(plain(&[]), "");
}

/// Three digits and the right unit at every size.
#[test]
fn durations() {
    let table = [
        (0, "0 ns"),
        (999, "999 ns"),
        (1_000, "1.00 us"),
        (12_345, "12.3 us"),
        (999_949, "1000 us"),
        (9_994_000, "9.99 ms"),
        (9_996_000, "10.0 ms"),
        (99_960_000, "100 ms"),
        (312_000_000, "312 ms"),
        (1_234_000_000, "1.23 s"),
        (90_000_000_000, "90.0 s"),
        (3_600_000_000_000, "3600 s"),
    ];
    for (ns, expected) in table {
        assert_eq!(duration(ns), expected);
    }
}

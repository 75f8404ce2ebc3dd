//! One trace as text for people: a tree with bars placed in time. Pure.
//!
//! Client spans have a hatched bar and an arrow before their label, server spans a solid bar. The
//! service is named where it differs from the parent's. An error has `!` after its status.

use std::{collections::BTreeSet, fmt::Write as _};

use opentelemetry::SpanId;
use rustc_hash::{FxHashMap, FxHashSet};

use crate::span::{Kind, Span, Status, Value, attribute};

/// What a terminal has when nobody chose.
pub const DEFAULT_WIDTH: usize = 80;
/// For what is written to a file or pasted: room for whole paths.
pub const PASTE_WIDTH: usize = 120;
/// Narrower than this nothing is readable; lines then wrap.
const MIN_WIDTH: usize = 60;
/// A trace on screen should be seen whole; what is cut is said.
const MAX_LINES: usize = 60;

const STATUS_WIDTH: usize = 4;
const DURATION_WIDTH: usize = 7;

const BAR_SERVER: char = '\u{2588}';
const BAR_CLIENT: char = '\u{2592}';
const BAR_EDGE: char = '\u{2502}';
const BRANCH: &str = "\u{251c}\u{2500} ";
const LAST_BRANCH: &str = "\u{2514}\u{2500} ";
const TRUNK: &str = "\u{2502}  ";
const NO_TRUNK: &str = "   ";
const CLIENT_MARK: &str = "\u{2192} ";
const ELLIPSIS: char = '\u{2026}';

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Colour {
    On,
    #[default]
    Off,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Style {
    /// Columns.
    pub width: usize,
    pub colour: Colour,
}

impl Default for Style {
    fn default() -> Self {
        Self {
            width: DEFAULT_WIDTH,
            colour: Colour::Off,
        }
    }
}

/// The spans of one trace, in any order. A single span takes one line.
pub fn render(spans: &[Span], style: &Style) -> String {
    match spans {
        [] => String::new(),
        [span] => single(span, style),
        _ => several(spans, style),
    }
}

fn single(span: &Span, style: &Style) -> String {
    let error = if is_error(span) { "  ERROR" } else { "" };
    let head = format!("trace {}  ", span.trace_id);
    let status = match status_code(span) {
        code if code.is_empty() => String::new(),
        code => format!("  {code}"),
    };
    let tail = format!(
        "{status}  {}{error}",
        duration(span.end_ns.saturating_sub(span.start_ns))
    );
    // Long labels may leave the screen's width rather than lose their last 20 columns.
    let room = style
        .width
        .max(MIN_WIDTH)
        .saturating_sub(head.len() + tail.len())
        .max(20);
    let line = format!("{head}{}{tail}", cut(&label(span, None), room));
    paint(
        &line,
        if is_error(span) {
            Paint::Error
        } else {
            Paint::None
        },
        style,
    ) + "\n"
}

fn several(spans: &[Span], style: &Style) -> String {
    let window = Window::of(spans);
    let mut text = header(spans, &window, style);
    let rows = tree(spans);
    let columns = Columns::of(style.width);
    for row in rows.iter().take(MAX_LINES) {
        let paint_as = if is_error(row.span) {
            Paint::Error
        } else {
            Paint::None
        };
        text.push_str(&paint(&line(row, &window, &columns), paint_as, style));
        text.push('\n');
    }
    if let Some(more) = rows.len().checked_sub(MAX_LINES).filter(|more| *more > 0) {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{ELLIPSIS} and {more} more spans");
    }
    text
}

fn header(spans: &[Span], window: &Window, style: &Style) -> String {
    let services: BTreeSet<&str> = spans
        .iter()
        .map(|span| span.resource.service_name())
        .collect();
    let services = match services.len() {
        1 => "1 service".to_owned(),
        count => format!("{count} services"),
    };
    let error = if spans.iter().any(is_error) {
        "  ERROR"
    } else {
        ""
    };
    let trace_id = spans
        .first()
        .map(|span| span.trace_id.to_string())
        .unwrap_or_default();
    let text = format!(
        "trace {trace_id}  {services}  {} spans  {}{error}",
        spans.len(),
        duration(window.end - window.start)
    );
    paint(&text, Paint::Header, style) + "\n"
}

/// The time that all bars share.
struct Window {
    start: u64,
    end: u64,
}

impl Window {
    fn of(spans: &[Span]) -> Self {
        let start = spans.iter().map(|span| span.start_ns).min().unwrap_or(0);
        let end = spans.iter().map(|span| span.end_ns).max().unwrap_or(0);
        Self {
            start,
            end: end.max(start),
        }
    }

    /// First column and length, at least one column, of a bar in `width` columns.
    fn place(&self, span: &Span, width: usize) -> (usize, usize) {
        let whole = u128::from(self.end - self.start).max(1);
        let at = |ns: u64| u128::from(ns.saturating_sub(self.start)) * width as u128;
        let first = ((at(span.start_ns) / whole) as usize).min(width - 1);
        let end = (at(span.end_ns).div_ceil(whole) as usize).clamp(first + 1, width);
        (first, end - first)
    }
}

struct Columns {
    label: usize,
    bar: usize,
}

impl Columns {
    fn of(width: usize) -> Self {
        let width = width.max(MIN_WIDTH);
        let bar = (width / 4).min(60);
        // One space before status and one before duration, one and two edges around the bar.
        let label = width - bar - STATUS_WIDTH - DURATION_WIDTH - 5;
        Self { label, bar }
    }
}

fn line(row: &Row<'_>, window: &Window, columns: &Columns) -> String {
    let left = cut(
        &format!("{}{}", row.prefix, label(row.span, row.parent)),
        columns.label,
    );
    let pad = " ".repeat(columns.label.saturating_sub(left.chars().count()));
    let mut status = status_code(row.span);
    if is_error(row.span) {
        status.push('!');
    }
    let took = duration(row.span.end_ns.saturating_sub(row.span.start_ns));
    let (first, length) = window.place(row.span, columns.bar);
    let fill = match row.span.kind {
        Kind::Server => BAR_SERVER,
        Kind::Client => BAR_CLIENT,
    };
    let before = " ".repeat(first);
    let bar: String = std::iter::repeat_n(fill, length).collect();
    let after = " ".repeat(columns.bar - first - length);
    format!(
        "{left}{pad} {status:<STATUS_WIDTH$} {took:>DURATION_WIDTH$} \
         {BAR_EDGE}{before}{bar}{after}{BAR_EDGE}"
    )
}

/// One span with the tree drawn before it.
struct Row<'a> {
    span: &'a Span,
    parent: Option<&'a Span>,
    prefix: String,
}

/// Depth first, children by start. Spans whose parent is not here, or whose parents form a
/// circle, stand at the root.
fn tree(spans: &[Span]) -> Vec<Row<'_>> {
    let mut children: FxHashMap<SpanId, Vec<&Span>> = FxHashMap::default();
    let present: FxHashSet<SpanId> = spans.iter().map(|span| span.span_id).collect();
    let mut by_start: Vec<&Span> = spans.iter().collect();
    // Of two that start together the longer one comes first: it may contain the other.
    by_start.sort_by_key(|span| (span.start_ns, std::cmp::Reverse(span.end_ns)));
    let mut roots = Vec::new();
    for span in &by_start {
        match span
            .parent
            .filter(|parent| present.contains(&parent.span_id))
        {
            Some(parent) => children.entry(parent.span_id).or_default().push(span),
            None => roots.push(*span),
        }
    }
    let mut rows = Vec::new();
    for root in roots {
        walk(root, &mut children, &mut rows);
    }
    // Only circles are left.
    for span in by_start {
        let is_left = span
            .parent
            .and_then(|parent| children.get(&parent.span_id))
            .is_some_and(|siblings| siblings.iter().any(|other| std::ptr::eq(*other, span)));
        if is_left {
            let siblings = span
                .parent
                .and_then(|parent| children.get_mut(&parent.span_id));
            if let Some(siblings) = siblings {
                siblings.retain(|other| !std::ptr::eq(*other, span));
            }
            walk(span, &mut children, &mut rows);
        }
    }
    rows
}

/// Takes children out of the map as it goes, so that it ends whatever the parents say.
fn walk<'a>(
    root: &'a Span,
    children: &mut FxHashMap<SpanId, Vec<&'a Span>>,
    rows: &mut Vec<Row<'a>>,
) {
    struct Visit<'a> {
        span: &'a Span,
        parent: Option<&'a Span>,
        prefix: String,
        /// What its children have before their own branch.
        trunk: String,
    }
    let first = Visit {
        span: root,
        parent: None,
        prefix: String::new(),
        trunk: String::new(),
    };
    let mut stack = vec![first];
    while let Some(visit) = stack.pop() {
        let below = children.remove(&visit.span.span_id).unwrap_or_default();
        let last = below.len().saturating_sub(1);
        for (index, child) in below.into_iter().enumerate().rev() {
            let (branch, trunk) = if index == last {
                (LAST_BRANCH, NO_TRUNK)
            } else {
                (BRANCH, TRUNK)
            };
            stack.push(Visit {
                span: child,
                parent: Some(visit.span),
                prefix: format!("{}{branch}", visit.trunk),
                trunk: format!("{}{trunk}", visit.trunk),
            });
        }
        rows.push(Row {
            span: visit.span,
            parent: visit.parent,
            prefix: visit.prefix,
        });
    }
}

/// Service, unless it is the parent's, and what was asked.
fn label(span: &Span, parent: Option<&Span>) -> String {
    let service = span.resource.service_name();
    let is_same = parent.is_some_and(|parent| parent.resource.service_name() == service);
    let service = if is_same || service.is_empty() {
        String::new()
    } else {
        format!("{service} ")
    };
    let mark = match span.kind {
        Kind::Server => "",
        Kind::Client => CLIENT_MARK,
    };
    let error = match error_type(span) {
        Some(kind) if status_code(span).is_empty() => format!(" [{kind}]"),
        _ => String::new(),
    };
    printable(&format!("{service}{mark}{}{error}", request(span)))
}

/// Method and path where the span has them: people know requests by what they asked for.
fn request(span: &Span) -> String {
    let text = |key| attribute::find(&span.attributes, key).and_then(Value::as_str);
    let full = text(attribute::URL_FULL).map(|url| url.split_once("://").map_or(url, |(_, r)| r));
    let target = text(attribute::URL_PATH).or(full);
    match (text(attribute::HTTP_REQUEST_METHOD), target) {
        (Some(method), Some(target)) => format!("{method} {target}"),
        _ => span.name.clone().into_owned(),
    }
}

fn status_code(span: &Span) -> String {
    match attribute::find(&span.attributes, attribute::HTTP_RESPONSE_STATUS_CODE) {
        Some(Value::Int(code)) => code.to_string(),
        _ => String::new(),
    }
}

fn error_type(span: &Span) -> Option<&str> {
    attribute::find(&span.attributes, attribute::ERROR_TYPE).and_then(Value::as_str)
}

fn is_error(span: &Span) -> bool {
    matches!(span.status, Status::Error(_))
}

/// Three digits and a unit.
fn duration(ns: u64) -> String {
    let (value, unit) = match ns {
        0..1_000 => return format!("{ns} ns"),
        1_000..1_000_000 => (ns as f64 / 1e3, "us"),
        1_000_000..1_000_000_000 => (ns as f64 / 1e6, "ms"),
        _ => (ns as f64 / 1e9, "s"),
    };
    let decimals = match value {
        ..9.995 => 2,
        9.995..99.95 => 1,
        _ => 0,
    };
    format!("{value:.decimals$} {unit}")
}

/// Paths and names come from the network: nothing in them may steer the terminal.
fn printable(text: &str) -> String {
    let is_hidden = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars()
        .map(|c| if is_hidden(c) { '?' } else { c })
        .collect()
}

fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars()
        .take(width.saturating_sub(1))
        .chain([ELLIPSIS])
        .collect()
}

#[derive(Clone, Copy)]
enum Paint {
    None,
    Header,
    Error,
}

fn paint(text: &str, paint: Paint, style: &Style) -> String {
    let code = match (style.colour, paint) {
        (Colour::Off, _) | (_, Paint::None) => return text.to_owned(),
        (Colour::On, Paint::Header) => "1",
        (Colour::On, Paint::Error) => "31",
    };
    format!("\u{1b}[{code}m{text}\u{1b}[0m")
}

#[cfg(test)]
mod tests;

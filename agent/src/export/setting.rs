//! Reading settings by the rules of the OpenTelemetry environment variable specification: an
//! empty value is unset, a bad value is a warning and the default. Pure: the environment comes as
//! a function.

use std::time::Duration;

/// The environment, or whatever stands for it.
pub type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The trimmed value, unless it is unset or empty.
pub fn get(lookup: Lookup<'_>, name: &str) -> Option<String> {
    let value = lookup(name)?;
    let value = value.trim();
    (!value.is_empty()).then(|| value.to_owned())
}

/// A positive number of things.
pub fn count(lookup: Lookup<'_>, name: &str, default: usize, warnings: &mut Vec<String>) -> usize {
    let Some(value) = get(lookup, name) else {
        return default;
    };
    value
        .parse()
        .ok()
        .filter(|count| *count > 0)
        .unwrap_or_else(|| {
            warnings.push(format!(
                "{name} is `{value}`, not a positive number; using {default}"
            ));
            default
        })
}

/// A duration in milliseconds.
pub fn milliseconds(
    lookup: Lookup<'_>,
    name: &str,
    default: Duration,
    warnings: &mut Vec<String>,
) -> Duration {
    let Some(value) = get(lookup, name) else {
        return default;
    };
    value.parse().map_or_else(
        |_| {
            warnings.push(format!(
                "{name} is `{value}`, not a number of milliseconds; using {}",
                default.as_millis()
            ));
            default
        },
        Duration::from_millis,
    )
}

/// A timeout in milliseconds, where zero means none: `Duration::MAX`.
pub fn timeout(
    lookup: Lookup<'_>,
    name: &str,
    default: Duration,
    warnings: &mut Vec<String>,
) -> Duration {
    match milliseconds(lookup, name, default, warnings) {
        Duration::ZERO => Duration::MAX,
        limit => limit,
    }
}

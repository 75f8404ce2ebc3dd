//! The configuration file: one YAML mapping, flag names to values.
#![expect(
    clippy::disallowed_methods,
    reason = "edge: reads the file that --config names"
)]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use super::setting::SETTINGS;
use crate::failure::Failure;

/// Edits between a wrong key and the one it is taken for, at most.
const NEAR: usize = 3;

#[derive(Clone, Debug)]
pub struct SettingsFile {
    pub path: PathBuf,
    /// By key; keys without value are left out.
    pub values: BTreeMap<String, Vec<String>>,
}

/// One value or a list of them.
#[derive(Deserialize)]
#[serde(untagged)]
enum Values {
    One(Scalar),
    Several(Vec<Scalar>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Scalar {
    Boolean(bool),
    Number(i64),
    Text(String),
}

impl Scalar {
    fn into_text(self) -> String {
        match self {
            Self::Boolean(value) => value.to_string(),
            Self::Number(value) => value.to_string(),
            Self::Text(text) => text,
        }
    }
}

pub fn read(path: &Path) -> Result<SettingsFile, Failure> {
    let text = fs::read_to_string(path).map_err(|error| Failure::ConfigUnreadable {
        path: path.to_owned(),
        cause: error.to_string(),
    })?;
    parse(path, &text)
}

/// `_` in a key stands for `-`, as YAML files often have it.
pub fn parse(path: &Path, text: &str) -> Result<SettingsFile, Failure> {
    let malformed = |cause: String| Failure::ConfigMalformed {
        path: path.to_owned(),
        cause,
    };
    let has_content = |line: &str| !line.trim().is_empty() && !line.trim_start().starts_with('#');
    if !text.lines().any(has_content) {
        return Ok(SettingsFile {
            path: path.to_owned(),
            values: BTreeMap::new(),
        });
    }
    let entries: BTreeMap<String, Option<Values>> =
        serde_saphyr::from_str(text).map_err(|error| {
            malformed(
                error
                    .to_string()
                    .lines()
                    .next()
                    .unwrap_or("not YAML")
                    .to_owned(),
            )
        })?;
    let mut values = BTreeMap::new();
    for (key, given) in entries {
        let name = key.replace('_', "-");
        if !SETTINGS.iter().any(|setting| setting.key == name) {
            let hint = hint(&name);
            return Err(Failure::ConfigKeyUnknown {
                path: path.to_owned(),
                key,
                hint,
            });
        }
        let texts: Vec<String> = match given {
            None => continue,
            Some(Values::One(scalar)) => vec![scalar.into_text()],
            Some(Values::Several(scalars)) => scalars.into_iter().map(Scalar::into_text).collect(),
        };
        if texts.iter().all(|text| text.trim().is_empty()) {
            continue;
        }
        if values.insert(name.clone(), texts).is_some() {
            return Err(malformed(format!("`{name}` is there twice")));
        }
    }
    Ok(SettingsFile {
        path: path.to_owned(),
        values,
    })
}

/// The nearest known key, else all of them.
fn hint(wrong: &str) -> String {
    let keys = SETTINGS.iter().map(|setting| setting.key);
    let nearest = keys.clone().map(|key| (distance(wrong, key), key)).min();
    match nearest {
        Some((edits, key)) if edits <= NEAR && edits < key.len() => {
            format!("Did you mean `{key}`?")
        }
        _ => format!("Known keys are {}", keys.collect::<Vec<_>>().join(", ")),
    }
}

/// Edits (insert, delete, replace) from one text to the other: Levenshtein's distance.
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (line, character) in from.chars().enumerate() {
        let mut next = vec![line + 1];
        for (column, other) in to.iter().enumerate() {
            let replaced = row[column] + usize::from(character != *other);
            next.push(replaced.min(row[column + 1] + 1).min(next[column] + 1));
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(text: &str) -> Result<Vec<(String, Vec<String>)>, String> {
        parse(Path::new("agent.yaml"), text)
            .map(|file| file.values.into_iter().collect())
            .map_err(|failure| failure.to_string())
    }

    /// Scalars and lists become texts; keys without value say nothing.
    #[test]
    fn files() {
        let one = |key: &str, values: &[&str]| {
            Ok(vec![(
                key.to_owned(),
                values.iter().map(|&v| v.to_owned()).collect(),
            )])
        };
        let table = [
            ("", Ok(vec![])),
            ("# nothing\n", Ok(vec![])),
            ("pid:\n", Ok(vec![])),
            ("port: \"\"\n", Ok(vec![])),
            ("port: 80\n", one("port", &["80"])),
            ("port: 80,8000-8999\n", one("port", &["80,8000-8999"])),
            ("port: [80, 8000-8999]\n", one("port", &["80", "8000-8999"])),
            (
                "exe:\n  - /usr/bin/node\n  - 'python*'\n",
                one("exe", &["/usr/bin/node", "python*"]),
            ),
            ("all: true\n", one("all", &["true"])),
            ("ready_file: /run/x\n", one("ready-file", &["/run/x"])),
        ];
        for (text, expected) in table {
            assert_eq!(values(text), expected, "{text:?}");
        }
    }

    /// What is wrong is named, with the key that was probably meant.
    #[test]
    fn wrong_files() {
        let table: [(&str, &[&str]); 6] = [
            (
                "ports: 80\n",
                &["`ports`", "Did you mean `port`?", "agent.yaml"],
            ),
            ("loglevel: info\n", &["Did you mean `log-level`?"]),
            ("something-else: 1\n", &["Known keys are pid, port"]),
            ("- 80\n", &["agent.yaml", "not as expected"]),
            ("port: {a: 1}\n", &["not as expected"]),
            ("port: [80\n", &["not as expected"]),
        ];
        for (text, parts) in table {
            let message = values(text).expect_err(text);
            for part in parts {
                assert!(message.contains(part), "{message:?} lacks {part:?}");
            }
        }
    }
}

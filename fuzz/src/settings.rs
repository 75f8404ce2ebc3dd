//! Settings: the YAML file, then the same text as variables and flags, `NAME=value` a line.

use std::{ffi::OsString, path::Path};

use agent::{
    cli::Flags,
    config::{Config, file, setting::SETTINGS},
};

/// Panics when a parser does. What is wrong is an error with words.
pub fn run(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Err(failure) = file::parse(Path::new("settings.yaml"), &text) {
        assert!(!failure.to_string().is_empty());
    }
    let pairs: Vec<(&str, &str)> = text
        .lines()
        .filter_map(|line| line.split_once('='))
        // It would be read from the disk.
        .filter(|(name, _)| !name.to_lowercase().contains("config"))
        .filter(|(name, _)| !name.contains("CERTIFICATE") && !name.contains("CLIENT_KEY"))
        .collect();
    let lookup = |name: &str| {
        let found = pairs.iter().find(|(key, _)| *key == name)?;
        Some(found.1.to_owned())
    };
    let mut flags = Flags::new();
    for (name, value) in &pairs {
        if let Some(setting) = SETTINGS.iter().find(|setting| setting.key == *name) {
            flags
                .entry(setting.key)
                .or_default()
                .push((*value).to_owned());
        }
    }
    for command in [Vec::new(), vec![OsString::from("true")]] {
        match Config::gather(&flags, command, &lookup) {
            Ok((config, _)) => drop(config.require_targets()),
            Err(failure) => assert!(!failure.to_string().is_empty()),
        }
    }
}

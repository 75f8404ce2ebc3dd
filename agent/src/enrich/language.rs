//! `telemetry.sdk.language`: the language of the traced program. Pure.
//!
//! Source: semantic conventions, docs/resource/telemetry-sdk; where none of its values applies a
//! custom one may be used. What a native executable was written in is not in its name, so it is
//! `native` unless the program is known.

use crate::process::Facts;

const NATIVE: &str = "native";

/// File names of executables, with version digits cut, and the language they run.
const LANGUAGES: [(&str, &str); 26] = [
    ("python", "python"),
    ("pypy", "python"),
    ("uwsgi", "python"),
    ("node", "nodejs"),
    ("nodejs", "nodejs"),
    ("bun", "nodejs"),
    ("deno", "nodejs"),
    ("java", "java"),
    ("ruby", "ruby"),
    ("php", "php"),
    ("php-fpm", "php"),
    ("php-cgi", "php"),
    ("dotnet", "dotnet"),
    ("beam.smp", "erlang"),
    // C programs; the conventions list C++ as the one language of the family.
    ("nginx", "cpp"),
    ("nginx-debug", "cpp"),
    ("openresty", "cpp"),
    ("httpd", "cpp"),
    ("apache2", "cpp"),
    ("haproxy", "cpp"),
    ("envoy", "cpp"),
    ("curl", "cpp"),
    ("wget", "cpp"),
    ("redis-server", "cpp"),
    ("memcached", "cpp"),
    ("postgres", "cpp"),
];

pub fn of(facts: &Facts) -> &'static str {
    if facts.go_version.is_some() {
        return "go";
    }
    let name = facts.executable_name().map_or("", without_version);
    LANGUAGES
        .iter()
        .find(|(program, _)| *program == name)
        .map_or(NATIVE, |&(_, language)| language)
}

/// `python` of `python3.11`, `php-fpm` of `php-fpm8.2`.
pub fn without_version(name: &str) -> &str {
    name.trim_end_matches(|character: char| character.is_ascii_digit() || character == '.')
        .trim_end_matches('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn languages() {
        let table = [
            ("/usr/bin/python3.11", "python"),
            ("/usr/bin/python3", "python"),
            ("/usr/local/bin/node", "nodejs"),
            ("/usr/lib/jvm/java-17/bin/java", "java"),
            ("/usr/sbin/php-fpm8.2", "php"),
            ("/usr/lib/erlang/erts-13/bin/beam.smp", "erlang"),
            ("/usr/sbin/nginx", "cpp"),
            ("/srv/shop", "native"),
            ("", "native"),
        ];
        for (executable, language) in table {
            let facts = Facts {
                executable: executable.into(),
                ..Facts::default()
            };
            assert_eq!(of(&facts), language, "{executable}");
        }
    }
}

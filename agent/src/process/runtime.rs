//! What runs a program's code, with its version where files say it. Pure.

/// A runtime, as its files name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Described {
    pub name: &'static str,
    /// Empty where no file says it.
    pub version: String,
}

/// How a runtime is recognised: by the name of the program, or of a file that it has mapped.
struct Row {
    name: &'static str,
    /// What the file's name begins with; what follows it may be the version.
    file: &'static str,
}

const fn row(name: &'static str, file: &'static str) -> Row {
    Row { name, file }
}

const ROWS: [Row; 12] = [
    row("Python", "python"),
    row("Python", "libpython"),
    row("PyPy", "pypy"),
    row("Ruby", "ruby"),
    row("Ruby", "libruby-"),
    row("Node", "node"),
    row("PHP", "php-fpm"),
    row("PHP", "php"),
    row("Perl", "perl"),
    row("Java", "libjvm.so"),
    row(".NET", "libcoreclr.so"),
    row("nginx", "nginx"),
];

/// From the paths of the executable and of what else is mapped, the executable first.
pub fn describe<'a>(mut paths: impl Iterator<Item = &'a str>) -> Option<Described> {
    paths.find_map(recognise)
}

fn recognise(path: &str) -> Option<Described> {
    let (directory, file) = path.rsplit_once('/')?;
    let found = ROWS.iter().find_map(|row| {
        let rest = file.strip_prefix(row.file)?;
        let is_whole =
            rest.is_empty() || !rest.starts_with(|byte: char| byte.is_ascii_alphabetic());
        is_whole.then_some((row, rest))
    });
    let (row, rest) = found?;
    let version = match row.name {
        // Directories named for it: `java-17-openjdk-amd64`, `Microsoft.NETCore.App/8.0.1`.
        "Java" | ".NET" => directory.split(['/', '-']).rfind(|part| is_version(part)),
        _ => Some(leading_version(rest)),
    };
    Some(Described {
        name: row.name,
        version: version.unwrap_or_default().to_owned(),
    })
}

fn is_version(text: &str) -> bool {
    !text.is_empty() && leading_version(text) == text
}

/// Digits and dots that a text begins with, `3.11` of `3.11.so.1.0`.
fn leading_version(text: &str) -> &str {
    let is_part = |character: char| character.is_ascii_digit() || character == '.';
    let end = text.find(|character| !is_part(character));
    let (version, _) = text.split_at(end.unwrap_or(text.len()));
    version.trim_matches('.')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn described(path: &str) -> Option<(&'static str, String)> {
        recognise(path).map(|runtime| (runtime.name, runtime.version))
    }

    #[test]
    fn runtimes_and_versions() {
        let table = [
            ("/usr/bin/python3.11", Some(("Python", "3.11"))),
            ("/usr/lib/libpython3.11.so.1.0", Some(("Python", "3.11"))),
            ("/usr/bin/ruby3.1", Some(("Ruby", "3.1"))),
            ("/usr/lib/libruby-3.1.so.3.1.2", Some(("Ruby", "3.1"))),
            ("/usr/bin/node", Some(("Node", ""))),
            (
                "/usr/lib/jvm/java-17-openjdk-amd64/lib/server/libjvm.so",
                Some(("Java", "17")),
            ),
            (
                "/usr/share/dotnet/shared/Microsoft.NETCore.App/8.0.1/libcoreclr.so",
                Some((".NET", "8.0.1")),
            ),
            ("/usr/sbin/nginx", Some(("nginx", ""))),
            ("/srv/nodeapp", None),
            ("/usr/bin/pythonic", None),
            ("[vdso]", None),
        ];
        for (path, expected) in table {
            let expected = expected.map(|(name, version)| (name, version.to_owned()));
            assert_eq!(described(path), expected, "{path}");
        }
    }

    /// The executable decides before what it has loaded: nginx with an embedded Perl is nginx.
    #[test]
    fn the_program_comes_first() {
        let paths = ["/usr/sbin/nginx", "/usr/lib/libpython3.11.so.1.0"];
        assert_eq!(
            describe(paths.into_iter()).map(|found| found.name),
            Some("nginx")
        );
    }
}

//! A service name for programs that do not say theirs. Pure.
//!
//! | program | name | example |
//! |---|---|---|
//! | interpreter with a script | stem of its file name | `python3 /srv/cart.py` is `cart` |
//! | script of a meaningless name | its directory's name | `node /srv/shop/server.js` is `shop` |
//! | `python -m MODULE` | the module | `python -m gunicorn cart:app` is `gunicorn` |
//! | `java -jar FILE` | stem of the file, version cut | `java -jar shop-1.2.jar` is `shop` |
//! | `java CLASS` | last part of the class | `java org.shop.Main` is `Main` |
//! | `dotnet FILE.dll` | stem of the file | `dotnet Shop.dll` is `Shop` |
//! | anything else | file name of the executable | `/usr/sbin/nginx` is `nginx` |
//!
//! Directories that say as little as the script (`src`, `dist`, `app`...) are passed over upwards;
//! when none is left, the script's own name is taken. Interpreter scripts with `#!` have the
//! interpreter as executable and the script as argument, so `/usr/bin/gunicorn` is `gunicorn`.

use super::language::without_version;
use crate::process::Facts;

/// For a process of which nothing is known; the fallback of the specification.
const UNKNOWN: &str = "unknown_service";

/// How an interpreter's command line is read.
struct Interpreter {
    programs: &'static [&'static str],
    /// Options whose value is the next argument.
    valued: &'static [&'static str],
    /// Options that bring the program itself as the next argument (`-c CODE`): no script follows.
    inline: &'static [&'static str],
    /// Option before a module's name.
    module: Option<&'static str>,
}

const INTERPRETERS: [Interpreter; 5] = [
    Interpreter {
        programs: &["python", "pypy"],
        valued: &["-W", "-X", "--check-hash-based-pycs"],
        inline: &["-c"],
        module: Some("-m"),
    },
    Interpreter {
        programs: &["node", "nodejs", "bun"],
        valued: &[
            "-r",
            "--require",
            "--import",
            "--loader",
            "--experimental-loader",
            "-C",
            "--conditions",
        ],
        inline: &["-e", "--eval", "-p", "--print", "-pe"],
        module: None,
    },
    Interpreter {
        programs: &["ruby"],
        valued: &["-I", "-r", "-C", "-E"],
        inline: &["-e"],
        module: None,
    },
    Interpreter {
        programs: &["perl"],
        valued: &["-I"],
        inline: &["-e", "-E"],
        module: None,
    },
    Interpreter {
        programs: &["php"],
        valued: &["-d", "-c", "-S", "-t", "-z"],
        inline: &["-r"],
        module: None,
    },
];

/// Names of scripts and directories that do not tell one service from another.
const MEANINGLESS: [&str; 19] = [
    "index", "server", "main", "app", "start", "run", "www", "bin", "src", "dist", "build", "lib",
    "public", "web", "__main__", "wsgi", "asgi", "manage", "current",
];

pub fn derive(facts: &Facts) -> String {
    let Some(executable) = facts.executable_name() else {
        let command = facts.command.as_str();
        return if command.is_empty() {
            UNKNOWN.to_owned()
        } else {
            command.to_owned()
        };
    };
    let program = without_version(executable);
    let arguments = facts.arguments.get(1..).unwrap_or_default();
    let script = match program {
        "java" => java(arguments),
        "dotnet" => arguments
            .first()
            .filter(|file| has_extension(file, "dll"))
            .map(|file| stem(file)),
        _ => INTERPRETERS
            .iter()
            .find(|interpreter| interpreter.programs.contains(&program))
            .and_then(|interpreter| interpreted(interpreter, arguments)),
    };
    script
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| executable.to_owned())
}

/// The script or module on an interpreter's command line.
fn interpreted(interpreter: &Interpreter, arguments: &[String]) -> Option<String> {
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let argument = argument.as_str();
        if interpreter.module == Some(argument) {
            return rest.next().cloned();
        }
        if interpreter.inline.contains(&argument) || argument == "-" {
            return None;
        }
        if argument == "--" {
            return rest.next().map(|script| script_name(script));
        }
        if interpreter.valued.contains(&argument) {
            rest.next();
        } else if !argument.starts_with('-') {
            return Some(script_name(argument));
        }
    }
    None
}

/// Stem of the script, or of the nearest directory above it that means something.
fn script_name(path: &str) -> String {
    let mut parts = path.trim_end_matches('/').rsplit('/');
    let own = parts.next().map(stem).unwrap_or_default();
    if !is_meaningless(&own) {
        return own;
    }
    parts
        .find(|part| !part.is_empty() && *part != "." && *part != ".." && !is_meaningless(part))
        .map_or(own, str::to_owned)
}

fn is_meaningless(name: &str) -> bool {
    MEANINGLESS.contains(&name.to_ascii_lowercase().as_str())
}

/// The archive or the main class on a Java command line.
fn java(arguments: &[String]) -> Option<String> {
    const VALUED: [&str; 8] = [
        "-cp",
        "-classpath",
        "--class-path",
        "-p",
        "--module-path",
        "--add-opens",
        "--add-exports",
        "--add-modules",
    ];
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        match argument.as_str() {
            "-jar" => return rest.next().map(|file| without_release(&stem(file))),
            "-m" | "--module" => {
                let module = rest.next()?;
                return module.rsplit(['/', '.']).next().map(str::to_owned);
            }
            valued if VALUED.contains(&valued) => drop(rest.next()),
            option if option.starts_with('-') || option.starts_with('@') => {}
            class => return class.rsplit(['/', '.']).next().map(str::to_owned),
        }
    }
    None
}

/// `shop` of `shop-1.2.3-SNAPSHOT`.
fn without_release(name: &str) -> String {
    let starts_release = |(at, _): &(usize, &str)| {
        name[at + 1..].starts_with(|character: char| character.is_ascii_digit())
    };
    let end = name
        .match_indices('-')
        .find(starts_release)
        .map_or(name.len(), |(at, _)| at);
    name[..end].to_owned()
}

fn stem(path: &str) -> String {
    let name = path.rsplit('/').next().unwrap_or(path);
    // A name that begins with a dot has no stem before it.
    match name.rsplit_once('.') {
        Some((stem, _)) if !stem.is_empty() => stem.to_owned(),
        _ => name.to_owned(),
    }
}

fn has_extension(path: &str, extension: &str) -> bool {
    path.rsplit_once('.')
        .is_some_and(|(_, found)| found.eq_ignore_ascii_case(extension))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let table = [
            ("/usr/sbin/nginx", "nginx: master process nginx", "nginx"),
            ("/srv/shop", "./shop --port 80", "shop"),
            (
                "/usr/bin/python3.11",
                "python3 /srv/cart.py --debug",
                "cart",
            ),
            ("/usr/bin/python3.11", "python3 app.py", "app"),
            ("/usr/bin/python3.11", "python3 /srv/cart/app.py", "cart"),
            (
                "/usr/bin/python3.11",
                "python3 -u -W ignore cart.py",
                "cart",
            ),
            (
                "/usr/bin/python3.11",
                "python3 -m gunicorn x:app",
                "gunicorn",
            ),
            (
                "/usr/bin/python3.11",
                "python3 -m http.server 8000",
                "http.server",
            ),
            (
                "/usr/bin/python3.11",
                "/usr/bin/python3 /usr/local/bin/gunicorn x:app",
                "gunicorn",
            ),
            ("/usr/bin/python3.11", "python3 -c code", "python3.11"),
            ("/usr/bin/python3.11", "python3", "python3.11"),
            (
                "/usr/bin/python3.11",
                "python3 /srv/shop/manage.py runserver",
                "shop",
            ),
            ("/usr/bin/node", "node /srv/shop/dist/index.js", "shop"),
            ("/usr/bin/node", "node server.js", "server"),
            ("/usr/bin/node", "node ../src/server.js", "server"),
            (
                "/usr/bin/node",
                "node --require ./trace.js --inspect /srv/checkout.mjs",
                "checkout",
            ),
            ("/usr/bin/node", "node -e code", "node"),
            (
                "/usr/bin/ruby3.1",
                "ruby /srv/blog/bin/rails server",
                "rails",
            ),
            ("/usr/bin/perl", "perl -w feed.pl", "feed"),
            (
                "/usr/bin/php8.2",
                "php -S localhost:80 -t public router.php",
                "router",
            ),
            (
                "/usr/bin/java",
                "java -Xmx1g -jar /srv/shop-service-1.2.3-SNAPSHOT.jar",
                "shop-service",
            ),
            (
                "/usr/bin/java",
                "java -cp a:b -Dx=y org.shop.Checkout arg",
                "Checkout",
            ),
            (
                "/usr/bin/java",
                "java --module-path m -m shop/org.shop.Till",
                "Till",
            ),
            ("/usr/bin/dotnet", "dotnet /srv/Shop.Web.dll", "Shop.Web"),
            ("/usr/bin/dotnet", "dotnet run", "dotnet"),
        ];
        for (executable, command_line, expected) in table {
            let facts = Facts {
                executable: executable.into(),
                arguments: command_line.split(' ').map(str::to_owned).collect(),
                ..Facts::default()
            };
            assert_eq!(derive(&facts), expected, "{command_line}");
        }
    }

    /// Without an executable the name of the thread group is next best, then nothing.
    #[test]
    fn unreadable_executables() {
        let facts = Facts {
            command: "worker".to_owned(),
            ..Facts::default()
        };
        assert_eq!(derive(&facts), "worker");
        assert_eq!(derive(&Facts::default()), "unknown_service");
    }
}

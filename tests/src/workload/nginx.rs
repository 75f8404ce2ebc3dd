//! nginx with a configuration of its own in a temporary directory.

use std::{fs, path::PathBuf, process::Command};

use super::{LogLine, read_log};
use crate::{
    http::Connection,
    port::free_port,
    privilege,
    process::{Process, crate_file},
    temp::TempDir,
    wait::{wait_for, wait_until},
};

/// Static files made for every instance: name and length in bytes.
pub const FILES: [(&str, usize); 4] = [
    ("small.txt", 100),
    ("medium.bin", 20_000),
    ("large.bin", 1_000_000),
    ("huge.bin", 10_000_000),
];

#[derive(Clone, Debug)]
pub struct NginxOptions {
    pub workers: u32,
    pub sendfile: Sendfile,
    /// Port of a server at `upstream_address` that gets what no own route takes, over a keep-alive
    /// pool.
    pub upstream: Option<u16>,
    pub upstream_address: String,
    pub service: Option<String>,
    /// The port for IPv4 speaks HTTP/2 by prior knowledge; the others HTTP/1.
    pub version: Version,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    Http1,
    Http2,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sendfile {
    On,
    Off,
}

impl Default for NginxOptions {
    fn default() -> Self {
        Self {
            workers: 2,
            sendfile: Sendfile::On,
            upstream: None,
            upstream_address: "127.0.0.1".to_owned(),
            service: None,
            version: Version::Http1,
        }
    }
}

#[derive(Debug)]
pub struct Nginx {
    process: Process,
    port: u16,
    directory: TempDir,
}

impl Nginx {
    /// Static files only.
    pub fn start() -> Self {
        Self::start_with(&NginxOptions::default())
    }

    /// In front of a server.
    pub fn in_front_of(port: u16) -> Self {
        Self::start_with(&NginxOptions {
            upstream: Some(port),
            ..NginxOptions::default()
        })
    }

    pub fn start_with(options: &NginxOptions) -> Self {
        let directory = TempDir::new("nginx");
        let www = directory.join("www");
        fs::create_dir(&www).expect("a fresh directory");
        for (name, length) in FILES {
            fs::write(www.join(name), vec![b'x'; length]).expect("a file in a fresh directory");
        }
        let port = free_port();
        let file = directory.join("nginx.conf");
        fs::write(&file, configuration(options, port, &directory)).expect("a file of our own");

        let mut command = Command::new("nginx");
        command.arg("-c").arg(file).arg("-p").arg(directory.path());
        // The compiled-in error log may not be writable, and is not wanted.
        command.args(["-e", "stderr"]);
        for name in ["OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES"] {
            command.env_remove(name);
        }
        if let Some(service) = &options.service {
            command.env("OTEL_SERVICE_NAME", service);
        }
        let mut process = Process::spawn("nginx", &mut command);
        let socket = directory.join("socket");
        wait_for("nginx to accept", || {
            assert!(
                process.exited().is_none(),
                "nginx ended: {}",
                process.stderr()
            );
            // The unix listener is opened after the port, and unlike a request leaves no log line.
            socket.exists().then_some(())
        });
        let nginx = Self {
            process,
            port,
            directory,
        };
        let proof = match options.version {
            Version::Http1 => Connection::open(port),
            Version::Http2 => Connection::open_unix(&nginx.unix_path()),
        };
        assert_eq!({ proof }.get("/hello").status, 200);
        nginx
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// The master's; its workers are children.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// The same server on IPv6 loopback.
    pub fn url_v6(&self, path: &str) -> String {
        format!("http://[::1]:{}{path}", self.port)
    }

    pub fn unix_path(&self) -> PathBuf {
        self.directory.join("socket")
    }

    /// What it says it served since it started, less the one request that proved it serves.
    pub fn log(&self) -> Vec<LogLine> {
        read_log(&self.directory.join("access.log"))
            .into_iter()
            .skip(1)
            .collect()
    }

    /// Replaces the workers by new ones, and waits until the old ones are gone.
    pub fn reload(&mut self) {
        let before = self.workers();
        self.process.signal("HUP");
        wait_until("nginx's old workers to go", || {
            let now = self.workers();
            !now.is_empty() && now.iter().all(|worker| !before.contains(worker))
        });
    }

    /// The master's children.
    pub fn workers(&self) -> Vec<u32> {
        let pid = self.pid();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        let children = children.expect("the kernel lists children");
        children
            .split_whitespace()
            .map(|child| child.parse().expect("a pid"))
            .collect()
    }

    pub fn stop(&mut self) {
        self.process.stop();
    }
}

fn configuration(options: &NginxOptions, port: u16, directory: &TempDir) -> String {
    let template = fs::read_to_string(crate_file("workloads/nginx.conf")).expect("the template");
    let root = directory
        .path()
        .to_str()
        .expect("a temporary directory named in ASCII");
    let version = match options.version {
        Version::Http1 => "",
        Version::Http2 => " http2",
    };
    let listen = format!(
        "listen 127.0.0.1:{port}{version}; listen [::1]:{port}; listen unix:{root}/socket;"
    );
    let upstream = options.upstream.map_or_else(String::new, |port| {
        let address = &options.upstream_address;
        format!("upstream behind {{ server {address}:{port}; keepalive 32; }}")
    });
    let proxy = match options.upstream {
        None => "",
        Some(_) => {
            "location /call/ { proxy_pass http://behind; proxy_http_version 1.1; \
             proxy_set_header Connection \"\"; } \
             location /app/ { proxy_pass http://behind/; proxy_http_version 1.1; \
             proxy_set_header Connection \"\"; } \
             location /switch/ { proxy_pass http://behind/; proxy_http_version 1.1; \
             proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade; }"
        }
    };
    let sendfile = match options.sendfile {
        Sendfile::On => "on",
        Sendfile::Off => "off",
    };
    // Workers keep the user of an unprivileged master; as root they would lose the directory.
    let user = if privilege::is_root() {
        "user root;"
    } else {
        ""
    };
    [
        ("@DIR@", root),
        ("@LISTEN@", &listen),
        ("@WORKERS@", &options.workers.to_string()),
        ("@SENDFILE@", sendfile),
        ("@UPSTREAM@", &upstream),
        ("@PROXY@", proxy),
        ("@USER@", user),
    ]
    .iter()
    .fold(template, |text, (name, value)| text.replace(name, value))
}

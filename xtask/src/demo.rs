//! `cargo xtask demo`: a small shop of unmodified programs, and what the agent sees of it.
//!
//! nginx stands in front of orders (Python), which asks the inventory (Node) for every item. The
//! programs are in `deploy/demo/`; none of them knows about tracing.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    build::{self, Agent},
    child::{self, Running, TemporaryDirectory},
    setup::{self, Purpose},
    steps::{self, Privilege, capture, say},
};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// An agent to show instead of building one.
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,
}

/// What is asked of the shop, the status it must answer, and why it is asked.
const REQUESTS: [(&str, &str, &str); 4] = [
    ("/orders/book", "200", "an ordinary order"),
    (
        "/orders/piano",
        "200",
        "a slow one: the inventory takes 400 ms",
    ),
    (
        "/orders/unicorn",
        "502",
        "a failing one: the inventory breaks",
    ),
    ("/health", "200", "answered by nginx alone"),
];

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    ensure!(
        Privilege::detect() != Privilege::Missing,
        "tracing needs root: run `sudo -v` first, or this as root"
    );
    setup::prepare(Purpose::Show)?;
    let binary = match &arguments.agent {
        Some(binary) => binary.clone(),
        None => build::agent(build::Profile::Quick)?,
    };
    let directory = TemporaryDirectory::create("demo")?;
    let shop = Shop::open(&directory.0)?;
    say(
        "demo",
        &format!("the shop is open at http://127.0.0.1:{}", shop.port),
    );

    let mut selection: Vec<String> = Vec::new();
    for process in shop.processes() {
        selection.extend(["--pid".to_owned(), process.pid().to_string()]);
    }
    let all = [
        &selection[..],
        &["--exporter".to_owned(), "console".to_owned()],
    ]
    .concat();
    say(
        "demo",
        &format!("sudo {} {}", binary.display(), all.join(" ")),
    );
    let mut agent = Agent::start(&binary, &directory.0, &all, &[])?;
    for (path, expected, why) in REQUESTS {
        let status = shop.ask(path)?;
        say("demo", &format!("GET {path} -> {status}: {why}"));
        ensure!(
            status == expected,
            "the shop answered {status} to {path}, not {expected}"
        );
    }
    // The agent flushes what it holds when it is asked to end.
    agent.process.stop()?;
    print(&agent, &binary)
}

fn print(agent: &Agent, binary: &Path) -> Result<()> {
    let traces = fs::read_to_string(&agent.process.stdout).context("the agent wrote nothing")?;
    ensure!(
        !traces.trim().is_empty(),
        "the agent saw nothing: {}",
        agent.process.said()
    );
    println!("\n{}\n", traces.trim_end());
    println!(
        "What the agent said of itself:\n{}\n",
        agent.process.said().trim_end()
    );
    println!("Where else to look:");
    println!(
        "  sudo {} check             what this machine allows",
        binary.display()
    );
    println!(
        "  sudo {} --all             everything on this host",
        binary.display()
    );
    println!("  OTEL_EXPORTER_OTLP_ENDPOINT=http://localhost:4317   sends spans to a collector");
    println!("  deploy/        Kubernetes, systemd, Docker, collector examples");
    println!("  deploy/demo/   the shop's three programs");
    Ok(())
}

/// The running programs; they end with it.
struct Shop {
    port: u16,
    nginx: Running,
    orders: Running,
    inventory: Running,
}

impl Shop {
    fn open(directory: &Path) -> Result<Self> {
        let sources = steps::workspace().join("deploy/demo");
        let [port, orders_port, inventory_port] = child::free_ports()?;

        let mut node = Command::new("node");
        node.arg(sources.join("inventory.js"))
            .arg(inventory_port.to_string());
        node.env("OTEL_SERVICE_NAME", "inventory");
        let mut inventory = Running::start("inventory", directory, &mut node)?;
        inventory.wait_for_port(inventory_port)?;

        let mut python = Command::new("python3");
        python.arg(sources.join("orders.py"));
        python.args([orders_port.to_string(), inventory_port.to_string()]);
        python.env("OTEL_SERVICE_NAME", "orders");
        let mut orders = Running::start("orders", directory, &mut python)?;
        orders.wait_for_port(orders_port)?;

        // Workers of a root nginx would otherwise become a user who may not enter the directory.
        let user = if Privilege::detect() == Privilege::Root {
            "user root;"
        } else {
            ""
        };
        let text = fs::read_to_string(sources.join("nginx.conf"))
            .context("cannot read deploy/demo/nginx.conf")?
            .replace("@USER@", user)
            .replace("@DIR@", &directory.display().to_string())
            .replace("@ORDERS@", &orders_port.to_string())
            .replace("@PORT@", &port.to_string());
        let mut nginx = Running::start_nginx(directory, &text)?;
        nginx.wait_for_port(port)?;
        Ok(Self {
            port,
            nginx,
            orders,
            inventory,
        })
    }

    fn processes(&self) -> [&Running; 3] {
        [&self.nginx, &self.orders, &self.inventory]
    }

    /// The status of one request, as curl sees it.
    fn ask(&self, path: &str) -> Result<String> {
        let url = format!("http://127.0.0.1:{}{path}", self.port);
        let mut curl = Command::new("curl");
        curl.args([
            "--silent",
            "--show-error",
            "--max-time",
            "10",
            "--output",
            "/dev/null",
        ]);
        capture(curl.args(["--write-out", "%{http_code}", &url]))
    }
}

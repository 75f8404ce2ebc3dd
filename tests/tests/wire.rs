//! Both ends of a connection on one host are joined, whatever lies between them.

use std::process::Command;

use agent_tests::{
    process::output,
    require_root,
    scene::{Traced, trace},
    span::Spans,
    temp::TempDir,
    workload::hop,
};

/// Requests of each front; every one must be joined.
const REQUESTS: usize = 50;

/// Two network namespaces with a link between them. In the first one the addresses of a service
/// stand for the second one: they are translated on the way out, as a node of a cluster does it.
struct Network {
    client: String,
    server: String,
}

/// Addresses of a family: of either end, and of the service that nobody has.
struct Family {
    client: &'static str,
    server: &'static str,
    service: &'static str,
}

const IPV4: Family = Family {
    client: "10.203.18.1",
    server: "10.203.18.2",
    service: "10.96.18.1",
};

const IPV6: Family = Family {
    client: "fd00:203:18::1",
    server: "fd00:203:18::2",
    service: "fd00:96:18::1",
};

/// Port of the service; the server has another one.
const SERVICE_PORT: &str = "80";

impl Network {
    fn create() -> Self {
        let name = |end| format!("wire-{end}-{}", std::process::id());
        let made = Self {
            client: name("client"),
            server: name("server"),
        };
        let (client, server) = (made.client.as_str(), made.server.as_str());
        ip(&format!("netns add {client}"));
        ip(&format!("netns add {server}"));
        ip(&format!(
            "-n {client} link add wire type veth peer name wire netns {server}"
        ));
        for (namespace, v4, v6) in [
            (client, IPV4.client, IPV6.client),
            (server, IPV4.server, IPV6.server),
        ] {
            ip(&format!("-n {namespace} addr add {v4}/30 dev wire"));
            ip(&format!("-n {namespace} addr add {v6}/64 dev wire nodad"));
            ip(&format!("-n {namespace} link set wire up"));
            ip(&format!("-n {namespace} link set lo up"));
        }
        ip(&format!(
            "-n {client} route add default via {}",
            IPV4.server
        ));
        ip(&format!(
            "-n {client} -6 route add default via {}",
            IPV6.server
        ));
        made
    }

    /// Sends what goes to the service on to these ports of the server.
    fn translate(&self, port_v4: u16, port_v6: u16) {
        let rules = format!(
            "table inet wire {{ chain out {{ type nat hook output priority -100;
             ip daddr {} tcp dport {SERVICE_PORT} dnat ip to {}:{port_v4};
             ip6 daddr {} tcp dport {SERVICE_PORT} dnat ip6 to [{}]:{port_v6};
             }}; }}",
            IPV4.service, IPV4.server, IPV6.service, IPV6.server
        );
        output(within(&self.client).args(["nft", &rules]));
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // The link ends with either of its ends. A leftover is no failure of what is tested.
        for namespace in [&self.client, &self.server] {
            let _ = Command::new("ip")
                .args(["netns", "del", namespace])
                .status();
        }
    }
}

fn ip(line: &str) {
    output(Command::new("ip").args(line.split(' ')));
}

/// What runs in a namespace; the program and its arguments follow.
fn within(namespace: &str) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", namespace]);
    command
}

/// Asks a front once for each path.
fn ask(mut command: Command, url: &str, of_front: &str) {
    let urls = (0..REQUESTS).map(|number| format!("{url}/{of_front}/{number}"));
    let printed = output(
        command
            .args(["curl", "--silent", "--globoff", "--fail"])
            .args(urls),
    );
    assert_eq!(printed, "ok".repeat(REQUESTS));
}

/// Panics unless each request that a front served is one trace of three spans, in order.
fn assert_joined(traced: &Traced, front: &str) {
    for number in 0..REQUESTS {
        let path = format!("/{front}/{number}");
        let at_front = traced.only(front, "SERVER", &path);
        let call = traced.only(front, "CLIENT", &format!("/back{path}"));
        assert!(call.is_child_of(&at_front), "{call:#?}");
        let behind: Vec<_> = traced
            .spans
            .iter()
            .filter(|span| span.kind == "SERVER" && span.path() == call.path())
            .cloned()
            .collect();
        let at_back = behind.only();
        assert!(at_back.is_child_of(&call), "{at_back:#?} {call:#?}");
        assert_eq!(at_back.evidence(), Some("local_wire"), "{at_back:#?}");
    }
}

/// Scenario: services in two network namespaces, over IPv4 and IPv6; some calls go to the
/// address of the server, some to one that is translated on the way (destination NAT), so that the
/// two ends name each other differently. Guarantee: one agent joins both ends of each.
#[test]
fn namespaces_are_joined_with_and_without_address_translation() {
    require_root!();
    let network = Network::create();
    // Each has a server of its own: where a translated connection would be like another one to the
    // same server, Linux changes its source port too.
    let servers = [IPV4.server, IPV6.server, IPV4.server, IPV6.server]
        .map(|address| hop::start(within(&network.server), "back", &[address]));
    let [
        (_, direct4),
        (_, direct6),
        (_, translated4),
        (_, translated6),
    ] = &servers;
    network.translate(*translated4, *translated6);
    let fronts = [
        ("direct4", format!("{}:{direct4}", IPV4.server)),
        ("direct6", format!("[{}]:{direct6}", IPV6.server)),
        ("translated4", format!("{}:{SERVICE_PORT}", IPV4.service)),
        ("translated6", format!("[{}]:{SERVICE_PORT}", IPV6.service)),
    ]
    .map(|(name, behind)| {
        let (front, port) = hop::start(within(&network.client), name, &["127.0.0.1", &behind]);
        (name, front, port)
    });
    let backs = servers.iter().map(|(back, _)| back.pid());
    let pids: Vec<u32> = backs
        .chain(fronts.iter().map(|(_, front, _)| front.pid()))
        .collect();
    let traced = trace(&pids, || {
        for (name, _, port) in &fronts {
            let url = format!("http://127.0.0.1:{port}");
            ask(within(&network.client), &url, name);
        }
    });
    for (name, ..) in &fronts {
        assert_joined(&traced, name);
    }
    // The two ends did not agree on where the call went: else nothing was translated.
    let call = traced.only("translated4", "CLIENT", "/back/translated4/0");
    assert_eq!(call.text("network.peer.address"), Some(IPV4.service));
}

/// Scenario: calls over a unix socket, each on a connection of its own. Guarantee: both ends of
/// each are joined.
#[test]
fn unix_sockets_are_joined() {
    require_root!();
    let directory = TempDir::new("wire");
    let path = directory.join("back").display().to_string();
    let (back, _) = hop::start(Command::new("env"), "back", &[&path]);
    let (front, port) = hop::start(Command::new("env"), "front", &["127.0.0.1", &path]);
    let traced = trace(&[back.pid(), front.pid()], || {
        ask(
            Command::new("env"),
            &format!("http://127.0.0.1:{port}"),
            "front",
        );
    });
    assert_joined(&traced, "front");
}

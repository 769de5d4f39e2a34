//! Firewall rules, as transactions of `nft`: they come into force all at once or not at all.
//!
//! Invariant: only tables of ours are touched, each a network's own: in the host's namespace one named
//! after the network, in the network's namespace one with a chain for each interface, named after it.
//!
//! Another firewall's `drop` stays a drop, whatever our rules accept: where the host's forwarding is
//! closed by default, as Docker closes it, it has to let our links through (see [`forward_is_closed`]).

use std::{
    io::{self, Write},
    net::Ipv4Addr,
    process::{Command, Stdio},
};

use ec2vmm_model::ids::InterfaceId;
use serde_json::{Value, json};

use super::{Error, Outside, changed, names::TABLE, namespace::Namespace, range::Range};

/// What the host lets pass between a network and the world.
#[derive(Debug)]
pub(super) struct Border<'a> {
    /// The table's name.
    pub(super) table: &'a str,
    /// The host's end of the cable to the network.
    pub(super) cable: &'a str,
    pub(super) range: Range,
    pub(super) outside: &'a Outside,
    pub(super) reach_host: bool,
}

impl Border<'_> {
    /// The table, anew.
    pub(super) fn transaction(&self) -> Vec<Value> {
        let table = json!({"table": {"family": "ip", "name": self.table}});
        let mut commands =
            vec![json!({"add": table.clone()}), json!({"delete": table.clone()}), json!({"add": table})];
        let prefix = json!({"prefix": {"addr": self.range.base(), "len": self.range.prefix()}});
        let from_network = || equal(json!({"meta": {"key": "iifname"}}), json!(self.cable));
        let to_network = || equal(json!({"meta": {"key": "oifname"}}), json!(self.cable));
        let answers = || matches("in", json!({"ct": {"key": "state"}}), json!(["established", "related"]));

        // Nobody but the host opens connections to instances; networks do not see each other.
        let mut forward = vec![
            vec![from_network(), matches("!=", ip("saddr"), prefix.clone()), counter(), drop()],
            vec![from_network(), equal(ip("daddr"), link_local()), counter(), drop()],
            vec![
                from_network(),
                equal(json!({"meta": {"key": "oifname"}}), json!("vpc-*")),
                counter(),
                drop(),
            ],
        ];
        match self.outside {
            Outside::Any => forward.push(vec![from_network(), accept()]),
            Outside::Only(link) => {
                let there = equal(json!({"meta": {"key": "oifname"}}), json!(link));
                forward.push(vec![from_network(), there, accept()]);
                forward.push(vec![from_network(), reject()]);
            }
            Outside::Closed => forward.push(vec![from_network(), reject()]),
        }
        forward.push(vec![to_network(), answers(), accept()]);
        forward.push(vec![to_network(), counter(), drop()]);

        let mut input = vec![vec![from_network(), answers(), accept()]];
        if !self.reach_host {
            let ping =
                equal(json!({"payload": {"protocol": "icmp", "field": "type"}}), json!("echo-request"));
            input.push(vec![from_network(), ping, accept()]);
            input.push(vec![from_network(), reject()]);
        }

        let leaves = vec![
            equal(ip("saddr"), prefix.clone()),
            matches("!=", ip("daddr"), prefix),
            json!({"masquerade": null}),
        ];
        let mut chain = |name: &str, kind: &str, priority: i32, rules: Vec<Vec<Value>>| {
            commands.push(json!({"add": {"chain": {"family": "ip", "table": self.table, "name": name,
                "type": kind, "hook": name, "prio": priority, "policy": "accept"}}}));
            commands.extend(rules.into_iter().map(|rule| {
                json!({"add": {"rule": {"family": "ip", "table": self.table, "chain": name, "expr": rule}}})
            }));
        };
        chain("forward", "filter", PRIORITY_FILTER, forward);
        chain("input", "filter", PRIORITY_FILTER, input);
        if *self.outside != Outside::Closed {
            chain("postrouting", "nat", PRIORITY_SOURCE_NAT, vec![leaves]);
        }
        commands
    }
}

/// Removes a network's table; one that is not there is no error.
pub(super) fn without_border(table: &str) -> Vec<Value> {
    let table = json!({"table": {"family": "ip", "name": table}});
    vec![json!({"add": table.clone()}), json!({"delete": table})]
}

/// What may come out of an interface: what is from its own addresses, and the question for an address.
#[derive(Debug)]
pub(super) struct Guard<'a> {
    pub(super) interface: &'a InterfaceId,
    pub(super) tap: &'a str,
    pub(super) mac: [u8; 6],
    pub(super) address: Ipv4Addr,
}

impl Guard<'_> {
    /// The chain, anew. The tap has to be there.
    pub(super) fn transaction(&self) -> Vec<Value> {
        let mac = json!(self.mac.map(|byte| format!("{byte:02x}")).join(":"));
        let protocol = |name: &str| equal(json!({"meta": {"key": "protocol"}}), json!(name));
        let arp = |field: &str| json!({"payload": {"protocol": "arp", "field": field}});
        let udp = |field: &str| json!({"payload": {"protocol": "udp", "field": field}});
        let ether = json!({"payload": {"protocol": "ether", "field": "saddr"}});
        let rules = [
            vec![matches("!=", ether, mac.clone()), counter(), drop()],
            vec![
                protocol("arp"),
                equal(arp("saddr ether"), mac),
                // Who asks whether an address is free does not give one.
                equal(arp("saddr ip"), json!({"set": [self.address, Ipv4Addr::UNSPECIFIED]})),
                accept(),
            ],
            vec![protocol("ip"), equal(ip("saddr"), json!(self.address)), accept()],
            vec![
                protocol("ip"),
                equal(ip("saddr"), json!(Ipv4Addr::UNSPECIFIED)),
                equal(ip("daddr"), json!(Ipv4Addr::BROADCAST)),
                equal(udp("sport"), json!(68)),
                equal(udp("dport"), json!(67)),
                accept(),
            ],
            vec![counter(), drop()],
        ];
        let name = self.interface.as_str();
        let mut commands = without_guard(self.interface);
        commands.push(json!({"add": {"chain": {"family": "netdev", "table": TABLE, "name": name,
            "type": "filter", "hook": "ingress", "dev": self.tap, "prio": PRIORITY_FILTER, "policy": "drop"}}}));
        commands.extend(rules.into_iter().map(|rule| {
            json!({"add": {"rule": {"family": "netdev", "table": TABLE, "chain": name, "expr": rule}}})
        }));
        commands
    }
}

/// Removes an interface's guard; one that is not there is no error.
pub(super) fn without_guard(interface: &InterfaceId) -> Vec<Value> {
    let chain = json!({"chain": {"family": "netdev", "table": TABLE, "name": interface.as_str()}});
    vec![
        json!({"add": {"table": {"family": "netdev", "name": TABLE}}}),
        json!({"add": chain.clone()}),
        json!({"flush": chain.clone()}),
        json!({"delete": chain}),
    ]
}

/// Carries out a transaction in the host's namespace.
pub(super) async fn apply(what: &'static str, commands: Vec<Value>) -> Result<(), Error> {
    let done = tokio::task::spawn_blocking(move || run(what, &json!({"nftables": commands})));
    done.await.map_err(|error| Error::System { what: what.into(), source: io::Error::other(error) })??;
    changed(format_args!("{what}"));
    Ok(())
}

/// Carries out a transaction in a network's namespace.
pub(super) async fn apply_in(
    namespace: &Namespace,
    what: &'static str,
    commands: Vec<Value>,
) -> Result<(), Error> {
    namespace.enter(move || run(what, &json!({"nftables": commands}))).await??;
    changed(format_args!("{what}"));
    Ok(())
}

/// The names of the tables in the host's namespace.
pub(super) async fn tables() -> Result<Vec<String>, Error> {
    let list = json!({"nftables": [{"list": {"tables": {"family": "ip"}}}]});
    let listed = tokio::task::spawn_blocking(move || run("list tables", &list)).await;
    let listed = listed
        .map_err(|error| Error::System { what: "list tables".into(), source: io::Error::other(error) })??;
    Ok(named(&listed, "table"))
}

/// The names of the guards in a network's namespace.
pub(super) async fn guards(namespace: &Namespace) -> Result<Vec<String>, Error> {
    let list = json!({"nftables": [{"list": {"chains": {"family": "netdev"}}}]});
    Ok(named(&namespace.enter(move || run("list chains", &list)).await??, "chain"))
}

/// A chain of the host, not ours, that drops what is forwarded unless a rule of its own accepts it.
pub(super) async fn forward_is_closed() -> Result<Option<String>, Error> {
    let list = json!({"nftables": [{"list": {"chains": null}}]});
    let listed = tokio::task::spawn_blocking(move || run("list chains", &list)).await;
    let listed = listed
        .map_err(|error| Error::System { what: "list chains".into(), source: io::Error::other(error) })??;
    Ok(objects(&listed, "chain").find_map(|chain| {
        let field = |name: &str| chain.get(name).and_then(Value::as_str).unwrap_or_default();
        let is_closed = field("hook") == "forward"
            && field("policy") == "drop"
            && matches!(field("family"), "ip" | "inet");
        is_closed.then(|| format!("{} {} {}", field("family"), field("table"), field("name")))
    }))
}

/// Runs `nft` in the calling thread's namespace, and gives what it printed.
fn run(what: &'static str, commands: &Value) -> Result<Value, Error> {
    let failed = |source| Error::System { what: format!("run `{NFT}` to {what}"), source };
    let mut command = Command::new(NFT);
    command.args(["-j", "-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => Error::NoProgram { program: NFT },
        _ => failed(source),
    })?;
    if let Some(mut stdin) = child.stdin.take() {
        match stdin.write_all(commands.to_string().as_bytes()) {
            // It has ended already, and says why.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            other => other.map_err(failed)?,
        }
    }
    let output = child.wait_with_output().map_err(failed)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let first = said.lines().find(|line| !line.trim().is_empty()).unwrap_or("nothing");
        return Err(Error::Firewall { what, said: first.chars().take(SAID_CHARS_MAX).collect() });
    }
    if output.stdout.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_slice(&output.stdout)
        .map_err(|error| Error::Firewall { what, said: format!("what is no JSON: {error}") })
}

/// The objects of a kind in what `nft` listed.
fn objects<'a>(listed: &'a Value, kind: &'a str) -> impl Iterator<Item = &'a Value> {
    let all = listed.get("nftables").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    all.iter().filter_map(move |object| object.get(kind))
}

fn named(listed: &Value, kind: &str) -> Vec<String> {
    objects(listed, kind).filter_map(|object| object.get("name")?.as_str().map(str::to_owned)).collect()
}

fn matches(op: &str, left: Value, right: Value) -> Value {
    let halves = Value::from_iter([("op", op.into()), ("left", left), ("right", right)]);
    Value::from_iter([("match", halves)])
}

fn equal(left: Value, right: Value) -> Value {
    matches("==", left, right)
}

fn ip(field: &str) -> Value {
    json!({"payload": {"protocol": "ip", "field": field}})
}

fn accept() -> Value {
    json!({"accept": null})
}

fn drop() -> Value {
    json!({"drop": null})
}

/// Who is refused is told so, and need not wait.
fn reject() -> Value {
    json!({"reject": {"type": "icmp", "expr": "admin-prohibited"}})
}

fn counter() -> Value {
    json!({"counter": null})
}

/// RFC 3927. On a host that is a cloud's machine itself, its credentials are there.
fn link_local() -> Value {
    json!({"prefix": {"addr": "169.254.0.0", "len": 16}})
}

/// From Debian's package `nftables`.
const NFT: &str = "nft";

/// linux/netfilter_ipv4.h: `NF_IP_PRI_FILTER`, `NF_IP_PRI_NAT_SRC`.
const PRIORITY_FILTER: i32 = 0;
const PRIORITY_SOURCE_NAT: i32 = 100;

const SAID_CHARS_MAX: usize = 300;

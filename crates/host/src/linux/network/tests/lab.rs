//! A host of the test's own, and guests with real network stacks.

#![allow(clippy::print_stderr, reason = "a test that does not run says so")]

use std::{
    fs::File,
    io::{Read, Write},
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::Arc,
};

use ec2vmm_model::ids::{InterfaceId, VpcId};

use crate::{
    host::{InterfacePlan, NetworkPlan},
    linux::network::{Config, Network, Upstream, namespace::Namespace},
    tap,
};

/// Runs the calling test in a process of its own, whose network and mounts are its own too.
pub(super) fn alone(act: impl AsyncFnOnce()) {
    if std::env::var_os(ALONE).is_some() {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        return runtime.block_on(act());
    }
    let test = std::thread::current().name().expect("a test has a thread of its name").to_owned();
    if !may_be_alone() {
        eprintln!("SKIPPED {test}: it needs root, `unshare`, `ip` and `nft`");
        return;
    }
    let output = process_alone(&test).output().unwrap();
    let said = text(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}{}", text(&output.stderr));
}

/// The test of this name again, in namespaces of its own.
fn process_alone(test: &str) -> Command {
    let prepare = "mount -t tmpfs tmpfs /run && ip link set lo up && exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--net", "--mount", "--propagation", "private", "--", "sh", "-c", prepare, "sh"]);
    command.arg(std::env::current_exe().unwrap()).args(["--exact", test, "--nocapture", "--test-threads=1"]);
    command.env(ALONE, "yes");
    command
}

/// The test of this name again, in the same namespaces, for it to be killed.
pub(super) fn process_beside(test: &str, key: &str, value: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture", "--test-threads=1", "--include-ignored"]);
    command.env(ALONE, "yes").env(key, value);
    command
}

fn may_be_alone() -> bool {
    let works = |program: &str, arguments: &[&str]| {
        Command::new(program).args(arguments).output().is_ok_and(|output| output.status.success())
    };
    works("unshare", &["--net", "--mount", "true"]) && works("ip", &["-V"]) && works("nft", &["--version"])
}

pub(super) const ALONE: &str = "EC2VMM_TEST_ALONE";

pub(super) fn config() -> Config {
    Config { upstream: Upstream::Servers(Vec::new()), ..Config::default() }
}

pub(super) fn vpc() -> VpcId {
    "vpc-0123456789abcdef0".parse().unwrap()
}

pub(super) fn network_plan() -> NetworkPlan {
    NetworkPlan { vpc: vpc(), base: Ipv4Addr::new(172, 31, 0, 0), prefix: 20 }
}

pub(super) fn interface_id(number: u8) -> InterfaceId {
    InterfaceId::from_random(0x100 + u128::from(number))
}

/// The interface with the address 172.31.0.`number`.
pub(super) fn interface_plan(number: u8) -> InterfacePlan {
    InterfacePlan {
        id: interface_id(number),
        vpc: vpc(),
        mac: [0x02, 0, 0, 0, 0, number],
        address: address(number),
        hostname: format!("ip-172-31-0-{number}"),
    }
}

pub(super) fn address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(172, 31, 0, number)
}

/// Runs a program on the host, which has to succeed.
pub(super) fn run(line: &str) -> String {
    let output = shell(line);
    assert!(output.status.success(), "`{line}`: {}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// Runs a program on the host.
pub(super) fn shell(line: &str) -> Output {
    Command::new("sh").args(["-c", line]).output().unwrap()
}

pub(super) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A computer with a network card: a namespace, with a link `eth0`.
pub(super) struct Computer {
    name: String,
    namespace: Arc<Namespace>,
}

impl Computer {
    /// A computer whose card is an interface of a network. Its address is not configured.
    pub(super) async fn plug(network: &Network, number: u8) -> Self {
        let plan = interface_plan(number);
        network.ensure_interface(&plan).await.unwrap();
        let theirs = network.open_tap(&plan.id, 1).await.unwrap().remove(0);
        let name = format!("guest-{number}");
        let namespace = Arc::new(Namespace::ensure(&folder(), &name).await.unwrap());
        let ours = namespace.enter(|| tap::attach("eth0", false).unwrap()).await.unwrap();
        carry(&ours, &theirs);
        carry(&theirs, &ours);
        let computer = Self { name, namespace };
        let mac = plan.mac.map(|byte| format!("{byte:02x}")).join(":");
        computer.run(&format!("sysctl -qw net.ipv6.conf.all.disable_ipv6=1; ip link set lo up; ip link set eth0 address {mac} up")).await;
        computer
    }

    /// The same, with the address and the router that DHCP would give it.
    pub(super) async fn plug_configured(network: &Network, number: u8) -> Self {
        let computer = Self::plug(network, number).await;
        computer
            .run(&format!(
                "ip addr add {}/20 dev eth0; ip route add default via {}",
                address(number),
                address(1)
            ))
            .await;
        computer
    }

    /// A computer in the world outside, which knows the host by 192.0.2.1 and is known by 192.0.2.2.
    pub(super) async fn outside() -> Self {
        let namespace = Arc::new(Namespace::ensure(&folder(), "world").await.unwrap());
        run("ip link add world type veth peer name eth0 netns world");
        run("ip addr add 192.0.2.1/24 dev world && ip link set world up");
        let computer = Self { name: "world".into(), namespace };
        computer.run("ip link set lo up; ip addr add 192.0.2.2/24 dev eth0; ip link set eth0 up").await;
        computer
    }

    /// Runs a program there, which has to succeed.
    pub(super) async fn run(&self, line: &str) -> String {
        let output = self.shell(line).await;
        let name = &self.name;
        assert!(
            output.status.success(),
            "{name}: `{line}`: {}{}",
            text(&output.stdout),
            text(&output.stderr)
        );
        text(&output.stdout)
    }

    pub(super) async fn shell(&self, line: &str) -> Output {
        let line = line.to_owned();
        self.inside(move || shell(&line)).await
    }

    /// Does something there.
    pub(super) async fn inside<T: Send + 'static>(&self, act: impl FnOnce() -> T + Send + 'static) -> T {
        self.namespace.enter(act).await.unwrap()
    }
}

/// Carries frames from one tap to another, until the process ends.
fn carry(from: &File, to: &File) {
    let [mut from, mut to] = [from, to].map(|tap| tap.try_clone().unwrap());
    rustix::io::ioctl_fionbio(&from, false).unwrap();
    std::thread::spawn(move || {
        let mut frame = vec![0; 1 << 17];
        while let Ok(length) = from.read(&mut frame) {
            // A link that is down takes nothing, as a cable that is not plugged in.
            let _ = to.write(&frame[..length]);
        }
    });
}

fn folder() -> PathBuf {
    Path::new("/run/netns").to_owned()
}

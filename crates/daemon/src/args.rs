//! What was typed.

use std::{net::Ipv4Addr, ops::RangeInclusive, path::PathBuf, str::FromStr, time::Duration};

use clap::{Parser, ValueEnum};
use ec2vmm_cloud::Config;
use ec2vmm_host::sandbox::SandboxKind;

/// The control daemon of ec2vmm: instances with EC2's lifecycle, on this machine.
///
/// SIGTERM or SIGINT ends it in order: requests under way are finished, and machines run on; the next
/// daemon takes them over. SIGUSR2 puts the program that is now in the file in its place, and no
/// connection is refused meanwhile. Exit statuses: 2 the command line makes no sense, 10 another daemon
/// runs, 11 not root, 12 no cgroup v2, 13 the database is of a newer version, 14 it is damaged or not ours,
/// 15 a folder or the socket cannot be made, 16 the host lacks something, 1 anything else.
#[derive(Clone, Debug, Parser)]
#[command(name = "ec2vmmd", version, max_term_width = 100)]
pub(crate) struct Args {
    /// Where machines run: on this Linux host, or nowhere
    ///
    /// `simulated` needs no root and no KVM: states, answers and timing are real, machines are not, and are
    /// gone when the daemon ends.
    #[arg(long, value_enum, default_value_t = HostKind::Linux)]
    pub(crate) host: HostKind,

    /// What is kept: the database, images, volumes, consoles
    #[arg(long, value_name = "FOLDER", default_value = "/var/lib/ec2vmm")]
    pub(crate) state_dir: PathBuf,

    /// What is gone with the next boot: sockets, what machines are known by
    #[arg(long, value_name = "FOLDER", default_value = "/run/ec2vmm")]
    pub(crate) run_dir: PathBuf,

    /// The REST socket [default: ec2vmmd.sock in the run dir]
    ///
    /// Mode 0660, of the group `ec2vmm` where there is one. Who may write to it can do anything that the
    /// daemon can. Not used where systemd passes a socket.
    #[arg(long, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,

    /// How the log is written, on standard error
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub(crate) log_format: LogFormat,

    /// What is logged: a level, or levels by module, such as `info,ec2vmm_rest=debug`
    #[arg(long, value_name = "FILTER", default_value = "info")]
    pub(crate) log: String,

    /// The name space of instances
    #[arg(long, default_value = "us-east-1", value_parser = region)]
    pub(crate) region: String,

    /// vCPUs that are given for each processor of the host, 0.01 to 1000
    #[arg(long, value_name = "RATIO", default_value_t = 4.0, value_parser = ratio)]
    pub(crate) cpu_overcommit: f64,

    /// Memory that is given for each byte of the host's, 0.01 to 1000; above 1, machines can run out of it
    #[arg(long, value_name = "RATIO", default_value_t = 1.0, value_parser = ratio)]
    pub(crate) memory_overcommit: f64,

    /// How long a guest may take to power off or reboot before it is forced, such as 90s or 5m
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = humantime::parse_duration)]
    pub(crate) stop_grace: Duration,

    /// Start instances again that were running when the host went down; else they are stopped
    #[arg(long)]
    pub(crate) restart_on_boot: bool,

    /// The default network; its prefix is 16 to 28 bits long
    #[arg(long, value_name = "RANGE", default_value = "172.31.0.0/16")]
    pub(crate) network: Range,

    /// The program of machine processes [default: ec2vmm-vmm beside this one or in PATH]
    #[arg(long, value_name = "FILE", help_heading = LINUX)]
    pub(crate) vmm: Option<PathBuf>,

    /// The control group that machines are in
    #[arg(long, value_name = "FOLDER", default_value = "/sys/fs/cgroup/ec2vmm", help_heading = LINUX)]
    pub(crate) cgroup: PathBuf,

    /// Count what machines take, but do not limit it: for hosts whose control groups cannot
    #[arg(long, help_heading = LINUX)]
    pub(crate) no_limits: bool,

    /// How machine processes are shut in: `full`; weaker, for hosts that cannot and for finding faults: `filters`,
    /// system call filters alone, or `off`
    #[arg(long, value_name = "KIND", default_value = "full", value_parser = sandbox, help_heading = LINUX)]
    pub(crate) sandbox: SandboxKind,

    /// User and group ids that nobody else has, one for each machine's process
    #[arg(long, value_name = "FIRST-LAST", default_value = "1879048192-1879113727", value_parser = ids,
          help_heading = LINUX)]
    pub(crate) machine_ids: RangeInclusive<u32>,

    /// Use /dev/kvm although the processor shows no hardware virtualization: stock Linux will not boot
    #[arg(long, help_heading = LINUX)]
    pub(crate) emulated_kvm: bool,

    /// Let instances open connections to services of this host; as in EC2 they cannot
    #[arg(long, help_heading = LINUX)]
    pub(crate) reach_host: bool,

    /// What names of network namespaces and firewall tables begin with, where a host has two daemons
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true, help_heading = LINUX)]
    pub(crate) network_names: String,
}

const LINUX: &str = "With --host linux";

/// Where machines run.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum HostKind {
    /// On this Linux host.
    Linux,
    /// Nowhere.
    Simulated,
}

/// How the log is written.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// For programs: a JSON document a line.
    Json,
}

/// A range of addresses.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Range {
    pub(crate) base: Ipv4Addr,
    pub(crate) prefix: u8,
}

impl Args {
    /// Where the REST socket is, unless one is passed.
    pub(crate) fn socket(&self) -> PathBuf {
        self.socket.clone().unwrap_or_else(|| self.run_dir.join("ec2vmmd.sock"))
    }

    /// What the cloud shall be.
    pub(crate) fn cloud(&self) -> Config {
        Config {
            region: self.region.clone(),
            cpu_overcommit: self.cpu_overcommit,
            memory_overcommit: self.memory_overcommit,
            stop_grace: self.stop_grace,
            restart_on_boot: self.restart_on_boot,
            network_base: self.network.base,
            network_prefix: self.network.prefix,
            ..Config::default()
        }
    }
}

impl HostKind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Linux => "linux",
            Self::Simulated => "simulated",
        }
    }
}

impl FromStr for Range {
    type Err = String;

    fn from_str(given: &str) -> Result<Self, String> {
        let (base, prefix) = given.split_once('/').ok_or("a range is ADDRESS/BITS, such as 172.31.0.0/16")?;
        let base: Ipv4Addr = base.parse().map_err(|_| format!("`{base}` is not an IPv4 address"))?;
        let prefix = prefix.parse().ok().filter(|prefix| (16..=28).contains(prefix));
        let prefix: u8 = prefix.ok_or("the prefix is 16 to 28 bits long")?;
        let beyond = u32::from(base) & (u32::MAX >> prefix);
        match beyond {
            0 => Ok(Self { base, prefix }),
            _ => Err(format!(
                "{base} has bits beyond the prefix: did you mean {}/{prefix}?",
                Ipv4Addr::from(u32::from(base) - beyond)
            )),
        }
    }
}

fn ratio(given: &str) -> Result<f64, String> {
    let ratio = given.parse().ok().filter(|ratio| (0.01..=1000.0).contains(ratio));
    ratio.ok_or_else(|| "a ratio is a number from 0.01 to 1000".to_owned())
}

fn sandbox(given: &str) -> Result<SandboxKind, String> {
    let kinds = [SandboxKind::Full, SandboxKind::Filters, SandboxKind::Off];
    let named = kinds.into_iter().find(|kind| kind.name() == given);
    named.ok_or_else(|| "it is `full`, `filters` or `off`".to_owned())
}

fn ids(given: &str) -> Result<RangeInclusive<u32>, String> {
    let (first, last) = given.split_once('-').ok_or("ids are FIRST-LAST, such as 200000-265535")?;
    let number = |text: &str| text.parse::<u32>().map_err(|_| format!("`{text}` is not a user id"));
    let (first, last) = (number(first)?, number(last)?);
    match (first, last) {
        (0, _) => Err("0 is root's".to_owned()),
        // That of setresuid(2) for no change.
        (_, u32::MAX) => Err(format!("{last} is nobody's id, ever")),
        _ if first > last => Err(format!("there is no id from {first} to {last}")),
        _ => Ok(first..=last),
    }
}

fn region(given: &str) -> Result<String, String> {
    let is_name = (1..=32).contains(&given.len())
        && given.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    if is_name { Ok(given.to_owned()) } else { Err("a region is a name such as us-east-1".to_owned()) }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};
    use expect_test::{Expect, expect};

    use super::{Args, Range};

    #[test]
    fn the_command_line_is_whole() {
        Args::command().debug_assert();
    }

    fn check(range: &str, expected: &Expect) {
        expected.assert_eq(&match range.parse::<Range>() {
            Ok(Range { base, prefix }) => format!("{base} {prefix}"),
            Err(error) => error,
        });
    }

    #[test]
    fn ranges() {
        check("172.31.0.0/16", &expect!["172.31.0.0 16"]);
        check(
            "172.31.0.5/16",
            &expect!["172.31.0.5 has bits beyond the prefix: did you mean 172.31.0.0/16?"],
        );
        check("10.0.0.0/8", &expect!["the prefix is 16 to 28 bits long"]);
        check("10.0.0/16", &expect!["`10.0.0` is not an IPv4 address"]);
        check("10.0.0.0", &expect!["a range is ADDRESS/BITS, such as 172.31.0.0/16"]);
    }

    #[test]
    fn machines_have_ids_of_the_default_range() {
        let args = Args::try_parse_from(["ec2vmmd"]).unwrap();
        assert_eq!(args.machine_ids, ec2vmm_host::sandbox::DAEMON_IDS);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for wrong in [
            ["--cpu-overcommit", "0"],
            ["--memory-overcommit", "NaN"],
            ["--stop-grace", "soon"],
            ["--region", "Mars!"],
            ["--host", "windows"],
            ["--sandbox", "user"],
            ["--machine-ids", "0-9"],
            ["--machine-ids", "9-8"],
            ["--machine-ids", "1-4294967295"],
            ["--machine-ids", "many"],
        ] {
            assert!(Args::try_parse_from(["ec2vmmd"].into_iter().chain(wrong)).is_err(), "{wrong:?}");
        }
    }
}

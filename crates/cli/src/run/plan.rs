//! What `ec2vmm run` was asked for, understood: every default filled in, every input file read, nothing
//! on the host touched yet.

use std::path::{Path, PathBuf};

use ec2vmm_host::{
    disks::{Wanted, Writes},
    seed::{Hostname, PublicKey, Seed},
    tap,
};
use ec2vmm_model::{InstanceType, instance_types};
use ec2vmm_vmm_api::{
    FailureKind, SandboxKind,
    config::{Balloon, CPUS_MAX, DISKS_MAX, Entropy, MEMORY_MIB_MIN, NETS_MAX, QUEUES_USUAL_MAX, RateLimit},
};

use super::restore::Restore;
use crate::{
    args::Run,
    environment::Environment,
    error::Error,
    value::{duration::Span, net::Net},
};

/// A machine to be, and how to live with it.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) size: Size,
    pub(crate) huge_pages: bool,
    pub(crate) boot: Boot,
    /// The image first, if there is one.
    pub(crate) disks: Vec<Wanted>,
    pub(crate) seed: Seed,
    pub(crate) nets: Vec<Cable>,
    pub(crate) balloon: Balloon,
    pub(crate) entropy: Entropy,
    pub(crate) vsock: Option<PathBuf>,
    pub(crate) control: Option<PathBuf>,
    /// Snapshots to go on from.
    pub(crate) restore: Option<Restore>,
    pub(crate) console: Console,
    /// Events go to standard output.
    pub(crate) events: bool,
    pub(crate) timeout: Option<Span>,
    /// How the machine process is shut in; nothing leaves it to the host.
    pub(crate) sandbox: Option<SandboxKind>,
    pub(crate) cgroup: Cgroup,
    pub(crate) kvm_device: PathBuf,
    /// KVM may emulate every instruction.
    pub(crate) emulated_kvm: bool,
    /// Where throw-away writes go.
    pub(crate) scratch: PathBuf,
    /// The program of the machine process, where it is not to be looked for.
    pub(crate) program: Option<PathBuf>,
    /// All of the environment that it gets.
    pub(crate) variables: Vec<(String, String)>,
    /// Where to look for it else, beside this program.
    pub(crate) path: Option<std::ffi::OsString>,
}

/// How much of a machine.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Size {
    /// The type's name, or [`CUSTOM`].
    pub(crate) product: String,
    pub(crate) cpus: u8,
    pub(crate) memory_mib: u64,
}

/// Where the kernel comes from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Boot {
    Disk { append: Option<String> },
    Files { kernel: PathBuf, initrd: Option<PathBuf>, cmdline: String },
}

/// Which control group the machine gets.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Cgroup {
    /// One where this user may make one, if there is such a place.
    Usual,
    /// One in this group.
    In(PathBuf),
    /// That of this process.
    None,
}

/// A network interface.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Cable {
    pub(crate) tap: String,
    pub(crate) mac: [u8; 6],
    pub(crate) mtu: Option<u16>,
    /// How many, where the tap can have several.
    pub(crate) queues: u16,
    pub(crate) receive: RateLimit,
    pub(crate) transmit: RateLimit,
}

/// Where console output goes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Console {
    Stdout,
    Stderr,
    File(PathBuf),
}

impl Plan {
    pub(crate) fn new(args: &Run, environment: &Environment) -> Result<Self, Error> {
        let size = Size::new(args)?;
        let seed = seed(args)?;
        let disks = disks(args)?;
        if disks.len().saturating_add(usize::from(!seed.is_empty())) > DISKS_MAX {
            let message = format!(
                "a machine has at most {DISKS_MAX} disks, the one with keys and user data among them"
            );
            return Err(Error::new(FailureKind::Usage, message));
        }
        if args.net.len() > NETS_MAX {
            let message = format!("a machine has at most {NETS_MAX} network interfaces");
            return Err(Error::new(FailureKind::Usage, message));
        }
        let nets = args.net.iter().map(|net| cable(net, size.cpus)).collect();
        Ok(Self {
            size,
            huge_pages: args.huge_pages,
            boot: boot(args),
            disks,
            seed,
            nets,
            balloon: args.balloon.0,
            entropy: Entropy {
                rate_limit: args.entropy_limit.map_or_else(RateLimit::default, |limit| limit.0),
            },
            vsock: args.vsock.clone(),
            control: args.control_socket.clone(),
            restore: Restore::new(args)?,
            console: match (&args.console, args.json) {
                (Some(path), _) => Console::File(path.clone()),
                (None, true) => Console::Stderr,
                (None, false) => Console::Stdout,
            },
            events: args.json,
            timeout: args.timeout,
            sandbox: args.sandbox,
            cgroup: match &args.cgroup {
                None => Cgroup::Usual,
                Some(name) if name == Path::new("none") => Cgroup::None,
                Some(parent) => Cgroup::In(parent.clone()),
            },
            kvm_device: args.kvm_device.clone(),
            emulated_kvm: args.emulated_kvm,
            scratch: environment.scratch(),
            program: environment.vmm.clone(),
            variables: environment.vmm_log.iter().map(|level| ("EC2VMM_LOG".into(), level.clone())).collect(),
            path: environment.path.clone(),
        })
    }
}

impl Size {
    fn new(args: &Run) -> Result<Self, Error> {
        if args.cpus.is_some() || args.memory.is_some() {
            return Ok(Self {
                product: CUSTOM.to_owned(),
                cpus: cpus(args.cpus.unwrap_or(1), "--cpus")?,
                memory_mib: args.memory.map_or(Ok(MEMORY_MIB_DEFAULT), |memory| memory_mib(memory.bytes))?,
            });
        }
        let found = InstanceType::find_runnable(args.instance_type.as_deref().unwrap_or(TYPE_DEFAULT))
            .map_err(|error| unknown_type(&error))?;
        Ok(Self {
            product: found.name.to_owned(),
            cpus: cpus(found.vcpus, found.name)?,
            memory_mib: found.memory_mib,
        })
    }
}

fn unknown_type(error: &instance_types::Error) -> Error {
    let hint = match error {
        instance_types::Error::Unknown { nearest, .. } if nearest.is_empty() => {
            "`ec2vmm types` lists them all".to_owned()
        }
        instance_types::Error::Unknown { nearest, .. } => format!("did you mean {}?", nearest.join(" or ")),
        instance_types::Error::Architecture { sibling: Some(sibling), .. } => format!("take {sibling}"),
        instance_types::Error::Architecture { sibling: None, .. } => {
            "`ec2vmm types` shows the processors of each type".to_owned()
        }
    };
    Error::new(FailureKind::UnknownType, error.to_string()).hint(hint)
}

fn cpus(wanted: u16, whose: &str) -> Result<u8, Error> {
    match u8::try_from(wanted) {
        Ok(cpus @ 1..=CPUS_MAX) => Ok(cpus),
        _ => {
            let message = format!("{whose} asks for {wanted} vCPUs, and a machine can have 1 to {CPUS_MAX}");
            Err(Error::new(FailureKind::Cpus, message)
                .hint("choose a smaller type, or `--cpus` and `--memory`"))
        }
    }
}

fn memory_mib(bytes: u64) -> Result<u64, Error> {
    let mib = bytes / MIB;
    if mib < MEMORY_MIB_MIN {
        let message = format!("{bytes} bytes of memory are too little: a machine needs {MEMORY_MIB_MIN} MiB");
        // A bare number is bytes, as with docker; elsewhere it is MiB.
        let meant = if (MEMORY_MIB_MIN..MIB).contains(&bytes) {
            format!("; did you mean {bytes}M?")
        } else {
            String::new()
        };
        return Err(Error::new(FailureKind::Memory, message)
            .hint(format!("say `--memory {MEMORY_MIB_MIN}M` or more{meant}")));
    }
    if !bytes.is_multiple_of(MIB) {
        let message = format!("{bytes} bytes of memory are not a whole number of MiB");
        return Err(Error::new(FailureKind::Memory, message).hint(format!("say `--memory {mib}M`")));
    }
    Ok(mib)
}

fn disks(args: &Run) -> Result<Vec<Wanted>, Error> {
    let image = args.image.iter().map(|path| Wanted {
        path: path.clone(),
        format: args.format,
        writes: match (args.read_only, args.persist) {
            (true, _) => Writes::Refused,
            (_, true) => Writes::Kept,
            _ => Writes::Discarded,
        },
        serial: IMAGE_SERIAL.to_owned(),
        queues: None,
        rate_limit: args.io_limit.map_or_else(RateLimit::default, |limit| limit.0),
    });
    let more = args.disk.iter().zip(1..).map(|(disk, number)| Wanted {
        path: disk.path.clone(),
        format: disk.format,
        writes: disk.writes,
        serial: disk.serial.clone().unwrap_or_else(|| format!("disk{number}")),
        queues: disk.queues,
        rate_limit: disk.rate_limit,
    });
    let about_image =
        args.persist || args.read_only || args.snapshot || args.format.is_some() || args.io_limit.is_some();
    if args.image.is_none() && about_image {
        let message =
            "--persist, --read-only, --snapshot, --format and --io-limit are about IMAGE, and there is none";
        return Err(
            Error::new(FailureKind::Usage, message).hint("give other disks with `--disk FILE,OPTION`")
        );
    }
    Ok(image.chain(more).collect())
}

fn seed(args: &Run) -> Result<Seed, Error> {
    let mut seed = Seed::default();
    for path in &args.key {
        seed.keys.extend(PublicKey::read(path)?);
    }
    seed.user_data = args.user_data.as_deref().map(Seed::read_user_data).transpose()?;
    seed.hostname = args.hostname.as_deref().map(str::parse::<Hostname>).transpose()?;
    Ok(seed)
}

fn boot(args: &Run) -> Boot {
    match &args.kernel {
        None => {
            let no_network = args.net.is_empty().then_some(NO_NETWORK_WAIT);
            let words: Vec<&str> = no_network.into_iter().chain(args.append.as_deref()).collect();
            Boot::Disk { append: (!words.is_empty()).then(|| words.join(" ")) }
        }
        Some(kernel) => Boot::Files {
            kernel: kernel.clone(),
            initrd: args.initrd.clone(),
            cmdline: args.append.clone().unwrap_or_else(|| CMDLINE_DEFAULT.to_owned()),
        },
    }
}

fn cable(net: &Net, cpus: u8) -> Cable {
    let mac = net.mac.map_or_else(|| tap::stable_mac(Path::new("/etc/machine-id"), &net.tap), |mac| mac.0);
    Cable {
        tap: net.tap.clone(),
        mac,
        mtu: net.mtu,
        queues: net.queues.unwrap_or(QUEUES_USUAL_MAX.min(cpus.into())),
        receive: net.receive,
        transmit: net.transmit,
    }
}

/// A machine without an interface has no network to wait for. systemd's own units wait for one all the
/// same, for minutes, so they are told by the kernel's command line (kernel-command-line(7)).
const NO_NETWORK_WAIT: &str = "systemd.mask=systemd-networkd-wait-online.service";
/// What a machine says it is where no type was named.
const CUSTOM: &str = "custom";
const TYPE_DEFAULT: &str = "t3.micro";
/// That of a t3.micro.
const MEMORY_MIB_DEFAULT: u64 = 1024;
const CMDLINE_DEFAULT: &str = "console=ttyS0";
const IMAGE_SERIAL: &str = "root";
const MIB: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use clap::Parser;
    use ec2vmm_vmm_api::config::RateLimit;
    use expect_test::{Expect, expect};

    use super::{Boot, Console, NO_NETWORK_WAIT, Plan};
    use crate::{
        args::{Args, Command},
        environment::Environment,
        error::Error,
    };

    #[test]
    fn defaults_are_those_of_the_help() {
        let plan = plan("disk.raw").unwrap();
        assert_eq!((plan.size.product.as_str(), plan.size.cpus, plan.size.memory_mib), ("t3.micro", 2, 1024));
        assert_eq!(plan.boot, Boot::Disk { append: Some(NO_NETWORK_WAIT.into()) });
        let boot = |words: &str| super::boot(&typed(words));
        assert_eq!(boot("disk.raw --net tap=tap0"), Boot::Disk { append: None });
        assert_eq!(
            boot("disk.raw --net tap=tap0 --append quiet"),
            Boot::Disk { append: Some("quiet".into()) }
        );
        assert_eq!(
            boot("disk.raw --append quiet"),
            Boot::Disk { append: Some(format!("{NO_NETWORK_WAIT} quiet")) }
        );
        assert_eq!(plan.console, Console::Stdout);
        assert!(plan.seed.is_empty() && plan.timeout.is_none());
        let sized = |words: &str| {
            let size = super::Size::new(&typed(words)).unwrap();
            (size.product, size.cpus, size.memory_mib)
        };
        assert_eq!(sized("disk.raw --cpus 4"), ("custom".into(), 4, 1024));
        assert_eq!(sized("disk.raw --memory 64M"), ("custom".into(), 1, 64));
        assert_eq!(sized("disk.raw --type t3.medium"), ("t3.medium".into(), 2, 4096));
    }

    #[test]
    fn disks_in_order() {
        check(
            "a.raw --disk b --disk c,readonly,serial=vol-1",
            &expect![[r#"
            root: a.raw Discarded
            disk1: b Kept
            vol-1: c Refused"#]],
        );
        check("a.raw --persist", &expect!["root: a.raw Kept"]);
        check("a.raw --read-only", &expect!["root: a.raw Refused"]);
        check("--kernel k --disk b,snapshot", &expect!["disk1: b Discarded"]);
    }

    #[test]
    fn what_cannot_be() {
        check(
            "a.raw --type t3.mirco",
            &expect![[r#"
            UnknownType: there is no instance type `t3.mirco`
            hint: did you mean t3.micro?"#]],
        );
        check(
            "a.raw --type t4g.micro",
            &expect![[r#"
            UnknownType: instance type `t4g.micro` has arm64 processors, and only x86_64 machines can be run
            hint: take t3.micro"#]],
        );
        check(
            "a.raw --type u-24tb1.112xlarge",
            &expect![[r#"
            UnknownType: there is no instance type `u-24tb1.112xlarge`
            hint: did you mean u-6tb1.112xlarge?"#]],
        );
        check(
            "a.raw --cpus 0",
            &expect![[r#"
            Cpus: --cpus asks for 0 vCPUs, and a machine can have 1 to 64
            hint: choose a smaller type, or `--cpus` and `--memory`"#]],
        );
        check(
            "a.raw --cpus 65",
            &expect![[r#"
            Cpus: --cpus asks for 65 vCPUs, and a machine can have 1 to 64
            hint: choose a smaller type, or `--cpus` and `--memory`"#]],
        );
        check(
            "a.raw --memory 512",
            &expect![[r#"
            Memory: 512 bytes of memory are too little: a machine needs 32 MiB
            hint: say `--memory 32M` or more; did you mean 512M?"#]],
        );
        check(
            "a.raw --memory 31M",
            &expect![[r#"
            Memory: 32505856 bytes of memory are too little: a machine needs 32 MiB
            hint: say `--memory 32M` or more"#]],
        );
        check(
            "a.raw --memory 100000000",
            &expect![[r#"
            Memory: 100000000 bytes of memory are not a whole number of MiB
            hint: say `--memory 95M`"#]],
        );
        check(
            "--kernel k --persist",
            &expect![[r#"
            Usage: --persist, --read-only, --snapshot, --format and --io-limit are about IMAGE, and there is none
            hint: give other disks with `--disk FILE,OPTION`"#]],
        );
        check(
            "a.raw --hostname no_good",
            &expect![[r#"
            Usage: `no_good` is not a host name
            hint: use letters, digits and hyphens, 63 to a label, 64 in all (RFC 1123), such as `web-1`"#]],
        );
        check(
            &format!("a.raw{}", " --disk b".repeat(16)),
            &expect![[r#"
            Usage: a machine has at most 16 disks, the one with keys and user data among them
            hint: "#]],
        );
        check(
            &format!("a.raw --hostname h{}", " --disk b".repeat(15)),
            &expect![[r#"
            Usage: a machine has at most 16 disks, the one with keys and user data among them
            hint: "#]],
        );
        check(
            &format!("a.raw{}", " --net tap=t".repeat(9)),
            &expect![[r#"
            Usage: a machine has at most 8 network interfaces
            hint: "#]],
        );
    }

    #[test]
    fn limits_and_queues_are_those_that_were_typed() {
        let words = "a.raw --cpus 2 --io-limit iops=100 --disk b,bps=1M/2M,queues=3 --net tap=t,tx-pps=9 \
                     --net tap=u,queues=5,mtu=1400 --entropy-limit bps=64k --balloon deflate-on-oom=off";
        let plan = plan(words).unwrap();
        let rates = |limit: RateLimit| {
            [limit.operations, limit.bandwidth]
                .map(|bucket| bucket.map(|bucket| (bucket.per_second.get(), bucket.burst.get())))
        };
        let disks: Vec<_> = plan.disks.iter().map(|disk| (disk.queues, rates(disk.rate_limit))).collect();
        assert_eq!(disks, [(None, [Some((100, 100)), None]), (Some(3), [None, Some((1 << 20, 2 << 20))])]);
        let [first, second] = &plan.nets[..] else { panic!("{:?}", plan.nets) };
        assert_eq!((first.queues, first.mtu, rates(first.transmit)), (2, None, [Some((9, 9)), None]));
        assert_eq!((second.queues, second.mtu, rates(second.receive)), (5, Some(1400), [None, None]));
        assert_eq!(rates(plan.entropy.rate_limit), [None, Some((65536, 65536))]);
        assert_eq!((plan.balloon.deflate_on_oom, plan.balloon.free_page_reporting), (false, true));
    }

    fn check(words: &str, expect: &Expect) {
        let seen = match plan(words) {
            Ok(plan) => {
                let disks = plan.disks.iter();
                let disks =
                    disks.map(|disk| format!("{}: {} {:?}", disk.serial, disk.path.display(), disk.writes));
                disks.collect::<Vec<_>>().join("\n")
            }
            Err(Error::Failed(failure)) => {
                format!("{:?}: {}\nhint: {}", failure.kind, failure.message, failure.hint.unwrap_or_default())
            }
            Err(other) => unreachable!("{other}"),
        };
        expect.assert_eq(&seen);
    }

    fn plan(words: &str) -> Result<Plan, Error> {
        Plan::new(&typed(words), &Environment::default())
    }

    fn typed(words: &str) -> crate::args::Run {
        let args = Args::try_parse_from(["ec2vmm", "run"].into_iter().chain(words.split(' '))).unwrap();
        match args.command {
            Command::Run(run) => *run,
            other => panic!("{other:?}"),
        }
    }
}

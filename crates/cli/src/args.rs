//! What was typed: the verbs, and `run`. The other verbs have theirs beside what they do. The doc comments
//! are the help and the manual.

use std::path::PathBuf;

use clap::{
    ArgAction, Args as ClapArgs, Parser, Subcommand, ValueHint,
    builder::{PossibleValuesParser, TypedValueParser},
};
use ec2vmm_vmm_api::{
    SandboxKind,
    config::{CPUS_MAX, Format},
};

use crate::{
    commands::{
        backup::Backup, completions::Completions, console::ConsoleArgs, cost::CostArgs, events::EventsArgs,
        image_inspect::Inspect, image_ls::ImageLs, image_register::ImageRegister, image_rm::ImageRm,
        key_create::KeyCreate, key_import::KeyImport, key_ls::KeyLs, key_rm::KeyRm, launch::Launch, ls::Ls,
        machine_merge::MachineMerge, machine_snapshot::MachineSnapshot, man::Man, modify::Modify,
        reboot::Reboot, show::Show, start::Start, status::StatusArgs, stop::Stop, tag::TagArgs,
        terminate::Terminate, top::Top, types::Types, untag::UntagArgs, wait::Wait,
    },
    value::{
        balloon::Balloon,
        disk::{Disk, format},
        duration::Span,
        net::Net,
        rate::Limit,
        settings::MemorySetting,
        size::Size,
    },
};

/// Real Linux machines on KVM, driven by commands you know
#[derive(Debug, Parser)]
#[command(
    name = "ec2vmm",
    version,
    max_term_width = 100,
    arg_required_else_help = true,
    disable_help_subcommand = true
)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Run(Box<Run>),
    Launch(Box<Launch>),
    Ls(Ls),
    Show(Show),
    Start(Start),
    Stop(Stop),
    Reboot(Reboot),
    Terminate(Terminate),
    Modify(Modify),
    Wait(Wait),
    Console(ConsoleArgs),
    Events(EventsArgs),
    Tag(TagArgs),
    Untag(UntagArgs),
    Cost(CostArgs),
    Top(Top),
    #[command(subcommand)]
    Key(KeyCommand),
    #[command(subcommand)]
    Image(ImageCommand),
    #[command(subcommand)]
    Machine(MachineCommand),
    Types(Types),
    Status(StatusArgs),
    Backup(Backup),
    Completions(Completions),
    Man(Man),
}

/// Boot a machine from a disk image and stay with it until it ends
///
/// The machine's serial console is this terminal. Ctrl-A x leaves, which ends the machine; Ctrl-A h lists
/// the other keys. What the guest writes to the image is thrown away, unless --persist says otherwise.
#[derive(Debug, ClapArgs)]
#[command(after_long_help = RUN_AFTER_HELP)]
pub(crate) struct Run {
    /// Disk image to boot: a file or a block device, raw or qcow2
    #[arg(value_hint = ValueHint::FilePath, required_unless_present = "kernel")]
    pub(crate) image: Option<PathBuf>,

    /// EC2 instance type, which gives vCPUs and memory; `ec2vmm types` lists them [default: t3.micro]
    #[arg(long = "type", value_name = "TYPE", conflicts_with_all = ["cpus", "memory"], help_heading = SIZE)]
    pub(crate) instance_type: Option<String>,
    /// Number of vCPUs, 1 to 64, in place of a type [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16), help_heading = SIZE)]
    pub(crate) cpus: Option<u16>,
    /// Memory in place of a type, such as 512M or 4G; a bare number is bytes [default: 1G]
    #[arg(long, value_name = "SIZE", help_heading = SIZE)]
    pub(crate) memory: Option<Size>,
    /// Take the memory from the huge pages that the host keeps (vm.nr_hugepages), all of it at the start
    #[arg(long, conflicts_with = "restore", help_heading = SIZE)]
    pub(crate) huge_pages: bool,

    /// Throw away what the guest writes to IMAGE; this is the default
    #[arg(long, conflicts_with_all = ["read_only", "persist"], help_heading = DISKS)]
    pub(crate) snapshot: bool,
    /// Keep what the guest writes to IMAGE
    #[arg(long, conflicts_with = "read_only", help_heading = DISKS)]
    pub(crate) persist: bool,
    /// Refuse what the guest writes to IMAGE
    #[arg(long, help_heading = DISKS)]
    pub(crate) read_only: bool,
    /// How IMAGE holds the disk: raw or qcow2 [default: qcow2 if its name ends so, else raw]
    #[arg(long, value_parser = format, help_heading = DISKS)]
    pub(crate) format: Option<Format>,
    /// One more disk, which keeps what is written to it; may be repeated
    ///
    /// The guest finds them in this order after IMAGE: /dev/vdb, /dev/vdc, ... Options follow the file after
    /// commas: format=raw or format=qcow2; readonly, or snapshot to throw writes away; serial=SERIAL, by
    /// which the guest finds it as /dev/disk/by-id/virtio-SERIAL; iops=RATE and bps=RATE, as for --io-limit;
    /// queues=N, else one a vCPU and at most 4. Two commas stand for one in a name.
    #[arg(long, value_name = "FILE[,OPTION...]", action = ArgAction::Append, help_heading = DISKS)]
    pub(crate) disk: Vec<Disk>,
    /// How many requests and bytes a second IMAGE serves, such as iops=3000,bps=125M
    ///
    /// RATE is a number a second, RATE/BURST also says how much more may come at once after a pause: without
    /// it, as much as one second brings. Bytes as for --memory.
    #[arg(long, value_name = "iops=RATE,bps=RATE", help_heading = DISKS)]
    pub(crate) io_limit: Option<Limit>,

    /// Public SSH key that may log in as the image's default user; may be repeated
    #[arg(long, value_name = "FILE.pub", value_hint = ValueHint::FilePath, help_heading = GUEST)]
    pub(crate) key: Vec<PathBuf>,
    /// User data for cloud-init: a script, cloud-config, ...; at most 16 KiB
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = GUEST)]
    pub(crate) user_data: Option<PathBuf>,
    /// What the machine is called
    #[arg(long, value_name = "NAME", help_heading = GUEST)]
    pub(crate) hostname: Option<String>,

    /// Network interface on an existing tap of this host; may be repeated
    ///
    /// Without mac= the address is made from the tap's name and this host's machine id, so it stays the same.
    /// More after commas: mtu=BYTES, which the guest is told; queues=N, for a tap that was made with
    /// multi_queue, else one a vCPU and at most 4; rx-bps=, rx-pps=, tx-bps= and tx-pps=RATE[/BURST], bytes and
    /// frames a second to the guest and from it, as for --io-limit.
    /// With no interface at all, systemd in the guest is told by the kernel's command line not to wait for one.
    #[arg(long, value_name = "tap=NAME[,OPTION...]", action = ArgAction::Append, help_heading = NETWORK)]
    pub(crate) net: Vec<Net>,
    /// Unix socket on which programs of this host meet the guest's vsock
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath, help_heading = NETWORK)]
    pub(crate) vsock: Option<PathBuf>,

    /// How the guest gives memory back: deflate-on-oom=off, free-page-reporting=off, or both [default: on]
    #[arg(long, value_name = "FLAG=off", default_value = "deflate-on-oom=on", hide_default_value = true, help_heading = SIZE)]
    pub(crate) balloon: Balloon,
    /// How many requests and bytes of randomness a second the guest is given, such as bps=64k
    #[arg(long, value_name = "iops=RATE,bps=RATE", help_heading = SIZE)]
    pub(crate) entropy_limit: Option<Limit>,

    /// Boot this kernel (bzImage or ELF) and not the one on IMAGE
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = KERNEL)]
    pub(crate) kernel: Option<PathBuf>,
    /// Initial RAM disk for --kernel
    #[arg(long, value_name = "FILE", requires = "kernel", value_hint = ValueHint::FilePath, help_heading = KERNEL)]
    pub(crate) initrd: Option<PathBuf>,
    /// Words for the kernel's command line: the whole of it with --kernel [default: console=ttyS0], else
    /// added at the end of the image's own
    #[arg(long, value_name = "WORDS", allow_hyphen_values = true, help_heading = KERNEL)]
    pub(crate) append: Option<String>,

    /// Go on from a snapshot of `ec2vmm machine snapshot` and do not boot; the other options are those that the
    /// machine had. May be repeated: a full one first, then each difference
    #[arg(long, value_name = "DIR", action = ArgAction::Append, value_hint = ValueHint::DirPath, help_heading = CONTROL)]
    pub(crate) restore: Vec<PathBuf>,
    /// How guest memory comes out of the snapshot [default: mapped]
    ///
    /// `mapped`: the full snapshot's file is mapped, and what no machine writes is shared by all that go on from
    /// it; differences are copied first. `userfaultfd`: the machine process reads each page when it is first
    /// touched, from the newest snapshot that has it. Needs root, or that this user may have /dev/userfaultfd.
    #[arg(long, value_name = "KIND", value_enum, hide_possible_values = true, requires = "restore", help_heading = CONTROL)]
    pub(crate) memory_backend: Option<MemorySetting>,
    /// Write to this file which pages of the snapshot the machine touches, at its end, its reset, or when its
    /// control socket is told (PUT /machine/working-set). With --memory-backend userfaultfd
    #[arg(long, value_name = "FILE", requires = "restore", conflicts_with = "prefetch", value_hint = ValueHint::FilePath, help_heading = CONTROL)]
    pub(crate) record_working_set: Option<PathBuf>,
    /// Bring the pages that --record-working-set has written to this file in ahead, while the machine runs. With
    /// --memory-backend userfaultfd
    #[arg(long, value_name = "FILE", requires = "restore", value_hint = ValueHint::FilePath, help_heading = CONTROL)]
    pub(crate) prefetch: Option<PathBuf>,
    /// Write console output to this file, which keeps the newest 16 MiB at most
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = CONTROL)]
    pub(crate) console: Option<PathBuf>,
    /// Serve HTTP and JSON about this machine on a Unix socket: GET /machine, GET /metrics, PUT /machine/power
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath, help_heading = CONTROL)]
    pub(crate) control_socket: Option<PathBuf>,
    /// End the machine, with status 124, if it has not ended by itself in this time: 30s, 2m, 1h30m
    #[arg(long, value_name = "TIME", help_heading = CONTROL)]
    pub(crate) timeout: Option<Span>,
    /// Print events as JSON, one a line; console output then goes to standard error, or to --console
    #[arg(long, help_heading = CONTROL)]
    pub(crate) json: bool,

    /// How the machine process is shut in [default: the strongest that this user may have here]
    ///
    /// `full` (the default of root) and `user` (else): nothing of this host but open descriptors; system call
    /// filters. `user` keeps this user's ids. `landlock`: the filters, and Landlock in place of namespaces; taken
    /// by itself where the host allows no user namespaces. Weaker ones are never taken by themselves:
    /// `filters`: the filters alone. `off`: nothing; for finding faults.
    #[arg(long, value_name = "KIND", value_parser = sandbox(), help_heading = CONTROL)]
    pub(crate) sandbox: Option<SandboxKind>,
    /// The control group that the machine's own one is made in, or `none` [default: where this user may make one]
    ///
    /// It limits what the machine process takes of the host: memory, swap, tasks, shares of processors and disks.
    /// By default it is in /sys/fs/cgroup/ec2vmm-run for root, else in what is delegated to this user; where there
    /// is no such group the machine runs without limits.
    #[arg(long, value_name = "FOLDER|none", value_hint = ValueHint::DirPath, help_heading = CONTROL)]
    pub(crate) cgroup: Option<PathBuf>,

    /// Run although the processor shows no hardware virtualization: good for tiny guests only
    #[arg(long, hide = true)]
    pub(crate) emulated_kvm: bool,
    /// The KVM device
    #[arg(long, value_name = "PATH", default_value = "/dev/kvm", hide = true)]
    pub(crate) kvm_device: PathBuf,
}

/// Key pairs, by which people log in
#[derive(Debug, Subcommand)]
pub(crate) enum KeyCommand {
    Create(KeyCreate),
    Import(KeyImport),
    Ls(KeyLs),
    Rm(KeyRm),
}

/// Images that instances are launched from, and disk images
#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    Register(ImageRegister),
    Ls(ImageLs),
    Rm(ImageRm),
    Inspect(Inspect),
}

/// Machines of `ec2vmm run`, by their control sockets, and their snapshots
#[derive(Debug, Subcommand)]
pub(crate) enum MachineCommand {
    Snapshot(MachineSnapshot),
    Merge(MachineMerge),
}

const SIZE: &str = "Size";
const DISKS: &str = "Disks";
const GUEST: &str = "What the guest is told (cloud-init)";
const NETWORK: &str = "Network";
const KERNEL: &str = "Kernel";
const CONTROL: &str = "Console and control";

const RUN_AFTER_HELP: &str = "\
Keys, where standard input is a terminal:
  Ctrl-A x       leave: ends the machine at once
  Ctrl-A p       press the power button: the guest shuts down by itself
  Ctrl-A h       list these keys
  Ctrl-A Ctrl-A  send one Ctrl-A to the guest (also Ctrl-A a)

Exit status: 0 when the guest powered itself off or was left by key; 124 on --timeout; 128 + N on
signal N. Every failure has a status of its own: see docs/CLI.md.

Examples:
  ec2vmm run debian-12.qcow2
  ec2vmm run debian-12.qcow2 --type t3.medium --key ~/.ssh/id_ed25519.pub --net tap=tap0
  ec2vmm run --kernel vmlinuz --initrd initrd.img --append 'console=ttyS0 quiet' --memory 256M";

fn sandbox() -> impl TypedValueParser<Value = SandboxKind> {
    PossibleValuesParser::new(SandboxKind::ALL.iter().map(|kind| kind.name())).try_map(|name| {
        let named = SandboxKind::ALL.iter().find(|kind| kind.name() == name);
        named.copied().ok_or("there is no such sandbox")
    })
}

const _: () = assert!(CPUS_MAX == 64, "the help says so");

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_sound() {
        super::Args::command().debug_assert();
    }
}

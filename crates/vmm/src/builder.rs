//! Makes a [`Machine`] out of its configuration and the descriptors that the process was born with.

use std::{
    fs::File,
    os::{
        fd::{FromRawFd, IntoRawFd},
        unix::net::UnixListener,
    },
    sync::{Arc, Mutex},
    time::Instant,
};

use ec2vmm_devices::{
    Memory,
    rtc::Rtc,
    virtio::{
        VirtioDevice,
        balloon::Balloon,
        block::{Block, Options},
        rng::Rng,
        vsock::Vsock,
    },
};
use ec2vmm_image as image;
use ec2vmm_vmm_api::{
    Exit, MachineConfig,
    config::{self, Boot, Format},
    control::{Booted, State},
};
use kvm_ioctls::Kvm;

use crate::{
    block::{self, Access, OpenDisk},
    boot_source::BootSource,
    clock::HostClock,
    console::Console,
    control::ControlServer,
    entropy::KernelEntropy,
    error::MachineError,
    event_loop::EventLoop,
    inherited::Inherited,
    machine::Machine,
    mailbox::Mailbox,
    memory, net,
    reclaim::Madvise,
    report::Report,
    slots::Slot,
    vcpu,
};

/// Runs a machine from its birth to its end.
pub fn run(config: MachineConfig, born: Instant) -> Exit {
    let mut inherited = Inherited::default();
    let mut report = match config.events.map(|fd| inherited.take(fd, "events")).transpose() {
        Ok(stream) => Report::new(born, stream.map(File::from)),
        Err(error) => return Report::new(born, None).failed(MachineError::from(error).failure()),
    };
    match build(config, &mut inherited, report.clone()) {
        Ok(machine) => machine.live(),
        Err(error) => report.failed(error.failure()),
    }
}

/// What the machine is made of, from the ground up.
fn build(config: MachineConfig, inherited: &mut Inherited, report: Report) -> Result<Machine, MachineError> {
    check(&config)?;
    vcpu::prepare_signal().map_err(MachineError::system("installing a signal handler"))?;
    let kvm = open_kvm(&config, inherited)?;
    let memory = memory::map(config.memory_mib)?;
    let disks = open_disks(&config.disks, inherited)?;
    let boot = open_boot(&config.boot, disks.first(), inherited)?;
    let slots = devices(&config, inherited, &memory, disks)?;
    let terminal = config.console.map(|fd| inherited.take(fd, "the console")).transpose()?;
    let console = Console::new(terminal).map_err(MachineError::system("making the console"))?;
    let listener = config.control.map(|fd| inherited.take(fd, "the control socket")).transpose()?;
    let control = listener.map(|fd| ControlServer::new(UnixListener::from(fd))).transpose();
    let lifeline = config.lifeline.map(|fd| inherited.take(fd, "the lifeline")).transpose()?;
    Ok(Machine {
        kvm,
        memory,
        boot,
        slots,
        console,
        rtc: Arc::new(Mutex::new(Rtc::new(HostClock))),
        control: control.map_err(MachineError::system("making the control socket"))?,
        lifeline,
        event_loop: EventLoop::new().map_err(MachineError::system("making the event loop"))?,
        mailbox: Mailbox::new().map_err(MachineError::system("making the mailbox"))?,
        counters: Arc::default(),
        state: State::Starting,
        reboots: 0,
        booted: Booted::default(),
        report,
        config,
    })
}

/// What the contract promises, before anything is made.
fn check(config: &MachineConfig) -> Result<(), MachineError> {
    let limits = [
        (config.version != ec2vmm_vmm_api::VERSION, "the configuration is of another version"),
        (!(1..=config::CPUS_MAX).contains(&config.cpus), "a machine has 1 to 64 vCPUs"),
        (config.memory_mib < config::MEMORY_MIB_MIN, "a machine has at least 32 MiB of memory"),
        (config.disks.len() > config::DISKS_MAX, "a machine has at most 16 disks"),
        (config.nets.len() > config::NETS_MAX, "a machine has at most 8 network interfaces"),
        (config.disks.iter().any(|disk| disk.layers.is_empty()), "a disk has at least one layer"),
    ];
    match limits.iter().find(|(broken, _)| *broken) {
        Some((_, law)) => Err(MachineError::Config((*law).into())),
        None => Ok(()),
    }
}

fn open_kvm(config: &MachineConfig, inherited: &mut Inherited) -> Result<Kvm, MachineError> {
    let fd = inherited.take(config.kvm, "/dev/kvm")?;
    // SAFETY: the descriptor is open and nobody else's. One that is not KVM's fails at the first call.
    let kvm = unsafe { Kvm::from_raw_fd(fd.into_raw_fd()) };
    let version = kvm.get_api_version();
    if version != KVM_API_VERSION {
        return Err(MachineError::Config(format!(
            "descriptor {} is no KVM: API version {version}",
            config.kvm
        )));
    }
    let max = kvm.get_max_vcpus().min(config::CPUS_MAX.into());
    if usize::from(config.cpus) > max {
        return Err(MachineError::Cpus { wanted: config.cpus, max });
    }
    Ok(kvm)
}

fn open_disks(configs: &[config::Disk], inherited: &mut Inherited) -> Result<Vec<OpenDisk>, MachineError> {
    let open = |(index, disk): (usize, &config::Disk)| {
        let layers = disk
            .layers
            .iter()
            .map(|layer| {
                let file = File::from(inherited.take(layer.fd, "a disk")?);
                Ok(image::Layer { file, format: format_of(layer.format) })
            })
            .collect::<Result<Vec<_>, MachineError>>()?;
        block::open(layers, access(disk)).map_err(|source| MachineError::Disk { index, source })
    };
    configs.iter().enumerate().map(open).collect()
}

fn access(disk: &config::Disk) -> Access {
    match (disk.read_only, disk.scratch) {
        (true, _) => Access::ReadOnly,
        (false, true) => Access::Scratch,
        (false, false) => Access::Kept,
    }
}

fn format_of(format: Format) -> image::Format {
    match format {
        Format::Raw => image::Format::Raw,
        Format::Qcow2 => image::Format::Qcow2,
    }
}

fn open_boot(
    boot: &Boot,
    first: Option<&OpenDisk>,
    inherited: &mut Inherited,
) -> Result<BootSource, MachineError> {
    Ok(match boot {
        Boot::Disk { append } => BootSource::Disk {
            disk: first.ok_or_else(|| MachineError::Config("no disk to boot from".into()))?.disk.clone(),
            append: append.clone(),
        },
        Boot::Files { kernel, initrd, cmdline } => BootSource::Files {
            kernel: inherited.take(*kernel, "the kernel")?.into(),
            initrd: initrd.map(|fd| inherited.take(fd, "the initrd")).transpose()?.map(File::from),
            cmdline: cmdline.clone(),
        },
    })
}

/// Every virtio device in its slot.
fn devices(
    config: &MachineConfig,
    inherited: &mut Inherited,
    memory: &Arc<Memory>,
    disks: Vec<OpenDisk>,
) -> Result<Vec<Slot>, MachineError> {
    let mut slots = Vec::new();
    let mut add = |name: String, pci_device: u8, device: Box<dyn VirtioDevice>| {
        let slot = Slot::new(name, pci_device, device).map_err(MachineError::system("making a doorbell"))?;
        slots.push(slot);
        Ok::<_, MachineError>(())
    };
    let rng = Rng::new(KernelEntropy).map_err(MachineError::system("making the entropy device"))?;
    add("rng".into(), RNG, Box::new(rng))?;
    let balloon =
        Balloon::new(Madvise::new(Arc::clone(memory))).map_err(MachineError::system("making the balloon"))?;
    add("balloon".into(), BALLOON, Box::new(balloon))?;
    if let Some(vsock) = &config.vsock {
        let listener = UnixListener::from(inherited.take(vsock.listener, "the vsock socket")?);
        let device =
            Vsock::new(vsock.cid, listener).map_err(MachineError::system("making the vsock device"))?;
        add("vsock".into(), VSOCK, Box::new(device))?;
    }
    for ((index, disk), config) in (0..).zip(disks).zip(&config.disks) {
        let options = Options { serial: config.serial.clone(), read_only: config.read_only, queues: 1 };
        let device =
            Block::new(disk.backend, &options).map_err(|error| MachineError::Config(error.to_string()))?;
        add(format!("block{index}"), DISK_FIRST + index, Box::new(device))?;
    }
    for (index, net) in (0..).zip(&config.nets) {
        let tap = inherited.take(net.tap, "a tap")?;
        let device = net::device(tap, net.mac).map_err(MachineError::system("making a network device"))?;
        add(format!("net{index}"), NET_FIRST + index, device)?;
    }
    Ok(slots)
}

const KVM_API_VERSION: i32 = 12;

// PCI device numbers. Guests name disks and interfaces by their order, and interfaces by number too.
const RNG: u8 = 1;
const BALLOON: u8 = 2;
const VSOCK: u8 = 3;
const DISK_FIRST: u8 = 5;
const NET_FIRST: u8 = 21;

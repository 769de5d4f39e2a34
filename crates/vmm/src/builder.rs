//! Makes a [`Machine`] out of its configuration and the descriptors that the process was born with.

use std::{
    os::{
        fd::{FromRawFd, IntoRawFd, OwnedFd},
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
    Event, Exit, MachineConfig,
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
    inherited::{BootFiles, Descriptors, Inherited},
    machine::Machine,
    mailbox::Mailbox,
    memory, net,
    reclaim::Madvise,
    report::Report,
    sandbox,
    slots::Slot,
    vcpu,
};

/// Runs a machine from its birth to its end.
pub fn run(config: MachineConfig, born: Instant) -> Exit {
    let mut report = Report::new(born);
    let mut descriptors = match take_descriptors(&config, &mut report) {
        Ok(descriptors) => descriptors,
        Err(error) => return fail(&mut report, &error),
    };
    if let Err(error) = sandbox::enter(&config.sandbox, descriptors.network.take()) {
        return fail(&mut report, &error.into());
    }
    let sandbox = config.sandbox.kind();
    report.tell(|us| Event::Sandboxed { us, sandbox });
    match build(config, descriptors) {
        Ok(machine) => machine(report).live(),
        Err(error) => fail(&mut report, &error),
    }
}

fn fail(report: &mut Report, error: &MachineError) -> Exit {
    let (exit, _) = report.failed(error.failure());
    report.finish();
    exit
}

/// Takes what the process was born with: first of all the ways of reporting that something is amiss.
fn take_descriptors(config: &MachineConfig, report: &mut Report) -> Result<Descriptors, MachineError> {
    let mut inherited = Inherited::default();
    if let Some(fd) = config.record {
        report.record_in(inherited.take(fd, "the record")?);
    }
    if let Some(fd) = config.events {
        let stream = inherited.take(fd, "events")?;
        report.stream_to(stream).map_err(MachineError::system("preparing the stream of events"))?;
    }
    Ok(Descriptors::take(config, &mut inherited)?)
}

/// What the machine is made of, from the ground up. What it reports to comes last, because until then it
/// is needed for reporting why there is no machine.
fn build(
    config: MachineConfig,
    descriptors: Descriptors,
) -> Result<impl FnOnce(Report) -> Machine, MachineError> {
    check(&config)?;
    let Descriptors { kvm, network: _, boot, disks, taps, vsock, console, control, lifeline } = descriptors;
    vcpu::prepare_signal().map_err(MachineError::system("installing a signal handler"))?;
    let kvm = open_kvm(&config, kvm)?;
    let memory = memory::map(config.memory_mib)?;
    let disks = open_disks(&config.disks, disks)?;
    let boot = open_boot(&config.boot, disks.first(), boot)?;
    let slots = devices(&config, vsock, taps, &memory, disks)?;
    let console = Console::new(console).map_err(MachineError::system("making the console"))?;
    let control = control
        .map(|fd| ControlServer::new(UnixListener::from(fd)))
        .transpose()
        .map_err(MachineError::system("making the control socket"))?;
    let event_loop = EventLoop::new().map_err(MachineError::system("making the event loop"))?;
    let mailbox = Mailbox::new().map_err(MachineError::system("making the mailbox"))?;
    Ok(move |report| Machine {
        kvm,
        memory,
        boot,
        slots,
        console,
        rtc: Arc::new(Mutex::new(Rtc::new(HostClock))),
        control,
        lifeline,
        event_loop,
        mailbox,
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

fn open_kvm(config: &MachineConfig, fd: OwnedFd) -> Result<Kvm, MachineError> {
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

fn open_disks(configs: &[config::Disk], files: Vec<Vec<OwnedFd>>) -> Result<Vec<OpenDisk>, MachineError> {
    let open = |(index, (disk, files)): (usize, (&config::Disk, Vec<OwnedFd>))| {
        let layers = disk.layers.iter().zip(files);
        let layers =
            layers.map(|(layer, file)| image::Layer { file: file.into(), format: format_of(layer.format) });
        block::open(layers.collect(), access(disk)).map_err(|source| MachineError::Disk { index, source })
    };
    configs.iter().zip(files).enumerate().map(open).collect()
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
    files: Option<BootFiles>,
) -> Result<BootSource, MachineError> {
    Ok(match (boot, files) {
        (Boot::Files { cmdline, .. }, Some(BootFiles { kernel, initrd })) => BootSource::Files {
            kernel: kernel.into(),
            initrd: initrd.map(Into::into),
            cmdline: cmdline.clone(),
        },
        (Boot::Files { .. }, None) => return Err(MachineError::Config("no kernel to boot".into())),
        (Boot::Disk { append }, _) => BootSource::Disk {
            disk: first.ok_or_else(|| MachineError::Config("no disk to boot from".into()))?.disk.clone(),
            append: append.clone(),
        },
    })
}

/// Every virtio device in its slot.
fn devices(
    config: &MachineConfig,
    vsock: Option<OwnedFd>,
    taps: Vec<OwnedFd>,
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
    if let Some((vsock, listener)) = config.vsock.as_ref().zip(vsock) {
        let device = Vsock::new(vsock.cid, UnixListener::from(listener))
            .map_err(MachineError::system("making the vsock device"))?;
        add("vsock".into(), VSOCK, Box::new(device))?;
    }
    for ((index, disk), config) in (0..).zip(disks).zip(&config.disks) {
        let options = Options { serial: config.serial.clone(), read_only: config.read_only, queues: 1 };
        let device =
            Block::new(disk.backend, &options).map_err(|error| MachineError::Config(error.to_string()))?;
        add(format!("block{index}"), DISK_FIRST + index, Box::new(device))?;
    }
    for ((index, net), tap) in (0..).zip(&config.nets).zip(taps) {
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

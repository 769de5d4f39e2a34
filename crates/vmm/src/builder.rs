//! Makes a [`Machine`] out of its configuration and the descriptors that the process was born with.

use std::{
    fs::File,
    os::{
        fd::{AsFd, FromRawFd, IntoRawFd, OwnedFd},
        unix::net::UnixListener,
    },
    sync::{Arc, Mutex},
    time::Instant,
};

use ec2vmm_devices::{
    rtc::Rtc,
    virtio::{
        balloon::{self, Balloon},
        rng::Rng,
        vsock::Vsock,
    },
};
use ec2vmm_vmm_api::{
    Event, Exit, MachineConfig,
    config::{self, Boot, Format, MemoryBackend},
    control::{Booted, State},
};
use kvm_ioctls::Kvm;
use vmm_sys_util::timerfd::TimerFd;

use crate::{
    block::{Access, OpenDisk, Rings, SPARE},
    boot_source::BootSource,
    clock::{HostClock, MonotonicTimer},
    console::Console,
    control::ControlServer,
    entropy::KernelEntropy,
    error::MachineError,
    event_loop::EventLoop,
    inherited::{BootFiles, Descriptors, Inherited, PagerFiles, RestoreFiles},
    machine::Machine,
    mailbox::Mailbox,
    memory,
    parts::{self, DiskSpec},
    rate_limits::limiter,
    reclaim::Madvise,
    report::Report,
    sandbox,
    slots::{DISKS, NETS, Part, Slot, Slots},
    snapshot::{Pager, PagerParts, Snapshot},
    userfault::{NoUserfaultfd, Userfault},
    vcpu,
    x86_64::acpi,
};

/// Runs a machine from its birth to its end.
pub fn run(config: MachineConfig, born: Instant) -> Exit {
    let report = Report::new(born);
    let mut descriptors = match take_descriptors(&config, &report) {
        Ok(descriptors) => descriptors,
        Err(error) => return fail(&report, &error),
    };
    // There is none to be had later.
    let userfault = match make_userfault(&mut descriptors) {
        Ok(userfault) => userfault,
        Err(error) => return fail(&report, &error.into()),
    };
    let rings = || Rings::make(rings_for(&config));
    let rings = match sandbox::enter(&config.sandbox, descriptors.network.take(), rings) {
        Ok(rings) => rings,
        Err(error) => return fail(&report, &error.into()),
    };
    let sandbox = config.sandbox.kind();
    report.tell(|us| Event::Sandboxed { us, sandbox });
    match build(config, descriptors, Early { rings, userfault }, &report) {
        Ok(machine) => machine(report).live(),
        Err(error) => fail(&report, &error),
    }
}

fn fail(report: &Report, error: &MachineError) -> Exit {
    let (exit, _) = report.failed(error.failure());
    report.finish();
    exit
}

/// Takes what the process was born with: first of all the ways of reporting that something is amiss.
fn take_descriptors(config: &MachineConfig, report: &Report) -> Result<Descriptors, MachineError> {
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

fn make_userfault(descriptors: &mut Descriptors) -> Result<Option<Userfault>, NoUserfaultfd> {
    let pager = descriptors.restore.as_mut().and_then(|restore| restore.pager.as_mut());
    let Some(pager) = pager else { return Ok(None) };
    let device = pager.device.take();
    Userfault::new(device.as_ref().map(AsFd::as_fd)).map(Some)
}

/// What can only be made before the process is shut in.
struct Early {
    rings: Rings,
    userfault: Option<Userfault>,
}

/// What the machine is made of, from the ground up. What it reports to comes last, because until then it
/// is needed for reporting why there is no machine.
fn build(
    config: MachineConfig,
    descriptors: Descriptors,
    early: Early,
    report: &Report,
) -> Result<impl FnOnce(Report) -> Machine + use<>, MachineError> {
    check(&config)?;
    let Early { rings, userfault } = early;
    let Descriptors { kvm, network: _, boot, restore, disks, taps, vsock, console, control, lifeline } =
        descriptors;
    vcpu::prepare_signal().map_err(MachineError::system("installing a signal handler"))?;
    let kvm = open_kvm(&config, kvm)?;
    let mailbox = Mailbox::new().map_err(MachineError::system("making the mailbox"))?;
    let (mut snapshot, pager) =
        restore.map(|files| open_snapshot(files, userfault, &config)).transpose()?.unzip();
    let (memory, pager) = match (&mut snapshot, pager.flatten()) {
        (Some(snapshot), Some(pager)) => {
            let mib = config.memory_mib;
            let (memory, pager) = snapshot.page_memory(mib, pager, mailbox.sender(), report.clone())?;
            (memory, Some(pager))
        }
        (Some(snapshot), None) => (snapshot.map_memory(config.memory_mib)?, None),
        (None, _) if config.huge_pages => (memory::map_huge(config.memory_mib)?, None),
        (None, _) => (memory::map(config.memory_mib)?, None),
    };
    let disks = open_disks(&config.disks, disks, &rings)?;
    let boot = open_boot(&config.boot, disks.first(), boot)?;
    let reclaim = Madvise::new(Arc::clone(&memory), pager.as_ref().map(Pager::discards));
    let slots = devices(&config, vsock, taps, reclaim, disks)?;
    if let Some(snapshot) = &snapshot {
        snapshot.check(&config, &slots)?;
    }
    let console = Console::new(console).map_err(MachineError::system("making the console"))?;
    let control = control
        .map(|fd| ControlServer::new(UnixListener::from(fd)))
        .transpose()
        .map_err(MachineError::system("making the control socket"))?;
    let event_loop = EventLoop::new().map_err(MachineError::system("making the event loop"))?;
    let generation = acpi::generation::new().map_err(MachineError::system("getting random numbers"))?;
    let watch_timer = (config.stuck_after_s > 0).then(TimerFd::new).transpose();
    let watch_timer = watch_timer.map_err(|error| MachineError::System {
        what: "making the timer of the watch",
        source: error.into(),
    })?;
    let reboot_timer = MonotonicTimer::new().map_err(MachineError::system("making the timer of reboots"))?;
    Ok(move |report| Machine {
        kvm,
        memory,
        boot,
        restored: snapshot.is_some(),
        snapshot,
        pager,
        memory_lost: false,
        tracking: None,
        generation,
        slots,
        rings,
        console,
        rtc: Arc::new(Mutex::new(Rtc::new(HostClock))),
        control,
        underway: None,
        untold: None,
        lifeline,
        event_loop,
        mailbox,
        watch_timer,
        reboot_timer,
        reboot: None,
        counters: Arc::default(),
        state: State::Starting,
        end: None,
        reboots: 0,
        booted: Booted::default(),
        report,
        config,
    })
}

fn open_snapshot(
    files: RestoreFiles,
    userfault: Option<Userfault>,
    config: &MachineConfig,
) -> Result<(Snapshot, Option<PagerParts>), MachineError> {
    let RestoreFiles { state, memory, pager } = files;
    let (clock, track) =
        config.restore.as_ref().map(|restore| (restore.clock, restore.track)).unwrap_or_default();
    let memory = memory.into_iter().map(File::from).collect();
    let snapshot = Snapshot::open(&state.into(), memory, config, clock, track)?;
    let parts = |(userfault, PagerFiles { prefetch, record, device: _ })| PagerParts {
        userfault,
        prefetch: prefetch.map(File::from),
        record: record.map(File::from),
    };
    Ok((snapshot, userfault.zip(pager).map(parts)))
}

/// What the contract promises, before anything is made.
///
/// # Errors
/// The configuration is outside of the contract's limits.
pub fn check(config: &MachineConfig) -> Result<(), MachineError> {
    let queues = 1..=config::QUEUES_MAX;
    let limits = [
        (config.version != ec2vmm_vmm_api::VERSION, "the configuration is of another version"),
        (!(1..=config::CPUS_MAX).contains(&config.cpus), "a machine has 1 to 64 vCPUs"),
        (config.memory_mib < config::MEMORY_MIB_MIN, "a machine has at least 32 MiB of memory"),
        (
            config.huge_pages && !config.memory_mib.is_multiple_of(config::HUGE_PAGE_MIB),
            "memory of huge pages is a whole number of 2 MiB",
        ),
        (
            config.huge_pages && config.restore.is_some(),
            "a machine that goes on from a snapshot has its pages, and no huge ones",
        ),
        (
            matches!(
                config.restore.as_ref().map(|restore| &restore.backend),
                Some(MemoryBackend::Userfaultfd { prefetch: Some(_), record: Some(_), .. })
            ),
            "a working set is recorded or prefetched, not both: of what comes ahead no touch is seen",
        ),
        (config.disks.len() > config::DISKS_MAX, "a machine has at most 16 disks"),
        (config.nets.len() > config::NETS_MAX, "a machine has at most 8 network interfaces"),
        (config.disks.iter().any(|disk| disk.layers.is_empty()), "a disk has at least one layer"),
        (
            config.disks.iter().filter_map(|disk| disk.queues).any(|count| !queues.contains(&count)),
            "a disk has 1 to 16 queues",
        ),
        (
            config
                .nets
                .iter()
                .any(|net| !u16::try_from(net.taps.len()).is_ok_and(|count| queues.contains(&count))),
            "a network interface has 1 to 16 queues of a tap",
        ),
        (
            config.nets.iter().filter_map(|net| net.mtu).any(|mtu| mtu < config::MTU_MIN),
            "a network interface has an MTU of at least 68 bytes",
        ),
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

/// How many rings this machine can ever use: one for each disk that is one raw file, and some for disks that
/// are attached, if anybody can attach any.
fn rings_for(config: &MachineConfig) -> usize {
    let is_raw =
        |disk: &&config::Disk| matches!(disk.layers.as_slice(), [layer] if layer.format == Format::Raw);
    let raw = config.disks.iter().filter(is_raw).count();
    let spare = if config.control.is_some() { SPARE } else { 0 };
    (raw + spare).min(config::DISKS_MAX)
}

fn open_disks(
    configs: &[config::Disk],
    files: Vec<Vec<OwnedFd>>,
    rings: &Rings,
) -> Result<Vec<OpenDisk>, MachineError> {
    let open = |(index, (disk, files)): (usize, (&config::Disk, Vec<OwnedFd>))| {
        let formats = disk.layers.iter().map(|layer| layer.format);
        parts::open_disk(files, formats, access(disk), rings)
            .map_err(|source| MachineError::Disk { index, source })
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
    taps: Vec<Vec<OwnedFd>>,
    reclaim: Madvise,
    disks: Vec<OpenDisk>,
) -> Result<Slots, MachineError> {
    let mut slots = Slots::default();
    let mut add = |slot: Result<Slot, MachineError>| {
        let no_id = || MachineError::Config("too many devices".into());
        slots.insert(slot?).map(drop).ok_or_else(no_id)
    };
    let fixed = |name: &str, place, device| {
        Slot::new(name.into(), place, Part::Fixed, device).map_err(MachineError::system("making a doorbell"))
    };
    let rng = limiter(config.entropy.rate_limit)
        .and_then(|limiter| Rng::new(KernelEntropy, limiter))
        .map_err(MachineError::system("making the entropy device"))?;
    add(fixed("rng", RNG, Box::new(rng)))?;
    let config::Balloon { deflate_on_oom, free_page_reporting } = config.balloon;
    let memory_bytes = config.memory_mib.saturating_mul(1 << 20);
    let options = balloon::Options { memory_bytes, deflate_on_oom, free_page_reporting };
    let balloon = MonotonicTimer::new()
        .and_then(|clock| Balloon::new(reclaim, options, Box::new(clock)))
        .map_err(MachineError::system("making the balloon"))?;
    add(fixed("balloon", BALLOON, Box::new(balloon)))?;
    if let Some((vsock, listener)) = config.vsock.as_ref().zip(vsock) {
        let device = Vsock::new(vsock.cid, UnixListener::from(listener))
            .map_err(MachineError::system("making the vsock device"))?;
        add(fixed("vsock", VSOCK, Box::new(device)))?;
    }
    let (boots, cpus) = (matches!(config.boot, Boot::Disk { .. }), config.cpus);
    for ((index, disk), config) in (0..).zip(disks).zip(&config.disks) {
        let spec = DiskSpec {
            serial: config.serial.clone(),
            access: access(config),
            boots: boots && index == 0,
            queues: config.queues.unwrap_or(parts::queues_usual(cpus)),
            rate_limit: config.rate_limit,
        };
        add(parts::disk(format!("block{index}"), DISKS.start + index, spec, disk))?;
    }
    for ((index, net), taps) in (0..).zip(&config.nets).zip(taps) {
        add(parts::net(format!("net{index}"), NETS.start + index, taps, net))?;
    }
    Ok(slots)
}

const KVM_API_VERSION: i32 = 12;

// PCI device numbers. Others are in `slots`.
const RNG: u8 = 1;
const BALLOON: u8 = 2;
const VSOCK: u8 = 3;

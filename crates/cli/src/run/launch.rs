//! From a plan to a running machine process: everything is opened here, in the order in which people
//! would want to hear that it cannot be. What is opened closes again on every error.

use std::{ffi::OsStr, os::fd::OwnedFd, time::Instant};

use ec2vmm_host::{
    capacity,
    cgroups::OwnGroup,
    disks, files,
    machine::{self, Machine, Net, Parts},
    sandbox::Sandbox,
    sockets::{Dialer, Listener, listen_unnamed},
    tap,
};
use ec2vmm_vmm_api::config::Identity;
use uuid::Uuid;

use super::{
    console_file::ConsoleFile,
    plan::{Boot, Cgroup, Console, Plan},
    restore::Restore,
};
use crate::error::{Error, chain, failed_to};

/// A running machine, and what must live as long as it does.
#[derive(Debug)]
pub(crate) struct Launched {
    pub(crate) machine: Machine,
    /// What people should know although it is no error.
    pub(crate) notes: Vec<String>,
    pub(crate) console_file: Option<ConsoleFile>,
    /// The way to the control socket.
    pub(crate) control: Dialer,
    /// Their names go when the machine does.
    _sockets: Vec<Listener>,
}

/// Starts the machine, and says when.
pub(crate) fn launch(plan: &Plan, born: &mut Instant) -> Result<Launched, Error> {
    let mut notes = Vec::new();
    let disks = open_disks(plan)?;
    let boot = open_boot(&plan.boot)?;
    let kvm = capacity::open_kvm(&plan.kvm_device)?;
    if !plan.emulated_kvm {
        capacity::check_hardware_virtualization()?;
    }
    // Huge pages are not among the available memory; the machine process finds out.
    if !plan.huge_pages {
        capacity::check_memory(plan.size.memory_mib)?;
    }
    let host_cpus = capacity::cpus();
    if usize::from(plan.size.cpus) > host_cpus {
        notes.push(format!("{} vCPUs share the {host_cpus} processors of this host", plan.size.cpus));
    }
    let nets = open_taps(plan, &mut notes)?;
    let program = match &plan.program {
        Some(program) => program.clone(),
        None => machine::find_program(plan.path.as_deref().map(OsStr::new))?,
    };
    let console_file = match &plan.console {
        Console::File(path) => Some(ConsoleFile::create(path)?),
        Console::Stdout | Console::Stderr => None,
    };
    let vsock = plan.vsock.as_deref().map(Listener::bind).transpose()?;
    let control = plan.control.as_deref().map(Listener::bind).transpose()?;
    let (control_end, dialer) = control_socket(plan, control.as_ref())?;
    let vsock_end =
        vsock.as_ref().map(Listener::try_clone).transpose().map_err(failed_to("hand over a socket"))?;
    let sandbox = Sandbox::for_this_process(plan.sandbox)?;
    if matches!(sandbox, Sandbox::Landlock) && plan.sandbox.is_none() {
        notes.push("this host allows no user namespaces: the machine process is shut in by Landlock".into());
    }
    let parts = Parts {
        kvm,
        sandbox,
        identity: identity(&plan.size.product),
        cpus: plan.size.cpus,
        memory_mib: plan.size.memory_mib,
        huge_pages: plan.huge_pages,
        boot,
        restore: plan.restore.as_ref().map(Restore::open).transpose()?,
        disks,
        nets,
        balloon: plan.balloon,
        entropy: plan.entropy,
        vsock: vsock_end,
        control: Some(control_end),
    };
    let group = control_group(plan, &parts.disks, &mut notes)?;
    *born = Instant::now();
    let machine = Machine::start(&program, &plan.variables, parts, group)?;
    let sockets = vsock.into_iter().chain(control).collect();
    Ok(Launched { machine, notes, console_file, control: dialer, _sockets: sockets })
}

fn open_disks(plan: &Plan) -> Result<Vec<disks::Disk>, Error> {
    let mut open = Vec::new();
    for wanted in &plan.disks {
        open.push(disks::open(wanted, &plan.scratch)?);
    }
    if !plan.seed.is_empty() {
        open.push(plan.seed.disk()?);
    }
    Ok(open)
}

fn open_boot(boot: &Boot) -> Result<machine::Boot, Error> {
    Ok(match boot {
        Boot::Disk { append } => machine::Boot::Disk { append: append.clone() },
        Boot::Files { kernel, initrd, cmdline } => machine::Boot::Files {
            kernel: files::open(kernel)?,
            initrd: initrd.as_deref().map(files::open).transpose()?,
            cmdline: cmdline.clone(),
        },
    })
}

fn open_taps(plan: &Plan, notes: &mut Vec<String>) -> Result<Vec<Net>, Error> {
    let mut nets = Vec::new();
    for cable in &plan.nets {
        let tap = tap::open(&cable.tap, cable.queues)?;
        if !tap.is_up {
            notes.push(format!(
                "tap `{}` is down and carries nothing until `ip link set {} up`",
                cable.tap, cable.tap
            ));
        }
        nets.push(Net {
            taps: tap.queues,
            mac: cable.mac,
            mtu: cable.mtu,
            receive_limit: cable.receive,
            transmit_limit: cable.transmit,
        });
    }
    Ok(nets)
}

/// Memory is not limited where the guest fills it by writing to its disks. Nobody expects a group of an ordinary
/// user's machine, so only root is told that there is none.
fn control_group(
    plan: &Plan,
    disks: &[disks::Disk],
    notes: &mut Vec<String>,
) -> Result<Option<OwnGroup>, Error> {
    let memory_mib = (!disks.iter().any(disks::Disk::is_in_memory)).then_some(plan.size.memory_mib);
    let cpus = plan.size.cpus;
    match &plan.cgroup {
        Cgroup::None => Ok(None),
        Cgroup::In(parent) => Ok(Some(OwnGroup::make(parent, cpus, memory_mib)?)),
        Cgroup::Usual => match OwnGroup::make_as_usual(cpus, memory_mib) {
            Ok(group) => Ok(Some(group)),
            Err(error) => {
                if rustix::process::geteuid().is_root() {
                    let why = chain(&error);
                    notes.push(format!("what the machine process takes of this host is not limited: {why}"));
                }
                Ok(None)
            }
        },
    }
}

/// The machine always has a control socket, for the power button; it has a name only if asked for.
fn control_socket(plan: &Plan, named: Option<&Listener>) -> Result<(OwnedFd, Dialer), Error> {
    match named {
        Some(listener) => {
            Ok((listener.try_clone().map_err(failed_to("hand over a socket"))?, listener.dialer()?))
        }
        None => Ok(listen_unnamed(&plan.scratch)?),
    }
}

/// Nobody answers at 169.254.169.254, so the UUID must not promise it: cloud-init would wait minutes.
fn identity(product: &str) -> Identity {
    let promises = |uuid: &Uuid| {
        let bytes = [uuid.into_bytes(), uuid.to_bytes_le()].map(Uuid::from_bytes);
        bytes.iter().any(|uuid| uuid.to_string().starts_with("ec2"))
    };
    let mut uuids = std::iter::repeat_with(Uuid::new_v4);
    Identity {
        uuid: uuids.find(|uuid| !promises(uuid)).unwrap_or_default(),
        manufacturer: MANUFACTURER.to_owned(),
        product: product.to_owned(),
        asset_tag: None,
    }
}

const MANUFACTURER: &str = "ec2vmm";

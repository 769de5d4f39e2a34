//! Devices that come and go while the guest runs.
//!
//! ```text
//!   attach ──► on the bus, the guest is told ──► detach: the guest is asked ──► it lets go ──► gone
//!                                                        └── by force, or by a reset ─────────► gone
//! ```
//!
//! Invariant: what is refused has changed nothing, and closes the descriptors that came with it.

use std::{io, os::fd::OwnedFd, sync::Arc};

use ec2vmm_devices::{
    pci::{Link, PciBus, VirtioFunction, virtio::BAR_LEN},
    virtio::{CommandError, DeviceCommand},
};
use ec2vmm_vmm_api::{
    Event,
    config::{self, RateLimit},
    control::{self, AttachDisk, AttachNet, ID_BYTES_MAX, LAYERS_MAX, NetLimits, Problem, State},
};

use super::{Machine, Run};
use crate::{
    block::{self, Access},
    control::{Detached, problem},
    error::{MachineError, chain},
    parts::{self, DiskSpec},
    rate_limits::understand,
    slots::{DISKS, DiskPart, NETS, Part, Slot, SlotId},
    vm::InterruptRoutes,
    wiring::KvmWiring,
    x86_64::{acpi, layout},
};

/// What a device is asked for as.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    Disk,
    Net,
}

impl Kind {
    fn fits(self, part: &Part) -> bool {
        matches!((self, part), (Self::Disk, Part::Disk(_)) | (Self::Net, Part::Net { .. }))
    }

    fn noun(self) -> &'static str {
        match self {
            Self::Disk => "disk",
            Self::Net => "network interface",
        }
    }
}

impl Machine {
    pub(super) fn attach_disk(
        &mut self,
        run: &Run,
        wanted: AttachDisk,
        files: Vec<OwnedFd>,
    ) -> Result<control::Disk, Problem> {
        self.check_may_change()?;
        self.check_new_id(&wanted.id)?;
        let AttachDisk { id, layers, read_only, scratch, serial, queues, rate_limit } = wanted;
        if !(1..=LAYERS_MAX).contains(&layers.len()) {
            return Err(problem(400, format!("layers: a disk has 1 to {LAYERS_MAX} files")));
        }
        check_count(files.len(), layers.len(), "a file for each layer")?;
        let queues = queues.unwrap_or(parts::queues_usual(self.config.cpus));
        check_queues("queues", queues.into())?;
        let access = match (read_only, scratch) {
            (true, true) => {
                return Err(problem(
                    400,
                    "scratch: a disk that is read only has nothing to throw away".into(),
                ));
            }
            (true, false) => Access::ReadOnly,
            (false, true) => Access::Scratch,
            (false, false) => Access::Kept,
        };
        for (index, file) in files.iter().enumerate() {
            parts::check_file(file, index == 0 && !read_only)
                .map_err(|error| problem(400, format!("the file of layer {index}: {}", chain(&error))))?;
        }
        let place = self.slots.free_place(DISKS).ok_or_else(|| full("disks", DISKS.len()))?;
        let open = parts::open_disk(files, layers, access, &self.rings).map_err(|error| no_disk(&error))?;
        let spec = DiskSpec { serial, access, boots: false, queues, rate_limit };
        let slot = parts::disk(id, place, spec, open).map_err(|error| cannot(&error))?;
        let id = self.plug(run, slot).map_err(|error| cannot(&error))?;
        self.slots.get(id).and_then(view_disk).ok_or_else(|| problem(500, "the disk is gone".into()))
    }

    pub(super) fn attach_net(
        &mut self,
        run: &Run,
        wanted: AttachNet,
        taps: Vec<OwnedFd>,
    ) -> Result<control::Net, Problem> {
        self.check_may_change()?;
        self.check_new_id(&wanted.id)?;
        let AttachNet { id, mac, mtu, limits: NetLimits { receive, transmit } } = wanted;
        if taps.is_empty() {
            check_count(0, 1, "a tap")?;
        }
        check_queues("a tap's descriptors", taps.len())?;
        if matches!(mac, [first, ..] if first & 1 != 0) || mac == [0; 6] {
            return Err(problem(400, "mac: not the address of an interface".into()));
        }
        if mtu.is_some_and(|mtu| mtu < config::MTU_MIN) {
            return Err(problem(400, format!("mtu: at least {} bytes are possible", config::MTU_MIN)));
        }
        let place = self.slots.free_place(NETS).ok_or_else(|| full("network interfaces", NETS.len()))?;
        let net =
            config::Net { taps: Vec::new(), mac, mtu, receive_limit: receive, transmit_limit: transmit };
        let slot = parts::net(id, place, taps, &net).map_err(|error| no_tap(&error))?;
        let id = self.plug(run, slot).map_err(|error| cannot(&error))?;
        self.slots.get(id).and_then(view_net).ok_or_else(|| problem(500, "the interface is gone".into()))
    }

    /// Asks the guest to let go of a device, or takes it away.
    pub(super) fn detach(
        &mut self,
        run: &Run,
        kind: Kind,
        name: &str,
        force: bool,
    ) -> Result<Detached, Problem> {
        let id = self.find(kind, name)?;
        self.check_may_change()?;
        let Some(slot) = self.slots.get_mut(id) else { return Err(unknown(kind, name)) };
        if matches!(&slot.part, Part::Disk(disk) if disk.boots) {
            return Err(Problem {
                hint: Some("its kernel is read from it at each start: end the machine instead".into()),
                ..problem(409, format!("{name}: the machine boots from it"))
            });
        }
        let place = slot.pci_device;
        if !force {
            slot.leaving = true;
            run.bus.hot_plug.ask_for(place);
            tell_guest(run);
            return Ok(Detached::Asked);
        }
        if !run.bus.hot_plug.withdraw(place) && slot.leaving {
            // The guest has let go of it this moment: news of it is on its way.
            return Ok(Detached::Asked);
        }
        run.bus.pci.remove(place);
        self.unplug(id);
        Ok(Detached::Gone)
    }

    /// The guest has let go of what is in this place.
    pub(super) fn ejected(&mut self, pci_device: u8) {
        if let Some(id) = self.slots.at(pci_device)
            && self.slots.get(id).is_some_and(|slot| slot.leaving)
        {
            self.unplug(id);
        }
    }

    /// A guest that starts anew keeps nothing that the last one was to let go of.
    pub(super) fn unplug_leaving(&mut self) {
        let leaving: Vec<_> = self.slots.iter().filter(|(_, slot)| slot.leaving).map(|(id, _)| id).collect();
        leaving.into_iter().for_each(|id| self.unplug(id));
    }

    pub(super) fn resize(&mut self, name: &str, bytes: Option<u64>) -> Result<control::Disk, Problem> {
        let id = self.find(Kind::Disk, name)?;
        self.check_may_change()?;
        let Some(slot) = self.slots.get_mut(id) else { return Err(unknown(Kind::Disk, name)) };
        let Part::Disk(part) = &slot.part else { return Err(unknown(Kind::Disk, name)) };
        let bytes = new_size(part, bytes)?;
        if bytes != part.disk.size() {
            slot.command(&DeviceCommand::Resize { bytes }).map_err(|error| refused(name, &error))?;
        }
        view_disk(slot).ok_or_else(|| unknown(Kind::Disk, name))
    }

    pub(super) fn limit_disk(&mut self, name: &str, limit: RateLimit) -> Result<control::Disk, Problem> {
        let id = self.find(Kind::Disk, name)?;
        let Some(slot) = self.slots.get_mut(id) else { return Err(unknown(Kind::Disk, name)) };
        let command = DeviceCommand::LimitRequests(understand(limit));
        slot.command(&command).map_err(|error| refused(name, &error))?;
        if let Part::Disk(part) = &mut slot.part {
            part.rate_limit = limit;
        }
        view_disk(slot).ok_or_else(|| unknown(Kind::Disk, name))
    }

    pub(super) fn limit_net(&mut self, name: &str, wanted: NetLimits) -> Result<control::Net, Problem> {
        let id = self.find(Kind::Net, name)?;
        let Some(slot) = self.slots.get_mut(id) else { return Err(unknown(Kind::Net, name)) };
        let NetLimits { receive, transmit } = wanted;
        let command =
            DeviceCommand::LimitFrames { receive: understand(receive), transmit: understand(transmit) };
        slot.command(&command).map_err(|error| refused(name, &error))?;
        if let Part::Net { limits, .. } = &mut slot.part {
            *limits = wanted;
        }
        view_net(slot).ok_or_else(|| unknown(Kind::Net, name))
    }

    pub(super) fn disks(&self) -> Vec<control::Disk> {
        let mut disks: Vec<_> = self.slots.iter().filter_map(|(_, slot)| view_disk(slot)).collect();
        disks.sort_by_key(|disk| disk.pci_device);
        disks
    }

    pub(super) fn nets(&self) -> Vec<control::Net> {
        let mut nets: Vec<_> = self.slots.iter().filter_map(|(_, slot)| view_net(slot)).collect();
        nets.sort_by_key(|net| net.pci_device);
        nets
    }

    pub(super) fn disk(&self, name: &str) -> Result<control::Disk, Problem> {
        let found = self.slots.named(name).and_then(|id| self.slots.get(id));
        found.and_then(view_disk).ok_or_else(|| unknown(Kind::Disk, name))
    }

    pub(super) fn net(&self, name: &str) -> Result<control::Net, Problem> {
        let found = self.slots.named(name).and_then(|id| self.slots.get(id));
        found.and_then(view_net).ok_or_else(|| unknown(Kind::Net, name))
    }

    /// Puts a device where this VM's guest reaches it.
    pub(super) fn wire_slot(
        &mut self,
        id: SlotId,
        vm: &crate::vm::Vm,
        routes: &Arc<InterruptRoutes>,
        pci: &PciBus,
    ) -> Result<(), MachineError> {
        let Some(slot) = self.slots.get_mut(id) else { return Ok(()) };
        let identity = slot.device().identity();
        let link = Link::new(identity.queue_sizes.len())
            .map_err(MachineError::system("making interrupt vectors"))?;
        let gsis = layout::msi_gsis(slot.pci_device);
        if link.eventfds().len() > gsis.len() {
            return Err(MachineError::Config(format!("{}: too many queues", slot.name)));
        }
        let wiring = KvmWiring {
            slot: id,
            vm: Arc::clone(vm.fd()),
            link: Arc::clone(&link),
            routes: Arc::clone(routes),
            gsi_base: gsis.start,
            kicks: slot.kicks().to_vec(),
            kicks_address: None,
            news: self.mailbox.sender(),
        };
        let bar = layout::bar(slot.pci_device, BAR_LEN);
        let function =
            VirtioFunction::new(identity, bar, Arc::clone(&self.memory), Arc::clone(&link), wiring)?;
        pci.insert(slot.pci_device, function)?;
        slot.attach(link);
        Ok(())
    }

    /// Takes a new device in, and tells the guest.
    fn plug(&mut self, run: &Run, slot: Slot) -> Result<SlotId, MachineError> {
        let (place, name) = (slot.pci_device, slot.name.clone());
        let id = self
            .slots
            .insert(slot)
            .ok_or_else(|| MachineError::Config("no device can be attached any more".into()))?;
        let wired = self.wire_slot(id, &run.vm, &run.routes, &run.bus.pci).and_then(|()| {
            let watched = self.slots.get(id).map(|slot| self.event_loop.watch_kicks(id, slot));
            watched.unwrap_or(Ok(())).map_err(MachineError::system("waiting for events"))
        });
        if let Err(error) = wired {
            run.bus.pci.remove(place);
            self.slots.remove(id);
            return Err(error);
        }
        // What was asked of whoever was here before is not asked of this one.
        run.bus.hot_plug.withdraw(place);
        run.bus.hot_plug.fill(place);
        tell_guest(run);
        self.tell(|us| Event::Attached { us, id: name });
        Ok(id)
    }

    /// Lets go of a device that is off the bus, or whose bus is no more.
    fn unplug(&mut self, id: SlotId) {
        let Some(mut slot) = self.slots.remove(id) else { return };
        self.event_loop.let_go(&mut slot);
        let name = std::mem::take(&mut slot.name);
        drop(slot);
        self.tell(|us| Event::Detached { us, id: name });
    }

    fn find(&self, kind: Kind, name: &str) -> Result<SlotId, Problem> {
        let found = self.slots.named(name).and_then(|id| Some((id, self.slots.get(id)?)));
        found.filter(|(_, slot)| kind.fits(&slot.part)).map(|(id, _)| id).ok_or_else(|| unknown(kind, name))
    }

    fn check_may_change(&self) -> Result<(), Problem> {
        match self.state {
            _ if self.end.is_some() => Err(super::answers::too_late()),
            State::Paused => Err(Problem {
                hint: Some("PUT /machine/resume first".into()),
                ..problem(409, "devices change only while the machine runs, and it is paused".into())
            }),
            _ => Ok(()),
        }
    }

    fn check_new_id(&self, id: &str) -> Result<(), Problem> {
        let is_sound = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if !(1..=ID_BYTES_MAX).contains(&id.len()) || !id.bytes().all(is_sound) {
            let law = format!("1 to {ID_BYTES_MAX} letters, digits, `-`, `_` and `.`");
            return Err(problem(400, format!("id: {law} are possible")));
        }
        match self.slots.named(id).is_some() || NOT_DEVICES.contains(&id) {
            true => Err(problem(409, format!("id: there is a device called {id} already"))),
            false => Ok(()),
        }
    }
}

/// The size that is asked for, if a disk can have it.
fn new_size(part: &DiskPart, bytes: Option<u64>) -> Result<u64, Problem> {
    let DiskPart { disk, raw, .. } = part;
    if !disk.is_writable() {
        return Err(problem(409, "the disk is read only: it keeps its size".into()));
    }
    let file_bytes = raw.as_ref().map(file_len).transpose();
    let file_bytes =
        file_bytes.map_err(|error| problem(500, format!("asking a file for its length: {error}")))?;
    let (now, new) = match (bytes, file_bytes) {
        (Some(bytes), _) => (disk.size(), bytes),
        (None, Some(file_bytes)) => (disk.size(), file_bytes.next_multiple_of(SECTOR)),
        (None, None) => {
            return Err(problem(400, "bytes: must be said, as the disk is not one raw file".into()));
        }
    };
    if !new.is_multiple_of(SECTOR) {
        return Err(problem(400, format!("bytes: {new} is no multiple of {SECTOR}")));
    }
    if new < now {
        return Err(problem(400, format!("bytes: the disk has {now}, and can only grow")));
    }
    if let Some(file_bytes) = file_bytes.filter(|file_bytes| *file_bytes > new && new != now) {
        return Err(Problem {
            hint: Some("leave bytes out to have all of it".into()),
            ..problem(400, format!("bytes: {new}, but the file has {file_bytes}"))
        });
    }
    Ok(new)
}

/// Of a block device too, whose metadata says 0.
fn file_len(mut file: &std::fs::File) -> io::Result<u64> {
    io::Seek::seek(&mut file, io::SeekFrom::End(0))
}

/// Raises the event of the slots. That it cannot is no reason to undo what has been done: the guest finds
/// out with the next event, or when it looks.
fn tell_guest(run: &Run) {
    if let Err(error) = run.bus.acpi.raise(acpi::Event::Slots) {
        log::error!("telling the guest of its slots: {error}");
    }
}

fn view_disk(slot: &Slot) -> Option<control::Disk> {
    let Part::Disk(DiskPart { disk, serial, boots, rate_limit, .. }) = &slot.part else { return None };
    Some(control::Disk {
        id: slot.name.clone(),
        serial: serial.clone(),
        size_bytes: disk.size(),
        read_only: !disk.is_writable(),
        boots: *boots,
        pci_device: slot.pci_device,
        leaving: slot.leaving,
        rate_limit: *rate_limit,
    })
}

fn view_net(slot: &Slot) -> Option<control::Net> {
    let Part::Net { mac, limits } = slot.part else { return None };
    Some(control::Net {
        id: slot.name.clone(),
        mac,
        pci_device: slot.pci_device,
        leaving: slot.leaving,
        limits,
    })
}

fn check_count(came: usize, wanted: usize, what: &str) -> Result<(), Problem> {
    if came == wanted {
        return Ok(());
    }
    Err(Problem {
        hint: Some("they are sent by SCM_RIGHTS, with the request".into()),
        ..problem(400, format!("{came} descriptors came, and it takes {wanted}: {what}"))
    })
}

fn check_queues(what: &str, count: usize) -> Result<(), Problem> {
    match (1..=config::QUEUES_MAX.into()).contains(&count) {
        true => Ok(()),
        false => Err(problem(400, format!("{what}: 1 to {} are possible", config::QUEUES_MAX))),
    }
}

fn unknown(kind: Kind, name: &str) -> Problem {
    problem(404, format!("there is no {} {name}", kind.noun()))
}

fn full(what: &str, most: usize) -> Problem {
    Problem {
        hint: Some("detach one first".into()),
        ..problem(409, format!("all {most} places of {what} are taken"))
    }
}

fn no_disk(error: &block::OpenError) -> Problem {
    match error {
        block::OpenError::Disk(source) => Problem { hint: source.hint(), ..problem(400, chain(source)) },
        block::OpenError::Start(_) => problem(500, chain(error)),
    }
}

fn no_tap(error: &MachineError) -> Problem {
    let hint = "a tap made with IFF_TAP | IFF_NO_PI | IFF_VNET_HDR is wanted";
    Problem {
        hint: Some(hint.into()),
        ..problem(400, format!("not a tap that can be used: {}", chain(error)))
    }
}

fn cannot(error: &MachineError) -> Problem {
    let status = if matches!(error, MachineError::Config(_)) { 400 } else { 500 };
    problem(status, chain(error))
}

pub(super) fn refused(name: &str, error: &CommandError) -> Problem {
    let status = match error {
        CommandError::Unsupported | CommandError::Guest(_) => 409,
        CommandError::Invalid(_) => 400,
        CommandError::Host(_) => 500,
    };
    problem(status, format!("{name}: {}", chain(error)))
}

/// What metrics call what is no device of the bus.
const NOT_DEVICES: &[&str] = &["vcpu", "console"];
const SECTOR: u64 = 512;

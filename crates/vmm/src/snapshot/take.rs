//! Takes a snapshot of a machine that stands still.

use std::{
    fs::File,
    io::{self, Seek},
    sync::{PoisonError, atomic::Ordering},
    time::Instant,
};

use ec2vmm_devices::{Memory, rtc::WallClock};
use ec2vmm_snapshot::Bitmap;
use ec2vmm_vmm_api::control::{Problem, SnapshotKind, SnapshotRequest, SnapshotTaken, State};
use uuid::Uuid;

use super::{Document, Shape, Tracking, file, memory_file};
use crate::{
    clock::HostClock,
    entropy,
    error::chain,
    machine::{Ending, Machine, Run, answers::too_late},
    vm::KvmError,
    x86_64::{
        cpuid,
        state::{CpuidEntry, VcpuState, VmState, cpuid_of},
    },
};

/// Where a snapshot goes: files that are open for writing, whose content is lost.
#[derive(Debug)]
pub struct Files {
    /// Registers and devices: a few dozen KiB.
    pub state: File,
    /// Guest memory: a file in which there can be holes.
    pub memory: File,
}

/// Why there is no snapshot. The machine is as it was.
#[derive(Debug, thiserror::Error)]
pub enum TakeError {
    /// KVM refused.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// A disk does not have all that was written to it.
    #[error("writing {device} back")]
    WriteBack {
        /// Which.
        device: String,
        /// Why.
        source: io::Error,
    },
    /// A disk's file cannot be looked at.
    #[error("looking at the files of the disks")]
    Disks(#[source] io::Error),
    /// The file takes no more.
    #[error("writing the {0} file")]
    Write(&'static str, #[source] io::Error),
    /// There is no snapshot before.
    #[error("there is no snapshot that this could be a difference to")]
    NoParent,
}

impl TakeError {
    /// As the control socket answers.
    fn problem(&self) -> Problem {
        let (status, hint) = match self {
            Self::NoParent => (409, Some("take a full one with \"track\": true first")),
            Self::Write(..) => (400, Some("give regular files that are open for reading and writing")),
            Self::Kvm(_) | Self::WriteBack { .. } | Self::Disks(_) => (500, None),
        };
        Problem { status, detail: chain(self), hint: hint.map(Into::into) }
    }
}

impl Machine {
    /// Takes a snapshot of a machine that runs, and lets it go on; or of one that is paused.
    pub(crate) fn snapshot(
        &mut self,
        run: &Run,
        request: SnapshotRequest,
        mut files: Files,
    ) -> Result<SnapshotTaken, Problem> {
        let began = Instant::now();
        let was_paused = self.state == State::Paused;
        self.pause(run).map_err(|Ending| too_late())?;
        let taken = self.save(run, request, &mut files);
        if !was_paused {
            self.resume(run);
        }
        let us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        taken.map(|taken| SnapshotTaken { us, ..taken }).map_err(|error| error.problem())
    }

    /// Writes all of the machine, which is paused.
    fn save(
        &mut self,
        run: &Run,
        request: SnapshotRequest,
        files: &mut Files,
    ) -> Result<SnapshotTaken, TakeError> {
        if request.kind == SnapshotKind::Difference && self.tracking.is_none() {
            return Err(TakeError::NoParent);
        }
        if let Some(pager) = self.pager.as_ref().filter(|_| request.kind == SnapshotKind::Full) {
            // In large pieces, where reading it would bring page by page.
            pager.bring_all();
        }
        for (_, slot) in self.slots.iter_mut() {
            let written = slot.write_back();
            written.map_err(|source| TakeError::WriteBack { device: slot.name.clone(), source })?;
        }
        let document = self.document(run)?;
        let changed = match &mut self.tracking {
            Some(tracking) => Some(tracking.take(&self.memory, &run.vm)?),
            None => None,
        };
        let parent = self.tracking.as_ref().map(|tracking| tracking.parent);
        let difference = changed.as_ref().zip(parent).filter(|_| request.kind == SnapshotKind::Difference);
        match (write(&self.memory, files, &document, difference), &mut self.tracking, changed) {
            (Err(error), Some(tracking), Some(changed)) => {
                tracking.owe(changed);
                Err(error)
            }
            (Err(error), ..) => Err(error),
            (Ok(memory_bytes), ..) => {
                self.track(run, request.track, document.id)?;
                let parent = parent.filter(|_| request.kind == SnapshotKind::Difference);
                Ok(SnapshotTaken { id: document.id, parent, memory_bytes, us: 0 })
            }
        }
    }

    /// Notes changes from this snapshot on, or none.
    fn track(&mut self, run: &Run, track: bool, id: Uuid) -> Result<(), KvmError> {
        match &mut self.tracking {
            Some(tracking) if track => tracking.parent = id,
            Some(_) => {
                self.tracking = None;
                Tracking::stop(&self.memory, &run.vm)?;
            }
            None if track => self.tracking = Some(Tracking::start(id, &self.memory, &run.vm)?),
            None => {}
        }
        Ok(())
    }

    /// What CPUID has told a vCPU.
    fn promised(&self, run: &Run, index: u8) -> Result<Vec<CpuidEntry>, KvmError> {
        match run.promised.as_ref().and_then(|promised| promised.get(usize::from(index))) {
            Some(promised) => Ok(promised.clone()),
            None => cpuid::for_vcpu(run.vm.supported_cpuid(), index, self.config.cpus)
                .map(|cpuid| cpuid_of(&cpuid))
                .map_err(|source| KvmError { what: "describing the processors by CPUID", source }),
        }
    }

    fn document(&self, run: &Run) -> Result<Document, TakeError> {
        let vm = run.vm.fd();
        let vcpus = (0..)
            .zip(&run.vcpus)
            .map(|(index, vcpu)| VcpuState::save(&self.kvm, vm, &vcpu.fd(), self.promised(run, index)?))
            .collect::<Result<Vec<_>, KvmError>>()?;
        let taken_ns = u64::try_from(HostClock.now_ns()).unwrap_or(0);
        let bus = &run.bus;
        let mut pci = bus.pci.save();
        for (_, slot) in self.slots.iter() {
            let saved = pci.get_mut(&slot.pci_device).and_then(|function| function.virtio.as_mut());
            let Some(saved) = saved else { continue };
            saved.device = slot.device().save();
            for (queue, position) in saved.queues.iter_mut().zip(slot.device().positions()) {
                queue.position = Some(position);
            }
        }
        Ok(Document {
            written_by: env!("CARGO_PKG_VERSION").into(),
            id: Uuid::from_bytes(entropy::bytes().map_err(|source| TakeError::Write("state", source))?),
            taken_ns,
            shape: Shape::new(&self.config, &self.slots).map_err(TakeError::Disks)?,
            identity: self.config.identity.clone(),
            booted: self.booted.clone(),
            reboots: self.reboots,
            vm: VmState::save(vm)?,
            vcpus,
            pci,
            pci_address: bus.pci_address.load(Ordering::Relaxed),
            serial: bus.serial.save(),
            rtc: bus.rtc.lock().unwrap_or_else(PoisonError::into_inner).state(),
            acpi_pending: bus.acpi.pending(),
            hot_plug: bus.hot_plug.save(),
        })
    }
}

fn write(
    guest: &Memory,
    files: &mut Files,
    document: &Document,
    difference: Option<(&Bitmap, Uuid)>,
) -> Result<u64, TakeError> {
    let Files { state, memory } = files;
    let written = memory_file::write(guest, memory, document.id, difference)
        .map_err(|source| TakeError::Write("memory", source))?;
    let mut write_state = || {
        state.set_len(0)?;
        state.rewind()?;
        file::write(document, state)
    };
    write_state().map_err(|source| TakeError::Write("state", source))?;
    Ok(written)
}

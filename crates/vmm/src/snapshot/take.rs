//! Takes a snapshot of a machine that stands still.

use std::{
    fs::File,
    io,
    sync::{Arc, PoisonError, atomic::Ordering},
    time::Instant,
};

use ec2vmm_devices::rtc::WallClock;
use ec2vmm_snapshot::Bitmap;
use ec2vmm_vmm_api::control::{Problem, SnapshotKind, SnapshotRequest, SnapshotTaken, State};
use uuid::Uuid;

use super::{
    Document, Shape, Tracking,
    write::{Job, Writing},
};
use crate::{
    clock::HostClock,
    control::problem,
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
    /// The host allows no more threads.
    #[error("starting a thread")]
    Thread(#[source] io::Error),
    /// The end of the machine came first.
    #[error("the machine has ended: the snapshot was given up")]
    GivenUp,
    /// A fault of this program.
    #[error("the thread that writes the files has panicked")]
    Panicked,
}

/// A snapshot that is being written.
#[derive(Debug)]
pub(crate) struct Underway {
    began: Instant,
    /// The machine is not to go on by itself.
    was_paused: bool,
    request: SnapshotRequest,
    id: Uuid,
    /// What has changed since the last one.
    changed: Option<Arc<Bitmap>>,
    writing: Writing,
}

impl TakeError {
    /// As the control socket answers.
    fn problem(&self) -> Problem {
        let (status, hint) = match self {
            Self::NoParent => (409, Some("take a full one with \"track\": true first")),
            Self::GivenUp => (409, None),
            Self::Write(..) => (400, Some("give regular files that are open for reading and writing")),
            Self::Kvm(_) | Self::WriteBack { .. } | Self::Disks(_) | Self::Thread(_) | Self::Panicked => {
                (500, None)
            }
        };
        Problem { status, detail: chain(self), hint: hint.map(Into::into) }
    }
}

impl Machine {
    /// Begins to write a machine that runs, and stands still until [`Self::finish_snapshot`]; or one that is paused.
    pub(crate) fn begin_snapshot(
        &mut self,
        run: &Run,
        request: SnapshotRequest,
        files: Files,
    ) -> Result<(), Problem> {
        if self.end.is_some() {
            return Err(too_late());
        }
        let began = Instant::now();
        let was_paused = self.state == State::Paused;
        self.pause(run).map_err(|Ending| too_late())?;
        let begun = self.begin(run, request, files);
        let begun = begun.map(|(id, changed, writing)| {
            self.underway = Some(Underway { began, was_paused, request, id, changed, writing });
        });
        if begun.is_err() && !was_paused {
            self.resume(run);
        }
        begun.map_err(|error| error.problem())
    }

    /// The files are written, or cannot be: the machine goes on, and who has asked is told.
    pub(crate) fn finish_snapshot(&mut self, run: &Run) {
        let Some(Underway { began, was_paused, request, id, changed, writing }) = self.underway.take() else {
            return;
        };
        let parent = self.tracking.as_ref().map(|tracking| tracking.parent);
        let parent = parent.filter(|_| request.kind == SnapshotKind::Difference);
        let taken = match writing.finish() {
            Ok(memory_bytes) => self
                .track(run, request.track, id)
                .map(|()| SnapshotTaken { id, parent, memory_bytes, us: 0 })
                .map_err(TakeError::from),
            Err(error) => {
                if let (Some(tracking), Some(changed)) = (&mut self.tracking, changed) {
                    tracking.owe(Arc::unwrap_or_clone(changed));
                }
                Err(error)
            }
        };
        if !was_paused {
            self.resume(run);
        }
        let us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.answer_snapshot(taken.map(|taken| SnapshotTaken { us, ..taken }));
    }

    /// The machine ends. The files are no snapshot.
    pub(crate) fn give_up_snapshot(&mut self) {
        if let Some(underway) = self.underway.take() {
            underway.writing.give_up();
            self.answer_snapshot(Err(TakeError::GivenUp));
        }
    }

    /// What would change a machine waits until it is written.
    ///
    /// # Errors
    /// It is being written.
    pub(crate) fn check_not_underway(&self) -> Result<(), Problem> {
        match self.underway {
            None => Ok(()),
            Some(_) => Err(Problem {
                hint: Some("ask again when that has been answered; only power_off is heard before".into()),
                ..problem(409, "a snapshot of the machine is being written".into())
            }),
        }
    }

    fn answer_snapshot(&mut self, taken: Result<SnapshotTaken, TakeError>) {
        if let Some(control) = &mut self.control {
            control.tell_snapshot(taken.map_err(|error| error.problem()));
        }
    }

    /// Notes how the machine is, which is paused, and has it written.
    fn begin(
        &mut self,
        run: &Run,
        request: SnapshotRequest,
        files: Files,
    ) -> Result<(Uuid, Option<Arc<Bitmap>>, Writing), TakeError> {
        if request.kind == SnapshotKind::Difference && self.tracking.is_none() {
            return Err(TakeError::NoParent);
        }
        for (_, slot) in self.slots.iter_mut() {
            let written = slot.write_back();
            written.map_err(|source| TakeError::WriteBack { device: slot.name.clone(), source })?;
        }
        let document = self.document(run)?;
        let id = document.id;
        let is_full = request.kind == SnapshotKind::Full;
        // In large pieces, where reading it would bring page by page.
        let rest = self.pager.as_ref().filter(|_| is_full).map(|pager| pager.bring_all());
        let changed = match &mut self.tracking {
            Some(tracking) => Some(Arc::new(tracking.take(&self.memory, &run.vm)?)),
            None => None,
        };
        let parent = self.tracking.as_ref().map(|tracking| tracking.parent);
        let difference = changed.clone().zip(parent).filter(|_| !is_full);
        let memory = Arc::clone(&self.memory);
        let job = Job { memory, rest, files, document, difference };
        match (Writing::start(job, self.mailbox.sender()), &mut self.tracking) {
            (Err(error), Some(tracking)) => {
                if let Some(changed) = changed {
                    tracking.owe(Arc::unwrap_or_clone(changed));
                }
                Err(error)
            }
            (writing, _) => Ok((id, changed, writing?)),
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

//! A machine's life, from power-on to its end.
//!
//! ```text
//!   build ──► power_on ──► serve ◄──► paused
//!                ▲           │
//!                │           ├──► Ended
//!                └── Reset ──┘   the same devices and memory, everything else new
//! ```

pub(crate) mod answers;
mod parts;
mod reboot;

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use ec2vmm_devices::{
    Memory,
    pci::{PciBus, virtio::BAR_LEN},
    rtc::Rtc,
    time::Timer,
    virtio::Wake,
};
use ec2vmm_vmm_api::{
    Event, Exit, Failure, FailureKind, MachineConfig,
    control::{Booted, Metrics, State},
};
use kvm_ioctls::{Kvm, VcpuFd};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::timerfd::TimerFd;

use self::reboot::Reboot;
use crate::{
    block::Rings,
    boot_source::BootSource,
    bus::Bus,
    clock::{HostClock, MonotonicTimer},
    console::Console,
    control::ControlServer,
    error::MachineError,
    event_loop::{EventLoop, Source},
    gate::Gate,
    lines::Line,
    mailbox::{Mailbox, Notice},
    memory,
    report::Report,
    slots::{self, SlotId, Slots},
    smbios,
    snapshot::{Pager, Snapshot, Tracking, Underway},
    vcpu::{ExitCounters, Vcpu, VcpuEnd},
    vm::{InterruptRoutes, KvmError, Vm},
    watch::{self, Judgement, Watch},
    x86_64::{acpi, boot::Entry, layout, registers, reset_vector, state::CpuidEntry},
};

/// A machine, powered on or not.
pub struct Machine {
    pub(crate) config: MachineConfig,
    pub(crate) report: Report,
    pub(crate) kvm: Kvm,
    pub(crate) memory: Arc<Memory>,
    pub(crate) boot: BootSource,
    /// To go on from, once.
    pub(crate) snapshot: Option<Snapshot>,
    /// Guest memory comes out of a snapshot's files.
    pub(crate) restored: bool,
    /// It is brought in by this.
    pub(crate) pager: Option<Pager>,
    /// It cannot be brought in any more: nobody who may wait for it is waited for.
    pub(crate) memory_lost: bool,
    /// What has changed since a snapshot, if that is of interest.
    pub(crate) tracking: Option<Tracking>,
    /// A snapshot that is being written. The machine is paused.
    pub(crate) underway: Option<Underway>,
    /// The VM generation id.
    pub(crate) generation: [u8; 16],
    pub(crate) slots: Slots,
    /// For disks that are attached.
    pub(crate) rings: Rings,
    pub(crate) console: Console,
    /// Keeps its time through reboots.
    pub(crate) rtc: Arc<Mutex<Rtc<HostClock>>>,
    pub(crate) control: Option<ControlServer>,
    /// Events for those who follow them by the control socket, while that is at work itself.
    pub(crate) untold: Option<Vec<u8>>,
    /// Held open so that its hang-up can be heard.
    pub(crate) lifeline: Option<OwnedFd>,
    pub(crate) event_loop: EventLoop,
    pub(crate) mailbox: Mailbox,
    /// Rings when it is time to look after the vCPUs; none if nobody does.
    pub(crate) watch_timer: Option<TimerFd>,
    /// Rings when it is time to see whether the guest reboots.
    pub(crate) reboot_timer: MonotonicTimer,
    /// The guest was asked to reboot.
    pub(crate) reboot: Option<Reboot>,
    pub(crate) counters: Arc<ExitCounters>,
    pub(crate) state: State,
    /// What the guest or others have asked for, and is done when all that came with it is.
    pub(crate) end: Option<End>,
    pub(crate) reboots: u64,
    pub(crate) booted: Booted,
}

/// A VM with memory and devices, before its vCPUs.
pub(crate) struct Made {
    pub(crate) vm: Vm,
    routes: Arc<InterruptRoutes>,
    pub(crate) bus: Arc<Bus>,
}

/// What exists while the machine has power.
pub(crate) struct Run {
    pub(crate) vcpus: Vec<Vcpu>,
    watch: Watch,
    gate: Arc<Gate>,
    pub(crate) bus: Arc<Bus>,
    routes: Arc<InterruptRoutes>,
    pub(crate) vm: Vm,
    /// What CPUID has told each vCPU, if that is another host's.
    pub(crate) promised: Option<Vec<Vec<CpuidEntry>>>,
}

/// Why the machine is no longer served.
#[derive(Debug)]
pub(crate) enum End {
    Reset,
    Exit(Exit, Option<Failure>),
}

/// It is too late for what was asked.
pub(crate) struct Ending;

impl End {
    fn failed(kind: FailureKind, message: String, hint: Option<&str>) -> Self {
        Self::Exit(Exit::Failed(kind), Some(Failure { kind, message, hint: hint.map(Into::into) }))
    }
}

impl Machine {
    /// Lives until the machine's end, and reports it.
    pub fn live(mut self) -> Exit {
        let end = self.live_until_the_end();
        while !self.memory_lost && self.pager.as_ref().is_some_and(|pager| !pager.claim_the_end()) {
            // The pager has lost the memory meanwhile, and is telling that.
            std::thread::park();
        }
        self.console.finish();
        let exit = match end {
            Ok((exit, failure)) => {
                self.tell(|us| Event::Ended { us, exit, failure });
                exit
            }
            Err(error) => {
                let (exit, line) = self.report.failed(error.failure());
                if let Some(control) = &mut self.control {
                    control.publish(&line);
                }
                exit
            }
        };
        self.report.finish();
        if self.memory_lost {
            std::process::exit(exit.code().into());
        }
        exit
    }

    pub(crate) fn tell(&mut self, event: impl FnOnce(u64) -> Event) {
        let line = self.report.tell(event);
        if let Some(control) = &mut self.control {
            control.publish(&line);
        } else if let Some(untold) = &mut self.untold {
            untold.extend(line);
        }
    }

    fn live_until_the_end(&mut self) -> Result<(Exit, Option<Failure>), MachineError> {
        self.watch_sources()?;
        loop {
            let mut run = self.power_on()?;
            let end = self.serve(&mut run);
            self.give_up_snapshot();
            if self.memory_lost {
                std::mem::forget(run);
            } else {
                self.power_off(run);
                self.end_pager();
            }
            match end? {
                End::Exit(exit, failure) => return Ok((exit, failure)),
                End::Reset => {}
            }
            self.state = State::Rebooting;
            self.reboots += 1;
            self.reboot = None;
            self.tell(|us| Event::Reset { us });
            self.unplug_leaving();
            self.console.reset();
            self.rtc.lock().unwrap_or_else(PoisonError::into_inner).reset();
            if std::mem::take(&mut self.restored) {
                memory::forget_file(&self.memory)?;
            } else {
                memory::clear(&self.memory)?;
            }
        }
    }

    fn watch_sources(&self) -> Result<(), MachineError> {
        let watch = || {
            self.event_loop.watch(self.mailbox.bell().as_raw_fd(), Source::Mailbox)?;
            self.console.watch(&self.event_loop)?;
            self.report.watch(&self.event_loop)?;
            if let Some(control) = &self.control {
                self.event_loop.watch(control.as_raw_fd(), Source::Control)?;
            }
            if let Some(timer) = &self.watch_timer {
                self.event_loop.watch(timer.as_raw_fd(), Source::Watch)?;
            }
            self.event_loop.watch_edges(self.reboot_timer.descriptor(), Source::Reboot)?;
            if let Some(lifeline) = &self.lifeline {
                self.event_loop.watch_hangup(lifeline, Source::Lifeline)?;
            }
            self.slots.iter().try_for_each(|(id, slot)| self.event_loop.watch_kicks(id, slot))
        };
        watch().map_err(|source: io::Error| MachineError::System { what: "waiting for events", source })
    }

    /// Reads the kernel, makes a new VM around memory and devices, and lets its vCPUs run; or goes on from a
    /// snapshot.
    fn power_on(&mut self) -> Result<Run, MachineError> {
        if let Some(snapshot) = self.snapshot.take() {
            return self.go_on_from(snapshot);
        }
        let (entry, booted) = self.boot.load(&self.memory, self.config.memory_mib, acpi::RSDP)?;
        self.tell(|us| Event::Loaded { us, booted: booted.clone() });
        self.booted = booted;
        self.write_tables(&entry)?;

        let made = self.make_vm()?;
        if let Some(tracking) = &self.tracking {
            tracking.start_over(&self.memory, &made.vm)?;
        }
        let cpus = self.config.cpus;
        let vcpus = (0..cpus)
            .map(|index| Vcpu::create(&made.vm, index, cpus, &entry))
            .collect::<Result<Vec<_>, KvmError>>()?;
        self.start(made, vcpus, None)
    }

    /// A VM with this memory and these devices, and no vCPU.
    pub(crate) fn make_vm(&mut self) -> Result<Made, MachineError> {
        let vm = Vm::new(&self.kvm, Arc::clone(&self.memory))?;
        let routes = Arc::new(InterruptRoutes::new(Arc::clone(vm.fd())));
        let bus = Arc::new(self.wire(&vm, &routes)?);
        Ok(Made { vm, routes, bus })
    }

    /// Lets the vCPUs run.
    pub(crate) fn start(
        &mut self,
        made: Made,
        vcpus: Vec<VcpuFd>,
        promised: Option<Vec<Vec<CpuidEntry>>>,
    ) -> Result<Run, MachineError> {
        self.state = State::Running;
        self.tell(|us| Event::Running { us });
        let Made { vm, routes, bus } = made;
        let after = Duration::from_secs(self.config.stuck_after_s.into());
        let watch = Watch::new(vcpus.len(), after);
        let mut run = Run { vcpus: Vec::new(), watch, gate: Arc::default(), bus, routes, vm, promised };
        for (index, vcpu) in (0..).zip(vcpus) {
            let (bus, counters) = (Arc::clone(&run.bus), Arc::clone(&self.counters));
            match Vcpu::start(vcpu, index, bus, &run.gate, self.mailbox.sender(), counters) {
                Ok(vcpu) => run.vcpus.push(vcpu),
                Err(source) => {
                    self.power_off(run);
                    return Err(MachineError::System { what: "starting a vCPU's thread", source });
                }
            }
        }
        self.set_watch_timer(&run.watch);
        Ok(run)
    }

    /// What the guest finds in memory: ACPI, SMBIOS, and what the first vCPU's registers point to.
    fn write_tables(&self, entry: &Entry) -> Result<(), MachineError> {
        let MachineConfig { cpus, memory_mib, identity, .. } = &self.config;
        let acpi =
            acpi::tables(&acpi::Platform { cpus: *cpus, pci_window_64: None, pci_slots: slots::PLUGGABLE })?;
        let smbios = smbios::tables(identity, *cpus, *memory_mib)?;
        self.memory
            .write_slice(&acpi, GuestAddress(layout::ACPI_TABLES.start))
            .map_err(MachineError::Tables)?;
        acpi::generation::write(self.generation, &self.memory).map_err(MachineError::Tables)?;
        self.memory.write_slice(&smbios, GuestAddress(layout::SMBIOS.start)).map_err(MachineError::Tables)?;
        reset_vector::write(&self.memory).map_err(MachineError::Tables)?;
        registers::write_tables(entry, &self.memory).map_err(MachineError::Tables)
    }

    /// Puts every device where this VM's guest reaches it.
    fn wire(&mut self, vm: &Vm, routes: &Arc<InterruptRoutes>) -> Result<Bus, MachineError> {
        let failed = |what| move |source| MachineError::System { what, source };
        let pci = PciBus::new();
        let ids: Vec<SlotId> = self.slots.iter().map(|(id, _)| id).collect();
        for id in ids {
            self.wire_slot(id, vm, routes, &pci)?;
        }
        let bar = layout::bar(crate::panic_device::SLOT, BAR_LEN);
        crate::panic_device::insert(&pci, bar, self.mailbox.sender())?;

        let acpi_line = Line::new().map_err(failed("making an interrupt line"))?;
        let serial = Arc::clone(self.console.serial());
        routes
            .connect(acpi_line.eventfd(), layout::EVENT_GSI)
            .map_err(failed("connecting an interrupt line"))?;
        routes
            .connect(serial.interrupt(), layout::COM1_GSI)
            .map_err(failed("connecting an interrupt line"))?;
        Ok(Bus {
            pci,
            pci_address: AtomicU32::new(0),
            serial,
            rtc: Arc::clone(&self.rtc),
            acpi: acpi::Registers::new(acpi_line),
            hot_plug: acpi::HotPlug::default(),
            news: self.mailbox.sender(),
        })
    }

    /// Ends the vCPUs, makes every device as born, and lets go of the VM.
    fn power_off(&mut self, run: Run) {
        Vcpu::stop_all(run.vcpus, &run.gate);
        for (id, slot) in self.slots.iter_mut() {
            self.event_loop.stop_device(slot);
            if self.state == State::Paused {
                self.event_loop.go_on(id, slot);
            }
        }
        // What the vCPUs had to say is of the past.
        while self.mailbox.take().is_some() {}
    }

    /// Nobody touches guest memory now. What is missing in it is zero from here on.
    fn end_pager(&mut self) {
        if let Some(Err(error)) = self.record_working_set() {
            log::error!("writing the working set: {error}");
        }
        if let Some(pager) = self.pager.take() {
            pager.stop();
        }
    }

    /// Writes down which pages were touched, if that is wanted, and says so.
    fn record_working_set(&mut self) -> Option<io::Result<u64>> {
        let recorded = self.pager.as_mut()?.record()?;
        if let Ok(pages) = recorded {
            self.tell(|us| Event::WorkingSetRecorded { us, pages });
        }
        Some(recorded)
    }

    fn serve(&mut self, run: &mut Run) -> Result<End, MachineError> {
        loop {
            let ready = self
                .event_loop
                .wait()
                .map_err(|source| MachineError::System { what: "waiting for events", source })?;
            // All of them, even if one is the end: most come only once.
            ready.into_iter().for_each(|source| self.handle(source, run));
            if let Some(end) = self.end.take() {
                return Ok(end);
            }
        }
    }

    fn handle(&mut self, source: Source, run: &mut Run) {
        match source {
            Source::Queue { slot, queue } => self.wake(slot, Wake::Queue(queue)),
            Source::Device { slot, source } => self.wake(slot, Wake::Source(source)),
            Source::Mailbox => self.mailbox.hear().into_iter().for_each(|notice| match notice {
                Notice::SnapshotWritten => self.finish_snapshot(run),
                notice => self.heed(notice),
            }),
            Source::Console | Source::ConsoleOutput | Source::ConsoleInput | Source::ConsoleClients => {
                self.console.ready(source);
            }
            Source::Events => self.report.ready(),
            Source::Control => self.answer(run),
            Source::Watch => self.look_after(run),
            Source::Reboot => self.see_to_reboot(run),
            Source::Lifeline => self.end_with(End::Exit(Exit::Abandoned, None)),
        }
    }

    /// Judges every vCPU by what was seen since the last time, and has those looked at that are busy.
    fn look_after(&mut self, run: &mut Run) {
        if let Some(timer) = &mut self.watch_timer
            && let Err(error) = timer.wait()
        {
            log::error!("reading the timer of the watch: {error}");
        }
        let mut round = run.watch.begin(Duration::from_micros(self.report.us()));
        let mut told = Vec::new();
        for (index, vcpu) in run.vcpus.iter().enumerate() {
            let Some(used) = vcpu.used() else { continue };
            let Judgement { news, look } = round.judge(index, used, vcpu.seen());
            told.extend(news.map(|news| (u8::try_from(index).unwrap_or(u8::MAX), news)));
            if look && self.state == State::Running {
                vcpu.look();
            }
        }
        for (vcpu, news) in told {
            self.tell(|us| match news {
                watch::News::Stuck { rip } => Event::Stuck { us, vcpu, rip },
                watch::News::Recovered => Event::Recovered { us, vcpu },
            });
        }
        self.set_watch_timer(&run.watch);
    }

    fn set_watch_timer(&mut self, watch: &Watch) {
        if let Some(timer) = &mut self.watch_timer
            && let Err(error) = timer.reset(watch.pause(), None)
        {
            log::error!("setting the timer of the watch: {error}");
        }
    }

    /// The first end counts, but a reset is none where the machine is to exit.
    fn end_with(&mut self, end: End) {
        if matches!((&self.end, &end), (None, _) | (Some(End::Reset), End::Exit(..))) {
            self.end = Some(end);
        }
    }

    fn wake(&mut self, slot: SlotId, wake: Wake) {
        // What came with the pause is made up for by the resumption, which wakes all.
        if self.state != State::Paused
            && let Some(slot) = self.slots.get_mut(slot)
        {
            slot.wake(wake);
        }
    }

    pub(crate) fn heed(&mut self, notice: Notice) {
        match notice {
            Notice::Activate { slot: id, features, queues } => {
                if let Some(slot) = self.slots.get_mut(id) {
                    slot.activate(features, queues);
                    if slot.is_active() {
                        self.event_loop.start_device(id, slot);
                    }
                }
            }
            Notice::ResetDevice { slot } => {
                if let Some(slot) = self.slots.get_mut(slot) {
                    self.event_loop.stop_device(slot);
                }
            }
            Notice::Ejected { pci_device } => self.ejected(pci_device),
            // Of one that was given up, if it comes here: while one is underway only the event loop hears.
            Notice::SnapshotWritten => {}
            Notice::MemoryLost { failure } => {
                // Else the end is being told already.
                if self.pager.as_ref().is_some_and(Pager::claim_the_end) {
                    self.memory_lost = true;
                    self.end = Some(End::Exit(Exit::Failed(failure.kind), Some(failure)));
                }
            }
            Notice::Panicked => {
                self.tell(|us| Event::Panicked { us });
                self.end_with(End::failed(
                    FailureKind::GuestPanic,
                    "the guest's kernel panicked".into(),
                    Some("the console shows the kernel's last words"),
                ));
            }
            Notice::VcpuEnded { end } => match vcpu_ended(end) {
                // What it was asked to shut down for.
                Some(End::Exit(Exit::PowerOff, _)) if self.reboot.is_some() => self.end_with(End::Reset),
                Some(end) => self.end_with(end),
                None => {}
            },
        }
    }

    /// Holds everything that the guest could tell from standing still: its vCPUs, and its devices, which
    /// finish what is under way and touch its memory no more. Done at once if it is so already.
    ///
    /// # Errors
    /// The guest has ended or asked for a reset just before: that is the next to happen, and no pause.
    pub(crate) fn pause(&mut self, run: &Run) -> Result<(), Ending> {
        if self.state == State::Paused {
            return Ok(());
        }
        Vcpu::pause_all(&run.vcpus, &run.gate);
        // The last words of the vCPUs: after these, devices hear nothing new.
        while let Some(notice) = self.mailbox.take() {
            self.heed(notice);
        }
        if self.end.is_some() {
            return Err(Ending);
        }
        for (_, slot) in self.slots.iter_mut() {
            self.event_loop.hold(slot);
        }
        self.count_reboot();
        self.state = State::Paused;
        self.tell(|us| Event::Paused { us });
        Ok(())
    }

    /// Lets the guest go on where it was held. Done at once if it runs.
    pub(crate) fn resume(&mut self, run: &Run) {
        if self.state != State::Paused {
            return;
        }
        self.resume_reboot();
        self.state = State::Running;
        for (id, slot) in self.slots.iter_mut() {
            self.event_loop.go_on(id, slot);
        }
        self.tell(|us| Event::Resumed { us });
        run.gate.resume();
    }

    fn answer(&mut self, run: &Run) {
        let Some(mut control) = self.control.take() else { return };
        self.untold = Some(Vec::new());
        control.ready(&mut answers::Answers { machine: self, run });
        control.publish(&self.untold.take().unwrap_or_default());
        self.control = Some(control);
    }

    fn metrics(&self, run: &Run) -> Metrics {
        let named = |counters: Vec<(&'static str, u64)>| {
            counters.into_iter().map(|(name, count)| (name.to_owned(), count)).collect()
        };
        let ExitCounters { port, mmio, other } = &*self.counters;
        let exits = [("port_exits", port), ("mmio_exits", mmio), ("other_exits", other)];
        let mut vcpu = exits.map(|(name, counter)| (name, counter.load(Ordering::Relaxed))).to_vec();
        vcpu.push(("watch_rounds", run.watch.rounds()));
        let mut metrics = Metrics::default();
        metrics.devices.insert("vcpu".into(), named(vcpu));
        metrics.devices.insert("console".into(), named(self.console.metrics()));
        if let Some(pager) = &self.pager {
            metrics.devices.insert("pager".into(), named(pager.metrics()));
        }
        for (_, slot) in self.slots.iter() {
            metrics.devices.insert(slot.name.clone(), named(slot.device().metrics()));
        }
        metrics
    }
}

/// What the end of a vCPU means for the machine. One that was told to stop means nothing.
fn vcpu_ended(end: VcpuEnd) -> Option<End> {
    match end {
        VcpuEnd::Stopped => None,
        VcpuEnd::Reset => Some(End::Reset),
        VcpuEnd::PowerOff => Some(End::Exit(Exit::PowerOff, None)),
        VcpuEnd::TripleFault { registers } => {
            log::error!("triple fault\n{registers}");
            Some(End::failed(
                FailureKind::TripleFault,
                "the guest's processor shut down on a triple fault".into(),
                Some(
                    "the registers are in the log; a kernel for another machine, or a crash early in the boot, does this",
                ),
            ))
        }
        VcpuEnd::InternalError { what, registers } => {
            log::error!("{what}\n{registers}");
            Some(End::failed(
                FailureKind::KvmInternalError,
                format!("KVM cannot go on: {what}"),
                Some(
                    "the registers are in the log; a KVM without hardware virtualization does this on Linux guests",
                ),
            ))
        }
    }
}

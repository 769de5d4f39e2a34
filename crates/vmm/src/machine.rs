//! A machine's life, from power-on to its end.
//!
//! ```text
//!   build ──► power_on ──► serve ──► Ended
//!                ▲           │
//!                └── Reset ──┘   the same devices and memory, everything else new
//! ```

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use ec2vmm_devices::{
    Memory,
    pci::{Link, PciBus, VirtioFunction, virtio::BAR_LEN},
    rtc::Rtc,
    virtio::Wake,
};
use ec2vmm_vmm_api::{
    Event, Exit, Failure, FailureKind, MachineConfig,
    control::{Booted, Machine as MachineView, Metrics, PowerAction, Problem, State},
};
use kvm_ioctls::Kvm;
use vm_memory::{Bytes, GuestAddress};

use crate::{
    boot_source::BootSource,
    bus::Bus,
    clock::HostClock,
    console::Console,
    control::{ControlServer, Handler},
    error::MachineError,
    event_loop::{EventLoop, Source},
    lines::Line,
    mailbox::{Mailbox, Notice},
    memory,
    report::Report,
    sandbox,
    slots::Slot,
    smbios,
    vcpu::{ExitCounters, Vcpu, VcpuEnd},
    vm::{InterruptRoutes, KvmError, Vm},
    wiring::KvmWiring,
    x86_64::{acpi, boot::Entry, layout, registers, reset_vector},
};

/// A machine, powered on or not.
pub struct Machine {
    pub(crate) config: MachineConfig,
    pub(crate) report: Report,
    pub(crate) kvm: Kvm,
    pub(crate) memory: Arc<Memory>,
    pub(crate) boot: BootSource,
    pub(crate) slots: Vec<Slot>,
    pub(crate) console: Console,
    /// Keeps its time through reboots.
    pub(crate) rtc: Arc<Mutex<Rtc<HostClock>>>,
    pub(crate) control: Option<ControlServer>,
    /// Held open so that its hang-up can be heard.
    pub(crate) lifeline: Option<OwnedFd>,
    pub(crate) event_loop: EventLoop,
    pub(crate) mailbox: Mailbox,
    pub(crate) counters: Arc<ExitCounters>,
    pub(crate) state: State,
    pub(crate) reboots: u64,
    pub(crate) booted: Booted,
}

/// What exists while the machine has power.
struct Run {
    vcpus: Vec<Vcpu>,
    bus: Arc<Bus>,
    /// Kept while the vCPUs run.
    _vm: Vm,
}

/// Why the machine is no longer served.
#[derive(Debug)]
enum End {
    Reset,
    Exit(Exit, Option<Failure>),
}

impl End {
    fn failed(kind: FailureKind, message: String, hint: Option<&str>) -> Self {
        Self::Exit(Exit::Failed(kind), Some(Failure { kind, message, hint: hint.map(Into::into) }))
    }
}

impl Machine {
    /// Lives until the machine's end, and reports it.
    pub fn live(mut self) -> Exit {
        let end = self.live_until_the_end();
        self.console.finish();
        let exit = match end {
            Ok((exit, failure)) => {
                self.tell(|us| Event::Ended { us, exit, failure });
                exit
            }
            Err(error) => {
                let (exit, line) = self.report.failed(error.failure());
                if let Some(control) = &mut self.control {
                    control.publish(line);
                }
                exit
            }
        };
        self.report.finish();
        exit
    }

    fn tell(&mut self, event: impl FnOnce(u64) -> Event) {
        let line = self.report.tell(event);
        if let Some(control) = &mut self.control {
            control.publish(line);
        }
    }

    fn live_until_the_end(&mut self) -> Result<(Exit, Option<Failure>), MachineError> {
        self.watch_sources()?;
        loop {
            let run = self.power_on()?;
            let end = self.serve(&run.bus);
            self.power_off(run);
            match end? {
                End::Exit(exit, failure) => return Ok((exit, failure)),
                End::Reset => {}
            }
            self.state = State::Rebooting;
            self.reboots += 1;
            self.tell(|us| Event::Reset { us });
            self.console.reset();
            self.rtc.lock().unwrap_or_else(PoisonError::into_inner).reset();
            memory::clear(&self.memory)?;
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
            if let Some(lifeline) = &self.lifeline {
                self.event_loop.watch_hangup(lifeline, Source::Lifeline)?;
            }
            self.slots
                .iter()
                .enumerate()
                .try_for_each(|(index, slot)| self.event_loop.watch_kicks(index, slot))
        };
        watch().map_err(|source: io::Error| MachineError::System { what: "waiting for events", source })
    }

    /// Reads the kernel, makes a new VM around memory and devices, and lets its vCPUs run.
    fn power_on(&mut self) -> Result<Run, MachineError> {
        let (entry, booted) = self.boot.load(&self.memory, self.config.memory_mib, acpi::RSDP)?;
        self.tell(|us| Event::Loaded { us, booted: booted.clone() });
        self.booted = booted;
        self.write_tables(&entry)?;

        let vm = Vm::new(&self.kvm, Arc::clone(&self.memory))?;
        let routes = Arc::new(InterruptRoutes::new(Arc::clone(vm.fd())));
        let bus = Arc::new(self.wire(&vm, &routes)?);
        let cpus = self.config.cpus;
        let vcpus = (0..cpus)
            .map(|index| Vcpu::create(&vm, index, cpus, &entry))
            .collect::<Result<Vec<_>, KvmError>>()?;

        self.state = State::Running;
        self.tell(|us| Event::Running { us });
        let mut run = Run { vcpus: Vec::new(), bus, _vm: vm };
        for (index, vcpu) in (0..).zip(vcpus) {
            let (bus, counters) = (Arc::clone(&run.bus), Arc::clone(&self.counters));
            match Vcpu::start(vcpu, index, bus, self.mailbox.sender(), counters) {
                Ok(vcpu) => run.vcpus.push(vcpu),
                Err(source) => {
                    self.power_off(run);
                    return Err(MachineError::System { what: "starting a vCPU's thread", source });
                }
            }
        }
        Ok(run)
    }

    /// What the guest finds in memory: ACPI, SMBIOS, and what the first vCPU's registers point to.
    fn write_tables(&self, entry: &Entry) -> Result<(), MachineError> {
        let MachineConfig { cpus, memory_mib, identity, .. } = &self.config;
        let acpi = acpi::tables(&acpi::Platform { cpus: *cpus, pci_window_64: None })?;
        let smbios = smbios::tables(identity, *cpus, *memory_mib)?;
        self.memory
            .write_slice(&acpi, GuestAddress(layout::ACPI_TABLES.start))
            .map_err(MachineError::Tables)?;
        self.memory.write_slice(&smbios, GuestAddress(layout::SMBIOS.start)).map_err(MachineError::Tables)?;
        reset_vector::write(&self.memory).map_err(MachineError::Tables)?;
        registers::write_tables(entry, &self.memory).map_err(MachineError::Tables)
    }

    /// Puts every device where this VM's guest reaches it.
    fn wire(&mut self, vm: &Vm, routes: &Arc<InterruptRoutes>) -> Result<Bus, MachineError> {
        let failed = |what| move |source| MachineError::System { what, source };
        let pci = PciBus::new();
        let mut bar = layout::PCI_WINDOW_32.start;
        let mut gsi = layout::MSI_GSI_BASE;
        for (index, slot) in self.slots.iter_mut().enumerate() {
            let identity = slot.device().identity();
            let link = Link::new(identity.queue_sizes.len()).map_err(failed("making interrupt vectors"))?;
            let wiring = KvmWiring {
                slot: index,
                vm: Arc::clone(vm.fd()),
                link: Arc::clone(&link),
                routes: Arc::clone(routes),
                gsi_base: gsi,
                kicks: slot.kicks().to_vec(),
                kicks_address: None,
                news: self.mailbox.sender(),
            };
            gsi += u32::try_from(link.eventfds().len()).unwrap_or(u32::MAX);
            let function =
                VirtioFunction::new(identity, bar, Arc::clone(&self.memory), Arc::clone(&link), wiring)?;
            slot.attach(link);
            bar += BAR_LEN;
            pci.insert(slot.pci_device, function)?;
        }
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
        })
    }

    /// Ends the vCPUs, makes every device as born, and lets go of the VM.
    fn power_off(&mut self, run: Run) {
        Vcpu::stop_all(run.vcpus);
        for slot in &mut self.slots {
            self.event_loop.stop_device(slot);
        }
        // What the vCPUs had to say is of the past.
        while self.mailbox.take().is_some() {}
    }

    fn serve(&mut self, bus: &Bus) -> Result<End, MachineError> {
        loop {
            let ready = self
                .event_loop
                .wait()
                .map_err(|source| MachineError::System { what: "waiting for events", source })?;
            // All of them, even if one is the end: most come only once.
            let ends: Vec<End> = ready.into_iter().filter_map(|source| self.handle(source, bus)).collect();
            if let Some(end) = ends.into_iter().next() {
                return Ok(end);
            }
        }
    }

    fn handle(&mut self, source: Source, bus: &Bus) -> Option<End> {
        match source {
            Source::Queue { slot, queue } => self.wake(slot, Wake::Queue(queue)),
            Source::Device { slot, source } => self.wake(slot, Wake::Source(source)),
            Source::Mailbox => return self.hear(),
            Source::Console | Source::ConsoleOutput | Source::ConsoleInput | Source::ConsoleClients => {
                self.console.ready(source);
            }
            Source::Events => self.report.ready(),
            Source::Control => return self.answer(bus),
            Source::Lifeline => return Some(End::Exit(Exit::Abandoned, None)),
        }
        None
    }

    fn wake(&mut self, slot: usize, wake: Wake) {
        if let Some(slot) = self.slots.get_mut(slot) {
            slot.wake(wake);
        }
    }

    fn hear(&mut self) -> Option<End> {
        for notice in self.mailbox.hear() {
            match notice {
                Notice::Activate { slot: index, features, queues } => {
                    if let Some(slot) = self.slots.get_mut(index) {
                        slot.activate(features, queues);
                        if slot.is_active() {
                            self.event_loop.start_device(index, slot);
                        }
                    }
                }
                Notice::ResetDevice { slot } => {
                    if let Some(slot) = self.slots.get_mut(slot) {
                        self.event_loop.stop_device(slot);
                    }
                }
                Notice::Panicked => {
                    self.tell(|us| Event::Panicked { us });
                    return Some(End::failed(
                        FailureKind::GuestPanic,
                        "the guest's kernel panicked".into(),
                        Some("the console shows the kernel's last words"),
                    ));
                }
                Notice::VcpuEnded { end } => {
                    if let Some(end) = vcpu_ended(end) {
                        return Some(end);
                    }
                }
            }
        }
        None
    }

    fn answer(&mut self, bus: &Bus) -> Option<End> {
        let mut control = self.control.take()?;
        let mut answers = Answers { machine: self, bus, end: None };
        control.ready(&mut answers);
        let end = answers.end;
        self.control = Some(control);
        end
    }

    fn metrics(&self) -> Metrics {
        let named = |counters: Vec<(&'static str, u64)>| {
            counters.into_iter().map(|(name, count)| (name.to_owned(), count)).collect()
        };
        let ExitCounters { port, mmio, other } = &*self.counters;
        let exits = [("port_exits", port), ("mmio_exits", mmio), ("other_exits", other)];
        let exits = exits.map(|(name, counter)| (name, counter.load(Ordering::Relaxed)));
        let mut metrics = Metrics::default();
        metrics.devices.insert("vcpu".into(), named(exits.to_vec()));
        metrics.devices.insert("console".into(), named(self.console.metrics()));
        for slot in &self.slots {
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

/// Answers the control socket.
struct Answers<'a> {
    machine: &'a mut Machine,
    bus: &'a Bus,
    end: Option<End>,
}

impl Handler for Answers<'_> {
    fn machine(&self) -> MachineView {
        let machine = &*self.machine;
        MachineView {
            identity: machine.config.identity.clone(),
            pid: sandbox::pid_outside(),
            cpus: machine.config.cpus,
            memory_mib: machine.config.memory_mib,
            state: if self.end.is_some() { State::Ending } else { machine.state },
            reboots: machine.reboots,
            uptime_ms: machine.report.us() / 1000,
            booted: machine.booted.clone(),
        }
    }

    fn metrics(&self) -> Metrics {
        self.machine.metrics()
    }

    fn events(&self) -> Vec<u8> {
        self.machine.report.kept()
    }

    fn power(&mut self, action: PowerAction) -> Result<(), Problem> {
        match action {
            PowerAction::PowerButton => self.bus.acpi.raise(acpi::Event::PowerButton).map_err(|error| {
                Problem { status: 500, detail: format!("pressing the power button: {error}"), hint: None }
            }),
            PowerAction::Reset => {
                self.end = Some(End::Reset);
                Ok(())
            }
            PowerAction::PowerOff => {
                self.end = Some(End::Exit(Exit::PowerOff, None));
                Ok(())
            }
        }
    }
}

//! Lets a machine go on from a snapshot.

use std::sync::{PoisonError, atomic::Ordering};

use ec2vmm_devices::{
    pci,
    rtc::WallClock,
    virtio::{CommandError, DeviceCommand},
};
use ec2vmm_vmm_api::{Event, config::Clock};
use kvm_ioctls::VcpuFd;

use super::{Document, RestoreError, Snapshot, Tracking};
use crate::{
    bus::Bus,
    clock::HostClock,
    error::MachineError,
    machine::{Machine, Run},
    vm::Vm,
    x86_64::{
        acpi, cpuid, features,
        state::{Elapsed, cpuid_of},
    },
};

impl Machine {
    /// Makes a VM around memory that was mapped from the snapshot, puts registers and devices back, and lets
    /// its vCPUs run.
    pub(crate) fn go_on_from(&mut self, snapshot: Snapshot) -> Result<Run, MachineError> {
        let Snapshot { document, clock, track, .. } = snapshot;
        let made = self.make_vm()?;
        let (vm, bus) = (&made.vm, &made.bus);
        check_processors(&document, vm)?;
        if track {
            self.tracking = Some(Tracking::start(document.id, &self.memory, vm)?);
        }
        let elapsed = match clock {
            Clock::Advance => Elapsed::between(document.taken_ns, HostClock.now_ns()),
            Clock::StandStill => Elapsed::default(),
        };
        let vcpus = (0..)
            .zip(&document.vcpus)
            .map(|(index, state)| {
                let vcpu = vm.create_vcpu(index)?;
                state.restore(&self.kvm, vm.fd(), &vcpu, elapsed)?;
                Ok(vcpu)
            })
            .collect::<Result<Vec<VcpuFd>, MachineError>>()?;
        document.vm.restore(vm.fd(), elapsed)?;
        self.restore_devices(&document, bus)?;
        self.booted = document.booted;
        self.reboots = document.reboots;
        self.renew_generation(bus)?;
        self.tell(|us| Event::Restored { us });
        let promised = document.vcpus.into_iter().map(|vcpu| vcpu.cpuid).collect();
        self.start(made, vcpus, Some(promised))
    }

    /// Interrupt controllers are as they were, so that what devices raise from here on arrives.
    fn restore_devices(&mut self, document: &Document, bus: &Bus) -> Result<(), MachineError> {
        let bad = |error| MachineError::Restore(RestoreError::State(error));
        bus.pci.restore(&document.pci).map_err(|error| MachineError::Restore(error.into()))?;
        bus.pci_address.store(document.pci_address, Ordering::Relaxed);
        bus.serial.restore(document.serial.clone()).map_err(bad)?;
        bus.rtc.lock().unwrap_or_else(PoisonError::into_inner).restore(document.rtc).map_err(bad)?;
        bus.acpi.restore(document.acpi_pending);
        bus.hot_plug.restore(document.hot_plug);
        // The transports have handed their queues over.
        while let Some(notice) = self.mailbox.take() {
            self.heed(notice);
        }
        for (_, slot) in self.slots.iter_mut() {
            let function = document.pci.get(&slot.pci_device).and_then(|function| function.virtio.as_ref());
            if let Some(saved) = function.and_then(|virtio| virtio.device.as_ref()) {
                let place = slot.pci_device;
                let bad = |source| pci::bus::RestoreError { slot: place, source };
                slot.restore(saved).map_err(|error| MachineError::Restore(bad(error).into()))?;
            }
            match slot.command(&DeviceCommand::ResetTransport) {
                // It is no vsock, and has no streams that end.
                Ok(_) | Err(CommandError::Unsupported) => {}
                Err(error) => {
                    log::warn!("{}: telling the guest that its streams are gone: {error}", slot.name)
                }
            }
        }
        // An interrupt may have been on its way when the guest stood still. One too many does no harm.
        self.slots.iter().for_each(|(_, slot)| slot.interrupt_all());
        Ok(())
    }

    /// The guest learns that it may not be the only one that goes on from here.
    fn renew_generation(&mut self, bus: &Bus) -> Result<(), MachineError> {
        self.generation = acpi::generation::new().map_err(MachineError::system("getting random numbers"))?;
        acpi::generation::write(self.generation, &self.memory).map_err(MachineError::Tables)?;
        let raised = bus.acpi.raise(acpi::Event::GenerationChanged);
        raised.map_err(MachineError::system("telling the guest that it was restored"))
    }
}

/// Whether each vCPU finds here what it was promised there.
fn check_processors(document: &Document, vm: &Vm) -> Result<(), MachineError> {
    for (index, then) in (0..).zip(&document.vcpus) {
        let here = cpuid::for_vcpu(vm.supported_cpuid(), index, document.shape.cpus);
        let here = here.map_err(MachineError::system("describing the processors by CPUID"))?;
        features::check(&then.cpuid, &cpuid_of(&here))
            .map_err(|error| MachineError::Restore(RestoreError::Cpu(error)))?;
    }
    Ok(())
}

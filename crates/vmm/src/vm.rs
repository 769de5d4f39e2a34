//! The KVM side of a machine from one power-on to the next: the VM with its interrupt controllers
//! and memory. A reboot drops it and makes a new one, so that nothing of the last run is left.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, PoisonError},
};

use ec2vmm_devices::{Memory, pci::MsiMessage};
use kvm_bindings::{
    CpuId, KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_MAX_CPUID_ENTRIES,
    KVM_MEM_LOG_DIRTY_PAGES, KvmIrqRouting, kvm_irq_routing_entry, kvm_irq_routing_entry__bindgen_ty_1,
    kvm_irq_routing_irqchip, kvm_irq_routing_msi, kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use crate::x86_64::layout;

/// KVM refused something.
#[derive(Debug, thiserror::Error)]
#[error("KVM: {what}")]
pub struct KvmError {
    /// What was asked of it.
    pub what: &'static str,
    /// Why it refused.
    pub source: io::Error,
}

impl KvmError {
    /// For `map_err`.
    pub fn of(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |errno| Self { what, source: errno.into() }
    }
}

/// A KVM virtual machine.
pub struct Vm {
    /// Shared with whoever signals interrupts or moves doorbells.
    fd: Arc<VmFd>,
    supported_cpuid: CpuId,
    // Last, and so dropped last: KVM holds the address of the mapping.
    memory: Arc<Memory>,
}

impl Vm {
    /// A machine without vCPUs that has this memory.
    ///
    /// # Errors
    /// KVM lacks a capability, or a limit of the host was reached.
    pub fn new(kvm: &Kvm, memory: Arc<Memory>) -> Result<Self, KvmError> {
        check_capabilities(kvm)?;
        let fd = kvm.create_vm().map_err(KvmError::of("making a VM"))?;
        // Before the interrupt controllers: KVM waits for readers of its tables at each of these calls,
        // and after the few that it waits for at once, each wait takes a tick of the host's clock.
        register_memory(&fd, &memory, 0)?;
        #[allow(clippy::cast_possible_truncation, reason = "below 4 GiB")]
        fd.set_tss_address(layout::KVM_TSS as usize).map_err(KvmError::of("placing the TSS"))?;
        fd.set_identity_map_address(layout::KVM_IDENTITY_MAP)
            .map_err(KvmError::of("placing the identity map"))?;
        fd.create_irq_chip().map_err(KvmError::of("making the interrupt controllers"))?;
        let supported_cpuid = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(KvmError::of("reading the supported CPUID"))?;
        Ok(Self { fd: Arc::new(fd), supported_cpuid, memory })
    }

    /// The VM, for interrupts and doorbells.
    pub fn fd(&self) -> &Arc<VmFd> {
        &self.fd
    }

    /// What KVM can tell guests of this host's processors.
    pub fn supported_cpuid(&self) -> &CpuId {
        &self.supported_cpuid
    }

    /// Notes which pages the guest writes from now on, or does not any more. The vCPUs do not run.
    ///
    /// # Errors
    /// KVM refused.
    pub fn log_dirty(&self, on: bool) -> Result<(), KvmError> {
        register_memory(&self.fd, &self.memory, if on { KVM_MEM_LOG_DIRTY_PAGES } else { 0 })
    }

    /// The pages of a region of memory that the guest has written since the last call, a bit each.
    ///
    /// # Errors
    /// They are not noted, or KVM refused.
    pub fn take_dirty(&self, region: u32, len: u64) -> Result<Vec<u64>, KvmError> {
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        self.fd.get_dirty_log(region, len).map_err(KvmError::of("reading which pages have changed"))
    }

    /// A new vCPU whose APIC id is `index`.
    ///
    /// # Errors
    /// The host allows no more vCPUs.
    pub fn create_vcpu(&self, index: u8) -> Result<VcpuFd, KvmError> {
        self.fd.create_vcpu(u64::from(index)).map_err(KvmError::of("making a vCPU"))
    }
}

/// The most vCPUs that KVM allows one VM.
pub fn vcpus_max(kvm: &Kvm) -> usize {
    kvm.get_max_vcpus()
}

fn check_capabilities(kvm: &Kvm) -> Result<(), KvmError> {
    const NEEDED: &[(Cap, &str)] = &[
        (Cap::Irqchip, "KVM_CAP_IRQCHIP is missing"),
        (Cap::Irqfd, "KVM_CAP_IRQFD is missing"),
        (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD is missing"),
        (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT is missing"),
        (Cap::SignalMsi, "KVM_CAP_SIGNAL_MSI is missing"),
        (Cap::UserMemory, "KVM_CAP_USER_MEMORY is missing"),
    ];
    for &(capability, what) in NEEDED {
        if !kvm.check_extension(capability) {
            return Err(KvmError { what, source: io::ErrorKind::Unsupported.into() });
        }
    }
    Ok(())
}

/// At first, or with other flags.
fn register_memory(vm: &VmFd, memory: &Memory, flags: u32) -> Result<(), KvmError> {
    for (slot, region) in (0_u32..).zip(memory.iter()) {
        let region = kvm_userspace_memory_region {
            slot,
            guest_phys_addr: region.start_addr().raw_value(),
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
            flags,
        };
        // SAFETY: the mapping is `region.memory_size` bytes long, nothing else of this process lies
        // in it, and `Vm` keeps it for as long as the VM lives.
        let registered = unsafe { vm.set_user_memory_region(region) };
        registered.map_err(KvmError::of("registering guest memory"))?;
    }
    Ok(())
}

/// Where each interrupt line of a VM leads: IOAPIC pins, and messages of MSI-X vectors.
pub struct InterruptRoutes {
    vm: Arc<VmFd>,
    messages: Mutex<BTreeMap<u32, MsiMessage>>,
}

impl InterruptRoutes {
    /// No messages yet.
    pub fn new(vm: Arc<VmFd>) -> Self {
        Self { vm, messages: Mutex::new(BTreeMap::new()) }
    }

    /// Line `gsi` now sends this message.
    ///
    /// # Errors
    /// KVM refused the table.
    pub fn set(&self, gsi: u32, message: MsiMessage) -> io::Result<()> {
        let mut messages = self.messages.lock().unwrap_or_else(PoisonError::into_inner);
        if messages.get(&gsi) == Some(&message) {
            return Ok(());
        }
        let mut wanted = messages.clone();
        wanted.insert(gsi, message);
        let entries: Vec<_> = (0..layout::IOAPIC_PINS)
            .map(pin_route)
            .chain(wanted.iter().map(|(&gsi, &message)| message_route(gsi, message)))
            .collect();
        let table =
            KvmIrqRouting::from_entries(&entries).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
        self.vm.set_gsi_routing(&table)?;
        // Only now: what KVM has refused is asked for again with the next call.
        *messages = wanted;
        Ok(())
    }

    /// Writes to `eventfd` raise line `gsi`.
    ///
    /// # Errors
    /// KVM refused.
    pub fn connect(&self, eventfd: &EventFd, gsi: u32) -> io::Result<()> {
        Ok(self.vm.register_irqfd(eventfd, gsi)?)
    }

    /// They do so no more.
    ///
    /// # Errors
    /// They did not before.
    pub fn disconnect(&self, eventfd: &EventFd, gsi: u32) -> io::Result<()> {
        Ok(self.vm.unregister_irqfd(eventfd, gsi)?)
    }
}

fn pin_route(pin: u32) -> kvm_irq_routing_entry {
    kvm_irq_routing_entry {
        gsi: pin,
        type_: KVM_IRQ_ROUTING_IRQCHIP,
        u: kvm_irq_routing_entry__bindgen_ty_1 {
            irqchip: kvm_irq_routing_irqchip { irqchip: KVM_IRQCHIP_IOAPIC, pin },
        },
        ..Default::default()
    }
}

#[allow(clippy::cast_possible_truncation, reason = "split into its two halves")]
fn message_route(gsi: u32, message: MsiMessage) -> kvm_irq_routing_entry {
    let msi = kvm_irq_routing_msi {
        address_lo: message.address as u32,
        address_hi: (message.address >> 32) as u32,
        data: message.data,
        ..Default::default()
    };
    kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_MSI,
        u: kvm_irq_routing_entry__bindgen_ty_1 { msi },
        ..Default::default()
    }
}

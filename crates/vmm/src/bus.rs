//! What a vCPU reaches beyond its memory: ports and device memory.

use std::{
    ops::Range,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use ec2vmm_devices::{pci::PciBus, rtc::Rtc, serial::Serial};

use crate::{
    clock::HostClock,
    lines::Line,
    mailbox::{Notice, Sender},
    x86_64::{acpi, layout},
};

/// What a guest asks of the whole machine.
pub use crate::x86_64::acpi::Request as GuestRequest;

/// All of it, for one run of a machine. Called on every vCPU's thread.
pub struct Bus {
    /// PCI and what is on it.
    pub pci: PciBus,
    /// The register that the configuration ports select (PCI Local Bus 3.0 section 3.2.2.3.2).
    pub pci_address: AtomicU32,
    /// COM1.
    pub serial: Arc<Serial>,
    /// Clock.
    pub rtc: Arc<Mutex<Rtc<HostClock>>>,
    /// Power and reset, and that something has happened.
    pub acpi: acpi::Registers<Line>,
    /// PCI slots that are filled and emptied.
    pub hot_plug: acpi::HotPlug,
    /// The way to the event loop.
    pub news: Sender,
}

impl Bus {
    /// A vCPU reads a port. Where nothing is, all ones are read.
    pub fn port_read(&self, port: u16, data: &mut [u8]) {
        if let Some(offset) = self.pci_config_offset(port, data.len()) {
            return self.pci.config_read(offset, data);
        }
        if port == layout::PCI_CONFIG_ADDRESS_PORT && data.len() == 4 {
            return data.copy_from_slice(&self.pci_address.load(Ordering::Relaxed).to_le_bytes());
        }
        if acpi::Registers::<Line>::claims(port) {
            return self.acpi.read(port, data);
        }
        if acpi::HotPlug::claims(port) {
            return self.hot_plug.read(port, data);
        }
        data.fill(0xff);
        let Some(byte) = data.first_mut() else { return };
        if let Some(offset) = within(&layout::COM1_PORTS, port) {
            *byte = self.serial.read(offset);
        } else if let Some(offset) = within(&layout::RTC_PORTS, port) {
            *byte = self.rtc.lock().unwrap_or_else(PoisonError::into_inner).read(offset);
        }
    }

    /// A vCPU writes a port. Where nothing is, nothing happens.
    pub fn port_write(&self, port: u16, data: &[u8]) -> Option<GuestRequest> {
        if let Some(offset) = self.pci_config_offset(port, data.len()) {
            self.pci.config_write(offset, data);
            return None;
        }
        if let (layout::PCI_CONFIG_ADDRESS_PORT, &[a, b, c, d]) = (port, data) {
            self.pci_address.store(u32::from_le_bytes([a, b, c, d]), Ordering::Relaxed);
            return None;
        }
        if acpi::Registers::<Line>::claims(port) {
            return self.acpi.write(port, data);
        }
        if acpi::HotPlug::claims(port) {
            // At once: what the guest looks for after that must not be there any more.
            for pci_device in self.hot_plug.write(port, data) {
                self.pci.remove(pci_device);
                self.news.send(Notice::Ejected { pci_device });
            }
            return None;
        }
        let &byte = data.first()?;
        if let Some(offset) = within(&layout::COM1_PORTS, port) {
            self.serial.write(offset, byte);
        } else if let Some(offset) = within(&layout::RTC_PORTS, port) {
            self.rtc.lock().unwrap_or_else(PoisonError::into_inner).write(offset, byte);
        }
        None
    }

    /// Where in ECAM an access to the configuration data ports goes. Guests use them before they have
    /// found ECAM, and leaving them for a port is cheaper than for memory, whose instruction KVM must
    /// decode.
    fn pci_config_offset(&self, port: u16, len: usize) -> Option<u64> {
        const ENABLE: u32 = 1 << 31;
        let byte = u32::from(within(&layout::PCI_CONFIG_DATA_PORTS, port)?);
        let address = self.pci_address.load(Ordering::Relaxed);
        if address & ENABLE == 0 || byte as usize + len > 4 {
            return None;
        }
        let bus_device_function = u64::from(address >> 8 & 0xffff);
        Some(bus_device_function << 12 | u64::from(address & 0xfc | byte))
    }

    /// A vCPU reads memory that is no RAM. Where nothing is, all ones are read.
    pub fn mmio_read(&self, address: u64, data: &mut [u8]) {
        if layout::ECAM.contains(&address) {
            self.pci.config_read(address - layout::ECAM.start, data);
        } else if !self.pci.mmio_read(address, data) {
            data.fill(0xff);
        }
    }

    /// A vCPU writes memory that is no RAM. Where nothing is, nothing happens.
    pub fn mmio_write(&self, address: u64, data: &[u8]) {
        if layout::ECAM.contains(&address) {
            self.pci.config_write(address - layout::ECAM.start, data);
        } else {
            self.pci.mmio_write(address, data);
        }
    }
}

fn within(ports: &Range<u16>, port: u16) -> Option<u8> {
    let offset = ports.contains(&port).then(|| port - ports.start)?;
    u8::try_from(offset).ok()
}

//! virtio over PCI (virtio 1.2 section 4.1), modern only: the transport between a driver on vCPU
//! threads and a device on the event loop.
//!
//! ```text
//!   vCPU threads                                      event loop
//!   ─────────────                                     ──────────
//!   config space, common cfg ─► VirtioFunction        VirtioDevice
//!                                 │  Wiring::activate ─────►│ activate, wake*
//!                                 │  Wiring::reset ────────►│ reset
//!                                 │◄──── Link::reset_done ──┤
//!   kick ─► ioeventfd ──────────────────────────────────►   │
//!   interrupt ◄─ irqfd ◄──────── Link (eventfds) ◄──────────┘
//! ```
//!
//! BAR 0, 32 KiB: a page each for the common configuration, the ISR status, the device's configuration,
//! notifications, the MSI-X table and its pending bits. INTx is not offered: a driver without MSI-X
//! polls.

mod common;
mod link;
mod saved;

use std::{io, ops::Range, sync::Arc};

pub use link::Link;
pub use saved::{Saved, SavedQueue};

use super::{
    FunctionState, MsiMessage, PciFunction,
    msix::{self, MsixTable},
    registers::{Ids, Registers},
};
use crate::{
    Memory,
    state::{BadState, Hex},
    virtio::{Identity, Interrupt, Position, VirtQueue},
};
use common::{Common, Request};
use virtio_queue::{Queue, QueueT};

/// Bytes of BAR 0; its base is a multiple of them.
pub const BAR_LEN: u64 = 0x8000;

/// What the transport needs from whoever owns KVM and the event loop. Called on vCPU threads with the
/// function locked: it must not call the bus.
pub trait Wiring: Send {
    /// MSI-X `vector` now sends this message, or nothing. Messages and nothing take turns: a vector that
    /// changes its message is told nothing in between. At first it is nothing.
    ///
    /// While it sends nothing, a write to its eventfd ([`Link::eventfds`]) must stay in the eventfd, and
    /// be delivered by the next message: so take the irqfd off the eventfd (`KVM_IRQFD` with
    /// `DEASSIGN`), and put it on again (`KVM_IRQFD` looks at the counter) after the route is set. An
    /// irqfd left on without a route would lose interrupts.
    ///
    /// # Errors
    /// The host cannot. The device is then broken for the driver.
    fn route(&mut self, vector: u16, message: Option<MsiMessage>) -> io::Result<()>;

    /// Kicks now arrive as a write of any width at this address (queue i at address + 4 * i), or
    /// nowhere, as the BAR does not answer.
    ///
    /// # Errors
    /// The host cannot. Kicks then arrive by [`Self::kick`].
    fn kicks_at(&mut self, address: Option<u64>) -> io::Result<()>;

    /// The driver has set DRIVER_OK: [`crate::virtio::VirtioDevice::activate`] on the loop.
    fn activate(&mut self, features: u64, queues: Vec<VirtQueue>);

    /// The device has to become as born: [`crate::virtio::VirtioDevice::reset`] on the loop, and then
    /// [`Link::reset_done`]. Only after `activate`, once. Returns at once.
    fn reset(&mut self);

    /// A kick that no ioeventfd caught.
    fn kick(&mut self, queue: u16);
}

/// A virtio device as a PCI function.
pub struct VirtioFunction<W: Wiring> {
    identity: Identity,
    memory: Arc<Memory>,
    link: Arc<Link>,
    wiring: W,
    msix_capability: u16,
    window_capability: u16,
    state: State,
}

/// All that a reset clears.
struct State {
    registers: Registers,
    msix: MsixTable,
    common: Common,
    /// The device is at work, or about to be.
    active: bool,
    /// Where kicks arrive, as last told to the wiring.
    kicks: Option<u64>,
    /// The host has failed once; it is not said again.
    complained: bool,
}

/// Why a device cannot be put on the bus: the monitor's mistake, not the guest's.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A queue's size is no power of two, or above 1,024.
    #[error("queue size {0} is not a power of two up to 1024")]
    QueueSize(u16),
    /// More queues than vectors fit into the table, or not the number for which the link was made.
    #[error("{0} queues do not fit the link's vectors")]
    Queues(usize),
    /// The capabilities do not fit into configuration space.
    #[error("no room for the capabilities")]
    Capabilities,
}

impl<W: Wiring> VirtioFunction<W> {
    /// The function of a device, with BAR 0 at `bar`, a multiple of [`BAR_LEN`]. `link` was made for as
    /// many queues as the device has.
    ///
    /// # Errors
    /// The identity is impossible.
    pub fn new(
        identity: Identity,
        bar: u64,
        memory: Arc<Memory>,
        link: Arc<Link>,
        wiring: W,
    ) -> Result<Self, BuildError> {
        let queues = identity.queue_sizes.len();
        if queues + 1 != link.eventfds().len() || queues >= msix::VECTORS_MAX {
            return Err(BuildError::Queues(queues));
        }
        if let Some(&size) = identity.queue_sizes.iter().find(|size| !size.is_power_of_two() || **size > 1024)
        {
            return Err(BuildError::QueueSize(size));
        }
        let mut registers = Registers::new(&ids(&identity)).with_bar(bar, BAR_LEN);
        let msix = MsixTable::new(link.shared_eventfds());
        let (msix_capability, window_capability) =
            add_capabilities(&mut registers, &msix, &identity).ok_or(BuildError::Capabilities)?;
        let common = Common::new(&identity);
        let state = State { registers, msix, common, active: false, kicks: None, complained: false };
        Ok(Self { identity, memory, link, wiring, msix_capability, window_capability, state })
    }

    /// What config space has become takes effect.
    fn configured(&mut self) {
        let kicks = self.state.registers.region().map(|region| region.start + NOTIFY);
        if kicks != self.state.kicks {
            self.state.kicks = kicks;
            if let Err(error) = self.wiring.kicks_at(kicks) {
                // Two functions at one address, for one. They come by `kick` then, only slower.
                self.complain("kicks", &error);
            }
        }
        self.state.msix.set_control(self.state.registers.word(self.msix_capability + 2));
        self.link.set_msix_enabled(self.state.msix.enabled());
        self.apply_vectors();
    }

    fn apply_vectors(&mut self) {
        let wiring = &mut self.wiring;
        if let Err(error) = self.state.msix.apply(|vector, message| wiring.route(vector, message)) {
            self.complain("interrupts", &error);
            self.link.needs_reset();
        }
    }

    fn write_common(&mut self, offset: u64, data: &[u8]) {
        let Self { identity, memory, link, state, .. } = self;
        match state.common.write(offset, data, identity, link, memory) {
            Some(Request::Activate) => self.activate(),
            Some(Request::Reset) => self.reset_device(),
            None => {}
        }
    }

    fn activate(&mut self) {
        match self.state.common.queues() {
            Ok(queues) => self.hand_over(queues),
            Err(error) => {
                self.complain("queues", &error);
                self.link.needs_reset();
            }
        }
    }

    fn hand_over(&mut self, queues: Vec<Queue>) {
        let interrupt = Arc::clone(&self.link) as Arc<dyn Interrupt>;
        let wrap =
            |(index, queue)| VirtQueue::new(index, queue, Arc::clone(&self.memory), Arc::clone(&interrupt));
        let queues = (0u16..).zip(queues).map(wrap).collect();
        self.state.active = true;
        self.wiring.activate(self.state.common.driver_features(), queues);
    }

    /// The virtio part as born (virtio 1.2 section 2.4). MSI-X and config space belong to PCI and stay.
    fn reset_device(&mut self) {
        self.link.reset(self.state.active);
        self.state.common.reset();
        if std::mem::take(&mut self.state.active) {
            self.wiring.reset();
        }
    }

    /// A write to the notification page: two bytes of queue number, of which the place says all.
    fn notified(&mut self, offset: u64) {
        let queue = u16::try_from(offset / u64::from(NOTIFY_MULTIPLIER)).unwrap_or(u16::MAX);
        if self.state.active && usize::from(queue) < self.identity.queue_sizes.len() {
            self.wiring.kick(queue);
        }
    }

    /// The window of `VIRTIO_PCI_CAP_PCI_CFG` (virtio 1.2 section 4.1.4.9): where in the BAR, and how many
    /// bytes, if it makes sense.
    fn window(&self) -> Option<(u64, usize)> {
        let registers = &self.state.registers;
        let [bar, ..] = registers.dword(self.window_capability + 4).to_le_bytes();
        let offset = u64::from(registers.dword(self.window_capability + 8));
        let len @ (1 | 2 | 4) = registers.dword(self.window_capability + 12) else { return None };
        let sound = bar == 0 && offset.is_multiple_of(len.into()) && offset < BAR_LEN;
        sound.then_some((offset, usize::try_from(len).ok()?))
    }

    fn window_data(&self) -> u16 {
        self.window_capability + WINDOW_DATA
    }

    /// Says once that the host fails at something.
    fn complain(&mut self, what: &str, error: &dyn std::error::Error) {
        if !std::mem::replace(&mut self.state.complained, true) {
            log::error!("virtio device of type {}: {what}: {error}", self.identity.device_type);
        }
    }
}

impl<W: Wiring> PciFunction for VirtioFunction<W> {
    fn config_read(&mut self, offset: u16, data: &mut [u8]) {
        if offset == self.window_data()
            && let Some((at, len)) = self.window()
        {
            let mut bytes = [0; 4];
            if let Some(bytes) = bytes.get_mut(..len) {
                self.mmio_read(at, bytes);
            }
            self.state.registers.set(offset, &bytes);
        }
        self.state.registers.read(offset, data);
    }

    fn config_write(&mut self, offset: u16, data: &[u8]) {
        self.state.registers.write(offset, data);
        if offset == self.window_data()
            && let Some((at, len)) = self.window()
            && let Some(bytes) = data.get(..len)
        {
            self.mmio_write(at, bytes);
        }
        self.configured();
    }

    fn region(&self) -> Option<Range<u64>> {
        self.state.registers.region()
    }

    fn mmio_read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let within = offset % PAGE;
        match offset - within {
            COMMON => self.state.common.read(within, data, &self.identity, &self.link),
            ISR if within == 0 => data.iter_mut().take(1).for_each(|byte| *byte = self.link.take_isr()),
            DEVICE => self.identity.config.read(usize::try_from(within).unwrap_or(usize::MAX), data),
            MSIX_TABLE => self.state.msix.read(within, data),
            MSIX_PENDING => self.state.msix.read_pending(within, data),
            _ => {}
        }
    }

    fn mmio_write(&mut self, offset: u64, data: &[u8]) {
        let within = offset % PAGE;
        match offset - within {
            COMMON => self.write_common(within, data),
            DEVICE if !self.link.is_resetting() => {
                self.identity.config.write(usize::try_from(within).unwrap_or(usize::MAX), data);
            }
            NOTIFY => self.notified(within),
            MSIX_TABLE => {
                self.state.msix.write(within, data);
                self.apply_vectors();
            }
            _ => {}
        }
    }

    fn reset(&mut self) {
        self.reset_device();
        self.state.registers.reset();
        self.configured();
        let Self { wiring, state, .. } = self;
        let State { registers: _, msix, common: _, active: _, kicks: _, complained } = state;
        *complained = false;
        if let Err(error) = msix.reset(|vector, message| wiring.route(vector, message)) {
            self.complain("interrupts", &error);
        }
    }

    fn save(&self) -> FunctionState {
        let Self { identity, link, state, .. } = self;
        let virtio = Saved {
            status: link.status(),
            isr: link.isr(),
            config_vector: link.config_vector(),
            msix: state.msix.save(),
            config: Hex(identity.config.bytes()),
            active: state.active,
            ..state.common.save(link)
        };
        FunctionState { registers: state.registers.save(), virtio: Some(virtio) }
    }

    fn restore(&mut self, saved: &FunctionState) -> Result<(), BadState> {
        let Self { identity, memory, link, state, .. } = self;
        let virtio = saved.virtio.as_ref().ok_or(BadState("it was no virtio device"))?;
        state.registers.restore(&saved.registers)?;
        state.common.restore(virtio, identity, memory)?;
        link.restore(virtio)?;
        state.msix.restore(&virtio.msix)?;
        identity.config.restore(&virtio.config.0)?;
        self.configured();
        if virtio.active {
            let mut queues = self.state.common.queues().map_err(|_| BadState("a queue cannot be"))?;
            for (queue, saved) in queues.iter_mut().zip(&virtio.queues) {
                let Position { next_available, next_used } = saved.position.unwrap_or_default();
                queue.set_next_avail(next_available);
                queue.set_next_used(next_used);
            }
            self.hand_over(queues);
        }
        Ok(())
    }
}

fn ids(identity: &Identity) -> Ids {
    let device = DEVICE_ID_BASE + u16::try_from(identity.device_type).unwrap_or(0);
    Ids {
        vendor: VENDOR,
        device,
        revision: 1,
        class: identity.pci_class,
        subsystem_vendor: VENDOR,
        subsystem: device,
    }
}

/// Adds MSI-X and the structures of virtio 1.2 section 4.1.4. Returns where MSI-X and the window are.
fn add_capabilities(registers: &mut Registers, msix: &MsixTable, identity: &Identity) -> Option<(u16, u16)> {
    let (body, writable) = msix.capability(offset32(MSIX_TABLE), offset32(MSIX_PENDING));
    let msix = registers.add_capability(msix::CAPABILITY, &body, &writable)?;
    let config_len = u32::try_from(identity.config.bytes().len()).ok()?;
    let queues = u32::try_from(identity.queue_sizes.len()).ok()?;
    let structures: [(u8, u64, u32, &[u8]); 4] = [
        (COMMON_CFG, COMMON, 56, &[]),
        (ISR_CFG, ISR, 1, &[]),
        (NOTIFY_CFG, NOTIFY, queues * NOTIFY_MULTIPLIER, &NOTIFY_MULTIPLIER.to_le_bytes()),
        (DEVICE_CFG, DEVICE, config_len, &[]),
    ];
    for (kind, offset, len, tail) in structures {
        // A device without a configuration has none to show.
        if len != 0 {
            registers.add_capability(VENDOR_CAPABILITY, &structure(kind, offset, len, tail), &[])?;
        }
    }
    let mut writable = [0; 18];
    for at in [2, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17] {
        // bar, offset, length, data; -2 as the id and next pointer are not in a body
        if let Some(bits) = writable.get_mut(at) {
            *bits = 0xff;
        }
    }
    let window =
        registers.add_capability(VENDOR_CAPABILITY, &structure(PCI_CFG, 0, 0, &[0; 4]), &writable)?;
    Some((msix, window))
}

/// The body of a `virtio_pci_cap`: its length, type, BAR, id, padding, offset, length and what follows.
fn structure(kind: u8, offset: u64, len: u32, tail: &[u8]) -> Vec<u8> {
    let total = u8::try_from(16 + tail.len()).unwrap_or(u8::MAX);
    let mut body = vec![total, kind, 0, 0, 0, 0];
    body.extend(offset32(offset).to_le_bytes());
    body.extend(len.to_le_bytes());
    body.extend(tail);
    body
}

/// An offset in the BAR, which are all small.
fn offset32(offset: u64) -> u32 {
    u32::try_from(offset).unwrap_or(u32::MAX)
}

const VENDOR: u16 = 0x1af4;
const DEVICE_ID_BASE: u16 = 0x1040;

// Where things are in the BAR.
const PAGE: u64 = 0x1000;
const COMMON: u64 = 0x0000;
const ISR: u64 = 0x1000;
const DEVICE: u64 = 0x2000;
const NOTIFY: u64 = 0x3000;
const MSIX_TABLE: u64 = 0x4000;
const MSIX_PENDING: u64 = 0x5000;

/// Bytes between the places where two queues are kicked.
const NOTIFY_MULTIPLIER: u32 = 4;

// Structure types of virtio capabilities.
const VENDOR_CAPABILITY: u8 = 0x09;
const COMMON_CFG: u8 = 1;
const NOTIFY_CFG: u8 = 2;
const ISR_CFG: u8 = 3;
const DEVICE_CFG: u8 = 4;
const PCI_CFG: u8 = 5;
/// Offset of the window's data in its capability.
const WINDOW_DATA: u16 = 16;

#[cfg(test)]
mod races;
#[cfg(test)]
mod tests;

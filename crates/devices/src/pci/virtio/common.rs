//! The common configuration (virtio 1.2 section 4.1.4.3): what the driver negotiates and how it sets
//! its queues up. Device status is in [`super::link`], the rest of what the driver has said is here.

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{Error, Queue, QueueT};
use vm_memory::{GuestAddress, GuestMemory, Permissions};

use super::{
    link::{Link, status},
    saved::{Saved, SavedQueue},
};
use crate::{Memory, state::BadState, virtio::Identity};

/// What the driver has said.
#[derive(Clone, Debug)]
pub(super) struct Common {
    device_feature_select: u32,
    driver_feature_select: u32,
    driver_features: u64,
    queue_select: u16,
    queues: Vec<QueueSetup>,
}

/// One queue as the driver sets it up.
#[derive(Clone, Copy, Debug)]
struct QueueSetup {
    max_size: u16,
    size: u16,
    enabled: bool,
    descriptors: u64,
    available: u64,
    used: u64,
}

/// What a write to the common configuration asks of the transport.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Request {
    /// The driver is ready.
    Activate,
    /// The driver has written 0 to the status.
    Reset,
}

impl Common {
    pub(super) fn new(identity: &Identity) -> Self {
        let queues = identity.queue_sizes.iter().map(|&size| QueueSetup::new(size)).collect();
        Self {
            device_feature_select: 0,
            driver_feature_select: 0,
            driver_features: 0,
            queue_select: 0,
            queues,
        }
    }

    pub(super) fn reset(&mut self) {
        let Self { device_feature_select, driver_feature_select, driver_features, queue_select, queues } =
            self;
        (*device_feature_select, *driver_feature_select, *driver_features, *queue_select) = (0, 0, 0, 0);
        queues.iter_mut().for_each(|queue| *queue = QueueSetup::new(queue.max_size));
    }

    pub(super) fn driver_features(&self) -> u64 {
        self.driver_features
    }

    /// The driver reads, any width at any offset.
    pub(super) fn read(&self, offset: u64, data: &mut [u8], identity: &Identity, link: &Link) {
        data.fill(0);
        let image = self.image(identity, link);
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        for (to, from) in data.iter_mut().zip(image.iter().skip(from)) {
            *to = *from;
        }
    }

    /// All registers, in order.
    fn image(&self, identity: &Identity, link: &Link) -> Vec<u8> {
        // A queue that is not there has size 0, by which the driver knows.
        let queue = self.queues.get(usize::from(self.queue_select)).copied().unwrap_or(QueueSetup::new(0));
        let num_queues = u16::try_from(self.queues.len()).unwrap_or(u16::MAX);
        let mut image = Vec::with_capacity(LEN);
        image.extend(self.device_feature_select.to_le_bytes());
        image.extend(window(offered(identity), self.device_feature_select).to_le_bytes());
        image.extend(self.driver_feature_select.to_le_bytes());
        image.extend(window(self.driver_features, self.driver_feature_select).to_le_bytes());
        image.extend(link.config_vector().to_le_bytes());
        image.extend(num_queues.to_le_bytes());
        image.extend([link.status(), identity.config.generation()]);
        image.extend(self.queue_select.to_le_bytes());
        image.extend(queue.size.to_le_bytes());
        image.extend(link.queue_vector(self.queue_select).to_le_bytes());
        image.extend(u16::from(queue.enabled).to_le_bytes());
        // Queue N is notified at N times the multiplier.
        image.extend(self.queue_select.to_le_bytes());
        image.extend(queue.descriptors.to_le_bytes());
        image.extend(queue.available.to_le_bytes());
        image.extend(queue.used.to_le_bytes());
        image
    }

    /// The driver writes a register: whole registers only, 64-bit ones also in halves
    /// (virtio 1.2 section 4.1.3.1). Everything else is ignored, and so is everything while a reset is
    /// under way.
    pub(super) fn write(
        &mut self,
        offset: u64,
        data: &[u8],
        identity: &Identity,
        link: &Link,
        memory: &Memory,
    ) -> Option<Request> {
        if link.is_resetting() {
            return None;
        }
        match *data {
            [value] if offset == DEVICE_STATUS => return self.write_status(value, identity, link),
            [a, b] => self.write_word(offset, u16::from_le_bytes([a, b]), link, memory),
            [a, b, c, d] => self.write_dword(offset, u32::from_le_bytes([a, b, c, d]), link),
            [a, b, c, d, e, f, g, h] if matches!(offset, QUEUE_DESC | QUEUE_DRIVER | QUEUE_DEVICE) => {
                self.write_dword(offset, u32::from_le_bytes([a, b, c, d]), link);
                self.write_dword(offset + 4, u32::from_le_bytes([e, f, g, h]), link);
            }
            _ => {}
        }
        None
    }

    fn write_word(&mut self, offset: u64, value: u16, link: &Link, memory: &Memory) {
        match offset {
            CONFIG_VECTOR => return link.set_config_vector(value),
            QUEUE_SELECT => return self.queue_select = value,
            QUEUE_VECTOR => return link.set_queue_vector(self.queue_select, value),
            _ => {}
        }
        let features_ok = link.status() & status::FEATURES_OK != 0;
        let Some(queue) = self.queue_in_setup(link) else { return };
        match offset {
            QUEUE_SIZE => queue.size = value,
            // A driver that sets up nonsense reads back that the queue is not enabled.
            QUEUE_ENABLE => queue.enabled = value == 1 && features_ok && queue.is_usable(memory),
            _ => {}
        }
    }

    fn write_dword(&mut self, offset: u64, value: u32, link: &Link) {
        match offset {
            DEVICE_FEATURE_SELECT => self.device_feature_select = value,
            DRIVER_FEATURE_SELECT => self.driver_feature_select = value,
            // What is agreed stays agreed.
            DRIVER_FEATURE if link.status() & status::FEATURES_OK == 0 => {
                let shift = match self.driver_feature_select {
                    0 => 0,
                    1 => 32,
                    _ => return,
                };
                let rest = self.driver_features & !(u64::from(u32::MAX) << shift);
                self.driver_features = rest | u64::from(value) << shift;
            }
            QUEUE_DESC..LEN_U64 => {
                let Some(queue) = self.queue_in_setup(link) else { return };
                let address = match offset & !7 {
                    QUEUE_DESC => &mut queue.descriptors,
                    QUEUE_DRIVER => &mut queue.available,
                    _ => &mut queue.used,
                };
                match offset & 7 {
                    0 => *address = *address & !u64::from(u32::MAX) | u64::from(value),
                    4 => *address = *address & u64::from(u32::MAX) | u64::from(value) << 32,
                    _ => {}
                }
            }
            _ => {}
        }
    }

    /// The selected queue, as long as the driver may set it up.
    fn queue_in_setup(&mut self, link: &Link) -> Option<&mut QueueSetup> {
        let queue = self.queues.get_mut(usize::from(self.queue_select))?;
        (!queue.enabled && link.status() & status::DRIVER_OK == 0).then_some(queue)
    }

    /// The driver moves through its states (virtio 1.2 section 3.1.1). Bits are only ever added, but for
    /// the reset.
    fn write_status(&mut self, value: u8, identity: &Identity, link: &Link) -> Option<Request> {
        if value == 0 {
            return Some(Request::Reset);
        }
        let now = link.status();
        let mut new = value & (status::ACKNOWLEDGE | status::DRIVER | status::FAILED);
        let mut request = None;
        if value & status::FEATURES_OK != 0 && self.features_are_ok(identity) {
            new |= status::FEATURES_OK;
        }
        if value & !now & status::DRIVER_OK != 0 && now & status::FEATURES_OK != 0 {
            new |= status::DRIVER_OK;
            request = Some(Request::Activate);
        }
        link.add_status(new);
        request
    }

    fn features_are_ok(&self, identity: &Identity) -> bool {
        self.driver_features & !offered(identity) == 0 && self.driver_features & VERSION_1 != 0
    }

    /// Its part of a snapshot; where the queues stand is the device's to say.
    pub(super) fn save(&self, link: &Link) -> Saved {
        let queue = |(index, queue): (u16, &QueueSetup)| SavedQueue {
            size: queue.size,
            enabled: queue.enabled,
            descriptors: queue.descriptors,
            available: queue.available,
            used: queue.used,
            vector: link.queue_vector(index),
            position: None,
        };
        Saved {
            device_feature_select: self.device_feature_select,
            driver_feature_select: self.driver_feature_select,
            driver_features: self.driver_features,
            queue_select: self.queue_select,
            queues: (0..).zip(&self.queues).map(queue).collect(),
            ..Saved::default()
        }
    }

    /// As it was.
    ///
    /// # Errors
    /// What was agreed cannot be kept here, or the queues make no sense.
    pub(super) fn restore(
        &mut self,
        saved: &Saved,
        identity: &Identity,
        memory: &Memory,
    ) -> Result<(), BadState> {
        if saved.queues.len() != self.queues.len() {
            return Err(BadState("it has another number of queues"));
        }
        if saved.status & status::FEATURES_OK != 0 && saved.driver_features & !offered(identity) != 0 {
            return Err(BadState("its driver uses features that it does not have here"));
        }
        for (queue, saved) in self.queues.iter_mut().zip(&saved.queues) {
            let SavedQueue { size, enabled, descriptors, available, used, .. } = *saved;
            *queue = QueueSetup { max_size: queue.max_size, size, enabled, descriptors, available, used };
            if enabled && !queue.is_usable(memory) {
                return Err(BadState("a queue lies outside of memory"));
            }
        }
        self.device_feature_select = saved.device_feature_select;
        self.driver_feature_select = saved.driver_feature_select;
        self.driver_features = saved.driver_features;
        self.queue_select = saved.queue_select;
        Ok(())
    }

    /// The queues for the device. One that the driver left out is not ready.
    ///
    /// # Errors
    /// None that [`QueueSetup::is_usable`] has not ruled out.
    pub(super) fn queues(&self) -> Result<Vec<Queue>, Error> {
        let event_idx = self.driver_features & EVENT_IDX != 0;
        self.queues.iter().map(|queue| queue.build(event_idx)).collect()
    }
}

impl QueueSetup {
    fn new(max_size: u16) -> Self {
        Self { max_size, size: max_size, enabled: false, descriptors: 0, available: 0, used: 0 }
    }

    /// Whether size, alignment (virtio 1.2 section 2.7) and addresses are such that a device can work
    /// with them.
    fn is_usable(&self, memory: &Memory) -> bool {
        let size = u64::from(self.size);
        let inside = |address, len: u64, access| {
            usize::try_from(len).is_ok_and(|len| memory.check_range(GuestAddress(address), len, access))
        };
        Self { enabled: true, ..*self }.build(false).is_ok()
            && self.available != 0
            && inside(self.descriptors, 16 * size, Permissions::Read)
            && inside(self.available, 6 + 2 * size, Permissions::Read)
            && inside(self.used, 6 + 8 * size, Permissions::Write)
    }

    fn build(&self, event_idx: bool) -> Result<Queue, Error> {
        let mut queue = Queue::new(self.max_size)?;
        if self.enabled {
            queue.try_set_size(self.size)?;
            queue.try_set_desc_table_address(GuestAddress(self.descriptors))?;
            queue.try_set_avail_ring_address(GuestAddress(self.available))?;
            queue.try_set_used_ring_address(GuestAddress(self.used))?;
            queue.set_event_idx(event_idx);
            queue.set_ready(true);
        }
        Ok(queue)
    }
}

/// All that is offered: the device's features and the transport's.
pub(super) fn offered(identity: &Identity) -> u64 {
    identity.features | VERSION_1 | EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC
}

fn window(features: u64, select: u32) -> u32 {
    let [a, b, c, d, e, f, g, h] = features.to_le_bytes();
    match select {
        0 => u32::from_le_bytes([a, b, c, d]),
        1 => u32::from_le_bytes([e, f, g, h]),
        _ => 0,
    }
}

const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;
const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;

/// Bytes of all registers but those of features that are not offered (notification data, queue reset).
pub(super) const LEN: usize = 56;
const LEN_U64: u64 = LEN as u64;
const DEVICE_FEATURE_SELECT: u64 = 0;
const DRIVER_FEATURE_SELECT: u64 = 8;
const DRIVER_FEATURE: u64 = 12;
const CONFIG_VECTOR: u64 = 16;
const DEVICE_STATUS: u64 = 20;
const QUEUE_SELECT: u64 = 22;
const QUEUE_SIZE: u64 = 24;
const QUEUE_VECTOR: u64 = 26;
const QUEUE_ENABLE: u64 = 28;
const QUEUE_DESC: u64 = 32;
const QUEUE_DRIVER: u64 = 40;
const QUEUE_DEVICE: u64 = 48;

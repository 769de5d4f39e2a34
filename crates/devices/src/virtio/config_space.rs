//! The device-specific configuration of a virtio device (virtio 1.2 section 2.5): bytes that the
//! driver reads on a vCPU thread while the device changes them on the event loop's.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::state::BadState;

/// The configuration's bytes and their generation. Taken for moments only, never on the data path.
#[derive(Debug)]
pub struct ConfigSpace {
    inner: Mutex<Inner>,
    /// Bytes that the driver may write: 0xff where it may.
    writable: Vec<u8>,
}

#[derive(Debug)]
struct Inner {
    bytes: Vec<u8>,
    generation: u8,
}

impl ConfigSpace {
    /// A configuration that the driver can only read.
    pub fn read_only(bytes: Vec<u8>) -> Self {
        let writable = vec![0; bytes.len()];
        Self::new(bytes, writable)
    }

    /// A configuration of which the driver may write the bits set in `writable`.
    pub fn new(bytes: Vec<u8>, writable: Vec<u8>) -> Self {
        Self { inner: Mutex::new(Inner { bytes, generation: 0 }), writable }
    }

    /// The driver reads. Bytes beyond the end read as zero.
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        let inner = self.lock();
        data.fill(0);
        for (to, from) in data.iter_mut().zip(inner.bytes.iter().skip(offset)) {
            *to = *from;
        }
    }

    /// The driver writes. Bits that are not its to write stay as they are.
    pub fn write(&self, offset: usize, data: &[u8]) {
        let mut inner = self.lock();
        let bytes = inner.bytes.iter_mut().zip(&self.writable).skip(offset);
        for ((byte, writable), new) in bytes.zip(data) {
            *byte = (*byte & !writable) | (new & writable);
        }
    }

    /// The device changes its configuration; the driver sees a new generation. The caller then
    /// raises [`super::Interrupt::config_changed`].
    pub fn update(&self, change: impl FnOnce(&mut [u8])) {
        let mut inner = self.lock();
        change(&mut inner.bytes);
        inner.generation = inner.generation.wrapping_add(1);
    }

    /// As in a snapshot, which may be of a time when there was less of it.
    ///
    /// # Errors
    /// There was more of it.
    pub fn restore(&self, saved: &[u8]) -> Result<(), BadState> {
        let mut inner = self.lock();
        let bytes = inner.bytes.get_mut(..saved.len()).ok_or(BadState("it had more of a configuration"))?;
        bytes.copy_from_slice(saved);
        Ok(())
    }

    /// A copy of the bytes, for the device.
    pub fn bytes(&self) -> Vec<u8> {
        self.lock().bytes.clone()
    }

    /// Changes with every [`Self::update`].
    pub fn generation(&self) -> u8 {
        self.lock().generation
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Bytes are whole after every statement, so a panic elsewhere cannot have left half of a change.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::ConfigSpace;

    #[test]
    fn reads_past_the_end_are_zero_and_writes_there_are_lost() {
        let config = ConfigSpace::new(vec![1, 2, 3], vec![0, 0xff, 0x0f]);
        config.write(1, &[0xaa, 0xbb, 0xcc]);
        let mut data = [0xee; 4];
        config.read(1, &mut data);
        assert_eq!(data, [0xaa, 0x0b, 0, 0]);
        config.read(usize::MAX, &mut data);
        assert_eq!(data, [0; 4]);
    }

    #[test]
    fn an_update_is_a_new_generation() {
        let config = ConfigSpace::read_only(vec![0]);
        let before = config.generation();
        config.update(|bytes| bytes.fill(9));
        assert_ne!(config.generation(), before);
        assert_eq!(config.bytes(), [9]);
    }
}

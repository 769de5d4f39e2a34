//! What is typed, on its way into the guest's serial port.

use std::{
    fs::File,
    io::{self, Read},
    sync::Arc,
};

use ec2vmm_devices::serial::Serial;

/// A small buffer between those who type and a guest that may not read.
pub(super) struct Input {
    serial: Arc<Serial>,
    /// Typed, but not yet taken by the guest.
    typed: Vec<u8>,
    bytes: u64,
}

/// Why no more is read from a source.
#[derive(Debug)]
pub(super) enum Pulled {
    /// The guest has no room. The serial port says when it has.
    Full,
    /// Nothing is typed now.
    Empty,
    /// Nothing will be typed any more.
    End,
    /// The source is gone.
    Failed(io::Error),
}

impl Input {
    pub(super) fn new(serial: Arc<Serial>) -> Self {
        Self { serial, typed: Vec::new(), bytes: 0 }
    }

    /// Hands the guest what can be read from `source`, which does not block.
    pub(super) fn pull(&mut self, source: &mut File) -> Pulled {
        loop {
            let taken = self.serial.enqueue(&self.typed);
            self.typed.drain(..taken);
            if !self.typed.is_empty() {
                return Pulled::Full;
            }
            let mut buffer = [0; TYPED_MAX];
            match source.read(&mut buffer) {
                Ok(0) => return Pulled::End,
                Ok(count) => {
                    self.typed.extend(buffer.iter().take(count));
                    self.bytes += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Pulled::Empty,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Pulled::Failed(error),
            }
        }
    }

    /// What was typed before a reset is not for the next system.
    pub(super) fn clear(&mut self) {
        self.typed.clear();
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }
}

const TYPED_MAX: usize = 256;

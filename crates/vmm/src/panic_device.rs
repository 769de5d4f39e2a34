//! Hears from the guest's kernel that it has panicked.

use ec2vmm_devices::{
    pci::{InsertError, PciBus},
    pvpanic::{OnPanic, Panic, Pvpanic},
};

use crate::mailbox::{Notice, Sender};

/// Tells the event loop, and the log, each once: a guest can write the register for ever.
struct Told {
    news: Option<Sender>,
    crash_logged: bool,
}

impl OnPanic for Told {
    fn on_panic(&mut self, panic: Panic) {
        match panic {
            Panic::Panicked => {
                if let Some(news) = self.news.take() {
                    news.send(Notice::Panicked);
                }
            }
            // It goes on, and resets or powers off when its dump is written.
            Panic::CrashLoaded => {
                if !std::mem::replace(&mut self.crash_logged, true) {
                    log::warn!("the guest's kernel panicked and runs its crash kernel");
                }
            }
        }
    }
}

/// Puts the device into its slot, its register at `bar`.
///
/// # Errors
/// The slot is taken.
pub fn insert(pci: &PciBus, bar: u64, news: Sender) -> Result<(), InsertError> {
    pci.insert(SLOT, Pvpanic::new(bar, Told { news: Some(news), crash_logged: false }))
}

/// Its device number on PCI bus 0.
pub const SLOT: u8 = 4;

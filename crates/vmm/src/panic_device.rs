//! Hears from the guest's kernel that it has panicked.

use ec2vmm_devices::{
    pci::{InsertError, PciBus},
    pvpanic::{OnPanic, Panic, Pvpanic},
};

use crate::mailbox::{Notice, Sender};

/// Tells the event loop, once.
struct Told(Option<Sender>);

impl OnPanic for Told {
    fn on_panic(&mut self, panic: Panic) {
        match panic {
            Panic::Panicked => {
                if let Some(news) = self.0.take() {
                    news.send(Notice::Panicked);
                }
            }
            // It goes on, and resets or powers off when its dump is written.
            Panic::CrashLoaded => log::warn!("the guest's kernel panicked and runs its crash kernel"),
        }
    }
}

/// Puts the device into its slot, its register at `bar`.
///
/// # Errors
/// The slot is taken.
pub fn insert(pci: &PciBus, bar: u64, news: Sender) -> Result<(), InsertError> {
    pci.insert(SLOT, Pvpanic::new(bar, Told(Some(news))))
}

const SLOT: u8 = 4;

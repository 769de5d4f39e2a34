//! A guest that is asked to reboot.
//!
//! ACPI has no button for that. So the power button is pressed, and where the guest would power off, it is reset:
//!
//! ```text
//!   asked ──► pressed ──5 s──► pressed ──5 s──► ... ──► the time is over ──► reset
//!                └── powers off, or resets by itself ──────────────────────────┘
//! ```

use std::{io, time::Duration};

use ec2vmm_devices::time::{Clock, Timer};
use ec2vmm_vmm_api::control::State;

use super::{End, Machine, Run};
use crate::x86_64::acpi;

/// What is left of the time that the guest has.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Reboot {
    left: Duration,
    /// When that was counted, by the machine's own clock.
    counted_ns: u64,
}

impl Reboot {
    /// Counts what is left. The time in which the machine stands still is not the guest's.
    fn count(&mut self, stands_still: bool, now_ns: u64) -> Duration {
        let gone = Duration::from_nanos(now_ns.saturating_sub(self.counted_ns));
        self.counted_ns = now_ns;
        if !stands_still {
            self.left = self.left.saturating_sub(gone);
        }
        self.left
    }
}

impl Machine {
    /// Asks the guest to reboot. Whoever asks again does not give it more time.
    ///
    /// # Errors
    /// The button cannot be pressed.
    pub(super) fn ask_to_reboot(&mut self, run: &Run, grace: Duration) -> io::Result<()> {
        let left = self.count_reboot().map_or(grace, |left| left.min(grace));
        if left.is_zero() {
            self.end_with(End::Reset);
            return Ok(());
        }
        run.bus.acpi.raise(acpi::Event::PowerButton)?;
        self.reboot = Some(Reboot { left, counted_ns: self.reboot_timer.now_ns() });
        self.await_reboot(left);
        Ok(())
    }

    /// The timer has rung, maybe for a reboot that nobody wants any more.
    pub(super) fn see_to_reboot(&mut self, run: &Run) {
        if self.state == State::Paused {
            return;
        }
        let Some(left) = self.count_reboot() else { return };
        if left.is_zero() {
            log::warn!("the guest was asked to reboot, and did not in time: it is reset");
            self.end_with(End::Reset);
            return;
        }
        if let Err(error) = run.bus.acpi.raise(acpi::Event::PowerButton) {
            log::error!("pressing the power button: {error}");
        }
        self.await_reboot(left);
    }

    /// Counts what the guest has left, also before the machine is paused.
    pub(super) fn count_reboot(&mut self) -> Option<Duration> {
        let now_ns = self.reboot_timer.now_ns();
        Some(self.reboot.as_mut()?.count(self.state == State::Paused, now_ns))
    }

    /// The machine is about to go on: what the pause has taken is not the guest's.
    pub(super) fn resume_reboot(&mut self) {
        if let Some(left) = self.count_reboot() {
            self.await_reboot(left);
        }
    }

    /// A machine that stands still sleeps through the ring.
    fn await_reboot(&mut self, left: Duration) {
        self.reboot_timer.wake_after(left.min(PRESS_AGAIN));
    }
}

/// A guest that still boots does not hear its button.
const PRESS_AGAIN: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Reboot;

    #[test]
    fn only_time_in_which_the_machine_runs_is_counted() {
        let ms = Duration::from_millis;
        let mut reboot = Reboot { left: ms(12), counted_ns: 100_000_000 };
        assert_eq!(reboot.count(false, 105_000_000), ms(7));
        assert_eq!(reboot.count(false, 105_000_000), ms(7));
        assert_eq!(reboot.count(true, 900_000_000), ms(7));
        assert_eq!(reboot.count(false, 906_000_000), ms(1));
        assert_eq!(reboot.count(false, 950_000_000), ms(0));
    }
}

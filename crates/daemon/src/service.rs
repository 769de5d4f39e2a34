//! What systemd is told (sd_notify(3)), and the watchdog. Without systemd, nothing.

use std::time::Duration;

use ec2vmm_cloud::Cloud;
use sd_notify::NotifyState;

/// Requests are taken.
pub(crate) fn ready() {
    tell(&[NotifyState::Ready, NotifyState::Status("serving")]);
}

/// The end has begun.
pub(crate) fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("finishing requests; machines run on")]);
}

/// Another program is about to go on.
pub(crate) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::warn!(%error, "systemd is not told of the upgrade"),
    }
}

/// Tells systemd again and again that the daemon works, where it wants to know.
pub(crate) async fn watchdog(cloud: Cloud) {
    let Some(within) = sd_notify::watchdog_enabled() else { return };
    let mut ticks = tokio::time::interval((within / 2).max(Duration::from_millis(1)));
    loop {
        ticks.tick().await;
        // That tasks run and the store can be read is what "works" means.
        match cloud.figures() {
            Ok(_) => tell(&[NotifyState::Watchdog]),
            Err(error) => {
                tracing::error!(%error, "the store cannot be read: systemd is not told that all is well")
            }
        }
    }
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "systemd cannot be told");
    }
}

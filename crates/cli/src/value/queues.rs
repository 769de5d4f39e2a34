//! How many queues a device has.

use ec2vmm_vmm_api::config::QUEUES_MAX;

/// A number of queues.
pub(crate) fn queues(text: &str) -> Result<u16, String> {
    let number = text.parse().ok().filter(|number| (1..=QUEUES_MAX).contains(number));
    number.ok_or_else(|| format!("`{text}` is not a number of queues: 1 to {QUEUES_MAX}"))
}

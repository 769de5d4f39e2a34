//! What DHCP and DNS have done, for all networks together.

use std::sync::atomic::{AtomicU64, Ordering};

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) dhcp_answered: AtomicU64,
    pub(super) dhcp_dropped: AtomicU64,
    pub(super) dns_answered: AtomicU64,
    pub(super) dns_forwarded: AtomicU64,
    pub(super) dns_failed: AtomicU64,
    pub(super) dns_dropped: AtomicU64,
}

/// What DHCP and DNS have done since the start, for all networks together.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counts {
    /// DHCP packets that were answered.
    pub dhcp_answered: u64,
    /// DHCP packets that were not: malformed, forged, too many, or none that wants an answer.
    pub dhcp_dropped: u64,
    /// DNS questions that were answered from the networks' own names.
    pub dns_answered: u64,
    /// DNS questions that others were asked.
    pub dns_forwarded: u64,
    /// Those of them that nobody answered.
    pub dns_failed: u64,
    /// DNS packets that were no question, from nobody of ours, or too many.
    pub dns_dropped: u64,
}

impl Counters {
    pub(super) fn read(&self) -> Counts {
        let Self { dhcp_answered, dhcp_dropped, dns_answered, dns_forwarded, dns_failed, dns_dropped } = self;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            dhcp_answered: read(dhcp_answered),
            dhcp_dropped: read(dhcp_dropped),
            dns_answered: read(dns_answered),
            dns_forwarded: read(dns_forwarded),
            dns_failed: read(dns_failed),
            dns_dropped: read(dns_dropped),
        }
    }
}

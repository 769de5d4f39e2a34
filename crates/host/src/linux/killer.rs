//! A daemon that is killed right after one of its changes to the host: what tests of survival start.

use std::sync::atomic::{AtomicUsize, Ordering};

use tracing::{Event, Metadata, Subscriber, span};

/// Kills this process right after the change of that number, from 1, that is told to `target`.
pub(super) fn die_after(changes: usize, target: &'static str) {
    let killer = Killer { target, after: changes, changes: AtomicUsize::new(0) };
    tracing::subscriber::set_global_default(killer).unwrap();
}

struct Killer {
    target: &'static str,
    after: usize,
    changes: AtomicUsize,
}

impl Subscriber for Killer {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == self.target
    }

    fn event(&self, _event: &Event<'_>) {
        if self.changes.fetch_add(1, Ordering::SeqCst) + 1 == self.after {
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).unwrap();
        }
    }

    fn new_span(&self, _span: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _span: &span::Id, _values: &span::Record<'_>) {}
    fn record_follows_from(&self, _span: &span::Id, _follows: &span::Id) {}
    fn enter(&self, _span: &span::Id) {}
    fn exit(&self, _span: &span::Id) {}
}

/// The variable that tells the victim after how many changes.
pub(super) const DIE_AFTER: &str = "EC2VMM_TEST_DIE_AFTER";

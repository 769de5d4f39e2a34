//! Counts what would be logged.

use std::sync::{
    Once,
    atomic::{AtomicUsize, Ordering},
};

struct Lines(AtomicUsize);

static LINES: Lines = Lines(AtomicUsize::new(0));

/// Counts from now on.
pub fn watch() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        log::set_logger(&LINES).expect("the only logger");
        log::set_max_level(log::LevelFilter::Warn);
    });
    take();
}

/// How many there were since the last call.
pub fn take() -> usize {
    LINES.0.swap(0, Ordering::Relaxed)
}

impl log::Log for Lines {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        // As the machine process has it.
        metadata.target().starts_with("ec2vmm")
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            assert!(!record.args().to_string().is_empty());
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn flush(&self) {}
}

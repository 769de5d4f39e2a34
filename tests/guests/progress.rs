//! Ends a test program that stands still.
//!
//! Whoever waits for a fact has a deadline, and says what is missing. But a test can also hang where it waits
//! for nobody: in a read of a socket that is not served any more, or in the kernel. Then this ends the whole
//! program, and names the last step that was begun.

use std::{
    process::abort,
    sync::{Mutex, Once, PoisonError},
    thread,
    time::{Duration, Instant},
};

use crate::machine::patience;

/// A step of a test begins.
pub(crate) fn step(what: &str) {
    static WATCHED: Once = Once::new();
    let test = thread::current().name().unwrap_or_default().to_owned();
    *last() = Some(Step { begun: Instant::now(), what: format!("{test}: {what}") });
    WATCHED.call_once(|| drop(thread::spawn(watch)));
}

struct Step {
    begun: Instant,
    what: String,
}

fn last() -> std::sync::MutexGuard<'static, Option<Step>> {
    static LAST: Mutex<Option<Step>> = Mutex::new(None);
    LAST.lock().unwrap_or_else(PoisonError::into_inner)
}

fn watch() {
    // A step that is waited for ends by itself before that.
    let limit = patience() + MARGIN;
    loop {
        let left = match &*last() {
            Some(step) if step.begun.elapsed() >= limit => {
                eprintln!("stands still for {} s: {}", limit.as_secs(), step.what);
                abort();
            }
            Some(step) => limit.saturating_sub(step.begun.elapsed()),
            None => limit,
        };
        thread::sleep(left);
    }
}

const MARGIN: Duration = Duration::from_secs(60);

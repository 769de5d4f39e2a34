//! Messages to standard error, a line each, of which a guest can cause only so many.
//!
//! Whatever a guest, a client or a dying disk makes the machine say again and again is said at one place in
//! the code, so the bound is on the place: its first [`REPEATS_MAX`] warnings or errors are written, then the
//! 16th, 32nd, 64th and so on. So no place can fill the log, and none can keep what
//! others have to say out of it. What people turn on to look for something (`EC2VMM_LOG`) is theirs, and
//! bounded by [`LOG_BYTES_MAX`] alone.

use std::{
    collections::HashMap,
    io::Write,
    sync::{Mutex, PoisonError},
};

use log::{Level, LevelFilter, Log, Metadata, Record};

/// Messages go to standard error from now on: what went wrong, and with `EC2VMM_LOG=debug` what happens.
/// No more than [`LOG_BYTES_MAX`] of them: standard error may be a file that outlives whoever would tidy it.
pub fn log_to_stderr() {
    let level = match std::env::var("EC2VMM_LOG").as_deref() {
        Ok("debug") => LevelFilter::Debug,
        Ok("info") => LevelFilter::Info,
        _ => LevelFilter::Warn,
    };
    let messages = Messages::new(std::io::stderr());
    // The only failure is a logger that was set before, which there is not.
    if log::set_boxed_logger(Box::new(messages)).is_ok() {
        log::set_max_level(level);
    }
}

/// The most that is logged in the life of a process, bytes.
pub const LOG_BYTES_MAX: u64 = 1 << 20;
/// How many warnings and errors of one place in the code are written, before only some of them are.
pub const REPEATS_MAX: u64 = 8;

const LAST: &str = "ec2vmm-vmm: no more is logged\n";

struct Messages<W> {
    state: Mutex<State<W>>,
}

struct State<W> {
    output: W,
    written: u64,
    /// How often each place has spoken. There are as many as the code has.
    places: HashMap<Place, u64>,
}

/// A module, and a line of it.
type Place = (Option<&'static str>, Option<u32>);

impl<W> Messages<W> {
    fn new(output: W) -> Self {
        Self { state: Mutex::new(State { output, written: 0, places: HashMap::new() }) }
    }
}

impl<W: Write + Send> Log for Messages<W> {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let target = metadata.target();
        // What a guest makes `virtio-queue` say comes back as an error, which is said at a place of ours.
        let guests = target.starts_with("virtio_queue");
        target.starts_with("ec2vmm") || !guests && metadata.level() <= Level::Warn
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            self.state.lock().unwrap_or_else(PoisonError::into_inner).log(record);
        }
    }

    fn flush(&self) {}
}

impl<W: Write> State<W> {
    fn log(&mut self, record: &Record<'_>) {
        let place = (record.module_path_static(), record.line());
        let count = self.places.entry(place).or_insert(0);
        *count = count.saturating_add(1);
        let note = match record.level() {
            Level::Warn | Level::Error if *count >= REPEATS_MAX => {
                if !count.is_power_of_two() {
                    return;
                }
                " (not all of these are shown)"
            }
            _ => "",
        };
        let level = record.level().as_str().to_lowercase();
        self.write(&format!("ec2vmm-vmm: {level}: {}{note}\n", record.args()));
    }

    fn write(&mut self, line: &str) {
        let written = self.written + line.len() as u64;
        let fits = written + LAST.len() as u64 <= LOG_BYTES_MAX;
        if self.written == LOG_BYTES_MAX {
            return;
        }
        let line = if fits { line } else { LAST };
        self.written = if fits { written } else { LOG_BYTES_MAX };
        // Whoever closed standard error does not want to read it.
        let _ = self.output.write_all(line.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use log::{Level, Log, Record};

    use super::{LOG_BYTES_MAX, Messages};

    fn say(messages: &Messages<Vec<u8>>, level: Level, line: u32, text: &str) {
        let mut record = Record::builder();
        record.level(level).target("ec2vmm_vmm::x").module_path_static(Some("x")).line(Some(line));
        messages.log(&record.args(format_args!("{text}")).build());
    }

    fn said(messages: Messages<Vec<u8>>) -> String {
        String::from_utf8(messages.state.into_inner().unwrap().output).unwrap()
    }

    #[test]
    fn what_is_said_again_and_again_fills_no_log_and_silences_nobody() {
        let messages = Messages::new(Vec::new());
        for number in 1..=100_000 {
            say(&messages, Level::Warn, 1, &format!("failure {number}"));
        }
        say(&messages, Level::Error, 2, "something else");
        let said = said(messages);
        let lines: Vec<_> = said.lines().collect();
        let first: Vec<_> = (1..8).map(|number| format!("ec2vmm-vmm: warn: failure {number}")).collect();
        assert_eq!(lines[..7], first);
        assert_eq!(lines[7], "ec2vmm-vmm: warn: failure 8 (not all of these are shown)");
        assert_eq!(lines[8], "ec2vmm-vmm: warn: failure 16 (not all of these are shown)");
        assert_eq!(lines[21], "ec2vmm-vmm: error: something else");
        assert_eq!(lines.len(), 22, "8, then 2^4 to 2^16");
    }

    #[test]
    fn what_people_asked_to_see_is_shown_until_the_end() {
        let messages = Messages::new(Vec::new());
        let text = "x".repeat(1000);
        for _ in 0..2000 {
            say(&messages, Level::Info, 1, &text);
        }
        let said = said(messages);
        assert!(said.len() as u64 <= LOG_BYTES_MAX);
        assert!(said.lines().count() > 1000);
        assert!(said.ends_with("ec2vmm-vmm: no more is logged\n"));
    }

    #[test]
    fn a_guest_does_not_speak_through_others() {
        let messages = Messages::new(Vec::new());
        let record = |target, level| Record::builder().target(target).level(level).build();
        assert!(!messages.enabled(record("virtio_queue::queue", Level::Error).metadata()));
        assert!(messages.enabled(record("vm_memory", Level::Warn).metadata()));
        assert!(!messages.enabled(record("vm_memory", Level::Info).metadata()));
        assert!(messages.enabled(record("ec2vmm_devices::pci", Level::Debug).metadata()));
    }
}

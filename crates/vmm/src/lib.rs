//! One process, one machine: memory, KVM, vCPUs, boot, ACPI, SMBIOS, control socket.
//!
//! It opens no path: all that it uses comes in as an open descriptor, named in a
//! [`ec2vmm_vmm_api::MachineConfig`]. No Tokio, no async; one event loop and a thread per vCPU.
#![allow(unsafe_code, reason = "KVM, mappings and inherited descriptors; each use says why it is sound")]

use std::sync::atomic::{AtomicU64, Ordering};

pub mod block;
pub mod boot_source;
pub mod builder;
pub mod bus;
pub mod clock;
pub mod console;
pub mod control;
pub mod entropy;
pub mod error;
pub mod event_loop;
pub mod gate;
pub mod inherited;
pub mod limits;
pub mod lines;
pub mod machine;
pub mod mailbox;
pub mod memory;
pub mod net;
pub mod outlet;
pub mod panic_device;
pub mod parts;
pub mod rate_limits;
pub mod reclaim;
pub mod report;
pub mod slots;
pub mod smbios;
pub mod snapshot;
pub mod vcpu;
pub mod vm;
pub mod watch;
pub mod wiring;
pub mod x86_64;

/// Messages go to standard error, a line each: what went wrong, and with `EC2VMM_LOG=debug` what happens.
/// No more than [`LOG_BYTES_MAX`] of them: standard error may be a file that outlives whoever would tidy it.
pub fn log_to_stderr() {
    struct Stderr {
        written: AtomicU64,
    }

    impl log::Log for Stderr {
        fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
            let target = metadata.target();
            // A guest makes `virtio-queue` log as often as it likes; what it says comes back as an error,
            // which is logged where it is bounded.
            let guests = target.starts_with("virtio_queue");
            target.starts_with("ec2vmm") || !guests && metadata.level() <= log::Level::Warn
        }

        fn log(&self, record: &log::Record<'_>) {
            use std::io::Write;
            if self.enabled(record.metadata()) {
                let level = record.level().as_str().to_lowercase();
                let line = format!("ec2vmm-vmm: {level}: {}\n", record.args());
                let before = self.written.fetch_add(line.len() as u64, Ordering::Relaxed);
                // Whoever closed standard error does not want to read it.
                let _ = match before {
                    0..LOG_BYTES_MAX if before + (line.len() as u64) < LOG_BYTES_MAX => {
                        std::io::stderr().write_all(line.as_bytes())
                    }
                    0..LOG_BYTES_MAX => writeln!(std::io::stderr(), "ec2vmm-vmm: no more is logged"),
                    _ => Ok(()),
                };
            }
        }

        fn flush(&self) {}
    }

    static STDERR: Stderr = Stderr { written: AtomicU64::new(0) };
    let level = match std::env::var("EC2VMM_LOG").as_deref() {
        Ok("debug") => log::LevelFilter::Debug,
        Ok("info") => log::LevelFilter::Info,
        _ => log::LevelFilter::Warn,
    };
    // The only failure is a logger that was set before, which there is not.
    if log::set_logger(&STDERR).is_ok() {
        log::set_max_level(level);
    }
}

/// The most that is logged in the life of a process, bytes.
pub const LOG_BYTES_MAX: u64 = 1 << 20;

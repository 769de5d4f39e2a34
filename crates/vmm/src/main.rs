//! `ec2vmm-vmm`: one machine. Reads a [`MachineConfig`] from standard input, and exits with the
//! status that [`Exit::code`] gives.

use std::{io::Read, process::ExitCode, time::Instant};

use ec2vmm_vmm::{builder, limits, log_to_stderr};
use ec2vmm_vmm_api::{Exit, Failure, FailureKind, MachineConfig};

fn main() -> ExitCode {
    let born = Instant::now();
    log_to_stderr();
    if let Err(error) = limits::raise_descriptors() {
        log::warn!("raising the limit of open descriptors: {error}");
    }
    let exit = match read_config() {
        Ok(config) => builder::run(config, born),
        Err(failure) => {
            log::error!("{}", failure.message);
            Exit::Failed(failure.kind)
        }
    };
    ExitCode::from(exit.code())
}

fn read_config() -> Result<MachineConfig, Failure> {
    let failure = |message| Failure { kind: FailureKind::Usage, message, hint: None };
    let mut text = String::new();
    std::io::stdin()
        .lock()
        .take(CONFIG_BYTES_MAX)
        .read_to_string(&mut text)
        .map_err(|error| failure(format!("reading the configuration from standard input: {error}")))?;
    serde_json::from_str(&text)
        .map_err(|error| failure(format!("the configuration on standard input makes no sense: {error}")))
}

const CONFIG_BYTES_MAX: u64 = 1 << 20;

//! How many descriptors the process may have: a client is one, and a machine some.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Takes as many as the system gives, and tells how many connections that is enough for.
pub(crate) fn raise() -> u32 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let now = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(error) => {
            tracing::warn!(%error, "the limit of open files cannot be raised");
            limit.current
        }
    };
    let connections = connections(now);
    if connections < CONNECTIONS_FEW {
        tracing::warn!(open_files = ?now, connections, "few open files are allowed, and so few connections");
    }
    connections
}

/// Nothing: without a limit.
fn connections(open_files: Option<u64>) -> u32 {
    let Some(open_files) = open_files else { return CONNECTIONS_MAX };
    // The rest is the machines', and the other end of consoles.
    let most = open_files.saturating_sub(RESERVED) / 4 * 3;
    u32::try_from(most).unwrap_or(CONNECTIONS_MAX).clamp(CONNECTIONS_MIN, CONNECTIONS_MAX)
}

/// What the daemon itself needs: its database, its timers, its host.
const RESERVED: u64 = 128;
const CONNECTIONS_MIN: u32 = 16;
/// Fewer are worth a word.
const CONNECTIONS_FEW: u32 = 4096;
const CONNECTIONS_MAX: u32 = 16_384;

#[cfg(test)]
mod tests {
    use super::connections;

    #[test]
    fn most_of_what_there_is() {
        let limits = [Some(0), Some(1024), Some(4096), Some(1_048_576), None];
        assert_eq!(limits.map(connections), [16, 672, 2976, 16_384, 16_384]);
    }
}

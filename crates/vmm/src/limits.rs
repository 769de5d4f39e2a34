//! The limits that the process itself has.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Lets the process have as many descriptors as its hard limit says. The soft one is 1,024 for the sake
/// of programs that use `select`; the streams of a vsock device alone can take more, and would leave none
/// for the control socket and for the next reboot.
///
/// # Errors
/// The system refused: it goes on with what there is.
pub fn raise_descriptors() -> io::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    Ok(setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })?)
}

#[cfg(test)]
mod tests {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    #[test]
    fn descriptors_are_limited_by_the_hard_limit_alone() {
        let hard = getrlimit(Resource::Nofile).maximum;
        // Enough for the tests that run meanwhile.
        let current = Some(hard.map_or(1000, |hard| hard.min(1000)));
        setrlimit(Resource::Nofile, Rlimit { current, maximum: hard }).unwrap();
        super::raise_descriptors().unwrap();
        let raised = getrlimit(Resource::Nofile);
        assert_eq!((raised.current, raised.maximum), (hard, hard));
    }
}

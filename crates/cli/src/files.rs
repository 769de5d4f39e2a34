//! Small files that people name.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use ec2vmm_vmm_api::FailureKind;

use crate::error::{Error, kind_of_path};

/// The whole of a file that may have at most so many bytes; `what` it should hold, for the error.
pub(crate) fn read(path: &Path, bytes_max: usize, what: &str) -> Result<Vec<u8>, Error> {
    let failed = |error: io::Error| {
        Error::new(kind_of_path(&error), format!("cannot read {what} from {}: {error}", path.display()))
            .hint("check the file's name")
    };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(bytes_max as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() > bytes_max {
        let message = format!("{} is longer than {what} may be: {bytes_max} bytes", path.display());
        return Err(Error::new(FailureKind::BadInput, message).hint("check that it is the right file"));
    }
    Ok(bytes)
}

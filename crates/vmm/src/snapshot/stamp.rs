//! What tells whether a disk's file is as it was.
//!
//! Length and time of the last write, as the file system keeps it: any write moves it, and copies that
//! keep times (`cp -p`, `cp --reflink -p`, `rsync -t`, `tar`) keep it too.

use std::{io, os::unix::fs::MetadataExt};

use ec2vmm_image as image;
use ec2vmm_vmm_api::config::Format;

use super::{DiskShape, LayerStamp};

/// A file as it is now.
///
/// # Errors
/// The system does not say.
pub(super) fn of(layer: &image::Layer) -> io::Result<LayerStamp> {
    let metadata = layer.file.metadata()?;
    let seconds = metadata.mtime().saturating_mul(1_000_000_000);
    Ok(LayerStamp {
        format: match layer.format {
            image::Format::Raw => Format::Raw,
            image::Format::Qcow2 => Format::Qcow2,
        },
        bytes: if metadata.is_file() { metadata.len() } else { 0 },
        modified_ns: seconds.saturating_add(metadata.mtime_nsec()),
    })
}

/// What of a disk is not as it was: the reason, for people.
pub(super) fn difference(then: &DiskShape, now: &DiskShape) -> Option<String> {
    if then.layers.len() != now.layers.len() {
        return Some(format!("it had {} files, and has {}", then.layers.len(), now.layers.len()));
    }
    for (index, (then, now)) in then.layers.iter().zip(&now.layers).enumerate() {
        let place = if index == 0 { String::new() } else { format!(" of its backing file {index}") };
        if then.format != now.format {
            return Some(format!("the format{place} was {:?}, and is {:?}", then.format, now.format));
        }
        if then.bytes != now.bytes {
            return Some(format!("the length{place} was {} bytes, and is {}", then.bytes, now.bytes));
        }
        if then.modified_ns != now.modified_ns {
            let (earlier, later) = (then.modified_ns, now.modified_ns);
            let seconds = later.saturating_sub(earlier) / 1_000_000_000;
            return Some(match seconds {
                0.. if later > earlier => format!("the file{place} was written to {seconds} s later"),
                _ => format!("the file{place} is an older one"),
            });
        }
    }
    None
}

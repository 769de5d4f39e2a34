//! `ec2vmm image inspect`.

use ec2vmm_host::disks;

use crate::{Done, args::Inspect};

pub(crate) fn run(args: &Inspect) -> Done {
    let _disk = disks::open_to_inspect(&args.file, args.format)?;
    crate::output::print("")
}

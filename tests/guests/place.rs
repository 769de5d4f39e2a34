//! Where a test finds what it needs: programs, images, and a folder of its own.

use std::{env, path::PathBuf};

/// A program of this workspace, built with the profile of this test.
pub(crate) fn program(name: &str) -> PathBuf {
    let folder = match env::var_os("EC2VMM_PROGRAMS") {
        Some(folder) => PathBuf::from(folder),
        // This test is in `deps`, beside it the programs.
        None => env::current_exe().unwrap().ancestors().nth(2).unwrap().to_owned(),
    };
    let program = folder.join(name);
    assert!(program.is_file(), "{} is missing: build it, or let scripts/test", program.display());
    program
}

/// A file of `build/images`, from memory where the lab has staged it.
pub(crate) fn image(name: &str) -> PathBuf {
    let staged = env::var_os("LAB_STAGE_DIR").map(|folder| PathBuf::from(folder).join(name));
    let built = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../build/images").join(name);
    let found = staged.into_iter().chain([built]).find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("build/images/{name} is missing: scripts/build-image makes it"))
}

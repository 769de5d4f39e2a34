//! The `blscfg` command of Fedora's GRUB: a menu from Boot Loader Specification entries.
//!
//! As that command does it, each entry becomes a script; variables in its options are put in when the
//! menu is made.

use super::GrubError;
use super::places::Place;
use super::run::Machine;
use crate::boot::loader_spec::{self, EntryFile};

/// Adds the entries of `$blsdir`, or else of the usual folders on `$root`, the newest first.
pub(super) fn add(machine: &mut Machine<'_>) -> Result<bool, GrubError> {
    let device = machine.get("root").trim_matches(['(', ')']).to_owned();
    let mut folders = vec![Place { device: device.clone(), path: machine.get("blsdir").to_owned() }];
    if folders.iter().any(|folder| folder.path.is_empty()) {
        folders =
            loader_spec::FOLDERS.map(|path| Place { device: device.clone(), path: path.to_owned() }).into();
    }
    for folder in folders {
        let mut entries = loader_spec::read_folder(machine.places, &folder)?;
        if entries.is_empty() {
            continue;
        }
        entries.sort_by(|a, b| loader_spec::compare_names(&b.id, &a.id));
        for entry in entries {
            let script = script(machine, &entry)?;
            machine.add_entry(&entry.title(), &entry.id, &script)?;
        }
        return Ok(true);
    }
    Ok(false)
}

fn script(machine: &Machine<'_>, entry: &EntryFile) -> Result<String, GrubError> {
    let expand_all = |key| expand(machine, &entry.all(key).collect::<Vec<_>>().join(" "));
    let mut options = expand_all("options")?;
    if options.is_empty() {
        machine.get("default_kernelopts").clone_into(&mut options);
    }
    let mut script = format!("linux ($root){} {options}\n", entry.get("linux").unwrap_or_default());
    let initrds = expand_all("initrd")?;
    if !initrds.is_empty() {
        script.push_str("initrd");
        for path in initrds.split_whitespace() {
            script.push_str(" ($root)");
            script.push_str(path);
        }
        script.push('\n');
    }
    Ok(script)
}

/// Puts `$name` values in; all else stays as it is.
fn expand(machine: &Machine<'_>, line: &str) -> Result<String, GrubError> {
    let mut pieces = line.split('$');
    let mut text = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let end = piece.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(piece.len());
        let (name, rest) = piece.split_at(end);
        text.push_str(machine.get(name));
        text.push_str(rest);
        if text.len() > LINE_BYTES_MAX {
            return Err(GrubError::Endless);
        }
    }
    Ok(text)
}

const LINE_BYTES_MAX: usize = 128 * 1024;

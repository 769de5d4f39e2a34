//! GRUB's `search` and `probe`: devices by what is on them.

use super::GrubError;
use super::places::{Device, Place};
use super::run::Machine;

/// What is looked for.
#[derive(Clone, Copy)]
enum By {
    Uuid,
    Label,
    File,
}

/// `search [--set[=VARIABLE]] --fs-uuid|--label|--file NAME`, and the older `search.fs_uuid NAME VARIABLE`.
/// Fails, and leaves the variable, when nothing is found.
pub(super) fn search(machine: &mut Machine<'_>, name: &str, arguments: &[String]) -> Result<bool, GrubError> {
    let mut by = match name {
        "search.fs_uuid" => By::Uuid,
        "search.fs_label" => By::Label,
        _ => By::File,
    };
    let dotted = name != "search";
    let mut variable = dotted.then(|| "root".to_owned());
    let mut wanted = None;
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--fs-uuid" | "-u" => by = By::Uuid,
            "--label" | "--fs-label" | "-l" => by = By::Label,
            "--file" | "-f" => by = By::File,
            "--set" | "-s" => variable = Some("root".to_owned()),
            "--hint" | "-h" => drop(words.next()),
            option if option.starts_with("--set=") => {
                variable = option.strip_prefix("--set=").map(str::to_owned);
            }
            // --no-floppy, -n, and hints, which only make GRUB find the same device faster.
            option if option.starts_with('-') => {}
            value if wanted.is_none() => wanted = Some(value.to_owned()),
            value if dotted => variable = Some(value.to_owned()),
            _ => {}
        }
    }
    let Some(wanted) = wanted else { return Ok(false) };
    let Some(device) = find(machine, by, &wanted)? else { return Ok(false) };
    if let Some(variable) = variable {
        machine.set(&variable, device)?;
    }
    Ok(true)
}

fn find(machine: &Machine<'_>, by: By, wanted: &str) -> Result<Option<String>, GrubError> {
    for device in machine.places.devices() {
        let found = match by {
            By::Uuid => device.uuid.as_deref().is_some_and(|uuid| uuid.eq_ignore_ascii_case(wanted)),
            By::Label => device.label.as_deref() == Some(wanted),
            By::File => {
                let place = Place { device: device.name.clone(), path: wanted.to_owned() };
                machine.places.at(&place)?.is_some()
            }
        };
        if found {
            return Ok(Some(device.name));
        }
    }
    Ok(None)
}

/// `probe --set=VARIABLE --fs-uuid|--label|--part-uuid DEVICE`.
pub(super) fn probe(machine: &mut Machine<'_>, arguments: &[String]) -> Result<bool, GrubError> {
    let (mut variable, mut wanted, mut device) = (None, None, None);
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--set" | "-s" => variable = words.next().cloned(),
            option if option.starts_with("--set=") => {
                variable = option.strip_prefix("--set=").map(str::to_owned)
            }
            option if option.starts_with('-') => wanted = Some(option),
            name => device = Some(name.trim_matches(['(', ')'])),
        }
    }
    let Some(Device { uuid, label, partuuid, .. }) =
        machine.places.devices().into_iter().find(|known| Some(known.name.as_str()) == device)
    else {
        return Ok(false);
    };
    let value = match wanted {
        Some("--fs-uuid" | "-u") => uuid,
        Some("--label" | "-l") => label,
        Some("--part-uuid") => partuuid,
        _ => None,
    };
    let (Some(variable), Some(value)) = (variable, value) else { return Ok(false) };
    machine.set(&variable, value)?;
    Ok(true)
}

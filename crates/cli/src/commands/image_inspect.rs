//! `ec2vmm image inspect`.

use ec2vmm_host::disks;
use ec2vmm_image::{
    Inspection, boot,
    inspect::{BootSummary, Volume, inspect},
    partition::TableKind,
};
use ec2vmm_vmm_api::Failure;

use crate::{
    Done,
    args::Inspect,
    error::{Error, chain},
    output::{self, bytes, printable},
};

pub(crate) fn run(args: &Inspect) -> Done {
    let disk = disks::open_to_inspect(&args.file, args.format)?;
    let inspection = inspect(&disk).map_err(|error| {
        Error::Failed(Failure {
            kind: disks::failure_kind(error.kind()),
            message: format!("{}: {}", args.file.display(), chain(&error)),
            hint: error.hint(),
        })
    })?;
    match args.json {
        true => output::print_json(&inspection),
        false => output::print(describe(&inspection)),
    }
}

fn describe(inspection: &Inspection) -> String {
    let mut text = facts(&disk_facts(inspection));
    if !inspection.partitions.is_empty() {
        let rows: Vec<[String; 7]> = inspection.partitions.iter().map(row).collect();
        text.push('\n');
        text += &output::table(["PARTITION", "START", "SIZE", "HOLDS", "LABEL", "UUID", "FOR"], &rows);
    }
    text.push('\n');
    text += &facts(&match (&inspection.boot, &inspection.boot_error) {
        (Some(boot), _) => boot_facts(boot),
        (None, why) => {
            vec![("boots", format!("nothing: {}", why.as_deref().unwrap_or("it is not known why")))]
        }
    });
    text
}

fn disk_facts(inspection: &Inspection) -> Vec<(&'static str, String)> {
    let mut found = vec![("disk", bytes(inspection.size))];
    for layer in &inspection.layers {
        found.push(("layer", format!("{}, a file of {}", layer.format.name(), bytes(layer.file_bytes))));
    }
    let table = match inspection.table {
        TableKind::Gpt => "GPT",
        TableKind::Mbr => "MBR",
        TableKind::None => "none, one file system fills the disk",
    };
    found.push(("partitions", table.to_owned()));
    found.extend(inspection.notes.iter().map(|note| ("note", note.clone())));
    found.extend(inspection.partitions.iter().filter_map(|volume| {
        Some(("note", format!("partition {}: {}", volume.partition.number, volume.fault.as_ref()?)))
    }));
    found
}

fn row(volume: &Volume) -> [String; 7] {
    let Volume { partition, filesystem, .. } = volume;
    let or_none = |text: Option<&String>| text.map_or_else(|| "-".to_owned(), |text| printable(text));
    let holds = filesystem.as_ref();
    [
        partition.number.to_string(),
        bytes(partition.start),
        bytes(partition.size),
        holds.map_or("-", |found| found.kind.name()).to_owned(),
        or_none(holds.and_then(|found| found.label.as_ref()).or(partition.name.as_ref())),
        or_none(holds.and_then(|found| found.uuid.as_ref())),
        printable(&partition.role),
    ]
}

fn boot_facts(boot: &BootSummary) -> Vec<(&'static str, String)> {
    let BootSummary { entry, kernel, initrd_size } = boot;
    let format = match kernel.format {
        boot::KernelFormat::BzImage => "bzImage",
        boot::KernelFormat::Elf => "ELF",
    };
    let release = kernel.release.as_ref().map(|release| format!(", Linux {release}")).unwrap_or_default();
    let named_by = match entry.loader {
        boot::Loader::Grub => "GRUB",
        boot::Loader::LoaderSpec => "Boot Loader Specification",
        boot::Loader::Links => "links to the newest kernel",
    };
    let mut found = vec![
        ("boots", entry.title.clone()),
        ("said by", format!("{} ({named_by})", entry.source)),
        ("kernel", format!("{} ({format}, {}{release})", entry.kernel, kernel.architecture.name())),
    ];
    found.extend(entry.initrds.iter().map(|initrd| ("initrd", initrd.clone())));
    if !entry.initrds.is_empty() {
        found.push(("initrd size", bytes(*initrd_size)));
    }
    found.push(("cmdline", entry.cmdline.clone()));
    found
}

/// Names and what is known, which a stranger may have written.
fn facts(found: &[(&str, String)]) -> String {
    found.iter().map(|(name, fact)| format!("{name:FACT_WIDTH$}  {}\n", printable(fact))).collect()
}

const FACT_WIDTH: usize = 11;

//! `ec2vmm image inspect`.

use std::path::PathBuf;

use clap::ValueHint;
use ec2vmm_host::disks;
use ec2vmm_image::{
    Inspection, boot,
    inspect::{BootSummary, Volume, inspect},
    partition::TableKind,
};
use ec2vmm_vmm_api::{Failure, config::Format};

use crate::{
    Done,
    environment::Environment,
    error::{Error, chain},
    output::{
        self, bytes, facts,
        screen::Screen,
        table::{Cell, Table, text, whole},
    },
    value::disk::format,
};

/// Say what is on a disk image, and what it would boot
#[derive(Debug, clap::Args)]
pub(crate) struct Inspect {
    /// Disk image: a file or a block device, raw or qcow2
    #[arg(value_hint = ValueHint::FilePath)]
    pub(crate) file: PathBuf,
    /// How FILE holds the disk: raw or qcow2 [default: qcow2 if its name ends so, else raw]
    #[arg(long, value_parser = format)]
    pub(crate) format: Option<Format>,
    /// Print JSON and not a table
    #[arg(long)]
    pub(crate) json: bool,
}

pub(crate) fn run(args: &Inspect, environment: &Environment) -> Done {
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
        false => output::print(describe(&inspection, Screen::stdout(environment.plain))),
    }
}

fn describe(inspection: &Inspection, screen: Screen) -> String {
    let mut told = facts(&disk_facts(inspection));
    if !inspection.partitions.is_empty() {
        let head = [
            text("PARTITION"),
            text("START"),
            text("SIZE"),
            text("HOLDS"),
            text("LABEL"),
            whole("UUID"),
            text("FOR"),
        ];
        let mut table = Table::new(head);
        inspection.partitions.iter().for_each(|volume| table.row(row(volume)));
        told.push('\n');
        told += &table.render(screen);
    }
    told.push('\n');
    told += &facts(&match (&inspection.boot, &inspection.boot_error) {
        (Some(boot), _) => boot_facts(boot),
        (None, why) => {
            vec![("boots", format!("nothing: {}", why.as_deref().unwrap_or("it is not known why")))]
        }
    });
    told
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

fn row(volume: &Volume) -> [Cell; 7] {
    let Volume { partition, filesystem, .. } = volume;
    let holds = filesystem.as_ref();
    [
        partition.number.to_string().into(),
        bytes(partition.start).into(),
        bytes(partition.size).into(),
        holds.map(|found| found.kind.name()).into(),
        holds.and_then(|found| found.label.clone()).or(partition.name.clone()).into(),
        holds.and_then(|found| found.uuid.clone()).into(),
        partition.role.as_str().into(),
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

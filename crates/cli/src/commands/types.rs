//! `ec2vmm types`.

use ec2vmm_model::InstanceType;
use ec2vmm_vmm_api::FailureKind;

use crate::{
    Done,
    environment::Environment,
    error::Error,
    output::{
        self,
        screen::Screen,
        table::{Cell, Table, text, whole},
    },
};

/// List EC2's instance types
#[derive(Debug, clap::Args)]
pub(crate) struct Types {
    /// Only types whose name holds this, such as t3 or .micro
    pub(crate) filter: Option<String>,
    /// Print JSON and not a table
    #[arg(long)]
    pub(crate) json: bool,
}

pub(crate) fn run(args: &Types, environment: &Environment) -> Done {
    let filter = args.filter.as_deref().unwrap_or_default().to_ascii_lowercase();
    let types: Vec<InstanceType> = InstanceType::all().filter(|found| found.name.contains(&filter)).collect();
    if args.json {
        return output::print_json(&types);
    }
    if types.is_empty() {
        let message = format!("no instance type has `{filter}` in its name");
        return Err(Error::new(FailureKind::UnknownType, message).hint("`ec2vmm types` lists them all"));
    }
    let mut table = Table::new([
        whole("TYPE"),
        text("VCPUS"),
        text("MEMORY"),
        text("ARCH"),
        text("NETWORK"),
        text("BURSTABLE"),
        text("USD/HOUR"),
    ]);
    types.iter().for_each(|found| table.row(row(found)));
    output::print(table.render(Screen::stdout(environment.plain)))
}

fn row(found: &InstanceType) -> [Cell; 7] {
    [
        found.name.into(),
        found.vcpus.to_string().into(),
        gibibytes(found.memory_mib).into(),
        found.arch.name().into(),
        found.network_performance.into(),
        if found.burstable { "yes" } else { "no" }.into(),
        found.usd_per_hour.map(|price| price.to_string()).into(),
    ]
}

/// MiB as GiB, exactly: EC2's types are multiples of 1/8 GiB but for a few that are shown in MiB.
pub(super) fn gibibytes(mib: u64) -> String {
    match mib % 128 {
        0 => format!("{} GiB", (mib / 128) as f64 / 8.0),
        _ => format!("{mib} MiB"),
    }
}

#[cfg(test)]
mod tests {
    use super::gibibytes;

    #[test]
    fn memory_is_exact() {
        assert_eq!(gibibytes(512), "0.5 GiB");
        assert_eq!(gibibytes(1024), "1 GiB");
        assert_eq!(gibibytes(627), "627 MiB");
    }
}

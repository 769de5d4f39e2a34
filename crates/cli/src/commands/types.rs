//! `ec2vmm types`.

use ec2vmm_model::InstanceType;
use ec2vmm_vmm_api::FailureKind;

use crate::{Done, args::Types, error::Error, output};

pub(crate) fn run(args: &Types) -> Done {
    let filter = args.filter.as_deref().unwrap_or_default().to_ascii_lowercase();
    let types: Vec<InstanceType> = InstanceType::all().filter(|found| found.name.contains(&filter)).collect();
    if args.json {
        return output::print_json(&types);
    }
    if types.is_empty() {
        let message = format!("no instance type has `{filter}` in its name");
        return Err(Error::new(FailureKind::UnknownType, message).hint("`ec2vmm types` lists them all"));
    }
    let rows: Vec<[String; 7]> = types.iter().map(row).collect();
    let head = ["TYPE", "VCPUS", "MEMORY", "ARCH", "NETWORK", "BURSTABLE", "USD/HOUR"];
    output::print(output::table(head, &rows))
}

fn row(found: &InstanceType) -> [String; 7] {
    [
        found.name.to_owned(),
        found.vcpus.to_string(),
        gibibytes(found.memory_mib),
        found.arch.name().to_owned(),
        found.network_performance.to_owned(),
        if found.burstable { "yes" } else { "no" }.to_owned(),
        found.usd_per_hour.map_or_else(|| "-".to_owned(), |price| price.to_string()),
    ]
}

/// MiB as GiB, exactly: EC2's types are multiples of 1/8 GiB but for a few that are shown in MiB.
fn gibibytes(mib: u64) -> String {
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

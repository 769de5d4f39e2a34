//! The instance-type catalogue: EC2's types as facts, embedded.
//!
//! Invariant: every row of the catalogue is a valid [`InstanceType`]; a test reads them all, so that a
//! row is never skipped in silence. Finding a type compares names and parses one row only.

use serde::{Deserialize, Serialize};

/// What AWS says of one instance type.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct InstanceType {
    /// Such as `t3.micro`.
    pub name: &'static str,
    /// What its processors run.
    pub arch: Arch,
    /// Virtual processors.
    pub vcpus: u16,
    /// Memory, MiB.
    pub memory_mib: u64,
    /// Network speed in EC2's words, such as `Up to 5 Gigabit`.
    pub network_performance: &'static str,
    /// Network speed that lasts, 10^9 bit/s, where AWS publishes it.
    pub network_baseline_gbps: Option<f64>,
    /// Most network interfaces.
    pub interfaces_max: u16,
    /// Most IPv4 addresses of one interface.
    pub ipv4_per_interface_max: u16,
    /// Earns and spends CPU credits.
    pub burstable: bool,
    /// AWS does not call it previous generation.
    pub current_generation: bool,
    /// GPU models, comma-free, where it has some.
    pub gpu: Option<&'static str>,
    /// Size of the local disks together, GB.
    pub instance_store_gb: Option<u64>,
    /// `nitro`, `xen`, or nothing for bare metal.
    pub hypervisor: Option<&'static str>,
    /// Linux on demand in us-east-1, USD per hour, where known.
    pub usd_per_hour: Option<f64>,
}

/// What a type's processors run.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Arch {
    /// Intel and AMD, 64 bits.
    #[serde(rename = "x86_64")]
    X86_64,
    /// Graviton.
    #[serde(rename = "arm64")]
    Arm64,
    /// An Apple Macintosh with an Intel processor.
    #[serde(rename = "x86_64_mac")]
    X86_64Mac,
    /// An Apple Macintosh with an ARM processor.
    #[serde(rename = "arm64_mac")]
    Arm64Mac,
}

impl Arch {
    /// EC2's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Arm64 => "arm64",
            Self::X86_64Mac => "x86_64_mac",
            Self::Arm64Mac => "arm64_mac",
        }
    }
}

/// Why a type cannot be had.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Error {
    /// EC2 has no such type.
    #[error("there is no instance type `{name}`")]
    Unknown {
        /// As asked for.
        name: String,
        /// The names that come nearest, best first; empty if none is near.
        nearest: Vec<&'static str>,
    },
    /// EC2 has it, but its processors are not x86-64.
    #[error("instance type `{name}` has {} processors, and only x86_64 machines can be run", .arch.name())]
    Architecture {
        /// As asked for.
        name: &'static str,
        /// What its processors run.
        arch: Arch,
        /// The same family and size with x86-64 processors, if EC2 has one.
        sibling: Option<&'static str>,
    },
}

impl InstanceType {
    /// Every type, in the catalogue's order.
    pub fn all() -> impl Iterator<Item = Self> {
        rows().filter_map(parse)
    }

    /// The type of this name.
    ///
    /// # Errors
    /// [`Error::Unknown`], with the nearest names.
    pub fn find(name: &str) -> Result<Self, Error> {
        rows()
            .find(|row| name_of(row) == name)
            .and_then(parse)
            .ok_or_else(|| Error::Unknown { name: name.to_owned(), nearest: nearest(name) })
    }

    /// The type of this name, where it can be run on x86-64.
    ///
    /// # Errors
    /// [`Error::Unknown`], with the nearest names; [`Error::Architecture`], with the sibling to take.
    pub fn find_runnable(name: &str) -> Result<Self, Error> {
        let found = Self::find(name)?;
        match found.arch {
            Arch::X86_64 => Ok(found),
            arch => Err(Error::Architecture { name: found.name, arch, sibling: sibling(found.name) }),
        }
    }
}

/// The x86-64 type nearest to one of another architecture: `t4g.micro` → `t3.micro`,
/// `m7gd.large` → `m7i.large`. The family letter and the size stay.
fn sibling(name: &str) -> Option<&'static str> {
    let (family, size) = name.split_once('.')?;
    let letters = family.find(|c: char| c.is_ascii_digit())?;
    let (letter, rest) = family.split_at(letters);
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let generation: u32 = rest.get(..digits)?.parse().ok()?;
    // T4g came after T3; the others share their generation's number with an Intel or AMD family.
    let families = (1..=generation)
        .rev()
        .flat_map(|number| ["i", "", "a"].map(|suffix| format!("{letter}{number}{suffix}.{size}")));
    families
        .filter_map(|candidate| rows().find(|row| name_of(row) == candidate).and_then(parse))
        .find(|candidate| candidate.arch == Arch::X86_64)
        .map(|candidate| candidate.name)
}

/// At most [`NEAREST_MAX`] names that a typist may have meant.
fn nearest(name: &str) -> Vec<&'static str> {
    let name: String = name.chars().take(NAME_CHARS_MAX).collect::<String>().to_ascii_lowercase();
    let mut near: Vec<(usize, &str)> = rows()
        .map(name_of)
        .map(|known| (strsim::damerau_levenshtein(known, &name), known))
        .filter(|(distance, _)| *distance <= DISTANCE_MAX)
        .collect();
    near.sort_unstable();
    let best = near.first().map_or(0, |(distance, _)| *distance);
    near.retain(|(distance, _)| *distance == best);
    near.into_iter().map(|(_, known)| known).take(NEAREST_MAX).collect()
}

fn rows() -> impl Iterator<Item = &'static str> {
    CATALOGUE.lines().skip(HEADER_LINES)
}

fn name_of(row: &str) -> &str {
    row.split_once(',').map_or(row, |(name, _)| name)
}

fn parse(row: &'static str) -> Option<InstanceType> {
    let mut fields = row.split(',');
    let parsed = InstanceType {
        name: fields.next()?,
        arch: parse_arch(fields.next()?)?,
        vcpus: fields.next()?.parse().ok()?,
        memory_mib: fields.next()?.parse().ok()?,
        network_performance: fields.next()?,
        network_baseline_gbps: parse_optional(fields.next()?)?,
        interfaces_max: fields.next()?.parse().ok()?,
        ipv4_per_interface_max: fields.next()?.parse().ok()?,
        burstable: parse_bool(fields.next()?)?,
        current_generation: parse_bool(fields.next()?)?,
        gpu: Some(fields.next()?).filter(|gpu| !gpu.is_empty()),
        instance_store_gb: parse_optional(fields.next()?)?,
        hypervisor: Some(fields.next()?).filter(|hypervisor| !hypervisor.is_empty()),
        usd_per_hour: parse_optional(fields.next()?)?,
    };
    fields.next().is_none().then_some(parsed)
}

fn parse_arch(field: &str) -> Option<Arch> {
    match field {
        "x86_64" | "i386|x86_64" => Some(Arch::X86_64),
        "arm64" => Some(Arch::Arm64),
        "x86_64_mac" => Some(Arch::X86_64Mac),
        "arm64_mac" => Some(Arch::Arm64Mac),
        _ => None,
    }
}

fn parse_bool(field: &str) -> Option<bool> {
    match field {
        "True" => Some(true),
        "False" => Some(false),
        _ => None,
    }
}

/// Outer nothing: no number. Inner nothing: an empty field.
fn parse_optional<T: std::str::FromStr>(field: &str) -> Option<Option<T>> {
    if field.is_empty() { Some(None) } else { field.parse().ok().map(Some) }
}

const CATALOGUE: &str = include_str!("../data/instance_types.csv");
/// A comment and the column names.
const HEADER_LINES: usize = 2;
const NEAREST_MAX: usize = 4;
/// Typing errors; more than that and it is another word.
const DISTANCE_MAX: usize = 3;
/// Longer than any name, short enough that comparing stays cheap.
const NAME_CHARS_MAX: usize = 40;

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::{Arch, CATALOGUE, Error, InstanceType, rows};

    #[test]
    fn every_row_is_read() {
        let types: Vec<InstanceType> = InstanceType::all().collect();
        assert_eq!(types.len(), rows().count());
        assert_eq!(types.len(), 1373);
        assert!(!CATALOGUE.contains('"'), "quoted fields are not understood");
        let mut names: Vec<&str> = types.iter().map(|found| found.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), types.len(), "names are unique");
        for found in &types {
            assert!(found.vcpus > 0 && found.memory_mib > 0 && found.interfaces_max > 0, "{found:?}");
            assert_eq!(InstanceType::find(found.name).as_ref(), Ok(found));
        }
    }

    #[test]
    fn facts_of_a_type() {
        let micro = InstanceType::find_runnable("t3.micro").unwrap();
        assert_eq!((micro.vcpus, micro.memory_mib, micro.burstable), (2, 1024, true));
        assert_eq!(micro.usd_per_hour, Some(0.0104));
        assert_eq!(InstanceType::find("mac1.metal").unwrap().arch, Arch::X86_64Mac);
        assert_eq!(InstanceType::find("t1.micro").unwrap().arch, Arch::X86_64);
    }

    #[test]
    fn other_architectures_name_a_sibling() {
        check(
            "t4g.micro",
            &expect![[r#"
            instance type `t4g.micro` has arm64 processors, and only x86_64 machines can be run
            Some("t3.micro")"#]],
        );
        check(
            "m7gd.large",
            &expect![[r#"
            instance type `m7gd.large` has arm64 processors, and only x86_64 machines can be run
            Some("m7i.large")"#]],
        );
        check(
            "mac2.metal",
            &expect![[r#"
            instance type `mac2.metal` has arm64_mac processors, and only x86_64 machines can be run
            None"#]],
        );
    }

    #[test]
    fn every_graviton_type_of_a_common_size_has_a_sibling() {
        for found in InstanceType::all().filter(|found| found.arch == Arch::Arm64) {
            let common = found.name.ends_with(".large") && found.name.starts_with(['t', 'm', 'c', 'r']);
            if common {
                assert!(super::sibling(found.name).is_some(), "{}", found.name);
            }
        }
    }

    #[test]
    fn typing_errors_are_guessed() {
        check(
            "t3.mirco",
            &expect![[r#"
            there is no instance type `t3.mirco`
            ["t3.micro"]"#]],
        );
        check(
            "T3.Micro",
            &expect![[r#"
            there is no instance type `T3.Micro`
            ["t3.micro"]"#]],
        );
        check(
            "warp-drive",
            &expect![[r#"
            there is no instance type `warp-drive`
            []"#]],
        );
        check(
            "",
            &expect![[r#"
            there is no instance type ``
            []"#]],
        );
        assert!(InstanceType::find(&"x".repeat(1 << 20)).is_err());
    }

    fn check(name: &str, expect: &Expect) {
        let error = InstanceType::find_runnable(name).unwrap_err();
        let hint = match &error {
            Error::Unknown { nearest, .. } => format!("{nearest:?}"),
            Error::Architecture { sibling, .. } => format!("{sibling:?}"),
        };
        expect.assert_eq(&format!("{error}\n{hint}"));
    }
}

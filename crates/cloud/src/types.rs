//! Instance types.

use std::{collections::HashMap, sync::LazyLock};

use ec2vmm_model::{Arch, InstanceType, instance_types, tags::Tags};

use crate::{
    Cloud, Error,
    admission::Size,
    filters::{Fields, Filter, Matcher},
    page::{Page, Paging},
};

/// Which types.
#[derive(Clone, Debug, Default)]
pub struct DescribeTypes {
    /// These. None: all.
    pub names: Vec<String>,
    /// That meet these.
    pub filters: Vec<Filter>,
    /// Only what can be run on this host: x86-64, and no larger than the host.
    pub runnable_only: bool,
    /// Page by page.
    pub paging: Paging,
}

/// A type as it is shown.
#[derive(Clone, Debug, PartialEq)]
pub struct DescribedType {
    /// What AWS says of it.
    pub facts: InstanceType,
    /// It can be run on this host when nothing else runs.
    pub runnable: bool,
}

impl Cloud {
    /// `DescribeInstanceTypes`.
    ///
    /// # Errors
    /// Types that do not exist, filters that do not, a page out of range.
    pub async fn describe_types(&self, what: &DescribeTypes) -> Result<Page<DescribedType>, Error> {
        let unknown: Vec<String> = what
            .names
            .iter()
            .filter(|name| find(name).is_none())
            .map(|name| name.chars().take(64).collect())
            .collect();
        if !unknown.is_empty() {
            return Err(Error::UnknownTypes(unknown));
        }
        let matcher = Matcher::new(&what.filters, FIELDS, |_| &NO_TAGS)?;
        let limit = what.paging.limit()?;
        let after = what.paging.after(LISTING)?;
        let (_, there_is) = self.inner.admission.figures();
        let mut sorted: Vec<&InstanceType> = CATALOGUE.values().collect();
        sorted.sort_by_key(|kind| kind.name);
        let wanted = sorted.into_iter().filter(|kind| {
            (what.names.is_empty() || what.names.iter().any(|name| name == kind.name))
                && after.as_deref().is_none_or(|after| kind.name > after)
                && matcher.passes(kind)
        });
        let described =
            wanted.map(|kind| DescribedType { facts: kind.clone(), runnable: fits(kind, there_is) });
        let mut items: Vec<_> = described
            .filter(|kind| kind.runnable || !what.runnable_only)
            .take(limit.saturating_add(1))
            .collect();
        let has_more = items.len() > limit;
        items.truncate(limit);
        let next_token =
            items.last().filter(|_| has_more).map(|last| Paging::token(LISTING, last.facts.name));
        Ok(Page { items, next_token })
    }
}

/// The type of this name, as fast as 10,000 instances need it.
pub(crate) fn find(name: &str) -> Option<&'static InstanceType> {
    CATALOGUE.get(name)
}

/// The type of this name, where machines of it can be made here.
pub(crate) fn find_runnable(name: &str) -> Result<&'static InstanceType, Error> {
    let kind = match InstanceType::find_runnable(name) {
        Ok(kind) => find(kind.name),
        Err(instance_types::Error::Unknown { name, nearest }) => {
            return Err(Error::UnknownType { name: name.chars().take(64).collect(), nearest });
        }
        Err(instance_types::Error::Architecture { name, arch, sibling }) => {
            return Err(Error::UnsupportedType { name: name.to_owned(), arch: arch.name(), sibling });
        }
    };
    let kind = kind.ok_or_else(|| Error::UnknownType { name: name.to_owned(), nearest: Vec::new() })?;
    let lacks = |what: String| Error::Unsupported {
        message: format!("The instance type '{}' is not supported here: {what}.", kind.name),
    };
    if kind.vcpus > VCPUS_MAX {
        return Err(lacks(format!("a machine can have {VCPUS_MAX} vCPUs at most")));
    }
    match kind.gpu {
        Some(gpu) => Err(lacks(format!("there is no {gpu}"))),
        None => Ok(kind),
    }
}

fn fits(kind: &InstanceType, there_is: Size) -> bool {
    let size = Size::from(kind);
    kind.arch == Arch::X86_64
        && kind.gpu.is_none()
        && kind.vcpus <= VCPUS_MAX
        && size.vcpus <= there_is.vcpus
        && size.memory_mib <= there_is.memory_mib
}

static CATALOGUE: LazyLock<HashMap<&'static str, InstanceType>> =
    LazyLock::new(|| InstanceType::all().map(|kind| (kind.name, kind)).collect());

static NO_TAGS: Tags = Tags(std::collections::BTreeMap::new());

const FIELDS: Fields<InstanceType> = &[
    ("instance-type", |kind| vec![kind.name.to_owned()]),
    ("processor-info.supported-architecture", |kind| vec![kind.arch.name().to_owned()]),
    ("vcpu-info.default-vcpus", |kind| vec![kind.vcpus.to_string()]),
    ("memory-info.size-in-mib", |kind| vec![kind.memory_mib.to_string()]),
    ("burstable-performance-supported", |kind| vec![kind.burstable.to_string()]),
    ("current-generation", |kind| vec![kind.current_generation.to_string()]),
    ("bare-metal", |kind| vec![kind.hypervisor.is_none().to_string()]),
    ("hypervisor", |kind| kind.hypervisor.into_iter().map(str::to_owned).collect()),
    ("instance-storage-supported", |kind| vec![kind.instance_store_gb.is_some().to_string()]),
    ("network-info.network-performance", |kind| vec![kind.network_performance.to_owned()]),
    ("network-info.maximum-network-interfaces", |kind| vec![kind.interfaces_max.to_string()]),
];

const LISTING: &str = "type";
/// What a machine process can have.
const VCPUS_MAX: u16 = 64;

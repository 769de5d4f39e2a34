//! Instance types.

use ec2vmm_model::InstanceType;

use crate::{filters::Filter, page::Paging};

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

impl crate::Cloud {
    /// `DescribeInstanceTypes`.
    pub async fn describe_types(&self, what: &DescribeTypes) -> Result<crate::page::Page<DescribedType>, crate::Error> { todo!() }
}

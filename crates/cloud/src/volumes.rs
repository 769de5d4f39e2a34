//! Volumes. So far each is some instance's root.

use crate::{filters::Filter, page::Paging};

/// Which volumes.
#[derive(Clone, Debug, Default)]
pub struct DescribeVolumes {
    /// These, all of which must be there. None: all.
    pub ids: Vec<String>,
    /// That meet these.
    pub filters: Vec<Filter>,
    /// Page by page.
    pub paging: Paging,
}

impl crate::Cloud {
    /// `DescribeVolumes`.
    pub async fn describe_volumes(&self, what: &DescribeVolumes) -> Result<crate::page::Page<std::sync::Arc<ec2vmm_model::volumes::Volume>>, crate::Error> { todo!() }
    /// `DeleteVolume`: one that outlived its instance.
    pub async fn delete_volume(&self, id: &str) -> Result<(), crate::Error> { todo!() }
}

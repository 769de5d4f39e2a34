//! `DescribeInstances`.

use std::{collections::HashMap, sync::Arc};

use ec2vmm_host::host::{self, Usage};
use ec2vmm_model::{Arch, Instance, ids::ImageId, volumes::Volume};
use ec2vmm_store::Stored;

use super::{DescribeInstances, Described, find, find_all};
use crate::{
    Cloud, Error,
    cloud::Inner,
    filters::{Fields, Matcher},
    images,
    page::Page,
    reconcile::hostname,
};

impl Cloud {
    /// `DescribeInstances`. Those of one reservation may come on several pages.
    ///
    /// # Errors
    /// Ids that make no sense or are nobody's, filters that do not exist, a page out of range.
    pub async fn describe_instances(&self, what: &DescribeInstances) -> Result<Page<Described>, Error> {
        let matcher = Matcher::new(&what.filters, FIELDS, |instance: &Instance| &instance.tags)?;
        let page = if what.ids.is_empty() {
            what.paging.of_records::<Instance>(&self.inner.store, |instance| matcher.passes(instance))?
        } else {
            if what.paging.max_results.is_some() || what.paging.next_token.is_some() {
                return Err(Error::InvalidCombination {
                    message: "The parameter instancesSet cannot be used with the parameter maxResults"
                        .to_owned(),
                });
            }
            let found = find_all(&self.inner.store, &what.ids)?;
            Page::whole(found.into_iter().filter(|instance| matcher.passes(instance)).collect())
        };
        let mut users = HashMap::new();
        let mut failed = None;
        let page = page
            .map(|instance| self.inner.described(instance, &mut users).map_err(|error| failed = Some(error)));
        match failed {
            Some(error) => Err(error),
            None => Ok(Page {
                items: page.items.into_iter().filter_map(Result::ok).collect(),
                next_token: page.next_token,
            }),
        }
    }

    /// One instance.
    ///
    /// # Errors
    /// An id that makes no sense or is nobody's.
    pub async fn instance(&self, id: &str) -> Result<Described, Error> {
        self.inner.described(find(&self.inner.store, id)?, &mut HashMap::new())
    }

    /// What the machine has used since its start.
    ///
    /// # Errors
    /// An id that makes no sense or is nobody's; no machine of it runs; the host cannot tell.
    pub async fn usage(&self, id: &str) -> Result<Usage, Error> {
        let instance = find(&self.inner.store, id)?;
        match self.inner.host.usage(&instance.id).await {
            Ok(usage) => Ok(usage),
            Err(host::Error::NotRunning(id)) => Err(Error::NoMachine(id)),
            Err(error) => Err(error.into()),
        }
    }
}

impl Inner {
    /// An instance as it is shown. `users` remembers what images say.
    pub(super) fn described(
        &self,
        instance: Stored<Instance>,
        users: &mut HashMap<ImageId, Option<String>>,
    ) -> Result<Described, Error> {
        let volumes = self.volumes_of(&instance)?;
        let volumes = volumes.into_iter().filter(|volume| is_attached(volume, &instance)).collect();
        let login_user = match users.get(&instance.image) {
            Some(known) => known.clone(),
            None => {
                let user =
                    images::find_any(&self.store, &instance.image)?.map(|image| image.login_user.clone());
                users.insert(instance.image.clone(), user.clone());
                user
            }
        };
        Ok(Described { instance: instance.record, volumes, login_user })
    }
}

fn is_attached(volume: &Arc<Volume>, instance: &Instance) -> bool {
    volume.attachment.as_ref().is_some_and(|attachment| attachment.instance == instance.id)
}

fn one(value: &(impl ToString + ?Sized)) -> Vec<String> {
    vec![value.to_string()]
}

fn some(value: Option<&(impl ToString + ?Sized)>) -> Vec<String> {
    value.map(ToString::to_string).into_iter().collect()
}

/// Of EC2's filters, those on what an instance has here.
const FIELDS: Fields<Instance> = &[
    ("instance-id", |it| one(&it.id)),
    ("instance-state-name", |it| one(&it.state)),
    ("instance-state-code", |it| one(&it.state.code())),
    ("instance-type", |it| one(&it.instance_type)),
    ("image-id", |it| one(&it.image)),
    ("key-name", |it| some(it.key_name.as_ref())),
    ("private-ip-address", |it| one(&it.interface.address)),
    ("network-interface.addresses.private-ip-address", |it| one(&it.interface.address)),
    ("network-interface.network-interface-id", |it| one(&it.interface.id)),
    ("private-dns-name", |it| vec![hostname(it), format!("{}.{}.compute.internal", hostname(it), it.region)]),
    ("reservation-id", |it| one(&it.reservation)),
    ("client-token", |it| some(it.client_token.as_ref())),
    ("launch-time", |it| one(&it.launched)),
    ("launch-index", |it| one(&it.launch_index)),
    ("architecture", |_| one(Arch::X86_64.name())),
    ("vpc-id", |it| one(&it.interface.vpc)),
    ("subnet-id", |it| one(&it.interface.subnet)),
    ("availability-zone", |it| vec![format!("{}a", it.region)]),
    ("block-device-mapping.volume-id", |it| it.volumes.iter().map(ToString::to_string).collect()),
    ("reason", |it| some(it.transition_reason.as_ref().map(|reason| &reason.0))),
    ("state-reason-code", |it| some(it.state_reason.as_ref().map(|reason| &reason.code))),
    ("root-device-type", |_| one("ebs")),
    ("virtualization-type", |_| one("hvm")),
    ("hypervisor", |_| one("xen")),
];

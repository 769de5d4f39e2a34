//! Instances by what people call them: an id, the beginning of one, or the Name tag.

use ec2vmm_model::ids::InstanceId;
use ec2vmm_rest_api::{Instance, InstanceList, InstanceState};

use crate::{
    client::{Call, Client},
    error::{Error, Trouble},
};

/// The ids of the instances that are named so, each once, in that order.
pub(crate) fn resolve_all(client: &Client, given: &[String]) -> Result<Vec<String>, Error> {
    let mut known = None;
    let mut ids: Vec<String> = Vec::new();
    for given in given {
        let id = resolve_among(client, given, &mut known)?;
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    Ok(ids)
}

/// The id of the instance that is named so.
pub(crate) fn resolve(client: &Client, given: &str) -> Result<String, Error> {
    resolve_among(client, given, &mut None)
}

fn resolve_among(client: &Client, given: &str, known: &mut Option<Vec<Instance>>) -> Result<String, Error> {
    // Whether there is such an instance is for the daemon to say.
    if given.parse::<InstanceId>().is_ok() {
        return Ok(given.to_owned());
    }
    let instances = match known {
        Some(instances) => instances,
        None => known.insert(client.list::<InstanceList>(&Call::get(&["v1", "instances"]))?),
    };
    choose(given, instances).cloned()
}

/// The one instance that is meant. What is terminated steps back: a name is often given again.
fn choose<'a>(given: &str, instances: &'a [Instance]) -> Result<&'a String, Error> {
    let is_prefix = given.strip_prefix("i-").is_some_and(|digits| !digits.is_empty());
    let mut meant: Vec<&Instance> = instances
        .iter()
        .filter(|found| name(found) == Some(given) || (is_prefix && found.instance_id.starts_with(given)))
        .collect();
    let is_there = |found: &&Instance| found.state != InstanceState::Terminated;
    if meant.iter().any(is_there) {
        meant.retain(is_there);
    }
    match meant.as_slice() {
        [only] => Ok(&only.instance_id),
        [] => {
            let message =
                format!("no instance has the id, the beginning of an id, or the Name tag `{given}`");
            Err(Error::astray(Trouble::Name, message).hint("`ec2vmm ls` lists them"))
        }
        several => {
            let shown: Vec<String> = several.iter().take(SHOWN_MAX).map(|found| show(found)).collect();
            let more = several.len().saturating_sub(SHOWN_MAX);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            let message = format!("`{given}` could be {}{more}", shown.join(", "));
            Err(Error::astray(Trouble::Name, message).hint("type more of the id"))
        }
    }
}

fn show(instance: &Instance) -> String {
    match name(instance) {
        Some(name) => format!("{} ({name})", instance.instance_id),
        None => instance.instance_id.clone(),
    }
}

/// The tag that EC2's console shows as the name.
pub(crate) fn name(instance: &Instance) -> Option<&str> {
    instance.tags.get(NAME_TAG).map(String::as_str).filter(|name| !name.is_empty())
}

pub(crate) const NAME_TAG: &str = "Name";
const SHOWN_MAX: usize = 10;

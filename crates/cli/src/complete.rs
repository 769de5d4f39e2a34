//! Completion of what the daemon knows: instances, key pairs, images. A shell asks with each press of a
//! key, so that whatever goes wrong or takes long is no candidates.

use std::{ffi::OsStr, time::Duration};

use clap::builder::StyledStr;
use clap_complete::CompletionCandidate;
use ec2vmm_model::InstanceType;
use ec2vmm_rest_api::{Image, ImageList, Instance, InstanceList, InstanceState, KeyPairList};

use crate::{
    client::{Call, Client},
    connection::Connection,
    environment::Environment,
    names::name,
    output::{printable, state_name},
};

/// Ids and names of instances.
pub(crate) fn instances(typed: &OsStr) -> Vec<CompletionCandidate> {
    let Some(typed) = typed.to_str() else { return Vec::new() };
    let list = |client: Client| client.list::<InstanceList>(&Call::get(&["v1", "instances"])).ok();
    let instances = client().and_then(list).unwrap_or_default();
    let there = instances.iter().filter(|found| found.state != InstanceState::Terminated);
    there.filter_map(|instance| candidate_of(instance, typed)).collect()
}

/// Its id, or its name where that is what was begun.
fn candidate_of(instance: &Instance, typed: &str) -> Option<CompletionCandidate> {
    let state = state_name(instance.state);
    let id = instance.instance_id.as_str();
    match name(instance) {
        Some(name) if !typed.is_empty() && name.starts_with(typed) => {
            Some(candidate(name, &format!("{id}, {state}")))
        }
        other if id.starts_with(typed) => {
            Some(candidate(id, &[other, Some(state)].into_iter().flatten().collect::<Vec<_>>().join(", ")))
        }
        _ => None,
    }
}

/// Names of key pairs.
pub(crate) fn key_pairs(typed: &OsStr) -> Vec<CompletionCandidate> {
    let list = |client: Client| client.ask::<KeyPairList>(&Call::get(&["v1", "key-pairs"])).ok();
    let found = client().and_then(list).map(|list| list.key_pairs).unwrap_or_default();
    let candidates = found.into_iter().map(|found| candidate(&found.name, &found.fingerprint));
    begun(typed, candidates)
}

/// Names of images.
pub(crate) fn images(typed: &OsStr) -> Vec<CompletionCandidate> {
    let list = |client: Client| client.list::<ImageList>(&Call::get(&["v1", "images"])).ok();
    let found: Vec<Image> = client().and_then(list).unwrap_or_default();
    begun(typed, found.into_iter().map(|found| candidate(&found.name, &found.image_id)))
}

/// Names of instance types that can be run here.
pub(crate) fn instance_types(typed: &OsStr) -> Vec<CompletionCandidate> {
    let runnable = InstanceType::all().filter(|found| found.arch == ec2vmm_model::Arch::X86_64);
    begun(
        typed,
        runnable
            .map(|found| candidate(found.name, &format!("{} vCPUs, {} MiB", found.vcpus, found.memory_mib))),
    )
}

fn begun(typed: &OsStr, candidates: impl Iterator<Item = CompletionCandidate>) -> Vec<CompletionCandidate> {
    let typed = typed.to_str().unwrap_or_default();
    candidates
        .filter(|found| found.get_value().to_str().is_some_and(|value| value.starts_with(typed)))
        .collect()
}

/// What a tag or a name holds is printed by the shell.
fn candidate(value: &str, help: &str) -> CompletionCandidate {
    CompletionCandidate::new(printable(value)).help(Some(StyledStr::from(printable(help))))
}

fn client() -> Option<Client> {
    let client = Connection::default().client(&Environment::read()).ok()?;
    Some(client.patience(PATIENCE))
}

const PATIENCE: Duration = Duration::from_secs(1);

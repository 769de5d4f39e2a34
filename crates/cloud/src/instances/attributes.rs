//! `ModifyInstanceAttribute`, `ModifyInstanceCreditSpecification`.

use std::{collections::HashMap, sync::Arc};

use base64::{Engine, engine::general_purpose::STANDARD};
use ec2vmm_model::{Instance, credits::Burstable, ids::InstanceId, lifecycle::State};
use ec2vmm_store::Transaction;

use super::{Change, Described, USER_DATA_BYTES_MAX, find, get_all};
use crate::{
    Cloud, Error,
    error::Noun,
    events::{self, EventKind},
    ids, images, record, types,
};

impl Cloud {
    /// `ModifyInstanceAttribute`: several at once, all of them or none.
    ///
    /// # Errors
    /// An id that makes no sense or is nobody's, an instance in a wrong state, a type that does not exist
    /// or does not go with the image, credits for a type that has none, user data that is too large.
    pub async fn modify_instance(&self, id: &str, change: Change) -> Result<Described, Error> {
        let id = ids::parse::<InstanceId>(id, Noun::Instance)?;
        check(&change)?;
        let inner = Arc::clone(&self.inner);
        let ids = [id.clone()];
        let body = move |transaction: &mut Transaction<'_>| {
            for before in get_all(transaction, &ids)? {
                let mut after = (*before.record).clone();
                let what = apply(&mut after, &change)?;
                if after.instance_type != before.instance_type {
                    let kind = types::find_runnable(&after.instance_type)?;
                    images::check_arch(images::find_any_in(transaction, &after.image)?.as_deref(), kind)?;
                }
                if after == *before.record {
                    continue;
                }
                let entry = events::Entry {
                    instance: Some(after.id.clone()),
                    kind: EventKind::Modified,
                    message: format!("changed {}", what.join(", ")),
                };
                let now = inner.now();
                inner.log.write(transaction, now, [entry])?;
                record::write(transaction, &before, after, now)?;
            }
            Ok(())
        };
        self.inner.commit(body, |_, ()| {}).await?;
        self.inner.described(find(&self.inner.store, id.as_str())?, &mut HashMap::new())
    }
}

/// What needs no record to be wrong.
fn check(change: &Change) -> Result<(), Error> {
    if let Some(name) = &change.instance_type {
        types::find_runnable(name)?;
    }
    check_user_data(change.user_data.as_deref())
}

pub(super) fn check_user_data(user_data: Option<&[u8]>) -> Result<(), Error> {
    match user_data {
        Some(data) if data.len() > USER_DATA_BYTES_MAX => Err(Error::InvalidValue {
            message: format!("User data is limited to {USER_DATA_BYTES_MAX} bytes"),
            hint: Some(format!("it has {} bytes: let a short script fetch the rest", data.len())),
        }),
        _ => Ok(()),
    }
}

/// Changes an instance, and says what of it.
fn apply(instance: &mut Instance, change: &Change) -> Result<Vec<&'static str>, Error> {
    let Change {
        instance_type,
        user_data,
        disable_api_termination,
        disable_api_stop,
        on_guest_shutdown,
        credit_mode,
    } = change;
    if instance.state == State::Terminated || instance.state == State::ShuttingDown {
        return Err(wrong_state(instance, "a state in which its attributes can be modified"));
    }
    let mut what = Vec::new();
    if let Some(name) = instance_type {
        needs_stopped(instance)?;
        instance.instance_type.clone_from(name);
        // How credits are counted is the new type's own business, where nothing else is said.
        if Burstable::find(name).is_none() {
            instance.credit_mode = None;
        }
        what.push("instanceType");
    }
    if let Some(data) = user_data {
        needs_stopped(instance)?;
        instance.user_data = Some(STANDARD.encode(data)).filter(|_| !data.is_empty());
        what.push("userData");
    }
    if let Some(disable) = disable_api_termination {
        instance.protection.disable_api_termination = *disable;
        what.push("disableApiTermination");
    }
    if let Some(disable) = disable_api_stop {
        instance.protection.disable_api_stop = *disable;
        what.push("disableApiStop");
    }
    if let Some(on_shutdown) = on_guest_shutdown {
        instance.protection.on_guest_shutdown = *on_shutdown;
        what.push("instanceInitiatedShutdownBehavior");
    }
    if let Some(mode) = credit_mode {
        super::launch::check_credits(&instance.instance_type)?;
        instance.credit_mode = Some(*mode);
        what.push("creditSpecification");
    }
    Ok(what)
}

fn needs_stopped(instance: &Instance) -> Result<(), Error> {
    match instance.state {
        State::Stopped => Ok(()),
        _ => Err(wrong_state(instance, "the 'stopped' state")),
    }
}

fn wrong_state(instance: &Instance, needed: &'static str) -> Error {
    Error::IncorrectState { id: instance.id.clone(), needed }
}

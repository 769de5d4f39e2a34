//! Writes what an instance has become, and all that goes with it in the same transaction: the ledger, the
//! credits, the address.

use std::sync::Arc;

use ec2vmm_model::{
    Instance, Time,
    credits::Account,
    ledger::{self, Entry},
    lifecycle::State,
    volumes::Volume,
};
use ec2vmm_store::{Expect, Stored, Transaction};

use crate::{Error, addresses::Lease, events};

/// Writes an instance that was read in this transaction.
pub(crate) fn write(
    transaction: &mut Transaction<'_>,
    before: &Stored<Instance>,
    after: Instance,
    now: Time,
) -> Result<Arc<Instance>, Error> {
    if before.state == State::Running && after.state != State::Running {
        close_account(transaction, before, now)?;
    }
    for change in ledger::follow(before, &after, now) {
        match change {
            ledger::Change::Open(entry) => {
                if transaction.get::<Entry>(&entry.key())?.is_none() {
                    transaction.put(entry, Expect::Absent)?;
                }
            }
            ledger::Change::Close { key } => close(transaction, &key, now)?,
        }
    }
    if before.state != State::Terminated && after.state == State::Terminated {
        transaction.delete::<Lease>(&Lease::key_of(&after.interface), Expect::Any)?;
    }
    let after = Arc::new(after);
    transaction.put((*after).clone(), Expect::Version(before.version))?;
    Ok(after)
}

/// Ends what a volume costs.
pub(crate) fn close_volume(
    transaction: &mut Transaction<'_>,
    volume: &Volume,
    now: Time,
) -> Result<(), Error> {
    let entries =
        transaction.range::<Entry>(&ec2vmm_store::Keys::prefix(&ledger::volume_prefix(&volume.id)))?;
    for entry in entries {
        close(transaction, &entry.key(), now)?;
    }
    Ok(())
}

/// Says that the state changed; nothing where it did not.
pub(crate) fn state_event(before: &Instance, after: &Instance) -> Option<events::Entry> {
    let (from, to) = (before.state, after.state);
    let why = match (&after.state_reason, to) {
        (_, State::Pending | State::Running) | (None, _) => String::new(),
        (Some(reason), _) => format!(" ({})", reason.message),
    };
    (from != to).then(|| events::Entry {
        instance: Some(after.id.clone()),
        kind: events::EventKind::StateChanged { from, to },
        message: format!("{from} → {to}{why}"),
    })
}

fn close(transaction: &mut Transaction<'_>, key: &str, now: Time) -> Result<(), Error> {
    let Some(stored) = transaction.get::<Entry>(key)? else { return Ok(()) };
    let mut entry = (*stored.record).clone();
    if entry.close(now) {
        transaction.put(entry, Expect::Version(stored.version))?;
    }
    Ok(())
}

/// What the run owes is charged.
fn close_account(transaction: &mut Transaction<'_>, ran: &Instance, now: Time) -> Result<(), Error> {
    let Some(stored) = transaction.get::<Account>(ran.id.as_str())? else { return Ok(()) };
    if stored.generation != ran.generation {
        return Ok(());
    }
    let mut account = (*stored.record).clone();
    account.stop(now);
    put_surplus(transaction, ran, &account)?;
    transaction.put(account, Expect::Version(stored.version))?;
    Ok(())
}

/// What the run was charged beyond what it earned.
pub(crate) fn put_surplus(
    transaction: &mut Transaction<'_>,
    instance: &Instance,
    account: &Account,
) -> Result<(), Error> {
    if account.credits.charged_us > 0 {
        let entry = Entry::surplus(instance, account.generation, account.credits.charged_us, account.since);
        transaction.put(entry, Expect::Any)?;
    }
    Ok(())
}

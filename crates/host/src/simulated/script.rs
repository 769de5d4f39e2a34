//! What shall go wrong, and when.

use std::{
    collections::HashMap,
    sync::{Arc, MutexGuard, PoisonError},
    time::Duration,
};

use ec2vmm_vmm_api::{Failure, FailureKind};
use tokio::sync::{Notify, watch};

use super::{Simulated, other};
use crate::host::Error;

/// A call of [`crate::host::Host`].
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[expect(missing_docs, reason = "each is the method of this name")]
pub enum Operation {
    Inventory,
    InspectImage,
    CreateVolume,
    DeleteVolume,
    EnsureNetwork,
    RemoveNetwork,
    EnsureInterface,
    RemoveInterface,
    StartMachine,
    PressPowerButton,
    RebootMachine,
    KillMachine,
    RemoveMachine,
    ConsoleOutput,
    ConsoleStream,
    ForgetConsole,
    Usage,
    Throttle,
}

/// How a call fails.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fault {
    /// There is no room.
    NoRoom,
    /// The image is not what it should be.
    Image,
    /// The machine ended before its first instruction.
    Ended,
    /// Something else.
    Other,
}

/// At which moment of a call.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum When {
    /// Nothing is done yet.
    Before,
    /// All is done, but nobody knows.
    After,
}

#[derive(Default)]
pub(super) struct Script {
    faults: HashMap<Operation, (usize, Fault)>,
    delays: HashMap<Operation, Duration>,
    holds: HashMap<Operation, Arc<Notify>>,
    last: Option<Last>,
    calls: u64,
}

/// The last call that anybody makes.
struct Last {
    call: u64,
    when: When,
    reached: watch::Sender<bool>,
}

/// Calls that hang until this is dropped.
pub struct Hold {
    host: Simulated,
    operation: Operation,
}

impl Drop for Hold {
    fn drop(&mut self) {
        if let Some(held) = self.host.script().holds.remove(&self.operation) {
            held.notify_waiters();
        }
    }
}

impl Simulated {
    /// Lets the next `times` calls of an operation fail, before they do anything.
    pub fn fail(&self, operation: Operation, times: usize, fault: Fault) {
        self.script().faults.insert(operation, (times, fault));
    }

    /// Lets all calls of an operation take this long from now on.
    pub fn delay(&self, operation: Operation, takes: Duration) {
        self.script().delays.insert(operation, takes);
    }

    /// Lets calls of an operation hang until the hold is dropped.
    pub fn hold(&self, operation: Operation) -> Hold {
        self.script().holds.insert(operation, Arc::new(Notify::new()));
        Hold { host: self.clone(), operation }
    }

    /// Lets the `nth` call from now, counted from 0, and all after it never return: what whoever calls
    /// does next is to die. Tells when that call was made.
    pub fn last_call(&self, nth: u64, when: When) -> watch::Receiver<bool> {
        let (reached, told) = watch::channel(false);
        let mut script = self.script();
        script.last = Some(Last { call: script.calls + nth, when, reached });
        told
    }

    /// All goes well from now on.
    pub fn all_well(&self) {
        let mut script = self.script();
        let held: Vec<_> = script.holds.drain().map(|(_, held)| held).collect();
        *script = Script { calls: script.calls, ..Script::default() };
        held.iter().for_each(|held| held.notify_waiters());
    }

    /// Calls that were made so far.
    pub fn calls(&self) -> u64 {
        self.script().calls
    }

    pub(super) async fn call<T>(
        &self,
        operation: Operation,
        act: impl FnOnce() -> Result<T, Error> + Send,
    ) -> Result<T, Error> {
        let (number, fault, delay) = {
            let mut script = self.script();
            let number = script.calls;
            script.calls += 1;
            let delay = script.delays.get(&operation).copied();
            let delay =
                delay.or((operation == Operation::StartMachine).then_some(self.shared.settings.start_takes));
            (number, script.next_fault(operation), delay)
        };
        self.end_here(number, When::Before).await;
        if let Some(delay) = delay.filter(|delay| !delay.is_zero()) {
            tokio::time::sleep(delay).await;
        }
        self.wait_while_held(operation).await;
        let result = match fault {
            Some(fault) => Err(error(operation, fault)),
            None => act(),
        };
        self.end_here(number, When::After).await;
        result
    }

    /// Waits forever where this call is the last one's turn.
    async fn end_here(&self, number: u64, when: When) {
        let ends = match &self.script().last {
            Some(last) if number == last.call && when == last.when => {
                last.reached.send_replace(true);
                true
            }
            // Others that are under way end with it.
            Some(last) => number > last.call || *last.reached.borrow(),
            None => false,
        };
        if ends {
            std::future::pending::<()>().await;
        }
    }

    async fn wait_while_held(&self, operation: Operation) {
        loop {
            let Some(held) = self.script().holds.get(&operation).cloned() else { return };
            let mut released = std::pin::pin!(held.notified());
            released.as_mut().enable();
            if !self.script().holds.contains_key(&operation) {
                return;
            }
            released.await;
        }
    }

    pub(super) fn script(&self) -> MutexGuard<'_, Script> {
        self.shared.script.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Script {
    fn next_fault(&mut self, operation: Operation) -> Option<Fault> {
        let (times, fault) = self.faults.get_mut(&operation)?;
        *times = times.checked_sub(1)?;
        Some(*fault)
    }
}

fn error(operation: Operation, fault: Fault) -> Error {
    let message = format!("simulated fault of {operation:?}");
    match fault {
        Fault::NoRoom => Error::NoRoom { message, hint: None },
        Fault::Image => Error::Image { message, hint: None },
        Fault::Ended => Error::Ended(Failure { kind: FailureKind::Other, message, hint: None }),
        Fault::Other => other(message),
    }
}

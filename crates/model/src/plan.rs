//! What to do next for an instance: one small step that is safe to repeat, from what is wanted (the record)
//! and what the host shows. A request and a crash lead down the same road: whoever executes the steps
//! needs to remember nothing.
//!
//! Invariants: a machine is started only where no other machine of the instance is; a machine that the
//! record does not speak of is ended before anything else is done; nothing is recorded that was not seen.
//! Steps end: from any state and any host, repeating them comes to [`Step::Done`] or [`Step::WaitUntil`],
//! if the host does what it is asked.
//!
//! **Reboot** is in place: same process, devices and addresses. As with `RebootInstances` the guest is asked, and
//! reset when it takes too long. The machine sees to both by itself, so that a daemon which dies meanwhile is not
//! missed. The next one does not know that it was asked: it asks again, which changes nothing while the guest
//! shuts down, and reboots it once more where it had done so already. The same comes of news that get lost.

use crate::{
    ids::VolumeId,
    instances::Instance,
    lifecycle::{End, Fault, News, StartFailure, State},
    time::Time,
};

/// What the host shows of an instance, and when it was looked at.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Observed {
    /// Now.
    pub now: Time,
    /// How long a guest may take to shut down after the power button, for whatever reason, milliseconds; 0 asks no
    /// guest.
    pub grace_ms: u64,
    /// The machine.
    pub machine: Machine,
    /// The network that the instance's interface is in.
    pub network: Presence,
    /// The instance's interface.
    pub interface: Presence,
    /// The instance's volumes, in the record's order.
    pub volumes: Vec<SeenVolume>,
    /// The presses of the power button that are remembered.
    pub button: Option<ButtonPress>,
    /// The reboot that the machine was asked for, if it is remembered.
    pub reboot: Option<RebootAsked>,
    /// The last failure on the way to a running machine that is remembered.
    pub failed_start: Option<FailedStart>,
}

/// A machine as the host shows it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Machine {
    /// None, and nothing left of one.
    Absent,
    /// A process that lives.
    Running {
        /// The generation that it was started as.
        generation: u64,
    },
    /// What is left of one.
    Ended {
        /// The generation that it was started as.
        generation: u64,
        /// How.
        end: End,
    },
}

/// Whether something is on the host.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Presence {
    /// Nobody has looked, or it may lack something: made again where it is wanted, removed where not.
    #[default]
    Unknown,
    /// Complete.
    Present,
    /// Nothing of it.
    Absent,
}

/// A volume of an instance.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SeenVolume {
    /// Its id.
    pub id: VolumeId,
    /// Its file.
    pub file: Presence,
    /// It goes when the instance is terminated.
    pub delete_on_termination: bool,
}

/// Presses of the power button.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ButtonPress {
    /// The machine whose button it was.
    pub generation: u64,
    /// When the first was.
    pub at: Time,
    /// When the last was.
    pub last: Time,
}

/// A machine that was asked to reboot.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RebootAsked {
    /// Which.
    pub generation: u64,
    /// When it said that it will; nothing if it did not answer.
    pub at: Option<Time>,
    /// It has rebooted since it was asked.
    pub done: bool,
}

/// Failures on the way to a running machine: of the start itself, or of a step before.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct FailedStart {
    /// The instance's generation that was to be started.
    pub generation: u64,
    /// How many in a row, from 1.
    pub count: u32,
    /// When the last was.
    pub at: Time,
    /// What the last was.
    pub failure: StartFailure,
}

/// The next step.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Step {
    /// Make this volume's file.
    EnsureVolume(VolumeId),
    /// Make the network.
    EnsureNetwork,
    /// Make the interface.
    EnsureInterface,
    /// Start a machine with the instance's generation. A failure is remembered as [`FailedStart`].
    StartMachine,
    /// Ask the machine to reboot in place, and remember it as [`RebootAsked`].
    Reboot,
    /// Press the power button, and remember it as [`ButtonPress`].
    PressPowerButton,
    /// End the machine process.
    KillMachine,
    /// Remove what is left of a machine.
    RemoveMachine,
    /// Remove the interface.
    RemoveInterface,
    /// Remove this volume's file and record.
    DeleteVolume(VolumeId),
    /// Tell the record ([`Instance::hear`]), and look again.
    Record(News),
    /// Look again then, or when something happens.
    WaitUntil(Time),
    /// Remove the record, and what the console has shown.
    Forget,
    /// Nothing, until something happens.
    Done,
}

/// The next step.
pub fn next_step(instance: &Instance, seen: &Observed) -> Step {
    match instance.state {
        State::Pending => start(instance, seen),
        State::Running => keep(instance, seen),
        State::Stopping => match &seen.machine {
            Machine::Running { generation } => end(instance, seen, *generation),
            Machine::Ended { end, .. } => Step::Record(News::Ended(end.clone())),
            Machine::Absent => Step::Record(News::Ended(End::Vanished)),
        },
        State::Stopped => withdraw(instance, seen).unwrap_or(Step::Done),
        State::ShuttingDown => clear(instance, seen).unwrap_or(Step::Record(News::Cleared)),
        State::Terminated => clear(instance, seen).unwrap_or_else(|| fade(instance, seen)),
    }
}

/// Pending: a machine of this generation shall run.
fn start(instance: &Instance, seen: &Observed) -> Step {
    match &seen.machine {
        Machine::Running { generation } if *generation == instance.generation => {
            return Step::Record(News::Started);
        }
        Machine::Running { generation } => return end(instance, seen, *generation),
        // It ran, for a shorter time than it took to look.
        Machine::Ended { generation, end: end @ (End::PoweredOff | End::Failed { .. }) }
            if *generation == instance.generation =>
        {
            return Step::Record(News::Ended(end.clone()));
        }
        Machine::Ended { .. } => return Step::RemoveMachine,
        Machine::Absent => {}
    }
    if let Some(step) = after_failure(instance, seen) {
        return step;
    }
    if let Some(volume) = seen.volumes.iter().find(|volume| volume.file != Presence::Present) {
        return Step::EnsureVolume(volume.id.clone());
    }
    connect(seen).unwrap_or(Step::StartMachine)
}

/// What a failed start leads to; none if it shall be tried now.
fn after_failure(instance: &Instance, seen: &Observed) -> Option<Step> {
    let failed = seen.failed_start.as_ref().filter(|failed| failed.generation == instance.generation)?;
    let give_up = match failed.failure.fault {
        Fault::NoRoom | Fault::Image => true,
        Fault::Host => failed.count >= STARTS_MAX,
    };
    if give_up {
        return Some(Step::Record(News::StartFailed(failed.failure.clone())));
    }
    let again = failed.at.plus_ms(backoff_ms(failed.count));
    // A clock that went back must not make it wait for the past.
    (failed.at <= seen.now && seen.now < again).then_some(Step::WaitUntil(again))
}

/// Running: the machine of this generation shall go on.
fn keep(instance: &Instance, seen: &Observed) -> Step {
    match &seen.machine {
        Machine::Running { generation } if *generation == instance.generation => {
            if let Some(step) = connect(seen) {
                return step;
            }
            match instance.reboot_requested {
                Some(_) => reboot(seen, *generation),
                None => Step::Done,
            }
        }
        Machine::Running { generation } => end(instance, seen, *generation),
        Machine::Ended { generation, end } if *generation == instance.generation => {
            Step::Record(News::Ended(end.clone()))
        }
        Machine::Ended { .. } => Step::RemoveMachine,
        Machine::Absent => Step::Record(News::Ended(End::Vanished)),
    }
}

/// Has a machine that runs reboot.
fn reboot(seen: &Observed, generation: u64) -> Step {
    let Some(asked) = seen.reboot.filter(|asked| asked.generation == generation) else { return Step::Reboot };
    if asked.done {
        return Step::Record(News::Rebooted);
    }
    let end = |at: Time| at.plus_ms(seen.grace_ms.saturating_add(REBOOT_MARGIN_MS));
    match asked.at {
        // In the future it was before a clock went back: nobody knows how long ago.
        Some(at) if at <= seen.now && seen.now < end(at) => Step::WaitUntil(end(at)),
        _ => Step::Reboot,
    }
}

/// A daemon that was started anew has to serve the network of machines that ran on, too.
fn connect(seen: &Observed) -> Option<Step> {
    if seen.network != Presence::Present {
        return Some(Step::EnsureNetwork);
    }
    (seen.interface != Presence::Present).then_some(Step::EnsureInterface)
}

/// Ends a machine that runs: asks the guest, waits, kills.
fn end(instance: &Instance, seen: &Observed, generation: u64) -> Step {
    // What goes before it was ever seen to run has nothing to save.
    let never_ran = instance.state == State::ShuttingDown && instance.first_launch;
    if instance.forced || never_ran || seen.grace_ms == 0 {
        return Step::KillMachine;
    }
    // A press in the future was before a clock went back: nobody knows how long ago.
    let press = seen.button.filter(|press| press.generation == generation && press.at <= seen.now);
    let Some(press) = press else {
        return Step::PressPowerButton;
    };
    let until = press.at.plus_ms(seen.grace_ms);
    let again = press.last.plus_ms(PRESS_AGAIN_MS);
    if seen.now >= until {
        Step::KillMachine
    } else if seen.now >= again {
        Step::PressPowerButton
    } else {
        Step::WaitUntil(until.min(again))
    }
}

/// Takes a machine and its interface off the host.
fn withdraw(instance: &Instance, seen: &Observed) -> Option<Step> {
    match &seen.machine {
        Machine::Running { generation } => return Some(end(instance, seen, *generation)),
        Machine::Ended { .. } => return Some(Step::RemoveMachine),
        Machine::Absent => {}
    }
    (seen.interface != Presence::Absent).then_some(Step::RemoveInterface)
}

/// Takes everything off the host that goes with the instance.
fn clear(instance: &Instance, seen: &Observed) -> Option<Step> {
    let goes = |volume: &&SeenVolume| volume.delete_on_termination && volume.file != Presence::Absent;
    withdraw(instance, seen)
        .or_else(|| seen.volumes.iter().find(goes).map(|volume| Step::DeleteVolume(volume.id.clone())))
}

/// Terminated: shown for a while, then forgotten.
fn fade(instance: &Instance, seen: &Observed) -> Step {
    let until = instance.terminated.unwrap_or(instance.state_since).plus_ms(TERMINATED_SHOWN_MS);
    if seen.now < until { Step::WaitUntil(until) } else { Step::Forget }
}

/// How long to wait after the n-th failure in a row of a step, milliseconds: 0.5 s, 1 s, 2 s, to a minute.
pub fn backoff_ms(failures: u32) -> u64 {
    let doubled = failures.saturating_sub(1).min(BACKOFF_DOUBLINGS_MAX);
    (BACKOFF_MS << doubled).min(BACKOFF_MS_MAX)
}

/// How often a start is tried that fails by the host's fault.
pub const STARTS_MAX: u32 = 4;
/// How long terminated instances are shown: EC2 says about an hour.
pub const TERMINATED_SHOWN_MS: u64 = 60 * 60 * 1000;
/// A guest that is still booting does not hear its button: it is pressed again after this time.
pub const PRESS_AGAIN_MS: u64 = 5_000;
/// When a machine that was to reset its guest has not told so, it is asked again.
const REBOOT_MARGIN_MS: u64 = 10_000;
const BACKOFF_MS: u64 = 500;
const BACKOFF_MS_MAX: u64 = 60_000;
const BACKOFF_DOUBLINGS_MAX: u32 = 7;

#[cfg(test)]
mod tests;

//! What was seen of an instance on the host, and what was tried. Times are of a clock that does not jump.

use std::{collections::HashMap, sync::Arc, time::Duration};

use ec2vmm_model::{
    Instance, Time,
    ids::VolumeId,
    lifecycle::{End, StartFailure, State},
    plan::{self, ButtonPress, FailedStart, Machine, Observed, Presence, RebootAsked, SeenVolume, Step},
    volumes::Volume,
};
use tokio::time::Instant;

use crate::events::TimelineStep;

#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) machine: Machine,
    /// A start failed, and nobody knows what is left of it.
    pub(crate) unclear: bool,
    pub(crate) interface: Presence,
    pub(crate) volumes: HashMap<VolumeId, Presence>,
    /// A machine was seen to run since the cloud took over.
    pub(crate) ran: bool,
    button: Option<Pressed>,
    reboot: Option<Rebooting>,
    start: Option<Start>,
    failed_start: Option<(u64, u32, Instant, StartFailure)>,
    failed: Option<Failed>,
}

/// Presses of a machine's power button.
#[derive(Clone, Copy, Debug)]
struct Pressed {
    generation: u64,
    first: Instant,
    last: Instant,
}

/// A machine that was asked to reboot.
#[derive(Clone, Copy, Debug)]
struct Rebooting {
    generation: u64,
    /// When it said that it will, if it did.
    asked: Option<Instant>,
    done: bool,
}

/// A start that is under way.
#[derive(Debug)]
struct Start {
    generation: u64,
    requested: Instant,
    steps: Vec<TimelineStep>,
}

/// A step that failed.
#[derive(Debug)]
struct Failed {
    step: Step,
    count: u32,
    at: Instant,
}

impl Default for Seen {
    /// Nothing is there: of an instance that was launched just now.
    fn default() -> Self {
        Self {
            machine: Machine::Absent,
            unclear: false,
            interface: Presence::Absent,
            volumes: HashMap::new(),
            ran: false,
            button: None,
            reboot: None,
            start: None,
            failed_start: None,
            failed: None,
        }
    }
}

impl Seen {
    /// What a cloud found when it took over.
    pub(crate) fn found(machine: Machine, interface: Presence, volumes: HashMap<VolumeId, Presence>) -> Self {
        let ran = matches!(machine, Machine::Running { .. });
        Self { machine, interface, volumes, ran, ..Self::default() }
    }

    pub(crate) fn observed(
        &self,
        now: Time,
        grace: Duration,
        network_is_there: bool,
        volumes: &[(Arc<Volume>, bool)],
    ) -> Observed {
        // What counts is how long ago it was: clocks jump.
        let ago = |then: Instant| before(now, then.elapsed());
        Observed {
            now,
            grace_ms: millis(grace),
            machine: self.machine.clone(),
            network: if network_is_there { Presence::Present } else { Presence::Unknown },
            interface: self.interface,
            volumes: volumes.iter().map(|(volume, goes)| self.seen_volume(volume, *goes)).collect(),
            button: self.button.map(|Pressed { generation, first, last }| ButtonPress {
                generation,
                at: ago(first),
                last: ago(last),
            }),
            reboot: self.reboot.map(|Rebooting { generation, asked, done }| RebootAsked {
                generation,
                at: asked.map(ago),
                done,
            }),
            failed_start: self.failed_start.as_ref().map(|(generation, count, at, failure)| FailedStart {
                generation: *generation,
                count: *count,
                at: ago(*at),
                failure: failure.clone(),
            }),
        }
    }

    fn seen_volume(&self, volume: &Volume, goes: bool) -> SeenVolume {
        SeenVolume {
            id: volume.id.clone(),
            // Where there is a record, there may be a file.
            file: self.volumes.get(&volume.id).copied().unwrap_or_default(),
            delete_on_termination: goes,
        }
    }

    /// How long this step, which failed before, has to wait.
    pub(crate) fn pause(&self, step: &Step) -> Option<Duration> {
        let failed = self.failed.as_ref().filter(|failed| failed.step == *step)?;
        let pause = Duration::from_millis(plan::backoff_ms(failed.count));
        pause.checked_sub(failed.at.elapsed()).filter(|rest| !rest.is_zero())
    }

    pub(crate) fn running(&self) -> Option<u64> {
        match self.machine {
            Machine::Running { generation } => Some(generation),
            Machine::Absent | Machine::Ended { .. } => None,
        }
    }

    /// A machine of that generation was started. It may have ended since.
    pub(crate) fn started(&mut self, generation: u64) {
        self.ran = true;
        let has_ended =
            matches!(&self.machine, Machine::Ended { generation: ended, .. } if *ended == generation);
        if !has_ended {
            self.machine = Machine::Running { generation };
        }
    }

    pub(crate) fn ended(&mut self, generation: u64, machine: Machine) {
        let concerns = match &self.machine {
            Machine::Running { generation: running } => *running == generation,
            // It ended before whoever started it came to note so.
            Machine::Absent => self.start.as_ref().is_some_and(|start| start.generation == generation),
            Machine::Ended { .. } => false,
        };
        if concerns {
            self.machine = machine;
        }
    }

    /// The machine was ended by force. What it said itself in the meantime is truer.
    pub(crate) fn killed(&mut self) {
        if let Machine::Running { generation } = self.machine {
            self.machine = Machine::Ended { generation, end: End::Killed };
        }
    }

    pub(crate) fn pressed(&mut self) {
        if let Machine::Running { generation } = self.machine {
            let last = Instant::now();
            let before = self.button.filter(|pressed| pressed.generation == generation);
            self.button =
                Some(Pressed { generation, first: before.map_or(last, |pressed| pressed.first), last });
        }
    }

    /// A reboot that is heard from now on is the one that it is asked for.
    pub(crate) fn asks_to_reboot(&mut self) {
        if let Machine::Running { generation } = self.machine {
            self.reboot = Some(Rebooting { generation, asked: None, done: false });
        }
    }

    /// The machine has said that it will.
    pub(crate) fn asked_to_reboot(&mut self) {
        if let Some(reboot) = &mut self.reboot {
            reboot.asked = Some(Instant::now());
        }
    }

    pub(crate) fn forget_reboot(&mut self) {
        self.reboot = None;
    }

    /// A machine has rebooted. True if it was asked to.
    pub(crate) fn rebooted(&mut self, generation: u64) -> bool {
        let asked = self.reboot.as_mut().filter(|reboot| reboot.generation == generation);
        asked.map(|reboot| reboot.done = true).is_some()
    }

    pub(crate) fn start_requested(&mut self, generation: u64) {
        if self.start.as_ref().is_none_or(|start| start.generation != generation) {
            self.start = Some(Start { generation, requested: Instant::now(), steps: Vec::new() });
        }
    }

    pub(crate) fn succeeded(&mut self, instance: &Instance, step: &Step, begun: Instant) {
        self.failed = None;
        if instance.state == State::Pending
            && !matches!(step, Step::StartMachine | Step::Record(_))
            && let Some(start) = self.start_of(instance.generation)
        {
            let took_us = micros(begun.elapsed());
            let begin_us = micros(begun.saturating_duration_since(start.requested));
            start.steps.push(TimelineStep { name: name_of(step).to_owned(), begin_us, took_us });
            start.steps.truncate(TIMELINE_MAX);
        }
    }

    /// A start took these steps, one after another, and ended just now.
    pub(crate) fn start_took(&mut self, generation: u64, begun: Instant, steps: &[(&'static str, u64)]) {
        let Some(start) = self.start_of(generation) else { return };
        let mut begin_us = micros(begun.saturating_duration_since(start.requested));
        let end_us = begin_us.saturating_add(micros(begun.elapsed()));
        for (name, took_us) in steps {
            start.steps.push(TimelineStep { name: (*name).to_owned(), begin_us, took_us: *took_us });
            begin_us = begin_us.saturating_add(*took_us);
        }
        if let Some(rest) = end_us.checked_sub(begin_us).filter(|_| begin_us < end_us) {
            let name = if steps.is_empty() { "start machine" } else { "other work of the host" };
            start.steps.push(TimelineStep { name: name.to_owned(), begin_us, took_us: rest });
        }
        start.steps.truncate(TIMELINE_MAX);
    }

    /// What the start of that generation consisted of so far.
    pub(crate) fn timeline(&self, generation: u64) -> Vec<TimelineStep> {
        let start = self.start.as_ref().filter(|start| start.generation == generation);
        start.map(|start| start.steps.clone()).unwrap_or_default()
    }

    pub(crate) fn step_failed(&mut self, step: &Step) -> u32 {
        let before = self.failed.take().filter(|failed| failed.step == *step);
        let count = before.map_or(1, |failed| failed.count.saturating_add(1));
        self.failed = Some(Failed { step: step.clone(), count, at: Instant::now() });
        count
    }

    /// The way to a running machine has failed here.
    pub(crate) fn start_failed(&mut self, generation: u64, failure: StartFailure) {
        let before = self.failed_start.take().filter(|(failed, ..)| *failed == generation);
        let count = before.map_or(1, |(_, count, ..)| count.saturating_add(1));
        self.failed_start = Some((generation, count, Instant::now(), failure));
    }

    fn start_of(&mut self, generation: u64) -> Option<&mut Start> {
        self.start.as_mut().filter(|start| start.generation == generation)
    }
}

fn name_of(step: &Step) -> &'static str {
    match step {
        Step::EnsureVolume(_) => "create volume",
        Step::EnsureNetwork => "make network",
        Step::EnsureInterface => "make interface",
        Step::StartMachine => "start machine",
        Step::Reboot => "reboot machine",
        Step::PressPowerButton => "press power button",
        Step::KillMachine => "kill machine",
        Step::RemoveMachine => "remove old machine",
        Step::RemoveInterface => "remove interface",
        Step::DeleteVolume(_) => "delete volume",
        Step::Record(_) => "record",
        Step::WaitUntil(_) => "wait",
        Step::Forget => "forget",
        Step::Done => "nothing",
    }
}

fn before(now: Time, by: Duration) -> Time {
    Time::from_unix_ms(now.unix_ms().saturating_sub_unsigned(millis(by)))
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Steps that a timeline has at most.
const TIMELINE_MAX: usize = 100;

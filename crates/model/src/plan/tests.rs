use std::collections::BTreeSet;

use expect_test::expect;
use proptest::{
    prelude::{Just, Strategy, any, prop, prop_assert, prop_assert_eq, prop_oneof, proptest},
    test_runner::TestCaseError,
};

use super::{
    ButtonPress, FailedStart, Machine, Observed, PRESS_AGAIN_MS, Presence, REBOOT_MARGIN_MS, RebootAsked,
    STARTS_MAX, SeenVolume, Step, backoff_ms, next_step,
};
use crate::{
    Instance,
    ids::VolumeId,
    instances::GuestShutdown,
    lifecycle::{AfterLoss, End, Fault, News, Request, StartFailure, State},
    samples,
    time::Time,
};

/// A host, and a daemon that does nothing but execute steps.
#[derive(Debug)]
struct World {
    instance: Option<Instance>,
    after_loss: AfterLoss,
    now: Time,
    // The host.
    machine: Machine,
    network: bool,
    interface: bool,
    volumes: BTreeSet<VolumeId>,
    heeds_button: bool,
    news_get_lost: bool,
    starts_fail: Option<Fault>,
    // What the daemon has in mind, and loses when it dies.
    known: Mind,
}

#[derive(Debug, Default)]
struct Mind {
    network: Presence,
    interface: Presence,
    volumes: Vec<(VolumeId, Presence)>,
    button: Option<ButtonPress>,
    reboot: Option<RebootAsked>,
    failed_start: Option<FailedStart>,
}

/// What happens to a world.
#[derive(Clone, Debug)]
enum Event {
    Ask(Request),
    /// The machine ends by itself.
    MachineEnds(End),
    /// Everything but disks is gone, the daemon's mind as well.
    HostRestarts,
    DaemonDies,
    /// A step is executed, and the daemon dies before it can remember anything.
    DiesInStep,
    /// The next steps.
    Steps(u8),
    ClockJumps(i64),
    StartsFail(Option<Fault>),
    Deaf(bool),
    NewsGetLost,
    /// The record is put back from a backup, as it was at launch.
    Restored,
}

impl World {
    fn new(behaviour: GuestShutdown, after_loss: AfterLoss, deletes: bool) -> Self {
        let mut instance = samples::pending();
        instance.protection.on_guest_shutdown = behaviour;
        instance.volumes.push(VolumeId::from_random(if deletes { 8 } else { KEPT }));
        Self {
            instance: Some(instance),
            after_loss,
            now: Time::from_unix_ms(1_000_000_000),
            machine: Machine::Absent,
            network: false,
            interface: false,
            volumes: BTreeSet::new(),
            heeds_button: true,
            news_get_lost: false,
            starts_fail: None,
            known: Mind::default(),
        }
    }

    fn see(&self, instance: &Instance) -> Observed {
        let presence = |id: &VolumeId| {
            let known = self.known.volumes.iter().rev().find(|(known, _)| known == id);
            known.map_or(Presence::Unknown, |(_, presence)| *presence)
        };
        let volumes = instance.volumes.iter().map(|id| SeenVolume {
            id: id.clone(),
            file: presence(id),
            delete_on_termination: *id != VolumeId::from_random(KEPT),
        });
        Observed {
            now: self.now,
            grace_ms: GRACE_MS,
            machine: self.machine.clone(),
            network: self.known.network,
            interface: self.known.interface,
            volumes: volumes.collect(),
            button: self.known.button,
            reboot: self.known.reboot,
            failed_start: self.known.failed_start.clone(),
        }
    }

    /// Executes one step, if there is one; says whether there was.
    fn step(&mut self) -> Result<bool, TestCaseError> {
        let Some(instance) = &self.instance else { return Ok(false) };
        let seen = self.see(instance);
        let step = next_step(instance, &seen);
        prop_assert_eq!(&step, &next_step(instance, &seen), "the same again");
        match step {
            Step::EnsureVolume(id) => {
                self.volumes.insert(id.clone());
                self.known.volumes.push((id, Presence::Present));
            }
            Step::EnsureNetwork => (self.network, self.known.network) = (true, Presence::Present),
            Step::EnsureInterface => {
                prop_assert!(self.network);
                (self.interface, self.known.interface) = (true, Presence::Present);
            }
            Step::StartMachine => self.start()?,
            Step::Reboot => self.ask_to_reboot()?,
            Step::PressPowerButton => self.press()?,
            Step::KillMachine => {
                let Machine::Running { generation } = self.machine else {
                    return Err(TestCaseError::fail("killed what does not run"));
                };
                self.machine = Machine::Ended { generation, end: End::Killed };
            }
            Step::RemoveMachine => {
                prop_assert!(!self.runs());
                self.machine = Machine::Absent;
            }
            Step::RemoveInterface => {
                prop_assert!(self.machine == Machine::Absent);
                (self.interface, self.known.interface) = (false, Presence::Absent);
            }
            Step::DeleteVolume(id) => {
                prop_assert!(matches!(instance.state, State::ShuttingDown | State::Terminated));
                prop_assert!(self.machine == Machine::Absent);
                self.volumes.remove(&id);
                self.known.volumes.push((id, Presence::Absent));
            }
            Step::Record(news) => {
                let starts = Machine::Running { generation: instance.generation };
                prop_assert!(news != News::Started || self.machine == starts, "recorded what was not seen");
                self.hear(&news);
                if news == News::Rebooted {
                    self.known.reboot = None;
                }
            }
            Step::WaitUntil(time) => {
                prop_assert!(time > self.now);
                // However often the clock went back in between.
                let fades = instance.state == State::Terminated;
                let longest = GRACE_MS + REBOOT_MARGIN_MS;
                prop_assert!(fades || time.ms_since(self.now) <= longest, "waits for the past");
                self.now = time;
                // The time of a guest that does not listen is over.
                if let Some(reboot) = &mut self.known.reboot {
                    reboot.done |= !self.news_get_lost;
                }
            }
            Step::Forget => self.instance = None,
            Step::Done => return Ok(false),
        }
        Ok(true)
    }

    fn runs(&self) -> bool {
        matches!(self.machine, Machine::Running { .. })
    }

    fn start(&mut self) -> Result<(), TestCaseError> {
        let instance = self.instance.as_ref().unwrap();
        prop_assert!(self.machine == Machine::Absent, "two machines of one instance");
        prop_assert!(self.interface && instance.volumes.iter().all(|id| self.volumes.contains(id)));
        let generation = instance.generation;
        let Some(fault) = self.starts_fail else {
            self.machine = Machine::Running { generation };
            return Ok(());
        };
        let before = self.known.failed_start.take().filter(|failed| failed.generation == generation);
        let count = before.map_or(0, |failed| failed.count) + 1;
        let failure = StartFailure { fault, detail: String::new() };
        prop_assert!(count <= STARTS_MAX);
        self.known.failed_start = Some(FailedStart { generation, count, at: self.now, failure });
        Ok(())
    }

    fn press(&mut self) -> Result<(), TestCaseError> {
        let Machine::Running { generation } = self.machine else {
            return Err(TestCaseError::fail("pressed what does not run"));
        };
        let before = self.known.button.filter(|press| press.generation == generation && press.at <= self.now);
        let at = before.map_or(self.now, |press| press.at);
        self.known.button = Some(ButtonPress { generation, at, last: self.now });
        if self.heeds_button {
            self.machine = Machine::Ended { generation, end: End::PoweredOff };
        }
        Ok(())
    }

    fn ask_to_reboot(&mut self) -> Result<(), TestCaseError> {
        let Machine::Running { generation } = self.machine else {
            return Err(TestCaseError::fail("asked what does not run to reboot"));
        };
        let again = self.known.reboot.is_some_and(|asked| asked.generation == generation);
        let done = self.heeds_button && !self.news_get_lost;
        self.known.reboot = Some(RebootAsked { generation, at: Some(self.now), done });
        // Not for ever.
        self.news_get_lost &= !again;
        Ok(())
    }

    fn hear(&mut self, news: &News) {
        if let Some(instance) = &mut self.instance {
            instance.hear(news, self.after_loss, self.now);
        }
    }

    fn happen(&mut self, event: &Event) -> Result<(), TestCaseError> {
        match event {
            Event::Ask(request) => {
                if let Some(instance) = &mut self.instance {
                    let _ = instance.ask(*request, self.now);
                }
            }
            Event::MachineEnds(end) => {
                if let Machine::Running { generation } = self.machine {
                    self.machine = Machine::Ended { generation, end: end.clone() };
                }
            }
            Event::HostRestarts => {
                (self.machine, self.network, self.interface) = (Machine::Absent, false, false);
                self.known = Mind::default();
            }
            Event::DaemonDies => self.known = Mind::default(),
            Event::DiesInStep => {
                self.step()?;
                self.known = Mind::default();
            }
            Event::Steps(count) => {
                for _ in 0..*count {
                    self.step()?;
                }
            }
            Event::ClockJumps(ms) => self.now = Time::from_unix_ms(self.now.unix_ms() + ms),
            Event::StartsFail(fault) => self.starts_fail = *fault,
            Event::Deaf(deaf) => self.heeds_button = !deaf,
            Event::NewsGetLost => self.news_get_lost = true,
            Event::Restored => {
                if let Some(instance) = &mut self.instance {
                    *instance = Instance {
                        protection: instance.protection,
                        volumes: instance.volumes.clone(),
                        ..samples::pending()
                    };
                }
            }
        }
        Ok(())
    }

    /// Steps until there are none; the bound is what makes it a proof.
    fn settle(&mut self) -> Result<(), TestCaseError> {
        for _ in 0..STEPS_MAX {
            let terminated = self.instance.as_ref().is_some_and(|now| now.state == State::Terminated);
            if !self.step()? {
                return Ok(());
            }
            // It stays terminated, and comes to be forgotten.
            prop_assert!(
                !terminated || self.instance.as_ref().is_none_or(|now| now.state == State::Terminated)
            );
        }
        Err(TestCaseError::fail(format!("no end of steps: {self:?}")))
    }

    /// The host holds what belongs to the record's state, and nothing else.
    fn check_settled(&self) -> Result<(), TestCaseError> {
        let kept = self.volumes.iter().filter(|id| **id != VolumeId::from_random(KEPT)).count();
        match &self.instance {
            None => {
                prop_assert_eq!((&self.machine, self.interface, kept), (&Machine::Absent, false, 0));
            }
            Some(instance) if instance.state == State::Running => {
                prop_assert_eq!(&self.machine, &Machine::Running { generation: instance.generation });
                prop_assert!(self.interface && self.network);
                prop_assert_eq!(instance.reboot_requested, None);
            }
            Some(instance) => {
                prop_assert_eq!(instance.state, State::Stopped);
                prop_assert_eq!((&self.machine, self.interface), (&Machine::Absent, false));
            }
        }
        Ok(())
    }
}

proptest! {
    #[test]
    fn whatever_happens_it_comes_to_rest(
        events in prop::collection::vec(events(), 0..40),
        behaviour in samples::shutdowns(),
        after_loss in samples::losses(),
        deletes in any::<bool>(),
    ) {
        let mut world = World::new(behaviour, after_loss, deletes);
        for event in &events {
            world.happen(event)?;
        }
        world.settle()?;
        world.check_settled()?;
    }

    #[test]
    fn what_was_asked_last_is_what_becomes(
        events in prop::collection::vec(events(), 0..20),
        request in prop::sample::select(Request::ALL.to_vec()),
        crashes in prop::collection::vec(prop_oneof![Just(Event::DaemonDies), Just(Event::DiesInStep)], 0..20),
    ) {
        let mut world = World::new(GuestShutdown::Stop, AfterLoss::Stop, true);
        for event in &events {
            world.happen(event)?;
        }
        // A good host from here on, but for a daemon that dies again and again.
        world.settle()?;
        world.starts_fail = None;
        let Some(instance) = &mut world.instance else { return Ok(()) };
        let Ok(transition) = instance.ask(request, world.now) else { return Ok(()) };
        for crash in &crashes {
            world.happen(crash)?;
        }
        world.settle()?;
        world.check_settled()?;
        let wanted = match request {
            Request::Start => Some(State::Running),
            Request::Stop | Request::ForceStop => Some(State::Stopped),
            Request::Reboot => Some(transition.from),
            Request::Terminate | Request::ForceTerminate => None,
        };
        prop_assert_eq!(world.instance.map(|instance| instance.state), wanted);
    }
}

/// Steps of an undisturbed life, in order.
fn story(world: &mut World) -> String {
    let mut steps = Vec::new();
    while let Some(instance) = &world.instance
        && steps.len() < STEPS_MAX
    {
        let step = next_step(instance, &world.see(instance));
        steps.push(match &step {
            Step::EnsureVolume(_) => "EnsureVolume".to_owned(),
            Step::DeleteVolume(_) => "DeleteVolume".to_owned(),
            Step::WaitUntil(time) => format!("Wait {} s", time.ms_since(world.now) / 1000),
            step => format!("{step:?}"),
        });
        if step == Step::Done {
            break;
        }
        world.step().unwrap();
    }
    steps.join(", ")
}

#[test]
fn an_undisturbed_life() {
    let mut world = World::new(GuestShutdown::Stop, AfterLoss::Stop, false);
    let ask = |world: &mut World, request| {
        let now = world.now;
        world.instance.as_mut().unwrap().ask(request, now).unwrap();
        story(world)
    };
    expect![
        "EnsureVolume, EnsureVolume, EnsureNetwork, EnsureInterface, StartMachine, Record(Started), Done"
    ]
    .assert_eq(&story(&mut world));
    expect!["Reboot, Record(Rebooted), Done"].assert_eq(&ask(&mut world, Request::Reboot));
    expect!["PressPowerButton, Record(Ended(PoweredOff)), RemoveMachine, RemoveInterface, Done"]
        .assert_eq(&ask(&mut world, Request::Stop));
    expect!["EnsureInterface, StartMachine, Record(Started), Done"]
        .assert_eq(&ask(&mut world, Request::Start));
    world.heeds_button = false;
    expect!["PressPowerButton, Wait 5 s, PressPowerButton, Wait 5 s, PressPowerButton, Wait 5 s, PressPowerButton, Wait 5 s, PressPowerButton, Wait 5 s, PressPowerButton, Wait 5 s, KillMachine, Record(Ended(Killed)), RemoveMachine, RemoveInterface, Done"].assert_eq(&ask(&mut world, Request::Stop));
    ask(&mut world, Request::Start);
    expect!["Reboot, Wait 40 s, Record(Rebooted), Done"].assert_eq(&ask(&mut world, Request::Reboot));
    world.news_get_lost = true;
    expect!["Reboot, Wait 40 s, Reboot, Wait 40 s, Record(Rebooted), Done"]
        .assert_eq(&ask(&mut world, Request::Reboot));
    expect![
        "KillMachine, RemoveMachine, RemoveInterface, DeleteVolume, Record(Cleared), Wait 3600 s, Forget"
    ]
    .assert_eq(&ask(&mut world, Request::ForceTerminate));
}

#[test]
fn what_never_ran_goes_at_once() {
    let mut world = World::new(GuestShutdown::Stop, AfterLoss::Stop, false);
    world.heeds_button = false;
    while !world.runs() {
        world.step().unwrap();
    }
    let terminate = |world: &mut World| {
        let now = world.now;
        world.instance.as_mut().unwrap().ask(Request::Terminate, now).unwrap();
        story(world)
    };
    let gone =
        |from: &str| format!("{from}RemoveInterface, DeleteVolume, Record(Cleared), Wait 3600 s, Forget");
    assert_eq!(terminate(&mut world), gone("KillMachine, RemoveMachine, "));

    let mut stopped = World::new(GuestShutdown::Stop, AfterLoss::Stop, false);
    story(&mut stopped);
    let now = stopped.now;
    stopped.instance.as_mut().unwrap().ask(Request::Stop, now).unwrap();
    story(&mut stopped);
    assert_eq!(terminate(&mut stopped), gone("").replace("RemoveInterface, ", ""));
}

#[test]
fn starts_that_fail() {
    let failing = |fault| {
        let mut world = World::new(GuestShutdown::Stop, AfterLoss::Stop, false);
        world.instance.as_mut().unwrap().first_launch = false;
        world.instance.as_mut().unwrap().volumes.clear();
        world.starts_fail = Some(fault);
        story(&mut world)
    };
    expect![[r#"EnsureNetwork, EnsureInterface, StartMachine, Wait 0 s, StartMachine, Wait 1 s, StartMachine, Wait 2 s, StartMachine, Record(StartFailed(StartFailure { fault: Host, detail: "" })), RemoveInterface, Done"#]].assert_eq(&failing(Fault::Host));
    expect![[r#"EnsureNetwork, EnsureInterface, StartMachine, Record(StartFailed(StartFailure { fault: NoRoom, detail: "" })), RemoveInterface, Done"#]].assert_eq(&failing(Fault::NoRoom));
}

#[test]
fn an_adopted_machine_is_served_again() {
    let mut world = World::new(GuestShutdown::Stop, AfterLoss::Stop, false);
    story(&mut world);
    world.known = Mind::default();
    expect!["EnsureNetwork, EnsureInterface, Done"].assert_eq(&story(&mut world));
}

#[test]
fn what_is_remembered_of_another_machine_or_time_counts_for_nothing() {
    let mut stopping = samples::pending();
    stopping.state = State::Stopping;
    let mut seen = World::new(GuestShutdown::Stop, AfterLoss::Stop, false).see(&stopping);
    seen.machine = Machine::Running { generation: 5 };
    let now = seen.now;
    let mut stop = |generation, at| {
        seen.button = Some(ButtonPress { generation, at, last: at });
        next_step(&stopping, &seen)
    };
    assert_eq!(stop(5, now), Step::WaitUntil(now.plus_ms(PRESS_AGAIN_MS)));
    assert_eq!(stop(4, now), Step::PressPowerButton);
    assert_eq!(stop(5, now.plus_ms(1)), Step::PressPowerButton);
    assert_eq!(stop(5, Time::from_unix_ms(0)), Step::KillMachine);
    seen.grace_ms = 0;
    seen.button = None;
    assert_eq!(next_step(&stopping, &seen), Step::KillMachine);

    let mut running = samples::pending();
    running.state = State::Running;
    running.reboot_requested = Some(now);
    (seen.network, seen.interface) = (Presence::Present, Presence::Present);
    seen.machine = Machine::Running { generation: running.generation };
    let mut reboot = |generation, at, done| {
        seen.reboot = Some(RebootAsked { generation, at, done });
        next_step(&running, &seen)
    };
    let generation = running.generation;
    assert_eq!(reboot(generation, Some(now), false), Step::WaitUntil(now.plus_ms(REBOOT_MARGIN_MS)));
    assert_eq!(reboot(generation, Some(now.plus_ms(1)), false), Step::Reboot);
    assert_eq!(reboot(generation, Some(Time::from_unix_ms(0)), false), Step::Reboot);
    assert_eq!(reboot(generation + 1, Some(now), true), Step::Reboot);
    assert_eq!(reboot(generation, None, false), Step::Reboot);
    for at in [None, Some(now), Some(Time::from_unix_ms(0))] {
        assert_eq!(reboot(generation, at, true), Step::Record(News::Rebooted));
    }

    let mut pending = samples::pending();
    pending.volumes.clear();
    let mut world = World::new(GuestShutdown::Stop, AfterLoss::Stop, false);
    (world.known.network, world.known.interface) = (Presence::Present, Presence::Present);
    let mut seen = world.see(&pending);
    let mut start = |generation, count, at| {
        let failure = StartFailure { fault: Fault::Host, detail: String::new() };
        seen.failed_start = Some(FailedStart { generation, count, at, failure });
        next_step(&pending, &seen)
    };
    assert_eq!(start(1, 1, now), Step::WaitUntil(now.plus_ms(backoff_ms(1))));
    assert_eq!(start(0, STARTS_MAX, now), Step::StartMachine);
    assert_eq!(start(1, 1, now.plus_ms(1)), Step::StartMachine);
    assert!(matches!(start(1, STARTS_MAX, now), Step::Record(News::StartFailed(_))));
}

#[test]
fn pauses_grow_to_a_minute() {
    let pauses = [0, 1, 2, 3, 7, 8, 100, u32::MAX].map(backoff_ms);
    assert_eq!(pauses, [500, 500, 1_000, 2_000, 32_000, 60_000, 60_000, 60_000]);
}

fn events() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => prop::sample::select(Request::ALL.to_vec()).prop_map(Event::Ask),
        4 => (1_u8..12).prop_map(Event::Steps),
        1 => prop::sample::select(vec![
            End::PoweredOff,
            End::Failed { detail: "a panic".to_owned() },
            End::Killed,
            End::Vanished,
        ])
        .prop_map(Event::MachineEnds),
        1 => Just(Event::HostRestarts),
        1 => Just(Event::DaemonDies),
        2 => Just(Event::DiesInStep),
        1 => (-10_000_000_i64..10_000_000).prop_map(Event::ClockJumps),
        1 => prop::sample::select(vec![None, Some(Fault::NoRoom), Some(Fault::Image), Some(Fault::Host)])
            .prop_map(Event::StartsFail),
        1 => any::<bool>().prop_map(Event::Deaf),
        1 => Just(Event::NewsGetLost),
        1 => Just(Event::Restored),
    ]
}

const GRACE_MS: u64 = 30_000;
/// A volume that outlives its instance.
const KEPT: u128 = 9;
const STEPS_MAX: usize = 60;

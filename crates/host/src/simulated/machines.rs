//! Simulated machines, and what can be done to them from inside and outside.

use std::time::Duration;

use ec2vmm_model::{
    credits::Throttle,
    ids::{InstanceId, InterfaceId, VolumeId},
};
use ec2vmm_vmm_api::{Failure, FailureKind, exit::Exit};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::{AbortHandle, JoinSet},
    time::Instant,
};

use super::{Simulated, other};
use crate::host::{
    CONSOLE_BYTES_MAX, Ending, Error, FoundMachine, MachinePlan, News, NewsKind, Started, Stream, Usage,
};

pub(super) struct Machine {
    plan: MachinePlan,
    ended: Option<Ending>,
    guest: Guest,
    load: Load,
    shutting_down: Option<ShutDown>,
    /// Lines to its console: they end when it does.
    lines: JoinSet<()>,
}

/// A guest that shuts down.
struct ShutDown {
    task: AbortHandle,
    /// When it is reset at the latest, if it is to reboot; else it powers off.
    reset_by: Option<Instant>,
}

/// How a guest behaves.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Guest {
    /// What it takes from the power button to its end; nothing for a guest that does not listen.
    power_off_takes: Option<Duration>,
}

/// What the guest computes, and what it may.
#[derive(Clone, Copy, Debug)]
struct Load {
    wanted_millicpus: u64,
    throttle: Throttle,
    since: Instant,
    used_us: u64,
}

impl Load {
    /// What was used until now.
    fn used_us(&self) -> u64 {
        let allowed = match self.throttle {
            Throttle::Full => u64::MAX,
            Throttle::Limited { millicpus } => u64::from(millicpus),
        };
        let elapsed_us = u64::try_from(self.since.elapsed().as_micros()).unwrap_or(u64::MAX);
        let now_us = elapsed_us.saturating_mul(self.wanted_millicpus.min(allowed)) / 1_000;
        self.used_us.saturating_add(now_us)
    }

    fn change(&mut self, change: impl FnOnce(&mut Self)) {
        self.used_us = self.used_us();
        self.since = Instant::now();
        change(self);
    }
}

impl Machine {
    pub(super) fn found(&self, instance: &InstanceId) -> FoundMachine {
        FoundMachine {
            instance: instance.clone(),
            generation: self.plan.generation,
            ended: self.ended.clone(),
        }
    }

    pub(super) fn plan(&self) -> &MachinePlan {
        &self.plan
    }

    pub(super) fn runs(&self) -> bool {
        self.ended.is_none()
    }

    fn shut_down(
        &mut self,
        takes: Duration,
        reset_by: Option<Instant>,
        done: impl FnOnce() + Send + 'static,
    ) {
        let guest = tokio::spawn(async move {
            tokio::time::sleep(takes).await;
            done();
        });
        self.shutting_down = Some(ShutDown { task: guest.abort_handle(), reset_by });
    }

    fn stay_up(&mut self) -> Option<ShutDown> {
        let shut_down = self.shutting_down.take();
        shut_down.iter().for_each(|shut_down| shut_down.task.abort());
        shut_down
    }

    /// Names of what it uses alone.
    fn uses(&self) -> impl Iterator<Item = &str> {
        let volumes = self.plan.volumes.iter().map(VolumeId::as_str);
        volumes.chain(self.plan.interfaces.iter().map(InterfaceId::as_str))
    }
}

/// What is done to guests and machines from outside of any cloud. What does not run is left alone.
impl Simulated {
    /// The guest does not listen to the power button.
    pub fn guest_ignores_power_button(&self, instance: &InstanceId) {
        if let Some(machine) = self.state().machines.get_mut(instance) {
            machine.guest.power_off_takes = None;
            let reset_by = machine.stay_up().and_then(|shut_down| shut_down.reset_by);
            if let Some(reset_by) = reset_by {
                self.reboot_by(machine, instance, reset_by);
            }
        }
    }

    /// The guest powers off by itself.
    pub fn guest_powers_off(&self, instance: &InstanceId) {
        self.end(instance, None, Ending::Told { exit: Exit::PowerOff, failure: None });
    }

    /// The guest reboots by itself.
    pub fn guest_reboots(&self, instance: &InstanceId) {
        // A guest that is not there does not reboot.
        let _ = self.reset(instance, None);
    }

    /// The guest's kernel panics, and stays so.
    pub fn guest_panics(&self, instance: &InstanceId) {
        let generation =
            self.state().machines.get(instance).filter(|it| it.runs()).map(|it| it.plan.generation);
        if let Some(generation) = generation {
            self.tell(instance, generation, NewsKind::Panicked);
        }
    }

    /// The machine fails, in its own words.
    pub fn machine_fails(&self, instance: &InstanceId, kind: FailureKind) {
        let failure = Failure { kind, message: format!("simulated {kind:?}"), hint: None };
        self.end(instance, None, Ending::Told { exit: Exit::Failed(kind), failure: Some(failure) });
    }

    /// Somebody kills the machine process.
    pub fn machine_is_killed(&self, instance: &InstanceId) {
        self.end(instance, None, Ending::Silent);
    }

    /// The guest computes, thousandths of one processor.
    pub fn guest_computes(&self, instance: &InstanceId, millicpus: u64) {
        if let Some(machine) = self.state().machines.get_mut(instance) {
            machine.load.change(|load| load.wanted_millicpus = millicpus);
        }
    }

    /// How much the machine may compute.
    pub fn throttle_of(&self, instance: &InstanceId) -> Option<Throttle> {
        self.state().machines.get(instance).filter(|it| it.runs()).map(|it| it.load.throttle)
    }
}

/// What a cloud does to machines.
impl Simulated {
    pub(super) fn start(&self, plan: &MachinePlan) -> Result<Started, Error> {
        let mut state = self.state();
        if let Some(present) = state.machines.get(&plan.instance) {
            return match present.runs() && present.plan.generation == plan.generation {
                true => Ok(Started::default()),
                false => Err(other(format!(
                    "generation {} of the machine of {} is still there",
                    present.plan.generation, plan.instance
                ))),
            };
        }
        if let Some(missing) = plan.volumes.iter().find(|id| !state.volumes.contains_key(*id)) {
            return Err(other(format!("there is no volume {missing}")));
        }
        if let Some(missing) = plan.interfaces.iter().find(|id| !state.interfaces.contains_key(*id)) {
            return Err(other(format!("there is no interface {missing}")));
        }
        let banner = format!("[    0.000000] Linux on {} ({})\r\n", plan.instance_type, plan.instance);
        state.consoles.insert(plan.instance.clone(), banner.into_bytes());
        let machine = Machine {
            plan: plan.clone(),
            ended: None,
            guest: Guest { power_off_takes: Some(self.shared.settings.power_off_takes) },
            load: Load { wanted_millicpus: 0, throttle: plan.throttle, since: Instant::now(), used_us: 0 },
            shutting_down: None,
            lines: JoinSet::new(),
        };
        state.in_use.extend(machine.uses().map(|used| (used.to_owned(), plan.instance.clone())));
        state.machines.insert(plan.instance.clone(), machine);
        let start_us = u64::try_from(self.shared.settings.start_takes.as_micros()).unwrap_or(u64::MAX);
        Ok(Started { steps: vec![("simulate", start_us)] })
    }

    pub(super) fn press(&self, instance: &InstanceId) -> Result<(), Error> {
        let mut state = self.state();
        let machine = running(&mut state, instance)?;
        if machine.shutting_down.as_ref().is_some_and(|it| it.reset_by.is_none()) {
            return Ok(());
        }
        machine.stay_up();
        let Some(takes) = machine.guest.power_off_takes else { return Ok(()) };
        let (host, instance, generation) = (self.clone(), instance.clone(), machine.plan.generation);
        let ending = Ending::Told { exit: Exit::PowerOff, failure: None };
        machine.shut_down(takes, None, move || {
            host.end(&instance, Some(generation), ending);
        });
        Ok(())
    }

    pub(super) fn ask_to_reboot(&self, instance: &InstanceId, grace: Duration) -> Result<(), Error> {
        let mut state = self.state();
        let machine = running(&mut state, instance)?;
        let reset_by = Instant::now() + grace.min(FOR_EVER);
        let before = machine.shutting_down.as_ref().and_then(|shut_down| shut_down.reset_by);
        self.reboot_by(machine, instance, before.map_or(reset_by, |before| before.min(reset_by)));
        Ok(())
    }

    /// A guest that listens takes its time, from now on.
    fn reboot_by(&self, machine: &mut Machine, instance: &InstanceId, reset_by: Instant) {
        let left = reset_by.saturating_duration_since(Instant::now());
        let takes = machine.guest.power_off_takes.map_or(left, |takes| takes.min(left));
        let (host, instance, generation) = (self.clone(), instance.clone(), machine.plan.generation);
        machine.stay_up();
        // One that has ended meanwhile does not reboot.
        machine.shut_down(takes, Some(reset_by), move || {
            drop(host.reset(&instance, Some(generation)));
        });
    }

    /// Resets a machine, of this generation if one is given.
    fn reset(&self, instance: &InstanceId, only: Option<u64>) -> Result<(), Error> {
        let generation = {
            let mut state = self.state();
            let machine = running_as(&mut state, instance, only)?;
            machine.stay_up();
            machine.plan.generation
        };
        self.print(instance, b"\r\nreboot: Restarting system\r\n");
        self.tell(instance, generation, NewsKind::Rebooted);
        Ok(())
    }

    pub(super) fn kill(&self, instance: &InstanceId) {
        self.end(instance, None, Ending::Silent);
    }

    pub(super) fn used(&self, instance: &InstanceId) -> Result<Usage, Error> {
        let mut state = self.state();
        let machine = running(&mut state, instance)?;
        Ok(Usage {
            cpu_us: machine.load.used_us(),
            memory_bytes: machine.plan.memory_mib << 20,
            ..Usage::default()
        })
    }

    pub(super) fn limit(&self, instance: &InstanceId, throttle: Throttle) -> Result<(), Error> {
        let mut state = self.state();
        running(&mut state, instance)?.load.change(|load| load.throttle = throttle);
        Ok(())
    }

    pub(super) fn open_console(&self, instance: &InstanceId) -> Result<Box<dyn Stream>, Error> {
        let mut state = self.state();
        let lines = &mut running(&mut state, instance)?.lines;
        while lines.try_join_next().is_some() {}
        let (near, mut far) = tokio::io::duplex(4096);
        let (host, instance) = (self.clone(), instance.clone());
        lines.spawn(async move {
            let mut typed = [0; 1024];
            while let Ok(len @ 1..) = far.read(&mut typed).await {
                // The guest does nothing but echo.
                let echo = typed.get(..len).unwrap_or_default();
                host.print(&instance, echo);
                if far.write_all(echo).await.is_err() {
                    return;
                }
            }
        });
        Ok(Box::new(near))
    }

    /// Ends a machine, of this generation if one is given.
    fn end(&self, instance: &InstanceId, only: Option<u64>, ending: Ending) {
        let generation = {
            let mut state = self.state();
            let Ok(machine) = running_as(&mut state, instance, only) else { return };
            machine.ended = Some(ending.clone());
            machine.lines.abort_all();
            let generation = machine.plan.generation;
            let used: Vec<String> = machine.uses().map(str::to_owned).collect();
            used.iter().for_each(|used| drop(state.in_use.remove(used)));
            generation
        };
        self.tell(instance, generation, NewsKind::Ended(ending));
    }

    fn print(&self, instance: &InstanceId, bytes: &[u8]) {
        if let Some(console) = self.state().consoles.get_mut(instance) {
            console.extend_from_slice(bytes);
            let excess = console.len().saturating_sub(CONSOLE_BYTES_MAX);
            console.drain(..excess);
        }
    }

    fn tell(&self, instance: &InstanceId, generation: u64, kind: NewsKind) {
        // Nobody listens while no cloud is up.
        let _ = self.shared.news.send(News { instance: instance.clone(), generation, kind });
    }
}

fn running<'a>(state: &'a mut super::State, instance: &InstanceId) -> Result<&'a mut Machine, Error> {
    running_as(state, instance, None)
}

/// The machine, of this generation if one is given.
fn running_as<'a>(
    state: &'a mut super::State,
    instance: &InstanceId,
    only: Option<u64>,
) -> Result<&'a mut Machine, Error> {
    state
        .machines
        .get_mut(instance)
        .filter(|machine| machine.runs() && only.is_none_or(|only| only == machine.plan.generation))
        .ok_or_else(|| Error::NotRunning(instance.clone()))
}

/// A century.
const FOR_EVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

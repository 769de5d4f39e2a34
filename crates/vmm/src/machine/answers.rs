//! Answers the control socket, for the machine.

use std::{os::fd::OwnedFd, time::Duration};

use ec2vmm_devices::virtio::{BalloonState, DeviceAnswer, DeviceCommand};
use ec2vmm_vmm_api::{
    Exit,
    config::RateLimit,
    control::{
        AttachDisk, AttachNet, Balloon, Disk, Machine as MachineView, Metrics, Net, NetLimits, PowerAction,
        PowerRequest, Problem, REBOOT_GRACE_MS, ResizeDisk, SetBalloon, SnapshotRequest, State, WorkingSet,
    },
};

use super::{
    End, Ending, Machine, Run,
    parts::{Kind, refused},
};
use crate::{
    control::{Detached, Handler, problem},
    sandbox,
    snapshot::Files,
    x86_64::acpi,
};

/// The machine, in the run of now.
pub(super) struct Answers<'a> {
    pub(super) machine: &'a mut Machine,
    pub(super) run: &'a Run,
}

impl Handler for Answers<'_> {
    fn machine(&self) -> MachineView {
        let machine = &*self.machine;
        MachineView {
            identity: machine.config.identity.clone(),
            pid: sandbox::pid_outside(),
            cpus: machine.config.cpus,
            memory_mib: machine.config.memory_mib,
            state: match machine.underway {
                _ if machine.end.is_some() => State::Ending,
                Some(_) => State::Snapshotting,
                None => machine.state,
            },
            reboots: machine.reboots,
            uptime_ms: machine.report.us() / 1000,
            booted: machine.booted.clone(),
        }
    }

    fn metrics(&self) -> Metrics {
        self.machine.metrics(self.run)
    }

    fn events(&self) -> Vec<u8> {
        self.machine.report.kept()
    }

    fn pause(&mut self) -> Result<(), Problem> {
        let (machine, run) = self.changeable()?;
        machine.pause(run).map_err(|Ending| too_late())
    }

    fn snapshot(&mut self, request: SnapshotRequest, files: Files) -> Result<(), Problem> {
        let (machine, run) = self.changeable()?;
        if machine.reboot.is_some() {
            return Err(Problem {
                hint: Some(
                    "ask again after the event `reset`; the action `reset` brings it about at once".into(),
                ),
                ..problem(409, "the guest was asked to reboot, and shuts down".into())
            });
        }
        machine.begin_snapshot(run, request, files)
    }

    fn record_working_set(&mut self) -> Result<WorkingSet, Problem> {
        match self.machine.record_working_set() {
            Some(Ok(pages)) => Ok(WorkingSet { pages }),
            Some(Err(error)) => Err(problem(500, format!("writing the working set: {error}"))),
            None => Err(Problem {
                hint: Some("restore with a file to record it in (`--record-working-set`)".into()),
                ..problem(409, "no touches are noted, or they are written down already".into())
            }),
        }
    }

    fn resume(&mut self) -> Result<(), Problem> {
        let (machine, run) = self.changeable()?;
        machine.resume(run);
        Ok(())
    }

    fn power(&mut self, PowerRequest { action, grace_ms }: PowerRequest) -> Result<(), Problem> {
        if action != PowerAction::PowerOff {
            self.machine.check_not_underway()?;
        }
        let unpressed = |error| problem(500, format!("pressing the power button: {error}"));
        match action {
            PowerAction::PowerButton => {
                self.run.bus.acpi.raise(acpi::Event::PowerButton).map_err(unpressed)?;
                self.machine.reboot = None;
                Ok(())
            }
            PowerAction::Reboot => {
                let grace = Duration::from_millis(grace_ms.unwrap_or(REBOOT_GRACE_MS));
                self.machine.ask_to_reboot(self.run, grace).map_err(unpressed)
            }
            PowerAction::Reset => {
                self.machine.end_with(End::Reset);
                Ok(())
            }
            PowerAction::PowerOff => {
                self.machine.end_with(End::Exit(Exit::PowerOff, None));
                Ok(())
            }
        }
    }

    fn disks(&self) -> Vec<Disk> {
        self.machine.disks()
    }

    fn disk(&self, id: &str) -> Result<Disk, Problem> {
        self.machine.disk(id)
    }

    fn attach_disk(&mut self, disk: AttachDisk, files: Vec<OwnedFd>) -> Result<Disk, Problem> {
        let (machine, run) = self.changeable()?;
        machine.attach_disk(run, disk, files)
    }

    fn resize_disk(&mut self, id: &str, size: ResizeDisk) -> Result<Disk, Problem> {
        let (machine, _) = self.changeable()?;
        machine.resize(id, size.bytes)
    }

    fn limit_disk(&mut self, id: &str, limit: RateLimit) -> Result<Disk, Problem> {
        let (machine, _) = self.changeable()?;
        machine.limit_disk(id, limit)
    }

    fn detach_disk(&mut self, id: &str, force: bool) -> Result<Detached, Problem> {
        let (machine, run) = self.changeable()?;
        machine.detach(run, Kind::Disk, id, force)
    }

    fn nets(&self) -> Vec<Net> {
        self.machine.nets()
    }

    fn net(&self, id: &str) -> Result<Net, Problem> {
        self.machine.net(id)
    }

    fn attach_net(&mut self, net: AttachNet, taps: Vec<OwnedFd>) -> Result<Net, Problem> {
        let (machine, run) = self.changeable()?;
        machine.attach_net(run, net, taps)
    }

    fn limit_net(&mut self, id: &str, limits: NetLimits) -> Result<Net, Problem> {
        let (machine, _) = self.changeable()?;
        machine.limit_net(id, limits)
    }

    fn detach_net(&mut self, id: &str, force: bool) -> Result<Detached, Problem> {
        let (machine, run) = self.changeable()?;
        machine.detach(run, Kind::Net, id, force)
    }

    fn balloon(&mut self) -> Result<Balloon, Problem> {
        if self.machine.underway.is_some() {
            // The driver's statistics come by the guest's memory.
            return self.ask_balloon(&DeviceCommand::ReadBalloon);
        }
        // One without a driver that gives statistics is as it is.
        let asked = self.ask_balloon(&DeviceCommand::RefreshBalloonStatistics);
        asked.or_else(|_| self.ask_balloon(&DeviceCommand::ReadBalloon))
    }

    fn set_balloon(&mut self, SetBalloon { target_bytes }: SetBalloon) -> Result<Balloon, Problem> {
        let memory_bytes = self.changeable()?.0.config.memory_mib << 20;
        if !target_bytes.is_multiple_of(BALLOON_PAGE) || target_bytes >= memory_bytes {
            let law = format!("a multiple of {BALLOON_PAGE} below the machine's {memory_bytes} bytes");
            return Err(problem(400, format!("target_bytes: {target_bytes} is not {law}")));
        }
        self.ask_balloon(&DeviceCommand::SetBalloonTarget { bytes: target_bytes })
    }
}

impl Answers<'_> {
    /// The machine, for who changes it.
    fn changeable(&mut self) -> Result<(&mut Machine, &Run), Problem> {
        self.machine.check_not_underway()?;
        Ok((self.machine, self.run))
    }

    fn ask_balloon(&mut self, command: &DeviceCommand) -> Result<Balloon, Problem> {
        let slots = &mut self.machine.slots;
        let balloon = slots.named(BALLOON).and_then(|id| slots.get_mut(id));
        let balloon = balloon.ok_or_else(|| problem(404, "there is no balloon".into()))?;
        match balloon.command(command).map_err(|error| refused(BALLOON, &error))? {
            DeviceAnswer::Balloon(state) => Ok(view_balloon(state)),
            DeviceAnswer::Done => Err(problem(500, "the balloon says nothing".into())),
        }
    }
}

fn view_balloon(state: BalloonState) -> Balloon {
    let BalloonState { target_bytes, actual_bytes, statistics_count, statistics_age_ms, statistics } = state;
    let statistics = statistics.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    Balloon { target_bytes, actual_bytes, statistics_count, statistics_age_ms, statistics }
}

/// What came just before has made an end.
pub(crate) fn too_late() -> Problem {
    Problem {
        hint: Some("GET /events tells which; after a reset, ask again".into()),
        ..problem(409, "the guest has just ended, or asked for a reset".into())
    }
}

/// What the balloon is called among the devices.
const BALLOON: &str = "balloon";
/// The unit of the balloon, bytes.
const BALLOON_PAGE: u64 = 4096;

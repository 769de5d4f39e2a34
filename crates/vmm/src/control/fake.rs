//! A machine for tests of the control socket, here and in the fuzzer.

use std::os::fd::OwnedFd;

use ec2vmm_vmm_api::{
    config::{Identity, RateLimit},
    control::{
        AttachDisk, AttachNet, Balloon, Booted, Disk, Machine, Metrics, Net, NetLimits, PowerAction,
        PowerRequest, Problem, ResizeDisk, SetBalloon, SnapshotRequest, State, WorkingSet,
    },
};

use super::{Detached, Handler, problem};
use crate::snapshot::Files;

/// A machine that notes what was done to it.
#[derive(Default)]
pub struct Fake {
    /// What was done to its power.
    pub done: Vec<PowerRequest>,
    /// It stands still.
    pub paused: bool,
    /// Snapshots can be taken of it.
    pub can_be_written: bool,
    /// How often it was told to stand still or to go on.
    pub told: usize,
    /// How many counters it has.
    pub counters: usize,
    /// What else was asked for, as text.
    pub asked: Vec<String>,
    /// Descriptors that came along.
    pub kept: Vec<OwnedFd>,
}

fn disk(id: &str) -> Disk {
    Disk {
        id: id.into(),
        serial: "vol-1".into(),
        size_bytes: 512,
        read_only: false,
        boots: false,
        pci_device: 5,
        leaving: false,
        rate_limit: RateLimit::default(),
    }
}

fn net(id: &str) -> Net {
    Net {
        id: id.into(),
        mac: [2, 0, 0, 0, 0, 1],
        pci_device: 21,
        leaving: false,
        limits: NetLimits::default(),
    }
}

impl Handler for Fake {
    fn machine(&self) -> Machine {
        Machine {
            identity: Identity {
                uuid: uuid::Uuid::nil(),
                manufacturer: "ec2vmm".into(),
                product: "t3.micro".into(),
                asset_tag: None,
            },
            pid: 7,
            cpus: 2,
            memory_mib: 1024,
            state: if self.paused { State::Paused } else { State::Running },
            reboots: 0,
            uptime_ms: 5,
            booted: Booted::default(),
        }
    }

    fn metrics(&self) -> Metrics {
        let counters = (0..self.counters).map(|number| (format!("counter{number}"), 1)).collect();
        Metrics { devices: [("vcpu".to_owned(), counters)].into() }
    }

    fn events(&self) -> Vec<u8> {
        b"{\"event\":\"running\",\"us\":5}\n".to_vec()
    }

    fn pause(&mut self) -> Result<(), Problem> {
        self.told += 1;
        self.paused = true;
        Ok(())
    }

    fn resume(&mut self) -> Result<(), Problem> {
        self.told += 1;
        self.paused = false;
        Ok(())
    }

    fn snapshot(&mut self, _: SnapshotRequest, _: Files) -> Result<(), Problem> {
        match self.can_be_written {
            true => Ok(()),
            false => Err(problem(409, "there is no snapshot of nothing".into())),
        }
    }

    fn record_working_set(&mut self) -> Result<WorkingSet, Problem> {
        Ok(WorkingSet { pages: 5 })
    }

    fn power(&mut self, request: PowerRequest) -> Result<(), Problem> {
        if request.action == PowerAction::PowerOff {
            return Err(Problem { status: 503, detail: "not now".into(), hint: None });
        }
        self.done.push(request);
        Ok(())
    }

    fn disks(&self) -> Vec<Disk> {
        vec![disk("block0")]
    }

    fn disk(&self, id: &str) -> Result<Disk, Problem> {
        Ok(disk(id))
    }

    fn attach_disk(&mut self, wanted: AttachDisk, files: Vec<OwnedFd>) -> Result<Disk, Problem> {
        self.asked.push(format!("attach {} with {}", wanted.id, files.len()));
        if files.len() != wanted.layers.len() {
            return Err(problem(400, "another number of descriptors".into()));
        }
        self.kept.extend(files);
        Ok(disk(&wanted.id))
    }

    fn resize_disk(&mut self, id: &str, size: ResizeDisk) -> Result<Disk, Problem> {
        self.asked.push(format!("resize {id} {:?}", size.bytes));
        Ok(disk(id))
    }

    fn limit_disk(&mut self, id: &str, limit: RateLimit) -> Result<Disk, Problem> {
        self.asked.push(format!("limit {id}"));
        Ok(Disk { rate_limit: limit, ..disk(id) })
    }

    fn detach_disk(&mut self, id: &str, force: bool) -> Result<Detached, Problem> {
        self.asked.push(format!("detach {id} {force}"));
        Ok(if force { Detached::Gone } else { Detached::Asked })
    }

    fn nets(&self) -> Vec<Net> {
        vec![net("net0")]
    }

    fn net(&self, id: &str) -> Result<Net, Problem> {
        Ok(net(id))
    }

    fn attach_net(&mut self, wanted: AttachNet, taps: Vec<OwnedFd>) -> Result<Net, Problem> {
        self.asked.push(format!("attach {} with {}", wanted.id, taps.len()));
        self.kept.extend(taps);
        Ok(net(&wanted.id))
    }

    fn limit_net(&mut self, id: &str, limits: NetLimits) -> Result<Net, Problem> {
        self.asked.push(format!("limit {id}"));
        Ok(Net { limits, ..net(id) })
    }

    fn detach_net(&mut self, id: &str, force: bool) -> Result<Detached, Problem> {
        self.asked.push(format!("detach {id} {force}"));
        Ok(if force { Detached::Gone } else { Detached::Asked })
    }

    fn balloon(&mut self) -> Result<Balloon, Problem> {
        Ok(Balloon::default())
    }

    fn set_balloon(&mut self, target: SetBalloon) -> Result<Balloon, Problem> {
        Ok(Balloon { target_bytes: target.target_bytes, ..Balloon::default() })
    }
}

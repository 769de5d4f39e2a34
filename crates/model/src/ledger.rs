//! The ledger: every interval that would cost money on AWS. What it costs is in [`crate::cost`].
//!
//! Invariants: an entry's key says what it is for, once: a run of an instance has one entry for computing,
//! however often it is recorded. Entries are closed once, and never changed after. Compute is open exactly
//! while the instance is running: pending, stopping and all the others cost nothing, and a reboot stays in
//! its entry.

use serde::{Deserialize, Serialize};

use crate::{
    ids::{InstanceId, VolumeId},
    instances::Instance,
    lifecycle::State,
    time::Time,
    volumes::{Volume, VolumeKind},
};

/// An interval that costs money, as the store keeps it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Entry {
    /// The resource's id.
    pub resource: String,
    /// Which of the resource's intervals: an instance's generation while it ran, a count for others.
    pub serial: u64,
    /// The region it is in.
    pub region: String,
    /// The instance that it is counted to.
    pub instance: Option<InstanceId>,
    /// What is charged.
    pub charge: Charge,
    /// The first moment.
    pub from: Time,
    /// The moment after the last; none while it goes on.
    pub to: Option<Time>,
}

/// What is charged.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Charge {
    /// An instance that runs.
    Compute {
        /// Name of its type, which never changes while it runs.
        instance_type: String,
    },
    /// A volume that exists.
    Volume {
        /// Its kind.
        kind: VolumeKind,
        /// Its size, GiB.
        size_gib: u32,
    },
    /// A snapshot that exists.
    Snapshot {
        /// What it holds that the one before does not, bytes.
        bytes: u64,
    },
    /// A public IPv4 address.
    PublicAddress,
    /// CPU that an `unlimited` instance took beyond what it earned. An amount, not a rate: charged whole
    /// where the interval begins.
    SurplusCredits {
        /// Name of its type.
        instance_type: String,
        /// Microseconds of one vCPU.
        vcpu_us: u64,
    },
}

/// What a transition of an instance does to the ledger.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Change {
    /// Put this entry. Where one with its key is there already, leave that.
    Open(Entry),
    /// Close the entry with this key ([`Entry::close`]), if it is there and open.
    Close {
        /// [`Entry::key`].
        key: String,
    },
}

/// What must be done with the ledger where the record changes from `before` to `after`, in the same
/// transaction.
pub fn follow(before: &Instance, after: &Instance, now: Time) -> Vec<Change> {
    match (before.state == State::Running, after.state == State::Running) {
        (false, true) => vec![Change::Open(Entry::compute(after, now))],
        (true, false) => [COMPUTE, SURPLUS]
            .map(|kind| Change::Close { key: key(before.id.as_str(), kind, before.generation) })
            .into(),
        (false, false) | (true, true) => Vec::new(),
    }
}

impl Entry {
    /// A run of an instance.
    pub fn compute(instance: &Instance, now: Time) -> Self {
        Self {
            resource: instance.id.as_str().to_owned(),
            serial: instance.generation,
            region: instance.region.clone(),
            instance: Some(instance.id.clone()),
            charge: Charge::Compute { instance_type: instance.instance_type.clone() },
            from: now,
            to: None,
        }
    }

    /// What one run of an unlimited burstable instance took beyond what it earned. Put again as it grows:
    /// [`Entry::key`] stays. `generation` is the run's.
    pub fn surplus(instance: &Instance, generation: u64, vcpu_us: u64, from: Time) -> Self {
        let charge = Charge::SurplusCredits { instance_type: instance.instance_type.clone(), vcpu_us };
        Self { serial: generation, charge, ..Self::compute(instance, from) }
    }

    /// A new volume, counted to the instance that it is attached to.
    pub fn volume(volume: &Volume, region: &str) -> Self {
        Self {
            resource: volume.id.as_str().to_owned(),
            serial: 0,
            region: region.to_owned(),
            instance: volume.attachment.as_ref().map(|attachment| attachment.instance.clone()),
            charge: Charge::Volume { kind: volume.kind, size_gib: volume.size_gib },
            from: volume.created,
            to: None,
        }
    }

    /// What the store finds it by: resource, kind and serial number. Keys of one resource sort by kind and
    /// time.
    pub fn key(&self) -> String {
        let kind = match self.charge {
            Charge::Compute { .. } => COMPUTE,
            Charge::Volume { .. } => "volume",
            Charge::Snapshot { .. } => "snapshot",
            Charge::PublicAddress => "address",
            Charge::SurplusCredits { .. } => SURPLUS,
        };
        key(&self.resource, kind, self.serial)
    }

    /// Ends it. Says whether it was open; a second end changes nothing. Where a clock went back, it has
    /// lasted no time at all.
    pub fn close(&mut self, now: Time) -> bool {
        let open = self.to.is_none();
        self.to = self.to.or(Some(now.max(self.from)));
        open
    }

    /// Ends it, and gives the entry that goes on: a volume that was resized, or that is counted to another
    /// instance from now on.
    #[must_use]
    pub fn continued(&mut self, charge: Charge, instance: Option<InstanceId>, now: Time) -> Self {
        self.close(now);
        let from = self.to.unwrap_or(now);
        Self { serial: self.serial + 1, charge, instance, from, to: None, ..self.clone() }
    }
}

/// What the keys of all entries of a volume begin with.
pub fn volume_prefix(volume: &VolumeId) -> String {
    format!("{volume}/")
}

/// What the keys of all entries of an instance begin with; its volumes have their own.
pub fn instance_prefix(instance: &InstanceId) -> String {
    format!("{instance}/")
}

fn key(resource: &str, kind: &str, serial: u64) -> String {
    format!("{resource}/{kind}/{serial:020}")
}

const COMPUTE: &str = "compute";
const SURPLUS: &str = "surplus";

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::{Change, Charge, Entry, follow, instance_prefix};
    use crate::{
        lifecycle::{AfterLoss, End, News, Request},
        samples,
        time::Time,
    };

    #[test]
    fn open_exactly_while_running() {
        let mut instance = samples::pending();
        let mut seen = Vec::new();
        let mut clock = 0;
        let mut step = |what: &str, act: &mut dyn FnMut(&mut crate::Instance, Time)| {
            clock += 1_000;
            let before = instance.clone();
            act(&mut instance, Time::from_unix_ms(clock));
            for change in follow(&before, &instance, Time::from_unix_ms(clock)) {
                let key = match &change {
                    Change::Open(entry) => format!("open {}", entry.key()),
                    Change::Close { key } => format!("close {key}"),
                };
                seen.push(format!("{what}: {}", key.replace("00000000000000000", "")));
            }
        };
        let hear = |news: News| {
            move |instance: &mut crate::Instance, now| {
                instance.hear(&news, AfterLoss::Stop, now);
            }
        };
        let ask = |request| {
            move |instance: &mut crate::Instance, now| {
                instance.ask(request, now).unwrap();
            }
        };
        step("started", &mut hear(News::Started));
        step("started", &mut hear(News::Started));
        step("reboot", &mut ask(Request::Reboot));
        step("rebooted", &mut hear(News::Rebooted));
        step("stop", &mut ask(Request::Stop));
        step("ended", &mut hear(News::Ended(End::PoweredOff)));
        step("start", &mut ask(Request::Start));
        step("started", &mut hear(News::Started));
        step("ended", &mut hear(News::Ended(End::PoweredOff)));
        step("terminate", &mut ask(Request::Terminate));
        expect![[r#"
            started: open i-1/compute/001
            stop: close i-1/compute/001
            stop: close i-1/surplus/001
            started: open i-1/compute/003
            ended: close i-1/compute/003
            ended: close i-1/surplus/003"#]]
        .assert_eq(&seen.join("\n").replace(instance.id.as_str(), "i-1"));
    }

    #[test]
    fn closed_once() {
        let mut entry = Entry::compute(&samples::pending(), Time::from_unix_ms(5_000));
        assert!(entry.key().starts_with(&instance_prefix(&samples::pending().id)));
        assert!(entry.close(Time::from_unix_ms(7_000)));
        assert!(!entry.close(Time::from_unix_ms(9_000)));
        assert_eq!(entry.to, Some(Time::from_unix_ms(7_000)));
        let mut entry = Entry::compute(&samples::pending(), Time::from_unix_ms(5_000));
        entry.close(Time::from_unix_ms(0));
        assert_eq!(entry.to, Some(entry.from));
    }

    #[test]
    fn a_resized_volume_goes_on() {
        let mut small = Entry::volume(&samples::volume(), "us-east-1");
        let size = |size_gib| Charge::Volume { kind: Default::default(), size_gib };
        let mut large = small.continued(size(16), small.instance.clone(), Time::from_unix_ms(9_000));
        assert_eq!((small.to, large.from, large.to), (Some(large.from), large.from, None));
        assert!(small.key() < large.key());
        let json = serde_json::to_string(&large).unwrap();
        assert_eq!(serde_json::from_str::<Entry>(&json).unwrap(), large);
        assert!(large.close(Time::from_unix_ms(10_000)));
    }
}

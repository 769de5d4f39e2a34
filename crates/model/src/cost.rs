//! What the use in the ledger would have cost on AWS, on demand. A pure function over entries and a moment.
//!
//! By AWS's rules: instances by the second while running, at least [`MINIMUM_MS`] each time; volumes by the
//! second while they exist, at least [`MINIMUM_MS`] each; begun seconds count whole. Each entry is rounded
//! once, to the billionth of a dollar; sums of entries are exact.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    ids::InstanceId,
    ledger::{Charge, Entry},
    prices::{self, HOUR_MS, MONTH_MS, Usd},
    time::Time,
};

/// The part of time that is asked about.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Period {
    /// The first moment; none for the beginning.
    pub from: Option<Time>,
    /// The moment after the last; none for now.
    pub to: Option<Time>,
}

/// What everything cost.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Report {
    /// By instance.
    pub instances: BTreeMap<InstanceId, Cost>,
    /// What is counted to no instance, such as volumes that outlived theirs.
    pub others: Cost,
    /// The sum.
    pub total: Cost,
}

/// What something cost.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Cost {
    /// Instances that ran.
    pub compute: Usd,
    /// CPU beyond what burstable instances earned.
    pub credits: Usd,
    /// Volumes and snapshots.
    pub storage: Usd,
    /// Public addresses.
    pub addresses: Usd,
    /// All of it.
    pub total: Usd,
    /// What an hour costs as things are.
    pub per_hour: Usd,
    /// How long it ran, milliseconds, as it was and not as it is charged.
    pub running_ms: u64,
    /// How often it was started.
    pub runs: u64,
    /// Intervals that are in no sum, because AWS's price is not known: a type that has none.
    pub unpriced: u64,
}

/// What the entries cost in a period, as of `now`.
pub fn report<'a>(entries: impl IntoIterator<Item = &'a Entry>, period: Period, now: Time) -> Report {
    let mut volumes: BTreeMap<&str, Vec<&Entry>> = BTreeMap::new();
    let mut report = Report::default();
    for entry in entries {
        if matches!(entry.charge, Charge::Volume { .. }) {
            volumes.entry(&entry.resource).or_default().push(entry);
            continue;
        }
        let minimum = match entry.charge {
            Charge::Compute { .. } => MINIMUM_MS,
            _ => 0,
        };
        report.count(entry, minimum, period, now);
    }
    for mut entries in volumes.into_values() {
        entries.sort_by_key(|entry| entry.serial);
        // The minimum is the volume's, not the entry's: what lacks is charged with its last one.
        let mut lacks = MINIMUM_MS;
        for (index, entry) in entries.iter().enumerate() {
            let last = index + 1 == entries.len();
            report.count(entry, if last { lacks } else { 0 }, period, now);
            lacks = lacks.saturating_sub(lasted_ms(entry, now));
        }
    }
    report
}

impl Report {
    fn count(&mut self, entry: &Entry, minimum_ms: u64, period: Period, now: Time) {
        let whole = lasted_ms(entry, now);
        let charged_to = entry.from.plus_ms(whole.max(minimum_ms).next_multiple_of(SECOND_MS));
        let charged = overlap_ms(entry.from, charged_to, period);
        let running = overlap_ms(entry.from, entry.from.plus_ms(whole), period);
        let begins = overlap_ms(entry.from, entry.from.plus_ms(1), period) > 0;
        if charged == 0 && !begins {
            return;
        }
        let cost = Cost::of(entry, charged, running, begins);
        let owner = match &entry.instance {
            Some(instance) => self.instances.entry(instance.clone()).or_default(),
            None => &mut self.others,
        };
        owner.add(&cost);
        self.total.add(&cost);
    }
}

impl Cost {
    fn of(entry: &Entry, charged_ms: u64, running_ms: u64, begins: bool) -> Self {
        let amount = u128::from(charged_ms);
        let mut cost = Self::default();
        // What an hour costs; only of that which goes on.
        let mut rate = None;
        match &entry.charge {
            Charge::Compute { instance_type } => {
                rate = prices::instance_hour(instance_type);
                cost.unpriced = u64::from(rate.is_none());
                cost.compute = rate.unwrap_or_default().times(amount, HOUR_MS);
                cost.running_ms = running_ms;
                cost.runs = u64::from(begins);
            }
            Charge::Volume { kind, size_gib } => {
                let month = prices::volume_gib_month(*kind).times(u128::from(*size_gib), 1);
                rate = Some(month.times(HOUR_MS, MONTH_MS));
                cost.storage = month.times(amount, MONTH_MS);
            }
            Charge::Snapshot { bytes } => {
                let of = |ms: u128| prices::SNAPSHOT_GIB_MONTH.times(u128::from(*bytes) * ms, GIB * MONTH_MS);
                rate = Some(of(HOUR_MS));
                cost.storage = of(amount);
            }
            Charge::PublicAddress => {
                rate = Some(prices::PUBLIC_ADDRESS_HOUR);
                cost.addresses = prices::PUBLIC_ADDRESS_HOUR.times(amount, HOUR_MS);
            }
            Charge::SurplusCredits { instance_type, vcpu_us } if begins => {
                let hour = prices::surplus_vcpu_hour(instance_type);
                cost.credits = hour.times(u128::from(*vcpu_us), HOUR_MS * 1000);
            }
            Charge::SurplusCredits { .. } => {}
        }
        cost.per_hour = rate.filter(|_| entry.to.is_none()).unwrap_or_default();
        cost.total = cost.compute + cost.credits + cost.storage + cost.addresses;
        cost
    }

    fn add(&mut self, other: &Self) {
        let Self { compute, credits, storage, addresses, total, per_hour, running_ms, runs, unpriced } = self;
        *compute = *compute + other.compute;
        *credits = *credits + other.credits;
        *storage = *storage + other.storage;
        *addresses = *addresses + other.addresses;
        *total = *total + other.total;
        *per_hour = *per_hour + other.per_hour;
        *running_ms = running_ms.saturating_add(other.running_ms);
        *runs = runs.saturating_add(other.runs);
        *unpriced = unpriced.saturating_add(other.unpriced);
    }
}

fn lasted_ms(entry: &Entry, now: Time) -> u64 {
    entry.to.unwrap_or(now).ms_since(entry.from)
}

fn overlap_ms(from: Time, to: Time, period: Period) -> u64 {
    let from = period.from.map_or(from, |start| start.max(from));
    let to = period.to.map_or(to, |end| end.min(to));
    to.ms_since(from)
}

/// What is charged at least: a minute.
pub const MINIMUM_MS: u64 = 60_000;
const SECOND_MS: u64 = 1_000;
const GIB: u128 = 1 << 30;

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use proptest::prelude::{prop, prop_assert, prop_assert_eq, proptest};

    use super::{Period, Report, report};
    use crate::{
        ledger::{Charge, Entry},
        prices::Usd,
        samples,
        time::Time,
    };

    const MONTH: i64 = 730 * 3_600_000;

    fn run(serial: u64, from: i64, to: Option<i64>) -> Entry {
        let mut entry = Entry::compute(&samples::pending(), Time::from_unix_ms(from));
        entry.serial = serial;
        entry.to = to.map(Time::from_unix_ms);
        entry
    }

    fn compute(entries: &[Entry], now: i64) -> String {
        report(entries, Period::default(), Time::from_unix_ms(now)).total.compute.to_string()
    }

    #[test]
    fn by_the_second_and_a_minute_at_least() {
        // t3.micro: 0.0104 an hour.
        assert_eq!(compute(&[run(1, 0, Some(3_600_000))], MONTH), "0.010400000");
        assert_eq!(compute(&[run(1, 0, Some(60_000))], MONTH), "0.000173333");
        assert_eq!(compute(&[run(1, 0, Some(1))], MONTH), "0.000173333");
        assert_eq!(compute(&[run(1, 0, None)], 0), "0.000173333", "owed from the first moment");
        assert_eq!(compute(&[run(1, 0, Some(60_001))], MONTH), "0.000176222", "a begun second is whole");
        assert_eq!(compute(&[run(1, 0, Some(1)), run(3, 2, Some(3))], MONTH), "0.000346666", "each start");
        assert_eq!(compute(&[run(1, 0, None)], MONTH), "7.592000000");
        assert_eq!(compute(&[run(1, MONTH, Some(0))], 0), "0.000173333", "a clock that went back");
    }

    #[test]
    fn storage_goes_on_while_compute_stands_still() {
        let entries = [run(1, 0, Some(3_600_000)), Entry::volume(&samples::volume(), "us-east-1")];
        let report = report(&entries, Period::default(), Time::from_unix_ms(MONTH));
        expect![[r#"
            {
              "compute": "0.010400000",
              "credits": "0.000000000",
              "storage": "0.640000000",
              "addresses": "0.000000000",
              "total": "0.650400000",
              "per_hour": "0.000876712",
              "running_ms": 3600000,
              "runs": 1,
              "unpriced": 0
            }"#]]
        .assert_eq(&serde_json::to_string_pretty(&report.total).unwrap());
        assert_eq!(report.instances.values().collect::<Vec<_>>(), [&report.total]);
        assert_eq!(report.others, super::Cost::default());
    }

    #[test]
    fn a_volume_has_one_minimum() {
        let mut first = Entry::volume(&samples::volume(), "us-east-1");
        let charge = first.charge.clone();
        let mut second = first.continued(charge, None, Time::from_unix_ms(1_000));
        second.close(Time::from_unix_ms(2_000));
        let total = report(&[second, first], Period::default(), Time::from_unix_ms(MONTH)).total;
        // 8 GiB for a minute, in two parts that are rounded each.
        assert_eq!(total.storage, Usd::from_nanos(14_612));
    }

    #[test]
    fn other_charges() {
        let mut snapshot = Entry::volume(&samples::volume(), "us-east-1");
        snapshot.charge = Charge::Snapshot { bytes: 1 << 30 };
        let mut address = snapshot.clone();
        address.charge = Charge::PublicAddress;
        let surplus = Entry::surplus(&samples::pending(), 1, 3_600_000_000, Time::from_unix_ms(0));
        let mut unknown = run(2, 0, None);
        unknown.charge = Charge::Compute { instance_type: "z9.mega".to_owned() };
        let total =
            report(&[snapshot, address, surplus, unknown], Period::default(), Time::from_unix_ms(MONTH))
                .total;
        assert_eq!(
            [total.storage, total.addresses, total.credits].map(|usd| usd.rounded(2)),
            ["0.05", "3.65", "0.05"]
        );
        assert_eq!((total.unpriced, total.compute), (1, Usd::ZERO));
    }

    fn within(entries: &[Entry], from: Option<i64>, to: Option<i64>, now: i64) -> Report {
        let period = Period { from: from.map(Time::from_unix_ms), to: to.map(Time::from_unix_ms) };
        report(entries, period, Time::from_unix_ms(now))
    }

    proptest! {
        #[test]
        fn the_parts_are_the_whole(
            runs in prop::collection::vec((0..MONTH, 0..MONTH), 0..20),
            cut in 0..MONTH,
        ) {
            let entries: Vec<Entry> = runs
                .iter()
                .zip(1..)
                .map(|(&(from, lasts), serial)| run(serial, from, Some(from + lasts)))
                .collect();
            let whole = within(&entries, None, None, 2 * MONTH).total;
            let early = within(&entries, None, Some(cut), 2 * MONTH).total;
            let late = within(&entries, Some(cut), None, 2 * MONTH).total;
            // Each entry is rounded once in each part.
            let apart = (early.total + late.total).nanos().abs_diff(whole.total.nanos());
            prop_assert!(apart <= entries.len() as u128, "{apart}");
            prop_assert_eq!(early.running_ms + late.running_ms, whole.running_ms);
            prop_assert_eq!(early.runs + late.runs, whole.runs);
            prop_assert_eq!(whole.compute + whole.storage + whole.credits + whole.addresses, whole.total);
        }

        #[test]
        fn never_less_as_time_goes_on(from in 0..MONTH, first in 0..MONTH, more in 0..MONTH) {
            let entries = [run(1, from, None)];
            let [early, late] = [from + first, from + first + more].map(|now| within(&entries, None, None, now));
            prop_assert!(early.total.total <= late.total.total);
        }
    }
}

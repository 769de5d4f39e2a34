//! CPU credits of burstable types, at the rates that AWS publishes. Pure: usage and time are given.
//!
//! A credit is one vCPU for a minute; here everything is counted in microseconds of one vCPU, so that
//! nothing is rounded. A type earns at its baseline, all the time while it runs, up to a day's worth.
//!
//! * `standard`: what is not there is not given. The limit comes down as the balance does ([`throttle`]),
//!   and is exactly the baseline where there is none.
//! * `unlimited`: goes on, and owes: what it owes is paid by what it earns later, and charged where it
//!   exceeds a day's earnings, or is owed when the instance ends or turns to `standard`.
//! * T2 `standard` begins with launch credits, which are spent first and do not count towards the most.
//!
//! Source: EC2 User Guide, "Key concepts for burstable performance instances", "Standard mode concepts",
//! "Unlimited mode concepts". Not modelled: that an account gets launch credits a hundred times a day.
//!
//! Invariants: no balance is negative; what was earned never exceeds a day's worth; credits and debt are
//! never there together.

use serde::{Deserialize, Serialize};

use crate::{
    ids::InstanceId,
    instances::{CreditMode, Instance},
    time::Time,
};

/// How much processor time a machine may take.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Throttle {
    /// All of its vCPUs, all of the time.
    Full,
    /// A share of its vCPUs, thousandths of one processor: 200 for a fifth.
    Limited {
        /// Thousandths of one processor.
        millicpus: u32,
    },
}

/// What AWS publishes of one burstable type.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Burstable {
    /// Virtual processors.
    pub vcpus: u32,
    /// What it earns, thousandths of one processor, of all its vCPUs together: credits per hour / 60.
    pub baseline_millicpus: u32,
    /// What it earns is lost when it stops, and it gets launch credits: T2.
    pub launch_credits: bool,
    /// How credits are counted where a launch does not say.
    pub default_mode: CreditMode,
}

/// The credits of an instance, microseconds of one vCPU.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Credits {
    /// Earned and not spent.
    pub earned_us: u64,
    /// Given at launch and not spent.
    pub launch_us: u64,
    /// Taken beyond what was earned, and not paid yet: `unlimited` only.
    pub surplus_us: u64,
    /// Taken beyond, and charged: since the run began. For [`crate::ledger::Entry::surplus`].
    pub charged_us: u64,
}

/// The credits of an instance, as the store keeps them.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Account {
    /// Whose.
    pub instance: InstanceId,
    /// The run that was counted last.
    pub generation: u64,
    /// When the run began to be counted.
    pub since: Time,
    /// When it was counted last; while the instance is stopped, when it stopped.
    pub counted: Time,
    /// What the run's machine had used by then, microseconds.
    pub cpu_us: u64,
    /// The credits.
    pub credits: Credits,
}

impl Burstable {
    /// What AWS publishes of this type; none if it is not burstable.
    pub fn find(instance_type: &str) -> Option<Self> {
        use CreditMode::{Standard, Unlimited};
        let (family, size) = instance_type.split_once('.')?;
        let (launch_credits, default_mode) = match family {
            "t2" => (true, Standard),
            "t3" | "t3a" | "t4g" => (false, Unlimited),
            _ => return None,
        };
        // Credits per hour: t2 3, 6, 12, 24, 36, 54, 81.6; the others 6, 12, 24, 24, 36, 96, 192.
        let (vcpus, baseline_millicpus) = match (launch_credits, size) {
            (true, "nano") => (1, 50),
            (true, "micro") => (1, 100),
            (true, "small") => (1, 200),
            (_, "medium") => (2, 400),
            (_, "large") => (2, 600),
            (true, "xlarge") => (4, 900),
            (true, "2xlarge") => (8, 1360),
            (false, "nano") => (2, 100),
            (false, "micro") => (2, 200),
            (false, "small") => (2, 400),
            (false, "xlarge") => (4, 1600),
            (false, "2xlarge") => (8, 3200),
            _ => return None,
        };
        Some(Self { vcpus, baseline_millicpus, launch_credits, default_mode })
    }

    /// The most that it keeps of what it earned, microseconds of one vCPU: a day's earnings.
    pub fn earned_us_max(self) -> u64 {
        self.earnings_us(DAY_MS)
    }

    /// What a launch or a start begins with: 30 credits for each vCPU, T2 `standard` only.
    pub fn launch_us(self, mode: CreditMode) -> u64 {
        match (self.launch_credits, mode) {
            (true, CreditMode::Standard) => LAUNCH_CREDITS * CREDIT_US * u64::from(self.vcpus),
            (true, CreditMode::Unlimited) | (false, _) => 0,
        }
    }

    /// What it earns in this time, microseconds of one vCPU.
    fn earnings_us(self, ms: u64) -> u64 {
        // A thousandth of a processor for a millisecond is a microsecond.
        ms.saturating_mul(u64::from(self.baseline_millicpus))
    }
}

impl Credits {
    /// What a new instance begins with.
    pub fn launched(kind: Burstable, mode: CreditMode) -> Self {
        Self { launch_us: kind.launch_us(mode), ..Self::default() }
    }

    /// After `ms` milliseconds in which the machine used `used_us` microseconds of processor time.
    #[must_use]
    pub fn advance(self, kind: Burstable, mode: CreditMode, used_us: u64, ms: u64) -> Self {
        let mut next = self;
        let earned = kind.earnings_us(ms);
        if mode == CreditMode::Standard {
            next.charge_surplus();
        }
        let (gain, need) = (earned.saturating_sub(used_us), used_us.saturating_sub(earned));

        let paid = gain.min(next.surplus_us);
        next.surplus_us -= paid;
        next.earned_us = next.earned_us.saturating_add(gain - paid).min(kind.earned_us_max());

        let lacking = need - take(&mut next.launch_us, need);
        let lacking = lacking - take(&mut next.earned_us, lacking);
        if mode == CreditMode::Unlimited {
            next.surplus_us = next.surplus_us.saturating_add(lacking);
            let excess = next.surplus_us.saturating_sub(kind.earned_us_max());
            next.surplus_us -= excess;
            next.charged_us = next.charged_us.saturating_add(excess);
        }
        // In standard mode the rest is what a limit let through late: nobody owes it.
        next
    }

    /// When its machine ends: what it owes is charged.
    #[must_use]
    pub fn stopped(mut self) -> Self {
        self.charge_surplus();
        self
    }

    /// When it starts again, so long after: T2 begins anew, the others keep their credits for a week.
    #[must_use]
    pub fn started_again(self, kind: Burstable, mode: CreditMode, stopped_ms: u64) -> Self {
        let kept = !kind.launch_credits && stopped_ms <= KEPT_STOPPED_MS;
        // The type may have been changed while it was stopped.
        let earned_us = if kept { self.earned_us.min(kind.earned_us_max()) } else { 0 };
        Self { earned_us, ..Self::launched(kind, mode) }
    }

    /// `CPUCreditBalance`, thousandths of a credit.
    pub fn balance_millicredits(self) -> u64 {
        self.earned_us.saturating_add(self.launch_us) / (CREDIT_US / 1000)
    }

    /// `CPUSurplusCreditBalance`, thousandths of a credit.
    pub fn surplus_millicredits(self) -> u64 {
        self.surplus_us / (CREDIT_US / 1000)
    }

    fn charge_surplus(&mut self) {
        self.charged_us = self.charged_us.saturating_add(std::mem::take(&mut self.surplus_us));
    }
}

/// What the machine may use until it is looked at again, in `ms` milliseconds: never more than there is.
pub fn throttle(credits: Credits, kind: Burstable, mode: CreditMode, ms: u64) -> Throttle {
    if mode == CreditMode::Unlimited {
        return Throttle::Full;
    }
    let beyond = credits.earned_us.saturating_add(credits.launch_us).checked_div(ms).unwrap_or(0);
    let millicpus = u64::from(kind.baseline_millicpus).saturating_add(beyond);
    match u32::try_from(millicpus) {
        Ok(millicpus) if millicpus < kind.vcpus.saturating_mul(1000) => Throttle::Limited { millicpus },
        _ => Throttle::Full,
    }
}

impl Account {
    /// The account of a new instance, or of one that was not counted before; none if its type is not
    /// burstable.
    pub fn open(instance: &Instance, now: Time) -> Option<Self> {
        let (kind, mode) = terms(instance)?;
        Some(Self {
            instance: instance.id.clone(),
            generation: instance.generation,
            since: now,
            counted: now,
            cpu_us: 0,
            credits: Credits::launched(kind, mode),
        })
    }

    /// Counts what the machine of a running instance has used since it was started, `cpu_us` microseconds,
    /// and says what it may use until it is counted again, in `next_ms` milliseconds. Where the run is a new
    /// one, the time since the last count was not run and earns nothing. Only for the state running: in the
    /// others, the generation is not the machine's.
    pub fn count(&mut self, instance: &Instance, cpu_us: u64, now: Time, next_ms: u64) -> Throttle {
        let Some((kind, mode)) = terms(instance) else { return Throttle::Full };
        if self.generation != instance.generation {
            let stopped_ms = now.ms_since(self.counted);
            self.credits = self.credits.started_again(kind, mode, stopped_ms);
            self.generation = instance.generation;
            self.since = now;
        } else {
            let used_us = cpu_us.saturating_sub(self.cpu_us);
            self.credits = self.credits.advance(kind, mode, used_us, now.ms_since(self.counted));
        }
        self.counted = now;
        self.cpu_us = cpu_us;
        throttle(self.credits, kind, mode, next_ms)
    }

    /// Counts no further: the instance is running no more. What it owes is charged. Belongs to the
    /// transaction that closes its entry for computing.
    pub fn stop(&mut self, now: Time) {
        self.credits = self.credits.stopped();
        self.counted = self.counted.max(now);
    }
}

fn terms(instance: &Instance) -> Option<(Burstable, CreditMode)> {
    let kind = Burstable::find(&instance.instance_type)?;
    Some((kind, instance.credit_mode.unwrap_or(kind.default_mode)))
}

/// Takes at most `wanted`, and says how much it was.
fn take(from: &mut u64, wanted: u64) -> u64 {
    let taken = wanted.min(*from);
    *from -= taken;
    taken
}

/// One credit: one vCPU for a minute, microseconds.
pub const CREDIT_US: u64 = 60_000_000;
const LAUNCH_CREDITS: u64 = 30;
const DAY_MS: u64 = 24 * 60 * 60 * 1000;
/// How long a stopped T3, T3a or T4g keeps what it earned.
const KEPT_STOPPED_MS: u64 = 7 * DAY_MS;

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use expect_test::expect;
    use proptest::prelude::{Strategy, any, prop, prop_assert, prop_assert_eq, proptest};

    use super::{Account, Burstable, CREDIT_US, Credits, Throttle, throttle};
    use crate::{InstanceType, instances::CreditMode, samples, time::Time};

    const MINUTE: u64 = 60_000;
    const HOUR: u64 = 60 * MINUTE;

    #[test]
    fn as_aws_publishes() {
        let mut table = String::new();
        for found in InstanceType::all() {
            let kind = Burstable::find(found.name);
            assert_eq!(kind.is_some(), found.burstable, "{}", found.name);
            let Some(kind) = kind else { continue };
            assert_eq!(kind.vcpus, u32::from(found.vcpus), "{}", found.name);
            if !found.name.starts_with("t3a") && !found.name.starts_with("t4g") {
                let (hour, most) = (kind.earnings_us(HOUR), kind.earned_us_max());
                writeln!(
                    table,
                    "{}: {} an hour, at most {}, {} % a vCPU, {} at launch, {:?}",
                    found.name,
                    hour as f64 / CREDIT_US as f64,
                    most as f64 / CREDIT_US as f64,
                    f64::from(kind.baseline_millicpus) / f64::from(kind.vcpus) / 10.0,
                    kind.launch_us(kind.default_mode) / CREDIT_US,
                    kind.default_mode,
                )
                .unwrap();
            }
        }
        expect![[r#"
            t2.2xlarge: 81.6 an hour, at most 1958.4, 17 % a vCPU, 240 at launch, Standard
            t2.large: 36 an hour, at most 864, 30 % a vCPU, 60 at launch, Standard
            t2.medium: 24 an hour, at most 576, 20 % a vCPU, 60 at launch, Standard
            t2.micro: 6 an hour, at most 144, 10 % a vCPU, 30 at launch, Standard
            t2.nano: 3 an hour, at most 72, 5 % a vCPU, 30 at launch, Standard
            t2.small: 12 an hour, at most 288, 20 % a vCPU, 30 at launch, Standard
            t2.xlarge: 54 an hour, at most 1296, 22.5 % a vCPU, 120 at launch, Standard
            t3.2xlarge: 192 an hour, at most 4608, 40 % a vCPU, 0 at launch, Unlimited
            t3.large: 36 an hour, at most 864, 30 % a vCPU, 0 at launch, Unlimited
            t3.medium: 24 an hour, at most 576, 20 % a vCPU, 0 at launch, Unlimited
            t3.micro: 12 an hour, at most 288, 10 % a vCPU, 0 at launch, Unlimited
            t3.nano: 6 an hour, at most 144, 5 % a vCPU, 0 at launch, Unlimited
            t3.small: 24 an hour, at most 576, 20 % a vCPU, 0 at launch, Unlimited
            t3.xlarge: 96 an hour, at most 2304, 40 % a vCPU, 0 at launch, Unlimited
        "#]]
        .assert_eq(&table);
    }

    #[test]
    fn a_standard_instance_comes_down_to_its_baseline() {
        let kind = Burstable::find("t2.micro").unwrap();
        let mode = CreditMode::Standard;
        let mut credits = Credits::launched(kind, mode);
        assert_eq!(credits.balance_millicredits(), 30_000);
        let mut minutes = 0;
        while throttle(credits, kind, mode, MINUTE) == Throttle::Full {
            credits = credits.advance(kind, mode, CREDIT_US, MINUTE);
            minutes += 1;
        }
        // 30 credits, and a tenth of one is earned each minute: 33 minutes, then what is left of it.
        assert_eq!(minutes, 33);
        let Throttle::Limited { millicpus } = throttle(credits, kind, mode, MINUTE) else { panic!() };
        credits = credits.advance(kind, mode, u64::from(millicpus) * MINUTE, MINUTE);
        assert_eq!(throttle(credits, kind, mode, MINUTE), Throttle::Limited { millicpus: 100 });
        assert_eq!(credits.balance_millicredits(), 0);
    }

    #[test]
    fn an_unlimited_instance_owes_and_pays() {
        let kind = Burstable::find("t3.micro").unwrap();
        let mode = CreditMode::Unlimited;
        let busy = Credits::default().advance(kind, mode, 2 * 60 * CREDIT_US, HOUR);
        assert_eq!((busy.surplus_millicredits(), busy.charged_us), (108_000, 0));
        let idle = busy.advance(kind, mode, 0, 10 * HOUR);
        assert_eq!((idle.surplus_us, idle.balance_millicredits()), (0, 12_000));
        assert_eq!(busy.stopped().charged_us, 108 * CREDIT_US);
        assert_eq!(busy.advance(kind, CreditMode::Standard, 0, 0).charged_us, 108 * CREDIT_US);
        // A day's earnings may be owed; what goes beyond is charged at once.
        let long = Credits::default().advance(kind, mode, 300 * CREDIT_US, 0);
        assert_eq!((long.surplus_us, long.charged_us), (288 * CREDIT_US, 12 * CREDIT_US));
    }

    #[test]
    fn launch_credits_go_first_and_count_extra() {
        let kind = Burstable::find("t2.nano").unwrap();
        let mode = CreditMode::Standard;
        let full = Credits::launched(kind, mode).advance(kind, mode, 0, 48 * HOUR);
        assert_eq!(full.balance_millicredits(), 102_000);
        let spent = full.advance(kind, mode, 10 * CREDIT_US, 0);
        assert_eq!((spent.earned_us, spent.launch_us), (kind.earned_us_max(), 20 * CREDIT_US));
        let again = spent.started_again(kind, mode, 0);
        assert_eq!(again, Credits::launched(kind, mode), "T2 loses what it has");
        let t3 = Burstable::find("t3.nano").unwrap();
        let kept = Credits { earned_us: 5, surplus_us: 0, ..spent };
        assert_eq!(kept.started_again(t3, CreditMode::Standard, 7 * 24 * HOUR).earned_us, 5);
        assert_eq!(kept.started_again(t3, CreditMode::Standard, 7 * 24 * HOUR + 1).earned_us, 0);
    }

    #[test]
    fn an_account_follows_the_runs() {
        let mut instance = samples::pending();
        let at = Time::from_unix_ms;
        let mut account = Account::open(&instance, at(0)).unwrap();
        assert_eq!(account.count(&instance, CREDIT_US, at(60_000), 5_000), Throttle::Full);
        assert_eq!(account.credits.surplus_us, CREDIT_US - 12_000_000);
        // A clock that goes back earns nothing and takes nothing.
        let before = account.credits;
        account.count(&instance, CREDIT_US, at(0), 5_000);
        assert_eq!(account.credits, before);
        account.stop(at(60_000));
        assert_eq!((account.credits.surplus_us, account.credits.charged_us), (0, CREDIT_US - 12_000_000));
        instance.generation += 2;
        account.count(&instance, 7, at(120_000), 5_000);
        assert_eq!((account.cpu_us, account.credits), (7, Credits::default()), "the next run owes nothing");
        instance.instance_type = "m5.large".to_owned();
        assert_eq!(Account::open(&instance, at(0)), None);
        let json = serde_json::to_string(&account).unwrap();
        assert_eq!(serde_json::from_str::<Account>(&json).unwrap(), account);
    }

    fn kinds() -> impl Strategy<Value = Burstable> {
        let types: Vec<_> = InstanceType::all().filter_map(|found| Burstable::find(found.name)).collect();
        prop::sample::select(types)
    }

    fn modes() -> impl Strategy<Value = CreditMode> {
        prop::sample::select(vec![CreditMode::Standard, CreditMode::Unlimited])
    }

    proptest! {
        #[test]
        fn never_beyond_the_bounds(
            kind in kinds(),
            steps in prop::collection::vec((modes(), any::<u64>(), 0_u64..1 << 40, any::<bool>()), 0..50),
        ) {
            let mut credits = Credits::launched(kind, CreditMode::Standard);
            let most = credits.launch_us;
            for (mode, used, ms, little) in steps {
                let charged = credits.charged_us;
                credits = credits.advance(kind, mode, if little { used % CREDIT_US } else { used }, ms);
                prop_assert!(credits.earned_us <= kind.earned_us_max());
                prop_assert!(credits.surplus_us <= kind.earned_us_max());
                prop_assert!(credits.launch_us <= most);
                prop_assert!(credits.charged_us >= charged);
                prop_assert!(credits.earned_us == 0 || credits.surplus_us == 0, "{credits:?}");
                prop_assert!(mode == CreditMode::Unlimited || credits.surplus_us == 0);
            }
        }

        #[test]
        fn who_keeps_to_the_limit_never_overdraws(
            kind in kinds(),
            intervals in prop::collection::vec((1_000_u64..100_000, 0_u64..=1000), 1..100),
        ) {
            let mode = CreditMode::Standard;
            let mut credits = Credits::launched(kind, mode);
            let (mut used_in_all, mut earned_in_all) = (0, credits.launch_us);
            for (ms, share) in intervals {
                let limit = match throttle(credits, kind, mode, ms) {
                    Throttle::Full => kind.vcpus * 1000,
                    Throttle::Limited { millicpus } => millicpus,
                };
                prop_assert!(limit >= kind.baseline_millicpus);
                prop_assert!(limit == kind.baseline_millicpus || credits.balance_millicredits() > 0 || credits.earned_us > 0);
                let used = u64::from(limit) * ms * share / 1000;
                credits = credits.advance(kind, mode, used, ms);
                used_in_all += used;
                earned_in_all += kind.earnings_us(ms);
                prop_assert!(used_in_all <= earned_in_all);
            }
        }

        #[test]
        fn unlimited_loses_nothing(kind in kinds(), steps in prop::collection::vec(0_u64..1 << 30, 1..50)) {
            // Below a day's earnings nothing is thrown away: used = earned + owed + charged - kept.
            let mode = CreditMode::Unlimited;
            let mut credits = Credits::default();
            let (mut used_in_all, mut earned_in_all) = (0, 0);
            for used in steps {
                credits = credits.advance(kind, mode, used, 1_000);
                used_in_all += used;
                earned_in_all += kind.earnings_us(1_000);
            }
            prop_assert_eq!(
                used_in_all + credits.earned_us,
                earned_in_all + credits.surplus_us + credits.charged_us
            );
        }
    }
}

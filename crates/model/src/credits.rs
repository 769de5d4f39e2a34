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
mod tests;

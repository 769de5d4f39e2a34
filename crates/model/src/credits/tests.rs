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

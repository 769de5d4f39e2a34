//! What is counted: CPU credits, the ledger, costs.

use std::time::Duration;

use ec2vmm_cloud::{
    Config,
    instances::{Change, Launch},
};
use ec2vmm_host::simulated::Settings;
use ec2vmm_model::{
    cost::Period, credits::Throttle, instances::CreditMode, ledger::Charge, lifecycle::State,
};

use crate::world::{HOUR, World, ids, only, told};

#[tokio::test(start_paused = true)]
async fn a_standard_instance_is_throttled_when_its_credits_are_spent() {
    let mut world = World::new().await;
    let launch = Launch { credit_mode: Some(CreditMode::Standard), ..world.one() };
    let id = only(&world.cloud.launch(launch).await.unwrap());
    world.until(&id, State::Running).await;
    let instance = world.id(&id);
    // Idle, it earns 12 credits an hour.
    tokio::time::sleep(HOUR).await;
    let credits = &world.cloud.describe_credits(&ids(&[&id])).await.unwrap()[0];
    assert!((11_800..=12_000).contains(&credits.balance_milli), "{credits:?}");
    assert_eq!(world.host.throttle_of(&instance), Some(Throttle::Full));
    // Both vCPUs at work spend two a minute: after some seven minutes there are none.
    world.host.guest_computes(&instance, 2_000);
    tokio::time::sleep(Duration::from_secs(20 * 60)).await;
    let credits = &world.cloud.describe_credits(&ids(&[&id])).await.unwrap()[0];
    assert!(credits.balance_milli < 200, "{credits:?}");
    let Some(Throttle::Limited { millicpus: 200..=400 }) = world.host.throttle_of(&instance) else {
        panic!("{:?}", world.host.throttle_of(&instance));
    };
    // Another daemon goes on counting.
    world.restart().await;
    tokio::time::sleep(2 * world.config.credits_every).await;
    assert!(world.host.throttle_of(&instance) != Some(Throttle::Full));
    // Unlimited lifts it, and owes.
    let change = Change { credit_mode: Some(CreditMode::Unlimited), ..Change::default() };
    world.cloud.modify_instance(&id, change).await.unwrap();
    tokio::time::sleep(Duration::from_secs(10 * 60)).await;
    assert_eq!(world.host.throttle_of(&instance), Some(Throttle::Full));
    let credits = &world.cloud.describe_credits(&[]).await.unwrap()[0];
    assert!(credits.surplus_milli > 15_000, "{credits:?}");
    // What it owes when it stops is charged.
    world.cloud.stop_instances(&ids(&[&id]), false).await.unwrap();
    world.settle().await;
    world.check();
    let surplus = world.entries().into_iter().find(|it| matches!(it.charge, Charge::SurplusCredits { .. }));
    assert!(surplus.unwrap().to.is_some());
    assert!(world.cloud.cost(None, None).await.unwrap().total.credits > Default::default());
}

#[tokio::test(start_paused = true)]
async fn types_without_credits_have_none() {
    let world = World::new().await;
    let launch = Launch { instance_type: "m5.large".to_owned(), ..world.one() };
    let id = only(&world.cloud.launch(launch).await.unwrap());
    world.until(&id, State::Running).await;
    assert_eq!(world.host.throttle_of(&world.id(&id)), Some(Throttle::Full));
    assert!(world.cloud.describe_credits(&[]).await.unwrap().is_empty());
    assert!(told(world.cloud.describe_credits(&ids(&[&id])).await).starts_with("UnsupportedOperation"));
}

#[tokio::test(start_paused = true)]
async fn compute_costs_while_it_runs_and_storage_while_it_is_there() {
    let world = World::new().await;
    let id = world.running().await;
    tokio::time::sleep(HOUR).await;
    world.cloud.reboot_instances(&ids(&[&id])).await.unwrap();
    tokio::time::sleep(HOUR).await;
    world.cloud.stop_instances(&ids(&[&id]), false).await.unwrap();
    world.settle().await;
    let stopped = world.cloud.cost(None, None).await.unwrap();
    assert_eq!((stopped.total.runs, stopped.instances.len()), (1, 1));
    // 0.0104 USD an hour, and begun seconds count.
    let hour = ec2vmm_model::prices::instance_hour("t3.micro").unwrap();
    let (least, most) = (hour.times(2, 1), hour.times(2 * 3600 + 2, 3600));
    assert!(least <= stopped.total.compute && stopped.total.compute <= most, "{:?}", stopped.total);
    tokio::time::sleep(24 * HOUR).await;
    let later = world.cloud.cost(None, None).await.unwrap();
    assert_eq!(later.total.compute, stopped.total.compute);
    assert!(later.total.storage > stopped.total.storage);
    world.cloud.terminate_instances(&ids(&[&id])).await.unwrap();
    world.settle().await;
    world.check();
    let ended = world.cloud.cost(None, None).await.unwrap();
    tokio::time::sleep(24 * HOUR).await;
    // Also when the instance is long forgotten.
    assert!(world.instances().is_empty());
    assert_eq!(world.cloud.cost(None, None).await.unwrap(), ended);
    let Period { from, .. } = Period { from: Some(ec2vmm_cloud::Clock::now(&*world.clock)), to: None };
    assert_eq!(world.cloud.cost(from, None).await.unwrap().total, Default::default());
    let backwards = world.cloud.cost(from, Some(ec2vmm_model::Time::from_unix_ms(0))).await;
    assert!(told(backwards).starts_with("InvalidParameterValue"));
}

#[tokio::test(start_paused = true)]
async fn what_the_host_took_down_costs_nothing_while_it_is_down() {
    for restart_on_boot in [false, true] {
        let config = Config { restart_on_boot, ..Config::default() };
        let mut world = World::with(config, Settings::default()).await;
        let id = world.running().await;
        tokio::time::sleep(HOUR).await;
        world.cloud.shut_down().await;
        world.host.reboot();
        tokio::time::sleep(24 * HOUR).await;
        world.restart().await;
        world.settle().await;
        world.check();
        let runs: Vec<_> =
            world.entries().into_iter().filter(|it| matches!(it.charge, Charge::Compute { .. })).collect();
        assert_eq!(runs.len(), 1 + usize::from(restart_on_boot), "{id}: {runs:?}");
        let seconds = runs[0].to.unwrap().ms_since(runs[0].from) / 1_000;
        assert!((3_580..=3_600).contains(&seconds), "{seconds}");
    }
}

//! The daemon dies at every single step of every operation, before it and after it. The client, which may not
//! have had an answer, asks once more; then what it asked for is so, and nothing else is there.

use std::{sync::Arc, time::Duration};

use ec2vmm_cloud::{
    Config, Error,
    config::Faults,
    instances::{Change, Launch},
};
use ec2vmm_host::simulated::{Settings, When};
use ec2vmm_model::lifecycle::State;

use crate::{
    crashes::CommitFaults,
    world::{World, ids},
};

#[derive(Clone, Copy, Debug)]
enum Operation {
    Launch,
    Stop,
    StopOfADeafGuest,
    ForceStop,
    Start,
    Reboot,
    Terminate,
    TerminateStopped,
    ChangeType,
}

#[derive(Clone, Copy, Debug)]
enum Place {
    Call(u64, When),
    Commit(i64, When),
}

impl Operation {
    const ALL: [Self; 9] = [
        Self::Launch,
        Self::Stop,
        Self::StopOfADeafGuest,
        Self::ForceStop,
        Self::Start,
        Self::Reboot,
        Self::Terminate,
        Self::TerminateStopped,
        Self::ChangeType,
    ];

    /// The instance that it is about, as it should be found.
    async fn prepare(self, world: &World) -> Option<String> {
        if matches!(self, Self::Launch) {
            return None;
        }
        let id = world.running().await;
        if matches!(self, Self::Start | Self::TerminateStopped | Self::ChangeType) {
            world.cloud.stop_instances(&ids(&[&id]), false).await.unwrap();
        }
        if matches!(self, Self::StopOfADeafGuest) {
            world.host.guest_ignores_power_button(&world.id(&id));
        }
        world.settle().await;
        Some(id)
    }

    async fn ask(self, world: &World, id: Option<&str>) -> Result<(), Error> {
        let one = ids(&[id.unwrap_or_default()]);
        match self {
            Self::Launch => {
                let token = Some("again and again".replace(' ', "-"));
                let launch = Launch { client_token: token, min_count: 2, max_count: 2, ..world.one() };
                world.cloud.launch(launch).await.map(drop)
            }
            Self::Stop | Self::StopOfADeafGuest => world.cloud.stop_instances(&one, false).await.map(drop),
            Self::ForceStop => world.cloud.stop_instances(&one, true).await.map(drop),
            Self::Start => world.cloud.start_instances(&one).await.map(drop),
            Self::Reboot => world.cloud.reboot_instances(&one).await,
            Self::Terminate | Self::TerminateStopped => world.cloud.terminate_instances(&one).await.map(drop),
            Self::ChangeType => {
                let change = Change { instance_type: Some("t3.small".to_owned()), ..Change::default() };
                world.cloud.modify_instance(&one[0], change).await.map(drop)
            }
        }
    }

    /// What the instances are in the end, and how many.
    fn comes_to(self) -> (State, usize) {
        match self {
            Self::Launch => (State::Running, 2),
            Self::Start | Self::Reboot => (State::Running, 1),
            Self::Stop | Self::StopOfADeafGuest | Self::ForceStop | Self::ChangeType => (State::Stopped, 1),
            Self::Terminate | Self::TerminateStopped => (State::Terminated, 1),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn every_operation_survives_a_death_at_every_step() {
    let mut deaths = 0;
    for operation in Operation::ALL {
        for when in [When::Before, When::After] {
            for nth in 0.. {
                if !dies(operation, Place::Call(nth, when)).await {
                    break;
                }
                deaths += 1;
            }
            for nth in 0.. {
                if !dies(operation, Place::Commit(nth, when)).await {
                    break;
                }
                deaths += 1;
            }
        }
    }
    println!("{deaths} deaths");
    assert!(deaths > 80);
}

/// Tells whether the operation got as far as this place.
async fn dies(operation: Operation, place: Place) -> bool {
    let faults = Arc::new(CommitFaults::default());
    let config = Config {
        faults: Some(Arc::clone(&faults) as Arc<dyn Faults>),
        // What has nothing to do with the operation keeps still.
        credits_every: Duration::from_secs(1_000_000),
        sweep_every: Duration::from_secs(1_000_000),
        ..Config::default()
    };
    let mut world = World::with(config, Settings::default()).await;
    let id = operation.prepare(&world).await;
    let mut told = match place {
        Place::Call(nth, when) => world.host.last_call(nth, when),
        Place::Commit(nth, when) => faults.die_at(nth, when),
    };
    let mut answered = false;
    let died = tokio::select! {
        biased;
        _ = told.wait_for(|died| *died) => true,
        () = async {
            operation.ask(&world, id.as_deref()).await.unwrap();
            answered = true;
            world.settle().await;
        } => false,
    };
    world.cloud.shut_down().await;
    world.host.all_well();
    faults.all_well();
    world.restart().await;
    if !answered {
        let result = operation.ask(&world, id.as_deref()).await;
        // What is on its way already cannot be asked for in some states.
        assert!(result.is_ok(), "{operation:?} at {place:?}: {result:?}");
    }
    world.settle().await;
    world.check();
    let (state, count) = operation.comes_to();
    let instances = world.instances();
    assert!(
        instances.len() == count && instances.iter().all(|it| it.state == state),
        "{operation:?} at {place:?}: {:?}",
        instances.iter().map(|it| it.state).collect::<Vec<_>>()
    );
    assert!(instances.iter().all(|it| it.reboot_requested.is_none()));
    if matches!(operation, Operation::ChangeType) {
        assert_eq!(instances[0].instance_type, "t3.small");
    }
    world.cloud.shut_down().await;
    died
}

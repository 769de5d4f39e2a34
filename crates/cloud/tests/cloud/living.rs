//! Start, stop, reboot, terminate, and what guests do by themselves.

use std::time::Duration;

use ec2vmm_cloud::{
    Config,
    events::DescribeEvents,
    instances::{Change, Launch},
};
use ec2vmm_host::simulated::Settings;
use ec2vmm_model::{
    instances::{GuestShutdown, Protection},
    lifecycle::State,
};
use expect_test::expect;

use crate::world::{World, ids, only, told};

#[tokio::test(start_paused = true)]
async fn a_whole_life() {
    let world = World::new().await;
    let id = world.running().await;
    let one = ids(&[&id]);
    let mac = world.record(&id).await.interface.mac;

    let stopped = world.cloud.stop_instances(&one, false).await.unwrap();
    assert_eq!((stopped[0].previous, stopped[0].current), (State::Running, State::Stopping));
    world.until(&id, State::Stopped).await;
    world.settle().await;
    world.check();
    let again = world.cloud.stop_instances(&one, false).await.unwrap();
    assert_eq!((again[0].previous, again[0].current), (State::Stopped, State::Stopped));

    let change = Change { instance_type: Some("t3.small".to_owned()), ..Change::default() };
    world.cloud.modify_instance(&id, change).await.unwrap();
    let started = world.cloud.start_instances(&one).await.unwrap();
    assert_eq!((started[0].previous, started[0].current), (State::Stopped, State::Pending));
    world.until(&id, State::Running).await;
    assert_eq!(world.host.plan_of(&world.id(&id)).unwrap().memory_mib, 2048);
    assert_eq!(world.record(&id).await.interface.mac, mac);

    world.cloud.reboot_instances(&one).await.unwrap();
    world.settle().await;
    assert_eq!(world.record(&id).await.reboot_requested, None);
    let console = world.cloud.console_output(&id).await.unwrap();
    assert!(String::from_utf8_lossy(&console.bytes).ends_with("reboot: Restarting system\r\n"));

    let ended = world.cloud.terminate_instances(&one).await.unwrap();
    assert_eq!((ended[0].previous, ended[0].current), (State::Running, State::ShuttingDown));
    world.until(&id, State::Terminated).await;
    world.settle().await;
    world.check();
    assert_eq!(world.cloud.terminate_instances(&one).await.unwrap()[0].current, State::Terminated);
    assert_eq!(
        told(world.cloud.start_instances(&one).await),
        format!(
            "IncorrectInstanceState: The instance '{id}' is not in a state from which it can be started."
        )
    );

    // Shown for an hour.
    world.clock.jump(59 * 60 * 1000);
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(world.state(&id).await, State::Terminated);
    world.clock.jump(60 * 1000);
    tokio::time::sleep(2 * world.config.sweep_every).await;
    assert_eq!(
        told(world.cloud.instance(&id).await),
        format!("InvalidInstanceID.NotFound: The instance ID '{id}' does not exist")
    );
    assert!(world.host.look().consoles.is_empty());
    let events = world.cloud.describe_events(&DescribeEvents::default()).await.unwrap();
    let story: Vec<_> = events.iter().map(|event| event.message.as_str()).collect();
    expect![[r#"
        launched as t3.micro from IMAGE
        pending → running
        running → stopping (Client.UserInitiatedShutdown: User initiated shutdown)
        the machine ended: it was powered off
        stopping → stopped (Client.UserInitiatedShutdown: User initiated shutdown)
        changed instanceType
        stopped → pending
        pending → running
        a reboot was asked for
        the machine boots again
        running → shutting-down (Client.UserInitiatedShutdown: User initiated shutdown)
        shutting-down → terminated (Client.UserInitiatedShutdown: User initiated shutdown)"#]]
    .assert_eq(&story.join("\n").replace(&world.image, "IMAGE"));
}

#[tokio::test(start_paused = true)]
async fn a_guest_is_asked_to_reboot() {
    let world = World::new().await;
    let id = world.running().await;
    let one = ids(&[&id]);
    let console = async || world.cloud.console_output(&id).await.unwrap().bytes;
    let before = console().await;
    for _ in 0..3 {
        // More than once is once.
        world.cloud.reboot_instances(&one).await.unwrap();
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(world.record(&id).await.reboot_requested.is_some());
    assert_eq!(console().await, before, "the guest shuts down");
    world.settle().await;
    assert_eq!(world.record(&id).await.reboot_requested, None);
    assert_eq!(console().await, [before, b"\r\nreboot: Restarting system\r\n".to_vec()].concat());
    // The next is one again.
    world.cloud.reboot_instances(&one).await.unwrap();
    tokio::time::sleep(Duration::from_millis(10)).await;
    assert!(world.record(&id).await.reboot_requested.is_some());
    world.settle().await;
    assert!(console().await.ends_with(b"Restarting system\r\n\r\nreboot: Restarting system\r\n"));
    assert_eq!(world.state(&id).await, State::Running);
    world.check();
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_does_not_listen_is_reset() {
    let world = World::new().await;
    let id = world.running().await;
    world.host.guest_ignores_power_button(&world.id(&id));
    world.cloud.reboot_instances(&ids(&[&id])).await.unwrap();
    tokio::time::sleep(Duration::from_secs(55)).await;
    assert!(world.record(&id).await.reboot_requested.is_some());
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(world.record(&id).await.reboot_requested, None);
    assert_eq!(world.state(&id).await, State::Running);
    world.settle().await;
    world.check();
}

#[tokio::test(start_paused = true)]
async fn a_stop_takes_the_place_of_a_reboot() {
    let world = World::new().await;
    let id = world.running().await;
    let one = ids(&[&id]);
    world.cloud.reboot_instances(&one).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    world.cloud.stop_instances(&one, false).await.unwrap();
    world.settle().await;
    assert_eq!(world.state(&id).await, State::Stopped);
    let console = world.cloud.console_output(&id).await.unwrap();
    assert!(!String::from_utf8_lossy(&console.bytes).contains("Restarting"));
    world.cloud.start_instances(&one).await.unwrap();
    world.settle().await;
    assert_eq!(world.state(&id).await, State::Running);
    world.check();
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_does_not_listen_loses_its_power() {
    let world = World::new().await;
    let id = world.running().await;
    world.host.guest_ignores_power_button(&world.id(&id));
    world.cloud.stop_instances(&ids(&[&id]), false).await.unwrap();
    tokio::time::sleep(Duration::from_secs(55)).await;
    assert_eq!(world.state(&id).await, State::Stopping);
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(world.state(&id).await, State::Stopped);

    // Force does not wait.
    world.cloud.start_instances(&ids(&[&id])).await.unwrap();
    world.until(&id, State::Running).await;
    world.host.guest_ignores_power_button(&world.id(&id));
    world.cloud.stop_instances(&ids(&[&id]), false).await.unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(world.state(&id).await, State::Stopping);
    world.cloud.stop_instances(&ids(&[&id]), true).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(world.state(&id).await, State::Stopped);
    world.settle().await;
    world.check();
}

#[tokio::test(start_paused = true)]
async fn a_power_off_from_inside_means_what_the_instance_says() {
    let world = World::new().await;
    for (on_guest_shutdown, ends) in
        [(GuestShutdown::Stop, State::Stopped), (GuestShutdown::Terminate, State::Terminated)]
    {
        let protection =
            Protection { on_guest_shutdown, disable_api_termination: true, ..Default::default() };
        let id = only(&world.cloud.launch(Launch { protection, ..world.one() }).await.unwrap());
        world.until(&id, State::Running).await;
        world.host.guest_powers_off(&world.id(&id));
        world.until(&id, ends).await;
        let reason = world.record(&id).await.state_reason.clone().unwrap();
        assert_eq!(reason.code, "Client.InstanceInitiatedShutdown");
        world.settle().await;
        world.check();
    }
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_is_killed_or_fails_stops_with_the_reason() {
    let world = World::new().await;
    let id = world.running().await;
    world.host.machine_is_killed(&world.id(&id));
    world.until(&id, State::Stopped).await;
    expect!["Server.InternalError: The machine was killed on the host"]
        .assert_eq(&world.record(&id).await.state_reason.clone().unwrap().message);
    world.cloud.start_instances(&ids(&[&id])).await.unwrap();
    world.until(&id, State::Running).await;
    world.host.machine_fails(&world.id(&id), ec2vmm_vmm_api::FailureKind::TripleFault);
    world.until(&id, State::Stopped).await;
    expect!["Server.InternalError: The machine failed: simulated TripleFault"]
        .assert_eq(&world.record(&id).await.state_reason.clone().unwrap().message);
    world.settle().await;
    world.check();
}

#[tokio::test(start_paused = true)]
async fn all_are_looked_at_before_any_is_changed() {
    let world = World::new().await;
    let (one, other) = (world.running().await, world.running().await);
    let change =
        Change { disable_api_termination: Some(true), disable_api_stop: Some(true), ..Change::default() };
    world.cloud.modify_instance(&other, change).await.unwrap();
    let both = ids(&[&one, &other]);
    assert_eq!(
        told(world.cloud.terminate_instances(&both).await),
        format!(
            "OperationNotPermitted: The instance '{other}' may not be terminated. Modify its 'disableApiTermination' instance attribute and try again."
        )
    );
    assert_eq!(
        told(world.cloud.stop_instances(&both, true).await),
        format!(
            "OperationNotPermitted: The instance '{other}' may not be stopped. Modify its 'disableApiStop' instance attribute and try again."
        )
    );
    let missing = ids(&[&one, "i-00000000000000000"]);
    expect!["InvalidInstanceID.NotFound: The instance ID 'i-00000000000000000' does not exist"]
        .assert_eq(&told(world.cloud.terminate_instances(&missing).await));
    expect![[r#"InvalidInstanceID.Malformed: Invalid id: "bogus""#]]
        .assert_eq(&told(world.cloud.reboot_instances(&ids(&[&one, "bogus"])).await));
    expect!["MissingParameter: The request must contain the parameter instancesSet"]
        .assert_eq(&told(world.cloud.start_instances(&[]).await));
    assert_eq!(world.state(&one).await, State::Running);
    // Twice the same is once.
    assert_eq!(world.cloud.terminate_instances(&ids(&[&one, &one])).await.unwrap().len(), 1);
    world.settle().await;
    world.check();
}

#[tokio::test(start_paused = true)]
async fn attributes_change_only_where_they_can() {
    let world = World::new().await;
    let id = world.running().await;
    let kind = |name: &str| Change { instance_type: Some(name.to_owned()), ..Change::default() };
    let data = |bytes: usize| Change { user_data: Some(vec![b'x'; bytes]), ..Change::default() };
    assert_eq!(
        told(world.cloud.modify_instance(&id, kind("t3.small")).await),
        format!("IncorrectInstanceState: The instance '{id}' is not in the 'stopped' state.")
    );
    assert!(told(world.cloud.modify_instance(&id, data(1)).await).starts_with("IncorrectInstanceState"));
    world.cloud.stop_instances(&ids(&[&id]), true).await.unwrap();
    world.settle().await;
    expect!["InvalidParameterValue: Invalid value 't9.huge' for InstanceType."]
        .assert_eq(&told(world.cloud.modify_instance(&id, kind("t9.huge")).await));
    expect!["InvalidParameterValue: User data is limited to 16384 bytes"]
        .assert_eq(&told(world.cloud.modify_instance(&id, data(16 * 1024 + 1)).await));
    world.cloud.modify_instance(&id, data(16 * 1024)).await.unwrap();
    world.cloud.modify_instance(&id, kind("m5.large")).await.unwrap();
    let record = world.record(&id).await;
    assert_eq!((record.instance_type.as_str(), record.credit_mode), ("m5.large", None));
    world.cloud.modify_instance(&id, data(0)).await.unwrap();
    assert_eq!(world.record(&id).await.user_data, None);
    world.cloud.terminate_instances(&ids(&[&id])).await.unwrap();
    world.settle().await;
    assert!(
        told(world.cloud.modify_instance(&id, kind("t3.nano")).await).starts_with("IncorrectInstanceState")
    );
}

#[tokio::test(start_paused = true)]
async fn after_the_host_went_down() {
    for (restart_on_boot, state) in [(false, State::Stopped), (true, State::Running)] {
        let config = Config { restart_on_boot, ..Config::default() };
        let mut world = World::with(config, Settings::default()).await;
        let id = world.running().await;
        world.cloud.shut_down().await;
        world.host.reboot();
        world.restart().await;
        world.settle().await;
        assert_eq!(world.state(&id).await, state);
        if !restart_on_boot {
            expect!["Server.InternalError: The host was restarted while the instance was running"]
                .assert_eq(&world.record(&id).await.state_reason.clone().unwrap().message);
        }
        world.check();
    }
}

#[tokio::test(start_paused = true)]
async fn a_volume_that_shall_stay_stays_and_can_be_deleted() {
    let world = World::new().await;
    let root = ec2vmm_cloud::instances::RootVolume { delete_on_termination: false, ..Default::default() };
    let id = only(&world.cloud.launch(Launch { root, ..world.one() }).await.unwrap());
    world.until(&id, State::Running).await;
    let volume = world.cloud.instance(&id).await.unwrap().volumes[0].id.to_string();
    assert_eq!(
        told(world.cloud.delete_volume(&volume).await),
        format!("VolumeInUse: Volume '{volume}' is currently attached to {id}")
    );
    world.cloud.terminate_instances(&ids(&[&id])).await.unwrap();
    world.settle().await;
    world.check();
    let left = world.cloud.describe_volumes(&Default::default()).await.unwrap().items;
    assert_eq!((left.len(), left[0].attachment.clone()), (1, None));
    world.clock.jump(2 * 60 * 60 * 1000);
    tokio::time::sleep(2 * world.config.sweep_every).await;
    world.cloud.delete_volume(&volume).await.unwrap();
    world.check();
    assert!(world.host.look().volumes.is_empty());
}

//! A host and a store that fail, one at a time, and what clients are told.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use ec2vmm_cloud::{Config, config::Faults, events::EventKind};
use ec2vmm_host::{
    host::{Host, ImageFile, InterfacePlan, MachinePlan, NetworkPlan, VolumePlan},
    simulated::{Fault, Operation, Settings},
};
use ec2vmm_model::{
    credits::Throttle,
    ids::{InstanceId, InterfaceId, VolumeId, VpcId},
    images::DiskFormat,
    lifecycle::State,
};
use expect_test::expect;

use crate::world::{World, ids, tags, told};

#[tokio::test(start_paused = true)]
async fn a_launch_without_room_is_terminated_and_a_start_returns_to_stopped() {
    let world = World::new().await;
    world.host.fail(Operation::StartMachine, 1, Fault::NoRoom);
    let id = world.launch_one().await;
    world.until(&id, State::Terminated).await;
    expect!["Server.InsufficientInstanceCapacity: Insufficient capacity to satisfy instance request: simulated fault of StartMachine"]
        .assert_eq(&world.record(&id).await.state_reason.clone().unwrap().message);
    world.settle().await;
    world.check();

    let id = world.running().await;
    world.cloud.stop_instances(&ids(&[&id]), false).await.unwrap();
    world.settle().await;
    world.host.fail(Operation::StartMachine, 1, Fault::NoRoom);
    world.cloud.start_instances(&ids(&[&id])).await.unwrap();
    world.settle().await;
    let record = world.record(&id).await;
    assert_eq!(record.state, State::Stopped);
    assert_eq!(record.state_reason.clone().unwrap().code, "Server.InsufficientInstanceCapacity");
    world.check();
    world.cloud.start_instances(&ids(&[&id])).await.unwrap();
    world.until(&id, State::Running).await;
}

#[tokio::test(start_paused = true)]
async fn what_may_pass_is_tried_again() {
    for operation in [
        Operation::CreateVolume,
        Operation::EnsureNetwork,
        Operation::EnsureInterface,
        Operation::StartMachine,
    ] {
        for (times, comes_to) in [(3, State::Running), (4, State::Terminated)] {
            let world = World::new().await;
            world.host.fail(operation, times, Fault::Other);
            let id = world.launch_one().await;
            world.settle().await;
            assert_eq!(world.state(&id).await, comes_to, "{operation:?}, {times} times");
            world.check();
            assert_eq!(world.cloud.figures().unwrap().steps_failed, times as u64);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_bad_image_is_not_tried_again() {
    let world = World::new().await;
    world.host.fail(Operation::CreateVolume, 1, Fault::Image);
    let id = world.launch_one().await;
    world.settle().await;
    expect!["Client.InternalError: Client error on launch: simulated fault of CreateVolume"]
        .assert_eq(&world.record(&id).await.state_reason.clone().unwrap().message);
    world.check();
    world.host.fail(Operation::InspectImage, 1, Fault::Image);
    expect!["InvalidParameterValue: simulated fault of InspectImage"]
        .assert_eq(&told(world.cloud.register_image(crate::world::image("other")).await));
}

#[tokio::test(start_paused = true)]
async fn the_way_out_is_gone_until_the_end() {
    for operation in [
        Operation::PressPowerButton,
        Operation::KillMachine,
        Operation::RemoveMachine,
        Operation::RemoveInterface,
        Operation::DeleteVolume,
    ] {
        let world = World::new().await;
        let id = world.running().await;
        world.host.guest_ignores_power_button(&world.id(&id));
        world.host.fail(operation, 10, Fault::Other);
        world.cloud.terminate_instances(&ids(&[&id])).await.unwrap();
        world.settle().await;
        assert_eq!(world.state(&id).await, State::Terminated, "{operation:?}");
        world.check();
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_overtakes_a_step_that_fails_all_the_time() {
    let world = World::new().await;
    let id = world.running().await;
    world.host.fail(Operation::RebootMachine, usize::MAX, Fault::Other);
    world.cloud.reboot_instances(&ids(&[&id])).await.unwrap();
    tokio::time::sleep(Duration::from_secs(300)).await;
    world.cloud.stop_instances(&ids(&[&id]), true).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(world.state(&id).await, State::Stopped);
    world.settle().await;
    world.check();
}

#[tokio::test(start_paused = true)]
async fn a_host_that_hangs_holds_up_one_instance_only() {
    let world = World::new().await;
    let hold = world.host.hold(Operation::StartMachine);
    let id = world.launch_one().await;
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert_eq!(world.state(&id).await, State::Pending);
    // EC2's waiters fail where a pending instance is shown after its termination was asked for.
    let ended = world.cloud.terminate_instances(&ids(&[&id])).await.unwrap();
    assert_eq!(ended[0].current, State::ShuttingDown);
    drop(hold);
    world.settle().await;
    assert_eq!(world.state(&id).await, State::Terminated);
    world.check();
}

#[tokio::test(start_paused = true)]
async fn what_belongs_to_nobody_is_removed() {
    let mut world = World::new().await;
    let id = world.running().await;
    world.cloud.shut_down().await;
    make_orphans(&world).await;
    // What cannot be removed at once is removed later.
    world.host.fail(Operation::RemoveInterface, 1, Fault::Other);
    world.restart().await;
    tokio::time::sleep(11 * world.config.sweep_every).await;
    world.settle().await;
    world.check();
    assert_eq!(world.state(&id).await, State::Running);
    let events = world.cloud.describe_events(&Default::default()).await.unwrap();
    assert_eq!(events.iter().filter(|event| event.kind == EventKind::Swept).count(), 6);
    assert_eq!(events.iter().filter(|event| event.kind == EventKind::Adopted).count(), 1);
}

async fn make_orphans(world: &World) {
    let (host, vpc) = (&world.host, VpcId::from_random(7));
    let network = NetworkPlan { vpc: vpc.clone(), base: [10, 0, 0, 0].into(), prefix: 24 };
    host.ensure_network(&network).await.unwrap();
    let interface = InterfaceId::from_random(7);
    let plan = InterfacePlan {
        id: interface.clone(),
        vpc,
        mac: [2; 6],
        address: [10, 0, 0, 9].into(),
        hostname: "nobody".to_owned(),
    };
    host.ensure_interface(&plan).await.unwrap();
    let volume = VolumeId::from_random(7);
    let image = ImageFile { file: "debian-12.qcow2".into(), format: DiskFormat::Qcow2 };
    host.create_volume(&VolumePlan { id: volume.clone(), size_gib: 1, image: Some(image) }).await.unwrap();
    let machine = MachinePlan {
        instance: InstanceId::from_random(7),
        generation: 3,
        instance_type: "t3.micro".to_owned(),
        vcpus: 2,
        memory_mib: 1024,
        throttle: Throttle::Full,
        volumes: vec![volume],
        instance_store_gb: None,
        interfaces: vec![interface],
        network: Default::default(),
        guest: Default::default(),
    };
    host.start_machine(&machine).await.unwrap();
}

/// A disk that is full or broken for some commits.
#[derive(Default)]
struct Disk {
    fails: AtomicI64,
}

#[async_trait::async_trait]
impl Faults for Disk {
    async fn before_commit(&self) -> Result<(), ec2vmm_store::Error> {
        match self.fails.fetch_sub(1, Ordering::SeqCst) {
            1.. => Err(full()),
            _ => Ok(()),
        }
    }

    async fn after_commit(&self) {}
}

fn full() -> ec2vmm_store::Error {
    ec2vmm_store::Error::Unwritable {
        kind: "instance",
        key: "i-0".to_owned(),
        source: serde_json::Error::io(io::Error::from(io::ErrorKind::StorageFull)),
    }
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_fails_changes_nothing_and_is_tried_again() {
    let disk = Arc::new(Disk::default());
    let faults = Some(Arc::clone(&disk) as Arc<dyn Faults>);
    let mut world = World::with(Config { faults, ..Config::default() }, Settings::default()).await;
    disk.fails.store(1, Ordering::SeqCst);
    let error = world.cloud.launch(world.one()).await.unwrap_err();
    assert_eq!(
        (error.code(), error.to_string().as_str()),
        ("InternalError", "An internal error has occurred")
    );
    assert!(error.hint().is_some());
    assert!(world.instances().is_empty());
    world.check();

    // What the reconciler cannot record, it records later.
    let id = world.launch_one().await;
    disk.fails.store(5, Ordering::SeqCst);
    world.until(&id, State::Running).await;
    disk.fails.store(0, Ordering::SeqCst);
    world.cloud.terminate_instances(&ids(&[&id])).await.unwrap();
    disk.fails.store(5, Ordering::SeqCst);
    world.settle().await;
    assert_eq!(world.state(&id).await, State::Terminated);
    world.check();

    disk.fails.store(0, Ordering::SeqCst);
    let id = world.running().await;
    disk.fails.store(3, Ordering::SeqCst);
    assert!(told(world.cloud.stop_instances(&ids(&[&id]), false).await).starts_with("InternalError"));
    assert_eq!(world.state(&id).await, State::Running);
    disk.fails.store(0, Ordering::SeqCst);
    world.restart().await;
    world.settle().await;
    world.check();
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_jumps_cuts_no_power_early() {
    for jump_ms in [-86_400_000, -1, 86_400_000] {
        let world = World::new().await;
        let id = world.running().await;
        world.host.guest_ignores_power_button(&world.id(&id));
        world.cloud.stop_instances(&ids(&[&id]), false).await.unwrap();
        tokio::time::sleep(Duration::from_secs(30)).await;
        world.clock.jump(jump_ms);
        tokio::time::sleep(Duration::from_secs(25)).await;
        assert_eq!(world.state(&id).await, State::Stopping, "{jump_ms}");
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(world.state(&id).await, State::Stopped, "{jump_ms}");
        world.settle().await;
        world.check();
    }
}

#[tokio::test(start_paused = true)]
async fn a_cloud_that_is_shut_down_changes_nothing() {
    let world = World::new().await;
    let id = world.running().await;
    world.cloud.shut_down().await;
    expect!["Unavailable: The service is unavailable. Please try again shortly."]
        .assert_eq(&told(world.cloud.terminate_instances(&ids(&[&id])).await));
    assert_eq!(told(world.cloud.launch(world.one()).await).split(':').next(), Some("Unavailable"));
    assert!(world.host.plan_of(&world.id(&id)).is_some());
}

/// Commits wait while the gate is shut.
#[derive(Default)]
struct Gate(tokio::sync::Mutex<()>);

#[async_trait::async_trait]
impl Faults for Gate {
    async fn before_commit(&self) -> Result<(), ec2vmm_store::Error> {
        drop(self.0.lock().await);
        Ok(())
    }

    async fn after_commit(&self) {}
}

#[tokio::test(start_paused = true)]
async fn a_record_that_changes_meanwhile_makes_no_second_reboot() {
    let gate = Arc::new(Gate::default());
    let config = Config { faults: Some(Arc::clone(&gate) as Arc<dyn Faults>), ..Config::default() };
    let world = World::with(config, Settings::default()).await;
    let id = world.running().await;
    let one = ids(&[&id]);
    world.settle().await;
    let reboots = async || {
        let console = world.cloud.console_output(&id).await.unwrap().bytes;
        String::from_utf8(console).unwrap().matches("Restarting").count()
    };
    world.cloud.reboot_instances(&one).await.unwrap();
    tokio::time::sleep(Duration::from_millis(10)).await;
    let shut = gate.0.lock().await;
    // The tag is written first, and makes the record another than the one that was found rebooted.
    let tags = tags(&[("a", "b")]);
    let (tagged, ()) = tokio::join!(world.cloud.create_tags(&one, &tags), async {
        while reboots().await == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
        drop(shut);
    });
    tagged.unwrap();
    world.settle().await;
    assert_eq!(world.record(&id).await.reboot_requested, None);
    assert_eq!(reboots().await, 1);
    world.check();
}

//! Launches: counts, tokens, capacity, what is refused.

use ec2vmm_cloud::{
    Config,
    instances::{Launch, RootVolume},
    key_pairs::{CreateKeyPair, DescribeKeyPairs, ImportKeyPair, PrivateFormat},
};
use ec2vmm_host::{host::Capacity, simulated::Settings};
use ec2vmm_model::{instances::CreditMode, key_pairs::KeyKind, lifecycle::State, volumes::VolumeKind};
use expect_test::expect;

use crate::world::{World, all, ids, image, only, tags, told};

#[tokio::test(start_paused = true)]
async fn a_launch_answers_pending_and_comes_to_run() {
    let world = World::new().await;
    let launch = Launch {
        min_count: 2,
        max_count: 3,
        user_data: Some(b"#!/bin/sh\n".to_vec()),
        tags: tags(&[("Name", "web")]),
        ..world.one()
    };
    let reservation = world.cloud.launch(launch).await.unwrap();
    let states: Vec<_> = reservation.instances.iter().map(|it| it.instance.state).collect();
    assert_eq!(states, [State::Pending; 3]);
    world.settle().await;
    world.check();
    for (index, described) in (0..).zip(&reservation.instances) {
        let now = world.record(described.instance.id.as_str()).await;
        assert_eq!((now.state, now.launch_index, now.first_launch), (State::Running, index, false));
        let plan = world.host.plan_of(&now.id).unwrap();
        assert_eq!(plan.guest.user_data.as_deref(), Some(&b"#!/bin/sh\n"[..]));
        assert_eq!((plan.vcpus, plan.memory_mib), (2, 1024));
        assert_eq!(described.login_user.as_deref(), Some("debian"));
        assert_eq!((described.volumes.len(), described.volumes[0].size_gib), (1, 2));
    }
    let timeline =
        world.cloud.timeline(reservation.instances[0].instance.id.as_str()).await.unwrap().unwrap();
    let names: Vec<_> = timeline.steps.iter().map(|step| step.name.as_str()).collect();
    assert_eq!(names, ["create volume", "make network", "make interface", "simulate"]);
}

#[tokio::test(start_paused = true)]
async fn a_token_launches_once() {
    let mut world = World::new().await;
    let launch = Launch { client_token: Some("token-1".to_owned()), ..world.one() };
    let first = only(&world.cloud.launch(launch.clone()).await.unwrap());
    assert_eq!(only(&world.cloud.launch(launch.clone()).await.unwrap()), first);
    let other = Launch { instance_type: "t3.small".to_owned(), ..launch.clone() };
    expect!["IdempotentParameterMismatch: Arguments on this idempotent request are inconsistent with arguments used in previous request(s)."]
        .assert_eq(&told(world.cloud.launch(other.clone()).await));
    world.restart().await;
    assert_eq!(only(&world.cloud.launch(launch.clone()).await.unwrap()), first);

    // Also when the instance is forgotten, for a day.
    world.cloud.terminate_instances(&ids(&[&first])).await.unwrap();
    world.settle().await;
    world.clock.jump(2 * 60 * 60 * 1000);
    tokio::time::sleep(2 * world.config.sweep_every).await;
    assert!(world.instances().is_empty());
    let again = world.cloud.launch(launch.clone()).await.unwrap();
    assert_eq!((only(&again), again.instances[0].instance.state), (first.clone(), State::Terminated));
    world.clock.jump(23 * 60 * 60 * 1000);
    tokio::time::sleep(2 * world.config.sweep_every).await;
    assert_ne!(only(&world.cloud.launch(other).await.unwrap()), first);
    world.settle().await;
    world.check();
}

#[tokio::test(start_paused = true)]
async fn repeated_at_once_a_token_launches_once() {
    let world = World::new().await;
    let launch = Launch { client_token: Some("t".to_owned()), ..world.one() };
    let launches: Vec<_> = (0..20)
        .map(|_| {
            let (cloud, launch) = (world.cloud.clone(), launch.clone());
            tokio::spawn(async move { only(&cloud.launch(launch).await.unwrap()) })
        })
        .collect();
    let mut launched = Vec::new();
    for launch in launches {
        launched.push(launch.await.unwrap());
    }
    launched.dedup();
    assert_eq!((launched.len(), world.instances().len()), (1, 1));
    world.settle().await;
    world.check();
}

#[tokio::test(start_paused = true)]
async fn as_many_as_there_is_room_for_and_no_fewer_than_asked_for() {
    let settings = Settings { capacity: Capacity { cpus: 2, memory_mib: 4096 }, ..Settings::default() };
    let world = World::with(Config::default(), settings).await;
    let launch = |min_count, max_count| Launch { min_count, max_count, ..world.one() };
    expect!["InsufficientInstanceCapacity: We currently do not have sufficient t3.micro capacity in the Availability Zone you requested (us-east-1a)."]
        .assert_eq(&told(world.cloud.launch(launch(5, 6)).await));
    assert!(world.instances().is_empty());
    assert_eq!(world.cloud.launch(launch(1, 6)).await.unwrap().instances.len(), 4);
    world.settle().await;
    world.check();

    // What is stopped gives back, and is refused where there is no room when it wants to start.
    let first = world.instances()[0].id.to_string();
    let stopped = ids(&[&first]);
    assert!(told(world.cloud.launch(launch(1, 1)).await).starts_with("InsufficientInstanceCapacity"));
    world.cloud.stop_instances(&stopped, false).await.unwrap();
    world.settle().await;
    assert_eq!(world.cloud.launch(launch(1, 1)).await.unwrap().instances.len(), 1);
    assert!(told(world.cloud.start_instances(&stopped).await).starts_with("InsufficientInstanceCapacity"));
    assert_eq!(world.state(&first).await, State::Stopped);
    world.settle().await;
    world.check();
}

#[tokio::test(start_paused = true)]
async fn addresses_are_given_once_and_given_back() {
    let config = Config { network_prefix: 28, ..Config::default() };
    let world = World::with(config, Settings::default()).await;
    let eleven = Launch { min_count: 11, max_count: 11, ..world.one() };
    for _ in 0..3 {
        world.cloud.launch(eleven.clone()).await.unwrap();
        assert!(told(world.cloud.launch(world.one()).await).starts_with("InsufficientFreeAddressesInSubnet"));
        world.settle().await;
        world.check();
        let living: Vec<_> = world
            .instances()
            .iter()
            .filter(|it| it.state == State::Running)
            .map(|it| it.id.to_string())
            .collect();
        world.cloud.terminate_instances(&living).await.unwrap();
        world.settle().await;
        world.check();
    }
    let wanted = "172.31.0.9".parse().ok();
    let with_address = Launch { private_address: wanted, ..world.one() };
    let id = only(&world.cloud.launch(with_address.clone()).await.unwrap());
    assert_eq!(Some(world.record(&id).await.interface.address), wanted);
    expect!["InvalidIPAddress.InUse: Address 172.31.0.9 is in use."]
        .assert_eq(&told(world.cloud.launch(with_address).await));
    let beyond = Launch { private_address: "172.31.0.2".parse().ok(), ..world.one() };
    expect!["InvalidParameterValue: Address 172.31.0.2 does not fall within the subnet's address range"]
        .assert_eq(&told(world.cloud.launch(beyond).await));
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_changes_nothing() {
    let world = World::new().await;
    let one = || world.one();
    let root = |size_gib| RootVolume { size_gib: Some(size_gib), ..RootVolume::default() };
    let of_kind = |kind, size_gib| RootVolume { kind, ..root(size_gib) };
    let launches = [
        Launch { image: "bogus".to_owned(), ..one() },
        Launch { image: "ami-00000000000000000".to_owned(), ..one() },
        Launch { image: String::new(), ..one() },
        Launch { instance_type: "t3.mikro".to_owned(), ..one() },
        Launch { instance_type: "t4g.micro".to_owned(), ..one() },
        Launch { instance_type: "g4dn.xlarge".to_owned(), ..one() },
        Launch { instance_type: "m5.24xlarge".to_owned(), ..one() },
        Launch { min_count: 0, ..one() },
        Launch { min_count: 2, ..one() },
        Launch { max_count: 1_001, ..one() },
        Launch { key_name: Some("nobody".to_owned()), ..one() },
        Launch { user_data: Some(vec![0; 16 * 1024 + 1]), ..one() },
        Launch { client_token: Some("x".repeat(65)), ..one() },
        Launch { client_token: Some(String::new()), ..one() },
        Launch { tags: tags(&[("aws:mine", "")]), ..one() },
        Launch { credit_mode: Some(CreditMode::Standard), instance_type: "m5.large".to_owned(), ..one() },
        Launch { root: root(1), ..one() },
        Launch { root: root(65_537), ..one() },
        Launch { root: of_kind(VolumeKind::Gp2, 20_000), ..one() },
        Launch { root: of_kind(VolumeKind::Io1, 3), ..one() },
        Launch { root: of_kind(VolumeKind::St1, 500), ..one() },
    ];
    let mut text = String::new();
    for launch in launches {
        let result = world.cloud.launch(launch).await;
        let hint = result.as_ref().err().and_then(|error| error.hint());
        text += &format!("{}{}\n", told(result), hint.map_or(String::new(), |hint| format!(" [{hint}]")));
    }
    expect![[r#"
        InvalidAMIID.Malformed: Invalid id: "bogus" (expecting "ami-...")
        InvalidAMIID.NotFound: The image id '[ami-00000000000000000]' does not exist
        MissingParameter: The request must contain the parameter imageId
        InvalidParameterValue: Invalid value 't3.mikro' for InstanceType. [did you mean t3.micro?]
        Unsupported: The requested configuration is currently not supported. Instance type t4g.micro has arm64 processors. [take t3.micro]
        UnsupportedOperation: The instance type 'g4dn.xlarge' is not supported here: there is no T4.
        UnsupportedOperation: The instance type 'm5.24xlarge' is not supported here: a machine can have 64 vCPUs at most.
        InvalidParameterValue: Invalid value '0' for instance count. It must be at least 1.
        InvalidParameterValue: Invalid value '1' for maxCount. It must be at least minCount, 2.
        InvalidParameterValue: Invalid value '1001' for maxCount. It must be at most 1000.
        InvalidKeyPair.NotFound: The key pair 'nobody' does not exist
        InvalidParameterValue: User data is limited to 16384 bytes [it has 16385 bytes: let a short script fetch the rest]
        InvalidParameterValue: Invalid client token: it must have 1 to 64 printable ASCII characters.
        InvalidParameterValue: Invalid client token: it must have 1 to 64 printable ASCII characters.
        InvalidParameterValue: Tag keys starting with 'aws:' are reserved for internal use
        InvalidParameterCombination: The CreditSpecification parameter is not supported with the instance type m5.large.
        InvalidParameterValue: Volume of size 1GB is smaller than image 'IMAGE', expect size >= 2GB
        InvalidParameterValue: Volume of 65537GiB is too large; maximum is 65536GiB.
        InvalidParameterValue: Volume of 20000GiB is too large; maximum is 16384GiB.
        InvalidParameterValue: Volume of 3GiB is too small; minimum is 4GiB.
        InvalidParameterValue: The volume type 'st1' cannot be used for a root volume.
    "#]].assert_eq(&text.replace(&world.image, "IMAGE"));
    assert!(world.cloud.describe_instances(&all()).await.unwrap().items.is_empty());
    world.check();
}

#[tokio::test(start_paused = true)]
async fn a_name_that_looks_like_an_id_takes_nothing_from_that() {
    let world = World::new().await;
    world.cloud.register_image(image(&world.image)).await.unwrap();
    let id = world.launch_one().await;
    assert_eq!(world.record(&id).await.image.to_string(), world.image);
}

#[tokio::test(start_paused = true)]
async fn an_image_outlives_its_registration_in_what_was_launched_from_it() {
    let mut world = World::new().await;
    let id = world.running().await;
    world.cloud.deregister_image(&world.image.clone()).await.unwrap();
    assert!(told(world.cloud.launch(world.one()).await).starts_with("InvalidAMIID.NotFound"));
    world.cloud.stop_instances(&ids(&[&id]), false).await.unwrap();
    world.settle().await;
    world.restart().await;
    world.cloud.start_instances(&ids(&[&id])).await.unwrap();
    world.settle().await;
    assert_eq!(world.cloud.instance(&id).await.unwrap().login_user.as_deref(), Some("debian"));
    let again = ec2vmm_cloud::images::RegisterImage { id: Some(world.image.clone()), ..image("other") };
    assert!(told(world.cloud.register_image(again.clone()).await).ends_with("is already in use"));
    world.cloud.terminate_instances(&ids(&[&id])).await.unwrap();
    world.settle().await;
    world.check();
    world.cloud.register_image(again).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_instance_keeps_the_public_half_of_a_key_pair_that_is_deleted() {
    let mut world = World::new().await;
    let wanted = CreateKeyPair {
        name: "my key".to_owned(),
        kind: KeyKind::Ed25519,
        bits: None,
        format: PrivateFormat::Pem,
        tags: tags(&[("team", "a")]),
    };
    let made = world.cloud.create_key_pair(wanted.clone()).await.unwrap();
    expect!["InvalidKeyPair.Duplicate: The keypair 'my key' already exists."]
        .assert_eq(&told(world.cloud.create_key_pair(wanted.clone()).await.map(drop)));
    let odd = CreateKeyPair { name: " ".to_owned(), ..wanted };
    assert!(told(world.cloud.create_key_pair(odd).await.map(drop)).starts_with("InvalidParameterValue"));
    let launch = Launch { key_name: Some("my key".to_owned()), ..world.one() };
    let id = only(&world.cloud.launch(launch.clone()).await.unwrap());
    world.until(&id, State::Running).await;

    let imported = ImportKeyPair {
        name: "imported".to_owned(),
        public_key: made.key_pair.public_key.clone(),
        tags: tags(&[]),
    };
    world.cloud.import_key_pair(imported).await.unwrap();
    let shown = world.cloud.describe_key_pairs(&DescribeKeyPairs::default()).await.unwrap();
    assert_eq!(shown.iter().map(|key| key.name.as_str()).collect::<Vec<_>>(), ["imported", "my key"]);
    let missing = DescribeKeyPairs { names: ids(&["nobody"]), ..Default::default() };
    expect!["InvalidKeyPair.NotFound: The key pair 'nobody' does not exist"]
        .assert_eq(&told(world.cloud.describe_key_pairs(&missing).await));

    let deleted = world.cloud.delete_key_pair(made.key_pair.id.as_str()).await.unwrap();
    assert_eq!(deleted.map(|key| key.name.clone()).as_deref(), Some("my key"));
    assert_eq!(world.cloud.delete_key_pair("my key").await.unwrap(), None);
    expect!["InvalidKeyPair.NotFound: The key pair 'my key' does not exist"]
        .assert_eq(&told(world.cloud.launch(launch).await));
    world.host.reboot();
    world.restart().await;
    world.settle().await;
    world.cloud.start_instances(&ids(&[&id])).await.unwrap();
    world.until(&id, State::Running).await;
    let plan = world.host.plan_of(&world.id(&id)).unwrap();
    assert_eq!(plan.guest.public_keys.join("\n"), made.key_pair.public_key);
}

//! Records to test with.

use std::net::Ipv4Addr;

use proptest::prelude::{Strategy, any};

use crate::{
    ids::{ImageId, InstanceId, InterfaceId, ReservationId, SubnetId, VolumeId, VpcId},
    instances::{GuestShutdown, Instance, Interface, Protection},
    lifecycle::{AfterLoss, State},
    reasons::StateReason,
    tags::Tags,
    time::Time,
    volumes::{Attachment, Volume, VolumeKind},
};

/// As a launch leaves it.
pub(crate) fn pending() -> Instance {
    Instance {
        id: InstanceId::from_random(1),
        reservation: ReservationId::from_random(2),
        launch_index: 0,
        region: "us-east-1".to_owned(),
        client_token: None,
        image: ImageId::from_random(3),
        instance_type: "t3.micro".to_owned(),
        key_name: None,
        public_key: None,
        user_data: None,
        state: State::Pending,
        generation: 1,
        first_launch: true,
        state_since: Time::from_unix_ms(0),
        forced: false,
        reboot_requested: None,
        state_reason: Some(StateReason::pending()),
        transition_reason: None,
        launched: Time::from_unix_ms(0),
        terminated: None,
        protection: Protection::default(),
        credit_mode: None,
        volumes: vec![VolumeId::from_random(4)],
        interface: Interface {
            id: InterfaceId::from_random(5),
            vpc: VpcId::from_random(6),
            subnet: SubnetId::from_random(7),
            mac: [2, 0, 0, 0, 0, 1],
            address: Ipv4Addr::new(172, 31, 0, 10),
        },
        tags: Tags::default(),
    }
}

/// The root volume of [`pending`].
pub(crate) fn volume() -> Volume {
    Volume {
        id: VolumeId::from_random(4),
        size_gib: 8,
        kind: VolumeKind::Gp3,
        image: Some(ImageId::from_random(3)),
        created: Time::from_unix_ms(0),
        attachment: Some(Attachment {
            instance: InstanceId::from_random(1),
            device: "/dev/sda1".to_owned(),
            attached: Time::from_unix_ms(0),
            delete_on_termination: true,
        }),
        tags: Tags::default(),
    }
}

pub(crate) fn shutdowns() -> impl Strategy<Value = GuestShutdown> {
    any::<bool>().prop_map(|stop| if stop { GuestShutdown::Stop } else { GuestShutdown::Terminate })
}

pub(crate) fn losses() -> impl Strategy<Value = AfterLoss> {
    any::<bool>().prop_map(|stop| if stop { AfterLoss::Stop } else { AfterLoss::StartAgain })
}

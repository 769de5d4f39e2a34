//! Instances: what is remembered of each. What may become of them is in [`crate::lifecycle`].

use serde::{Deserialize, Serialize};

use crate::{
    ids::{ImageId, InstanceId, InterfaceId, ReservationId, SubnetId, VolumeId, VpcId},
    lifecycle::State,
    reasons::{StateReason, TransitionReason},
    tags::Tags,
    time::Time,
};

/// An instance, as the store keeps it. What is decided is here; what is observed is the host's.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Instance {
    /// Its id.
    pub id: InstanceId,
    /// The request that launched it.
    pub reservation: ReservationId,
    /// Place among the instances of that request, from 0.
    pub launch_index: u32,
    /// The name space it is in, such as `us-east-1`.
    pub region: String,
    /// The token of the request that launched it.
    pub client_token: Option<String>,
    /// What it was launched from.
    pub image: ImageId,
    /// Name of its instance type. Changes only while it is stopped.
    pub instance_type: String,
    /// Name of the key pair whose public half is in `authorized_keys`.
    pub key_name: Option<String>,
    /// The public half itself, as OpenSSH writes it: the key pair may be deleted, the instance keeps it.
    pub public_key: Option<String>,
    /// User data, base64.
    pub user_data: Option<String>,
    /// Where it is in its life.
    pub state: State,
    /// Number of the present attempt at the present state: two starts of one instance differ in it.
    /// Counted up by every request that changes the state, and where it is started again after a loss.
    /// While it is pending or running, the generation of its machine.
    pub generation: u64,
    /// It has never been running: a launch that fails now ends it. True at launch; the record clears it.
    /// A record that does not say is of an instance that may have data to lose.
    #[serde(default)]
    pub first_launch: bool,
    /// Since when it is in this state.
    pub state_since: Time,
    /// Its end must not ask the guest. Set by a forced stop or termination, cleared by the next start.
    pub forced: bool,
    /// A reboot that was asked for and not done yet: when it was asked for.
    pub reboot_requested: Option<Time>,
    /// Why it is in this state, where there is more to say than that somebody wanted it.
    pub state_reason: Option<StateReason>,
    /// Why it left the last one.
    pub transition_reason: Option<TransitionReason>,
    /// When it was launched, or started last.
    pub launched: Time,
    /// When it was terminated: it is shown for an hour after.
    pub terminated: Option<Time>,
    /// What protects it, and what its own power-off means.
    pub protection: Protection,
    /// How CPU credits are counted; burstable types only.
    pub credit_mode: Option<CreditMode>,
    /// Its disks, the root first.
    pub volumes: Vec<VolumeId>,
    /// Its network interface. Kept for the instance's life.
    pub interface: Interface,
    /// Tags.
    pub tags: Tags,
}

/// What protects an instance, and what its own power-off means.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Protection {
    /// `TerminateInstances` is refused.
    pub disable_api_termination: bool,
    /// `StopInstances` is refused.
    pub disable_api_stop: bool,
    /// What a power-off from inside means.
    pub on_guest_shutdown: GuestShutdown,
}

/// What a power-off from inside means: EC2's instance-initiated shutdown behaviour.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum GuestShutdown {
    /// The instance is stopped.
    #[default]
    Stop,
    /// The instance is terminated.
    Terminate,
}

/// How the CPU credits of a burstable type are counted.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CreditMode {
    /// No credits left: throttled to the baseline.
    Standard,
    /// No credits left: goes on, and what was taken beyond is charged.
    Unlimited,
}

/// A network interface and its address.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Interface {
    /// Its id: the tap is named after it.
    pub id: InterfaceId,
    /// The network.
    pub vpc: VpcId,
    /// The range.
    pub subnet: SubnetId,
    /// Hardware address.
    pub mac: [u8; 6],
    /// Its private address.
    pub address: std::net::Ipv4Addr,
}

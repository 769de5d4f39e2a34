//! Instances.

use std::collections::BTreeMap;

use ec2vmm_model::Time;
use serde::{Deserialize, Deserializer, Serialize, de::Error};
use utoipa::{IntoParams, ToSchema};

use crate::{instance_types::Architecture, volumes::VolumeKind};

/// Instances to launch: all of them or, between the two counts, as many as there is room for.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LaunchRequest {
    /// Id or name of the image.
    #[schema(min_length = 1, max_length = 128, example = "debian-12")]
    pub image: String,
    /// Name of the instance type.
    #[schema(min_length = 1, max_length = 64, example = "t3.micro")]
    pub instance_type: String,
    /// At least so many, or none. Without it, 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 1000)]
    pub min_count: Option<u32>,
    /// At most so many, not fewer than `min_count`. Without it, `min_count`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 1000)]
    pub max_count: Option<u32>,
    /// Name of the key pair that may log in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 255)]
    pub key_name: Option<String>,
    /// User data, base64, at most 16 KiB before the encoding.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 21848)]
    pub user_data: Option<String>,
    /// The root volume, where it shall differ from the image.
    #[serde(default, deserialize_with = "object", skip_serializing_if = "Option::is_none")]
    pub root_volume: Option<RootVolume>,
    /// Refuse to terminate it by request.
    #[serde(default)]
    pub disable_api_termination: bool,
    /// Refuse to stop it by request.
    #[serde(default)]
    pub disable_api_stop: bool,
    /// What a power-off from inside means.
    #[serde(default)]
    pub instance_initiated_shutdown_behavior: ShutdownBehavior,
    /// How CPU credits are counted. Without it, as the family does on EC2. Burstable types only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credit_mode: Option<CreditMode>,
    /// The private address: of one instance only. Without it, a free one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(format = Ipv4)]
    pub private_ip_address: Option<String>,
    /// Tags of each instance.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
    /// Tags of each volume.
    #[serde(default)]
    pub volume_tags: BTreeMap<String, String>,
}

/// The root volume of an instance to launch.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RootVolume {
    /// Size, GiB, not less than the image's. Without it, the image's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 65536)]
    pub size_gib: Option<u32>,
    /// Kind: what is charged for a GiB.
    #[serde(default)]
    pub kind: VolumeKind,
    /// It goes when the instance is terminated. Without it, yes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delete_on_termination: Option<bool>,
}

/// What was launched.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct Launched {
    /// The reservation: what was launched by one request.
    pub reservation_id: String,
    /// The instances, in the order of their launch index.
    pub instances: Vec<Instance>,
}

/// One page of instances.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct InstanceList {
    /// The instances, by id.
    pub instances: Vec<Instance>,
    /// Where to go on; absent on the last page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub next_token: Option<String>,
}

/// An instance.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct Instance {
    /// Its id.
    #[schema(example = "i-0123456789abcdef0")]
    pub instance_id: String,
    /// The request that launched it.
    pub reservation_id: String,
    /// Place among the instances of that request, from 0.
    pub launch_index: u32,
    /// Where it is in its life.
    pub state: InstanceState,
    /// EC2's number of the state: 0, 16, 32, 48, 64 or 80.
    pub state_code: u16,
    /// Since when.
    #[schema(value_type = String, format = DateTime)]
    pub state_since: Time,
    /// Why it is in this state, where there is more to say than that somebody wanted it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub state_reason: Option<StateReason>,
    /// Why it left the state before, such as `User initiated (2026-11-22 10:33:13 GMT)`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub transition_reason: Option<String>,
    /// When a reboot was asked for that is not done yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, format = DateTime)]
    pub reboot_requested_time: Option<Time>,
    /// The region it is in.
    pub region: String,
    /// The image it was launched from.
    pub image_id: String,
    /// Name of its instance type.
    pub instance_type: String,
    /// Virtual processors of that type.
    pub vcpus: u32,
    /// Memory of that type, MiB.
    pub memory_mib: u64,
    /// What its processors run.
    pub architecture: Architecture,
    /// When it was launched, or started last.
    #[schema(value_type = String, format = DateTime)]
    pub launch_time: Time,
    /// When it was terminated: it is shown for an hour after.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, format = DateTime)]
    pub terminated_time: Option<Time>,
    /// Name of the key pair that may log in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub key_name: Option<String>,
    /// Who can log in with the key pair, by its image, while that is registered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub login_user: Option<String>,
    /// Its private address.
    #[schema(format = Ipv4)]
    pub private_ip_address: String,
    /// Its private name.
    #[schema(example = "ip-172-31-0-10.ec2.internal")]
    pub private_dns_name: String,
    /// Hardware address of its network interface.
    #[schema(example = "06:00:ac:1f:00:0a")]
    pub mac_address: String,
    /// Its network interface.
    pub network_interface_id: String,
    /// The network it is in.
    pub vpc_id: String,
    /// The range of addresses it is in.
    pub subnet_id: String,
    /// Its disks, the root first.
    pub block_devices: Vec<BlockDevice>,
    /// The idempotency key of the request that launched it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub client_token: Option<String>,
    /// To terminate it by request is refused.
    pub disable_api_termination: bool,
    /// To stop it by request is refused.
    pub disable_api_stop: bool,
    /// What a power-off from inside means.
    pub instance_initiated_shutdown_behavior: ShutdownBehavior,
    /// How CPU credits are counted; burstable types only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub credit_mode: Option<CreditMode>,
    /// Its tags, by key.
    pub tags: BTreeMap<String, String>,
}

/// Where an instance is in its life.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum InstanceState {
    /// 0: it shall run, and does not yet.
    Pending,
    /// 16: it runs.
    Running,
    /// 32: it shall never run again; something of it is still there.
    ShuttingDown,
    /// 48: it is gone, and shown for an hour.
    Terminated,
    /// 64: it shall stand still, and runs yet.
    Stopping,
    /// 80: it stands still, and can be started.
    Stopped,
}

/// Why an instance is in its state, in EC2's words.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct StateReason {
    /// Such as `Client.UserInitiatedShutdown`.
    pub code: String,
    /// Such as `Client.UserInitiatedShutdown: User initiated shutdown`.
    pub message: String,
}

/// A disk of an instance.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct BlockDevice {
    /// As EC2 names it, such as `/dev/sda1`.
    pub device_name: String,
    /// The volume.
    pub volume_id: String,
    /// It goes when the instance is terminated.
    pub delete_on_termination: bool,
    /// Since when it is attached.
    #[schema(value_type = String, format = DateTime)]
    pub attach_time: Time,
}

/// What a power-off from inside means.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ShutdownBehavior {
    /// The instance is stopped.
    #[default]
    Stop,
    /// The instance is terminated.
    Terminate,
}

/// How the CPU credits of a burstable type are counted.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum CreditMode {
    /// No credits left: throttled to the baseline.
    Standard,
    /// No credits left: goes on, and what was taken beyond is charged.
    Unlimited,
}

/// What to change of an instance, all or nothing; what is not named stays.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize, ToSchema)]
#[schema(min_properties = 1)]
#[serde(default, deny_unknown_fields)]
pub struct InstanceChange {
    /// Another instance type. While it is stopped.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 64)]
    pub instance_type: Option<String>,
    /// Other user data, base64, at most 16 KiB before the encoding; empty for none. While it is stopped.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 21848)]
    pub user_data: Option<String>,
    /// Refuse to terminate it by request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disable_api_termination: Option<bool>,
    /// Refuse to stop it by request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disable_api_stop: Option<bool>,
    /// What a power-off from inside means.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance_initiated_shutdown_behavior: Option<ShutdownBehavior>,
    /// How CPU credits are counted. Burstable types only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credit_mode: Option<CreditMode>,
}

/// How to stop an instance.
#[derive(Clone, Copy, Debug, Default, Deserialize, IntoParams, PartialEq, Serialize)]
#[into_params(parameter_in = Query)]
#[serde(default, deny_unknown_fields)]
pub struct StopQuery {
    /// Do not ask the guest: cut the power.
    pub force: bool,
}

/// What a request made of an instance's state.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct StateChange {
    /// The instance.
    pub instance_id: String,
    /// Before the request.
    pub previous_state: InstanceState,
    /// After the request.
    pub current_state: InstanceState,
}

/// An instance's user data.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct UserData {
    /// The instance.
    pub instance_id: String,
    /// User data, base64; absent if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub user_data: Option<String>,
}

/// An object and nothing else: by itself, serde reads a list of the fields' values as well.
fn object<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<RootVolume>, D::Error> {
    let Some(fields) = Option::<serde_json::Map<String, serde_json::Value>>::deserialize(deserializer)?
    else {
        return Ok(None);
    };
    RootVolume::deserialize(serde_json::Value::Object(fields)).map(Some).map_err(D::Error::custom)
}

/// The header that makes a repeated launch answer as the first did: 1 to 64 visible ASCII characters.
pub const IDEMPOTENCY_HEADER: &str = "idempotency-key";

//! Instances.

use axum::{extract::State, http::StatusCode};
use ec2vmm_cloud::instances::{Change, DescribeInstances, Described, Launch};
use ec2vmm_model::{instance_types, instances as model, lifecycle, tags::Tags};
use ec2vmm_rest_api::{
    BlockDevice, CreditMode, Instance, InstanceChange, InstanceList, InstanceState, LaunchRequest, Launched,
    ListQuery, ShutdownBehavior, StateChange, StateReason, StopQuery, UserData,
};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    bytes,
    extract::{IdempotencyKey, Json, NoQuery, Path, Query},
    images,
    instance_types::architecture,
    listing::Listing,
    problem::Refusal,
    routes::Rest,
    volumes,
};

pub(crate) fn routes() -> OpenApiRouter<Rest> {
    OpenApiRouter::new()
        .routes(routes!(launch, list))
        .routes(routes!(show, change))
        .routes(routes!(user_data))
        .routes(routes!(start))
        .routes(routes!(stop))
        .routes(routes!(reboot))
        .routes(routes!(terminate))
}

/// Launches instances
///
/// Answers at once; the instances are pending, and run in a moment.
#[utoipa::path(post, path = "/v1/instances", tag = "instances", request_body = LaunchRequest,
    params(("idempotency-key" = Option<String>, Header, nullable = false, max_length = 64, min_length = 1, pattern = "^[!-~]+$",
        description = "A request that is repeated with the same key and body answers as the first did.")),
    responses((status = 201, body = Launched), (status = 404, body = ec2vmm_rest_api::Problem),
        (status = 409, body = ec2vmm_rest_api::Problem)))]
async fn launch(
    State(rest): State<Rest>,
    _: NoQuery,
    IdempotencyKey(client_token): IdempotencyKey,
    Json(request): Json<LaunchRequest>,
) -> Result<(StatusCode, axum::Json<Launched>), Refusal> {
    // As it was named: a request that is repeated may come when the name is another image's, or nobody's.
    let image = request.image;
    let named = image.clone();
    let min_count = request.min_count.unwrap_or(1);
    let user_data = request.user_data.map(|data| bytes::read("user_data", &data)).transpose()?;
    let private_address = request.private_ip_address.map(|given| {
        given.parse().map_err(|_| Refusal::invalid("`private_ip_address` is not an IPv4 address"))
    });
    let launch = Launch {
        image,
        instance_type: request.instance_type,
        min_count,
        max_count: request.max_count.unwrap_or(min_count),
        key_name: request.key_name,
        user_data,
        client_token,
        tags: Tags(request.tags),
        volume_tags: Tags(request.volume_tags),
        protection: model::Protection {
            disable_api_termination: request.disable_api_termination,
            disable_api_stop: request.disable_api_stop,
            on_guest_shutdown: on_guest_shutdown(request.instance_initiated_shutdown_behavior),
        },
        credit_mode: request.credit_mode.map(counted),
        root: volumes::root(&request.root_volume.unwrap_or_default()),
        private_address: private_address.transpose()?,
    };
    let reservation = rest.cloud.launch(launch).await.map_err(|error| images::refused(error, named))?;
    let launched = Launched {
        reservation_id: reservation.id.to_string(),
        instances: reservation.instances.iter().map(shown).collect(),
    };
    Ok((StatusCode::CREATED, axum::Json(launched)))
}

/// Lists instances
///
/// Terminated ones are shown for an hour.
#[utoipa::path(get, path = "/v1/instances", tag = "instances", params(ListQuery),
    responses((status = 200, body = InstanceList), (status = 404, body = ec2vmm_rest_api::Problem)))]
async fn list(
    State(rest): State<Rest>,
    Query(query): Query<ListQuery>,
) -> Result<axum::Json<InstanceList>, Refusal> {
    let Listing { ids, filters, paging } = query.try_into()?;
    let page = rest.cloud.describe_instances(&DescribeInstances { ids, filters, paging }).await?;
    let instances = page.items.iter().map(shown).collect();
    Ok(axum::Json(InstanceList { instances, next_token: page.next_token }))
}

/// Shows an instance
#[utoipa::path(get, path = "/v1/instances/{instance_id}", tag = "instances",
    params(("instance_id" = String, Path, pattern = "^i-([0-9a-f]{8}|[0-9a-f]{17})$")),
    responses((status = 200, body = Instance)))]
async fn show(State(rest): State<Rest>, Path(id): Path, _: NoQuery) -> Result<axum::Json<Instance>, Refusal> {
    Ok(axum::Json(shown(&rest.cloud.instance(&id).await?)))
}

/// Changes an instance
///
/// All that is named, or nothing. Type and user data can be changed while it is stopped.
#[utoipa::path(patch, path = "/v1/instances/{instance_id}", tag = "instances", request_body = InstanceChange,
    params(("instance_id" = String, Path, pattern = "^i-([0-9a-f]{8}|[0-9a-f]{17})$")),
    responses((status = 200, body = Instance), (status = 409, body = ec2vmm_rest_api::Problem)))]
async fn change(
    State(rest): State<Rest>,
    Path(id): Path,
    _: NoQuery,
    Json(request): Json<InstanceChange>,
) -> Result<axum::Json<Instance>, Refusal> {
    if request == InstanceChange::default() {
        return Err(Refusal::new(
            StatusCode::BAD_REQUEST,
            "MissingParameter",
            "the request names nothing that is to be changed",
        ));
    }
    let change = Change {
        instance_type: request.instance_type,
        user_data: request.user_data.map(|data| bytes::read("user_data", &data)).transpose()?,
        disable_api_termination: request.disable_api_termination,
        disable_api_stop: request.disable_api_stop,
        on_guest_shutdown: request.instance_initiated_shutdown_behavior.map(on_guest_shutdown),
        credit_mode: request.credit_mode.map(counted),
    };
    Ok(axum::Json(shown(&rest.cloud.modify_instance(&id, change).await?)))
}

/// Shows an instance's user data
#[utoipa::path(get, path = "/v1/instances/{instance_id}/user-data", tag = "instances",
    params(("instance_id" = String, Path, pattern = "^i-([0-9a-f]{8}|[0-9a-f]{17})$")),
    responses((status = 200, body = UserData)))]
async fn user_data(
    State(rest): State<Rest>,
    Path(id): Path,
    _: NoQuery,
) -> Result<axum::Json<UserData>, Refusal> {
    let described = rest.cloud.instance(&id).await?;
    let user_data = described.instance.user_data.clone();
    Ok(axum::Json(UserData { instance_id: described.instance.id.to_string(), user_data }))
}

/// Starts an instance
///
/// Answers at once. One that runs already stays as it is.
#[utoipa::path(post, path = "/v1/instances/{instance_id}/start", tag = "instances",
    params(("instance_id" = String, Path, pattern = "^i-([0-9a-f]{8}|[0-9a-f]{17})$")),
    responses((status = 202, body = StateChange), (status = 409, body = ec2vmm_rest_api::Problem)))]
async fn start(State(rest): State<Rest>, Path(id): Path, _: NoQuery) -> Changed {
    changed(rest.cloud.start_instances(&[id]).await?)
}

/// Stops an instance
///
/// Answers at once. The guest is asked to power off, and forced if it takes too long.
#[utoipa::path(post, path = "/v1/instances/{instance_id}/stop", tag = "instances",
    params(StopQuery, ("instance_id" = String, Path, pattern = "^i-([0-9a-f]{8}|[0-9a-f]{17})$")),
    responses((status = 202, body = StateChange), (status = 409, body = ec2vmm_rest_api::Problem)))]
async fn stop(State(rest): State<Rest>, Path(id): Path, Query(query): Query<StopQuery>) -> Changed {
    changed(rest.cloud.stop_instances(&[id], query.force).await?)
}

/// Reboots an instance
///
/// Answers at once. The guest is asked to shut down, and reset if it takes too long. The machine, its addresses and
/// its memory's size stay; its state is running all along.
#[utoipa::path(post, path = "/v1/instances/{instance_id}/reboot", tag = "instances",
    params(("instance_id" = String, Path, pattern = "^i-([0-9a-f]{8}|[0-9a-f]{17})$")),
    responses((status = 202, body = StateChange), (status = 409, body = ec2vmm_rest_api::Problem)))]
async fn reboot(State(rest): State<Rest>, Path(id): Path, _: NoQuery) -> Changed {
    rest.cloud.reboot_instances(std::slice::from_ref(&id)).await?;
    let now = state(rest.cloud.instance(&id).await?.instance.state);
    let unchanged = StateChange { instance_id: id, previous_state: now, current_state: now };
    Ok((StatusCode::ACCEPTED, axum::Json(unchanged)))
}

/// Terminates an instance
///
/// Answers at once. It never comes back, and is shown for an hour.
#[utoipa::path(post, path = "/v1/instances/{instance_id}/terminate", tag = "instances",
    params(("instance_id" = String, Path, pattern = "^i-([0-9a-f]{8}|[0-9a-f]{17})$")),
    responses((status = 202, body = StateChange), (status = 409, body = ec2vmm_rest_api::Problem)))]
async fn terminate(State(rest): State<Rest>, Path(id): Path, _: NoQuery) -> Changed {
    changed(rest.cloud.terminate_instances(&[id]).await?)
}

type Changed = Result<(StatusCode, axum::Json<StateChange>), Refusal>;

fn changed(changes: Vec<ec2vmm_cloud::instances::StateChange>) -> Changed {
    let change = changes.into_iter().next().ok_or_else(|| {
        Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", "nothing was told of the instance")
    })?;
    let shown = StateChange {
        instance_id: change.id.to_string(),
        previous_state: state(change.previous),
        current_state: state(change.current),
    };
    Ok((StatusCode::ACCEPTED, axum::Json(shown)))
}

/// An instance as clients see it.
pub(crate) fn shown(described: &Described) -> Instance {
    let Described { instance, volumes, login_user } = described;
    let facts = instance_types::InstanceType::find(&instance.instance_type).ok();
    let [a, b, c, d, e, f] = instance.interface.mac;
    let [o1, o2, o3, o4] = instance.interface.address.octets();
    Instance {
        instance_id: instance.id.to_string(),
        reservation_id: instance.reservation.to_string(),
        launch_index: instance.launch_index,
        state: state(instance.state),
        state_code: u16::from(instance.state.code()),
        state_since: instance.state_since,
        reboot_requested_time: instance.reboot_requested,
        state_reason: instance
            .state_reason
            .as_ref()
            .map(|reason| StateReason { code: reason.code.clone(), message: reason.message.clone() }),
        transition_reason: instance.transition_reason.as_ref().map(|reason| reason.0.clone()),
        region: instance.region.clone(),
        image_id: instance.image.to_string(),
        instance_type: instance.instance_type.clone(),
        vcpus: facts.as_ref().map_or(0, |facts| u32::from(facts.vcpus)),
        memory_mib: facts.as_ref().map_or(0, |facts| facts.memory_mib),
        architecture: architecture(facts.map_or(instance_types::Arch::X86_64, |facts| facts.arch)),
        launch_time: instance.launched,
        terminated_time: instance.terminated,
        key_name: instance.key_name.clone(),
        login_user: login_user.clone(),
        private_ip_address: instance.interface.address.to_string(),
        private_dns_name: format!("ip-{o1}-{o2}-{o3}-{o4}.{}", domain(&instance.region)),
        mac_address: format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}"),
        network_interface_id: instance.interface.id.to_string(),
        vpc_id: instance.interface.vpc.to_string(),
        subnet_id: instance.interface.subnet.to_string(),
        block_devices: volumes.iter().filter_map(|volume| block_device(volume)).collect(),
        client_token: instance.client_token.clone(),
        disable_api_termination: instance.protection.disable_api_termination,
        disable_api_stop: instance.protection.disable_api_stop,
        instance_initiated_shutdown_behavior: match instance.protection.on_guest_shutdown {
            model::GuestShutdown::Stop => ShutdownBehavior::Stop,
            model::GuestShutdown::Terminate => ShutdownBehavior::Terminate,
        },
        credit_mode: instance.credit_mode.map(|mode| match mode {
            model::CreditMode::Standard => CreditMode::Standard,
            model::CreditMode::Unlimited => CreditMode::Unlimited,
        }),
        tags: instance.tags.0.clone(),
    }
}

/// The domain that instances' private names are in.
pub fn domain(region: &str) -> String {
    match region {
        "us-east-1" => "ec2.internal".to_owned(),
        _ => format!("{region}.compute.internal"),
    }
}

fn block_device(volume: &ec2vmm_model::volumes::Volume) -> Option<BlockDevice> {
    let attachment = volume.attachment.as_ref()?;
    Some(BlockDevice {
        device_name: attachment.device.clone(),
        volume_id: volume.id.to_string(),
        delete_on_termination: attachment.delete_on_termination,
        attach_time: attachment.attached,
    })
}

/// A state in the contract's words.
pub(crate) fn state(state: lifecycle::State) -> InstanceState {
    match state {
        lifecycle::State::Pending => InstanceState::Pending,
        lifecycle::State::Running => InstanceState::Running,
        lifecycle::State::ShuttingDown => InstanceState::ShuttingDown,
        lifecycle::State::Terminated => InstanceState::Terminated,
        lifecycle::State::Stopping => InstanceState::Stopping,
        lifecycle::State::Stopped => InstanceState::Stopped,
    }
}

fn on_guest_shutdown(behavior: ShutdownBehavior) -> model::GuestShutdown {
    match behavior {
        ShutdownBehavior::Stop => model::GuestShutdown::Stop,
        ShutdownBehavior::Terminate => model::GuestShutdown::Terminate,
    }
}

fn counted(mode: CreditMode) -> model::CreditMode {
    match mode {
        CreditMode::Standard => model::CreditMode::Standard,
        CreditMode::Unlimited => model::CreditMode::Unlimited,
    }
}

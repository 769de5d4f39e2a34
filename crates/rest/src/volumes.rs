//! Volumes.

use axum::{extract::State, http::StatusCode};
use ec2vmm_cloud::{instances, volumes::DescribeVolumes};
use ec2vmm_model::volumes as model;
use ec2vmm_rest_api::{ListQuery, RootVolume, Volume, VolumeAttachment, VolumeKind, VolumeList};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    extract::{NoQuery, Path, Query},
    listing::Listing,
    problem::Refusal,
    routes::Rest,
};

pub(crate) fn routes() -> OpenApiRouter<Rest> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(show, delete))
}

/// Lists volumes
#[utoipa::path(get, path = "/v1/volumes", tag = "volumes", params(ListQuery),
    responses((status = 200, body = VolumeList), (status = 404, body = ec2vmm_rest_api::Problem)))]
async fn list(
    State(rest): State<Rest>,
    Query(query): Query<ListQuery>,
) -> Result<axum::Json<VolumeList>, Refusal> {
    let Listing { ids, filters, paging } = query.try_into()?;
    let page = rest.cloud.describe_volumes(&DescribeVolumes { ids, filters, paging }).await?;
    let volumes = page.items.iter().map(|volume| shown(volume)).collect();
    Ok(axum::Json(VolumeList { volumes, next_token: page.next_token }))
}

/// Shows a volume
#[utoipa::path(get, path = "/v1/volumes/{volume_id}", tag = "volumes",
    params(("volume_id" = String, Path, pattern = "^vol-([0-9a-f]{8}|[0-9a-f]{17})$")),
    responses((status = 200, body = Volume)))]
async fn show(State(rest): State<Rest>, Path(id): Path, _: NoQuery) -> Result<axum::Json<Volume>, Refusal> {
    use ec2vmm_cloud::error::{Error, Noun};
    let what = DescribeVolumes { ids: vec![id.clone()], ..DescribeVolumes::default() };
    let found = rest.cloud.describe_volumes(&what).await?.items.into_iter().next();
    let found = found.ok_or_else(|| Refusal::from(Error::NotFound { noun: Noun::Volume, ids: vec![id] }))?;
    Ok(axum::Json(shown(&found)))
}

/// Deletes a volume
///
/// One that outlived its instance.
#[utoipa::path(delete, path = "/v1/volumes/{volume_id}", tag = "volumes",
    params(("volume_id" = String, Path, pattern = "^vol-([0-9a-f]{8}|[0-9a-f]{17})$")),
    responses((status = 204, description = "It is deleted"), (status = 409, body = ec2vmm_rest_api::Problem)))]
async fn delete(State(rest): State<Rest>, Path(id): Path, _: NoQuery) -> Result<StatusCode, Refusal> {
    rest.cloud.delete_volume(&id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// A root volume that is wanted.
pub(crate) fn root(wanted: &RootVolume) -> instances::RootVolume {
    instances::RootVolume {
        size_gib: wanted.size_gib,
        kind: match wanted.kind {
            VolumeKind::Gp3 => model::VolumeKind::Gp3,
            VolumeKind::Gp2 => model::VolumeKind::Gp2,
            VolumeKind::Io1 => model::VolumeKind::Io1,
            VolumeKind::Io2 => model::VolumeKind::Io2,
            VolumeKind::St1 => model::VolumeKind::St1,
            VolumeKind::Sc1 => model::VolumeKind::Sc1,
            VolumeKind::Standard => model::VolumeKind::Standard,
        },
        delete_on_termination: wanted.delete_on_termination.unwrap_or(true),
    }
}

fn shown(volume: &model::Volume) -> Volume {
    Volume {
        volume_id: volume.id.to_string(),
        size_gib: volume.size_gib,
        kind: match volume.kind {
            model::VolumeKind::Gp3 => VolumeKind::Gp3,
            model::VolumeKind::Gp2 => VolumeKind::Gp2,
            model::VolumeKind::Io1 => VolumeKind::Io1,
            model::VolumeKind::Io2 => VolumeKind::Io2,
            model::VolumeKind::St1 => VolumeKind::St1,
            model::VolumeKind::Sc1 => VolumeKind::Sc1,
            model::VolumeKind::Standard => VolumeKind::Standard,
        },
        image_id: volume.image.as_ref().map(ToString::to_string),
        creation_time: volume.created,
        attachment: volume.attachment.as_ref().map(|attachment| VolumeAttachment {
            instance_id: attachment.instance.to_string(),
            device_name: attachment.device.clone(),
            attach_time: attachment.attached,
            delete_on_termination: attachment.delete_on_termination,
        }),
        tags: volume.tags.0.clone(),
    }
}

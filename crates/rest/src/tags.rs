//! Tags of any resource that can have them.

use axum::{extract::State, http::StatusCode};
use ec2vmm_model::tags::Tags;
use ec2vmm_rest_api::{AddTagsRequest, RemoveTagsQuery};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    extract::{Json, NoQuery, Path, Query},
    problem::Refusal,
    routes::Rest,
};

pub(crate) fn routes() -> OpenApiRouter<Rest> {
    OpenApiRouter::new().routes(routes!(add, remove))
}

/// Adds tags
///
/// Those that are there get another value; all of them, or none.
#[utoipa::path(post, path = "/v1/tags/{resource_id}", tag = "tags", request_body = AddTagsRequest,
    params(("resource_id" = String, Path, pattern = "^(i|ami|vol|key)-([0-9a-f]{8}|[0-9a-f]{17})$")),
    responses((status = 204, description = "They are there"), (status = 409, body = ec2vmm_rest_api::Problem)))]
async fn add(
    State(rest): State<Rest>,
    Path(id): Path,
    _: NoQuery,
    Json(request): Json<AddTagsRequest>,
) -> Result<StatusCode, Refusal> {
    rest.cloud.create_tags(&[id], &Tags(request.tags)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Removes tags
#[utoipa::path(delete, path = "/v1/tags/{resource_id}", tag = "tags",
    params(RemoveTagsQuery, ("resource_id" = String, Path, pattern = "^(i|ami|vol|key)-([0-9a-f]{8}|[0-9a-f]{17})$")),
    responses((status = 204, description = "They are gone")))]
async fn remove(
    State(rest): State<Rest>,
    Path(id): Path,
    Query(query): Query<RemoveTagsQuery>,
) -> Result<StatusCode, Refusal> {
    if query.key.is_empty() {
        // To the cloud, no key means every tag: nobody removes them all by forgetting to say which.
        return Err(Refusal::new(
            StatusCode::BAD_REQUEST,
            "MissingParameter",
            "the request must contain the parameter key",
        ));
    }
    if query.key.len() > KEYS_MAX {
        return Err(Refusal::invalid(format!("`key` is given more than {KEYS_MAX} times")));
    }
    let keys: Vec<_> = query.key.into_iter().map(|key| (key, None)).collect();
    rest.cloud.delete_tags(&[id], &keys).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// As many tags as a resource can have.
const KEYS_MAX: usize = 50;

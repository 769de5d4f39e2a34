//! Images.

use axum::{extract::State, http::StatusCode};
use ec2vmm_cloud::{
    Cloud,
    error::{Error, Noun},
    filters::Filter,
    images::{DescribeImages, RegisterImage},
};
use ec2vmm_model::{images as model, tags::Tags};
use ec2vmm_rest_api::{DiskFormat, Image, ImageList, ListQuery, RegisterImageRequest};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    extract::{Json, NoQuery, Path, Query},
    instance_types::architecture,
    listing::Listing,
    problem::Refusal,
    routes::Rest,
};

pub(crate) fn routes() -> OpenApiRouter<Rest> {
    OpenApiRouter::new().routes(routes!(register, list)).routes(routes!(show, deregister))
}

/// Registers an image
///
/// The file is looked at first: there must be a disk in it that can be booted.
#[utoipa::path(post, path = "/v1/images", tag = "images", request_body = RegisterImageRequest,
    responses((status = 201, body = Image), (status = 409, body = ec2vmm_rest_api::Problem)))]
async fn register(
    State(rest): State<Rest>,
    _: NoQuery,
    Json(request): Json<RegisterImageRequest>,
) -> Result<(StatusCode, axum::Json<Image>), Refusal> {
    if request.file.chars().count() > FILE_CHARS_MAX {
        return Err(Refusal::invalid(format!("`file` is longer than {FILE_CHARS_MAX} characters")));
    }
    let image = RegisterImage {
        name: request.name,
        description: request.description,
        file: request.file.into(),
        format: match request.format {
            DiskFormat::Raw => model::DiskFormat::Raw,
            DiskFormat::Qcow2 => model::DiskFormat::Qcow2,
        },
        login_user: request.login_user,
        tags: Tags(request.tags),
        id: request.image_id,
    };
    let image = rest.cloud.register_image(image).await?;
    Ok((StatusCode::CREATED, axum::Json(shown(&image))))
}

/// Lists images
#[utoipa::path(get, path = "/v1/images", tag = "images", params(ListQuery),
    responses((status = 200, body = ImageList), (status = 404, body = ec2vmm_rest_api::Problem)))]
async fn list(
    State(rest): State<Rest>,
    Query(query): Query<ListQuery>,
) -> Result<axum::Json<ImageList>, Refusal> {
    let Listing { ids, filters, paging } = query.try_into()?;
    let page = rest.cloud.describe_images(&DescribeImages { ids, filters, paging }).await?;
    let images = page.items.iter().map(|image| shown(image)).collect();
    Ok(axum::Json(ImageList { images, next_token: page.next_token }))
}

/// Shows an image
#[utoipa::path(get, path = "/v1/images/{image}", tag = "images",
    params(("image" = String, Path, min_length = 1, description = "Its id or its name")),
    responses((status = 200, body = Image)))]
async fn show(State(rest): State<Rest>, Path(image): Path, _: NoQuery) -> Result<axum::Json<Image>, Refusal> {
    let id = id_of(&rest.cloud, image).await?;
    let what = DescribeImages { ids: vec![id.clone()], ..DescribeImages::default() };
    let found = rest.cloud.describe_images(&what).await?.items.into_iter().next();
    found.map(|image| axum::Json(shown(&image))).ok_or_else(|| not_found(id))
}

/// Deregisters an image
///
/// The file stays, and must stay as long as there are instances that were launched from it.
#[utoipa::path(delete, path = "/v1/images/{image}", tag = "images",
    params(("image" = String, Path, min_length = 1, description = "Its id or its name")),
    responses((status = 204, description = "It is deregistered")))]
async fn deregister(State(rest): State<Rest>, Path(image): Path, _: NoQuery) -> Result<StatusCode, Refusal> {
    let id = id_of(&rest.cloud, image).await?;
    rest.cloud.deregister_image(&id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The id of an image that is named by its id or its name.
pub(crate) async fn id_of(cloud: &Cloud, image: String) -> Result<String, Refusal> {
    if image.starts_with(ID_BEGIN) {
        return Ok(image);
    }
    let filter = Filter { name: "name".to_owned(), values: vec![literal(&image)] };
    let what = DescribeImages { filters: vec![filter], ..DescribeImages::default() };
    let found = cloud.describe_images(&what).await?.items.into_iter().next();
    found.map(|image| image.id.to_string()).ok_or_else(|| unknown(image))
}

/// A launch that was refused from the image of that id or name: what is no id is meant as a name here.
pub(crate) fn refused(error: Error, image: String) -> Refusal {
    match error {
        Error::MalformedId { noun: Noun::Image, .. } if !image.starts_with(ID_BEGIN) => unknown(image),
        error => error.into(),
    }
}

fn unknown(image: String) -> Refusal {
    not_found(image).hint("name an image by its id or its name: `ec2vmm image ls` shows them")
}

fn not_found(image: String) -> Refusal {
    Error::NotFound { noun: Noun::Image, ids: vec![image] }.into()
}

/// A filter's value that is met by this text only.
fn literal(text: &str) -> String {
    let mut value = String::with_capacity(text.len());
    for c in text.chars() {
        if matches!(c, '*' | '?' | '\\') {
            value.push('\\');
        }
        value.push(c);
    }
    value
}

fn shown(image: &model::Image) -> Image {
    Image {
        image_id: image.id.to_string(),
        name: image.name.clone(),
        description: image.description.clone(),
        file: image.file.clone(),
        format: match image.format {
            model::DiskFormat::Raw => DiskFormat::Raw,
            model::DiskFormat::Qcow2 => DiskFormat::Qcow2,
        },
        architecture: architecture(image.arch),
        size_bytes: image.size_bytes,
        login_user: image.login_user.clone(),
        creation_time: image.created,
        tags: image.tags.0.clone(),
    }
}

/// What begins so is an id, well-formed or not: a name may not, so that a mistyped id is told as such.
const ID_BEGIN: &str = "ami-";
/// Linux's PATH_MAX.
const FILE_CHARS_MAX: usize = 4096;

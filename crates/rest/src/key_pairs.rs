//! Key pairs.

use axum::{extract::State, http::StatusCode};
use ec2vmm_cloud::{
    error::{Error, Noun},
    key_pairs::{CreateKeyPair, DescribeKeyPairs, ImportKeyPair, PrivateFormat},
};
use ec2vmm_model::{ids::KeyPairId, key_pairs as model, tags::Tags};
use ec2vmm_rest_api::{
    CreateKeyPairRequest, CreatedKeyPair, ImportKeyPairRequest, KeyKind, KeyPair, KeyPairList, KeyPairQuery,
    PrivateKeyFormat,
};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    extract::{Json, NoQuery, Path, Query},
    listing::{filters, named},
    problem::Refusal,
    routes::Rest,
};

pub(crate) fn routes() -> OpenApiRouter<Rest> {
    OpenApiRouter::new().routes(routes!(create, list)).routes(routes!(import)).routes(routes!(show, delete))
}

/// Makes a key pair
///
/// The private half is in the answer, once: it is kept nowhere.
#[utoipa::path(post, path = "/v1/key-pairs", tag = "key pairs", request_body = CreateKeyPairRequest,
    responses((status = 201, body = CreatedKeyPair), (status = 409, body = ec2vmm_rest_api::Problem)))]
async fn create(
    State(rest): State<Rest>,
    _: NoQuery,
    Json(request): Json<CreateKeyPairRequest>,
) -> Result<(StatusCode, axum::Json<CreatedKeyPair>), Refusal> {
    let what = CreateKeyPair {
        name: request.name,
        kind: match request.kind {
            KeyKind::Rsa => model::KeyKind::Rsa,
            KeyKind::Ed25519 => model::KeyKind::Ed25519,
        },
        bits: request.bits,
        format: match request.format {
            PrivateKeyFormat::Pem => PrivateFormat::Pem,
            PrivateKeyFormat::Ppk => PrivateFormat::Ppk,
        },
        tags: Tags(request.tags),
    };
    let created = rest.cloud.create_key_pair(what).await?;
    let created = CreatedKeyPair {
        key_pair: shown(&created.key_pair),
        private_key: created.private_key.expose().to_owned(),
        format: request.format,
    };
    Ok((StatusCode::CREATED, axum::Json(created)))
}

/// Imports a public key
#[utoipa::path(post, path = "/v1/key-pair-imports", tag = "key pairs", request_body = ImportKeyPairRequest,
    responses((status = 201, body = KeyPair), (status = 409, body = ec2vmm_rest_api::Problem)))]
async fn import(
    State(rest): State<Rest>,
    _: NoQuery,
    Json(request): Json<ImportKeyPairRequest>,
) -> Result<(StatusCode, axum::Json<KeyPair>), Refusal> {
    let ImportKeyPairRequest { name, public_key, tags } = request;
    let imported = rest.cloud.import_key_pair(ImportKeyPair { name, public_key, tags: Tags(tags) }).await?;
    Ok((StatusCode::CREATED, axum::Json(shown(&imported))))
}

/// Lists key pairs
#[utoipa::path(get, path = "/v1/key-pairs", tag = "key pairs", params(KeyPairQuery),
    responses((status = 200, body = KeyPairList), (status = 404, body = ec2vmm_rest_api::Problem)))]
async fn list(
    State(rest): State<Rest>,
    Query(query): Query<KeyPairQuery>,
) -> Result<axum::Json<KeyPairList>, Refusal> {
    let KeyPairQuery { id, name, filter } = query;
    let what =
        DescribeKeyPairs { names: named("name", name)?, ids: named("id", id)?, filters: filters(&filter)? };
    let key_pairs = rest.cloud.describe_key_pairs(&what).await?;
    Ok(axum::Json(KeyPairList { key_pairs: key_pairs.iter().map(|key_pair| shown(key_pair)).collect() }))
}

/// Shows a key pair
#[utoipa::path(get, path = "/v1/key-pairs/{key_pair}", tag = "key pairs",
    params(("key_pair" = String, Path, min_length = 1, description = "Its id or its name")),
    responses((status = 200, body = KeyPair)))]
async fn show(
    State(rest): State<Rest>,
    Path(name): Path,
    _: NoQuery,
) -> Result<axum::Json<KeyPair>, Refusal> {
    let mut what = DescribeKeyPairs::default();
    match name.parse::<KeyPairId>() {
        Ok(_) => what.ids.push(name.clone()),
        Err(_) => what.names.push(name.clone()),
    }
    let found = rest.cloud.describe_key_pairs(&what).await?.into_iter().next();
    found.map(|key_pair| axum::Json(shown(&key_pair))).ok_or_else(|| not_found(name))
}

/// Deletes a key pair
///
/// Instances that have its public half keep it.
#[utoipa::path(delete, path = "/v1/key-pairs/{key_pair}", tag = "key pairs",
    params(("key_pair" = String, Path, min_length = 1, description = "Its id or its name")),
    responses((status = 204, description = "It is deleted")))]
async fn delete(State(rest): State<Rest>, Path(name): Path, _: NoQuery) -> Result<StatusCode, Refusal> {
    match rest.cloud.delete_key_pair(&name).await? {
        Some(_) => Ok(StatusCode::NO_CONTENT),
        None => Err(not_found(name)),
    }
}

fn not_found(name: String) -> Refusal {
    Error::NotFound { noun: Noun::KeyPair, ids: vec![name] }.into()
}

fn shown(key_pair: &model::KeyPair) -> KeyPair {
    KeyPair {
        key_pair_id: key_pair.id.to_string(),
        name: key_pair.name.clone(),
        kind: match key_pair.kind {
            model::KeyKind::Rsa => KeyKind::Rsa,
            model::KeyKind::Ed25519 => KeyKind::Ed25519,
        },
        fingerprint: key_pair.fingerprint.clone(),
        public_key: key_pair.public_key.clone(),
        creation_time: key_pair.created,
        tags: key_pair.tags.0.clone(),
    }
}

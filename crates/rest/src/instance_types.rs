//! Instance types.

use axum::extract::State;
use ec2vmm_cloud::{
    page::Paging,
    types::{DescribeTypes, DescribedType},
};
use ec2vmm_model::Arch;
use ec2vmm_rest_api::{Architecture, InstanceType, InstanceTypeList, InstanceTypeQuery};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    extract::{NoQuery, Path, Query},
    listing::{filters, named},
    problem::Refusal,
    routes::Rest,
};

pub(crate) fn routes() -> OpenApiRouter<Rest> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(show))
}

/// Lists instance types
#[utoipa::path(get, path = "/v1/instance-types", tag = "instance types", params(InstanceTypeQuery),
    responses((status = 200, body = InstanceTypeList), (status = 404, body = ec2vmm_rest_api::Problem)))]
async fn list(
    State(rest): State<Rest>,
    Query(query): Query<InstanceTypeQuery>,
) -> Result<axum::Json<InstanceTypeList>, Refusal> {
    let InstanceTypeQuery { name, filter, runnable, max_results, next_token } = query;
    let what = DescribeTypes {
        names: named("name", name)?,
        filters: filters(&filter)?,
        runnable_only: runnable,
        paging: Paging { max_results, next_token },
    };
    let page = rest.cloud.describe_types(&what).await?;
    let instance_types = page.items.iter().map(shown).collect();
    Ok(axum::Json(InstanceTypeList { instance_types, next_token: page.next_token }))
}

/// Shows an instance type
#[utoipa::path(get, path = "/v1/instance-types/{name}", tag = "instance types",
    params(("name" = String, Path, min_length = 1, example = "t3.micro")),
    responses((status = 200, body = InstanceType)))]
async fn show(
    State(rest): State<Rest>,
    Path(name): Path,
    _: NoQuery,
) -> Result<axum::Json<InstanceType>, Refusal> {
    let what = DescribeTypes { names: vec![name.clone()], ..DescribeTypes::default() };
    let found = rest.cloud.describe_types(&what).await?.items.into_iter().next();
    let found = found.ok_or_else(|| Refusal::from(ec2vmm_cloud::Error::UnknownTypes(vec![name])))?;
    Ok(axum::Json(shown(&found)))
}

fn shown(described: &DescribedType) -> InstanceType {
    let DescribedType { facts, runnable } = described;
    InstanceType {
        name: facts.name.to_owned(),
        architecture: architecture(facts.arch),
        runnable: *runnable,
        vcpus: u32::from(facts.vcpus),
        memory_mib: facts.memory_mib,
        network_performance: facts.network_performance.to_owned(),
        network_baseline_gbps: facts.network_baseline_gbps,
        burstable: facts.burstable,
        current_generation: facts.current_generation,
        gpu: facts.gpu.map(str::to_owned),
        instance_store_gb: facts.instance_store_gb,
        usd_per_hour: facts.usd_per_hour,
    }
}

/// An architecture in the contract's words.
pub(crate) fn architecture(arch: Arch) -> Architecture {
    match arch {
        Arch::X86_64 => Architecture::X86_64,
        Arch::Arm64 => Architecture::Arm64,
        Arch::X86_64Mac => Architecture::X86_64Mac,
        Arch::Arm64Mac => Architecture::Arm64Mac,
    }
}

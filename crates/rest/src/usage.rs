//! What machines use.

use axum::extract::State;
use ec2vmm_cloud::{
    Error,
    filters::Filter,
    instances::{DescribeInstances, Described},
};
use ec2vmm_model::InstanceType;
use ec2vmm_rest_api::{Usage, UsageList};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    extract::{NoQuery, Path},
    problem::Refusal,
    routes::Rest,
};

pub(crate) fn routes() -> OpenApiRouter<Rest> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(show))
}

/// Shows what an instance uses
#[utoipa::path(get, path = "/v1/instances/{instance_id}/usage", tag = "usage",
    params(("instance_id" = String, Path, pattern = "^i-([0-9a-f]{8}|[0-9a-f]{17})$")),
    responses((status = 200, body = Usage), (status = 409, body = ec2vmm_rest_api::Problem)))]
async fn show(State(rest): State<Rest>, Path(id): Path, _: NoQuery) -> Result<axum::Json<Usage>, Refusal> {
    let described = rest.cloud.instance(&id).await?;
    Ok(axum::Json(used(&rest, &described).await?))
}

/// Shows what the running instances use
#[utoipa::path(get, path = "/v1/usage", tag = "usage", responses((status = 200, body = UsageList)))]
async fn list(State(rest): State<Rest>, _: NoQuery) -> Result<axum::Json<UsageList>, Refusal> {
    let running = Filter { name: "instance-state-name".to_owned(), values: vec!["running".to_owned()] };
    let mut what = DescribeInstances { filters: vec![running], ..DescribeInstances::default() };
    let mut usage = Vec::new();
    loop {
        let page = rest.cloud.describe_instances(&what).await?;
        for described in &page.items {
            match used(&rest, described).await {
                Ok(used) => usage.push(used),
                // It ended in the meantime.
                Err(refusal) if refusal.status.is_client_error() => {}
                Err(refusal) => return Err(refusal),
            }
        }
        match page.next_token {
            Some(token) => what.paging.next_token = Some(token),
            None => return Ok(axum::Json(UsageList { usage })),
        }
    }
}

async fn used(rest: &Rest, described: &Described) -> Result<Usage, Refusal> {
    let instance = &described.instance;
    let id = instance.id.to_string();
    let used = rest.cloud.usage(&id).await?;
    let facts = InstanceType::find(&instance.instance_type).ok();
    Ok(Usage {
        instance_type: instance.instance_type.clone(),
        vcpus: facts.as_ref().map_or(0, |facts| u32::from(facts.vcpus)),
        memory_mib: facts.map_or(0, |facts| facts.memory_mib),
        timestamp: rest.clock.now(),
        launch_time: instance.launched,
        cpu_us: used.cpu_us,
        memory_bytes: used.memory_bytes,
        disk_read_bytes: used.disk_read_bytes,
        disk_written_bytes: used.disk_written_bytes,
        net_received_bytes: used.net_received_bytes,
        net_sent_bytes: used.net_sent_bytes,
        cpu_credits: if instance.credit_mode.is_some() { credits(rest, &id).await? } else { None },
        instance_id: id,
    })
}

async fn credits(rest: &Rest, id: &str) -> Result<Option<f64>, Error> {
    let credits = rest.cloud.describe_credits(&[id.to_owned()]).await?;
    // Thousandths of at most some thousand credits.
    #[allow(clippy::cast_precision_loss, reason = "far below 2^53")]
    let balance = credits.first().map(|credits| credits.balance_milli as f64 / 1000.0);
    Ok(balance)
}

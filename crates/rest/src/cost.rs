//! What the same use would have cost on AWS.

use axum::extract::State;
use ec2vmm_cloud::{
    Error,
    error::Noun,
    instances::{DescribeInstances, Described},
};
use ec2vmm_model::{Time, cost as model, ids::InstanceId};
use ec2vmm_rest_api::{Cost, CostQuery, CostReport, InstanceCost};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{extract::Query, instances::state, problem::Refusal, routes::Rest};

pub(crate) fn routes() -> OpenApiRouter<Rest> {
    OpenApiRouter::new().routes(routes!(report))
}

/// Counts what the same use would have cost on AWS
///
/// Compute per second while running, at least 60 s for each start; volumes as long as they are there.
#[utoipa::path(get, path = "/v1/cost", tag = "cost", params(CostQuery),
    responses((status = 200, body = CostReport), (status = 404, body = ec2vmm_rest_api::Problem)))]
async fn report(
    State(rest): State<Rest>,
    Query(query): Query<CostQuery>,
) -> Result<axum::Json<CostReport>, Refusal> {
    let CostQuery { from, to, instance_id } = query;
    if from.zip(to).is_some_and(|(from, to)| from > to) {
        return Err(Refusal::invalid("`from` is later than `to`"));
    }
    let only = instance_id.map(|id| id.parse::<InstanceId>().map_err(|_| malformed(&id))).transpose()?;
    let now = rest.clock.now();
    let costs = rest.cloud.cost(from, to).await?;
    let shown = every_instance(&rest).await?;
    let of = |id: &InstanceId, cost: &model::Cost| {
        let described = shown.get(id).map(|described| &described.instance);
        InstanceCost {
            instance_id: id.to_string(),
            instance_type: described.map(|instance| instance.instance_type.clone()),
            state: described.map(|instance| state(instance.state)),
            tags: described.map(|instance| instance.tags.0.clone()).unwrap_or_default(),
            cost: shown_cost(cost),
        }
    };
    let (instances, others, total) = match only {
        None => {
            let instances = costs.instances.iter().map(|(id, cost)| of(id, cost)).collect();
            (instances, Some(shown_cost(&costs.others)), shown_cost(&costs.total))
        }
        Some(id) => {
            let cost = match costs.instances.get(&id) {
                Some(cost) => cost.clone(),
                None if shown.contains_key(&id) => model::Cost::default(),
                None => {
                    return Err(Error::NotFound { noun: Noun::Instance, ids: vec![id.to_string()] }.into());
                }
            };
            (vec![of(&id, &cost)], None, shown_cost(&cost))
        }
    };
    let to = to.filter(|to: &Time| *to < now).unwrap_or(now);
    let price_region = PRICE_REGION.to_owned();
    Ok(axum::Json(CostReport { from, to, price_region, instances, others, total }))
}

async fn every_instance(rest: &Rest) -> Result<std::collections::HashMap<InstanceId, Described>, Refusal> {
    let mut what = DescribeInstances::default();
    let mut every = std::collections::HashMap::new();
    loop {
        let page = rest.cloud.describe_instances(&what).await?;
        every.extend(page.items.into_iter().map(|described| (described.instance.id.clone(), described)));
        match page.next_token {
            Some(token) => what.paging.next_token = Some(token),
            None => return Ok(every),
        }
    }
}

fn malformed(id: &str) -> Refusal {
    let given = id.chars().take(64).collect();
    Error::MalformedId { given, noun: Noun::Instance }.into()
}

fn shown_cost(cost: &model::Cost) -> Cost {
    // Milliseconds of a lifetime are far below 2^53.
    #[allow(clippy::cast_precision_loss, reason = "exact up to 285,000 years")]
    let running_seconds = cost.running_ms as f64 / 1000.0;
    Cost {
        compute_usd: cost.compute,
        cpu_credits_usd: cost.credits,
        storage_usd: cost.storage,
        addresses_usd: cost.addresses,
        total_usd: cost.total,
        usd_per_hour: cost.per_hour,
        running_seconds,
        starts: cost.runs,
        unpriced: cost.unpriced,
    }
}

/// Every region's name gets its prices.
const PRICE_REGION: &str = "us-east-1";

//! What is on this host that belongs to a cloud.

use super::{
    Shared,
    error::{blocking, explain},
};
use crate::host::{Error, Inventory};

/// Looks at everything. Machines that run are adopted.
pub(super) async fn take(shared: &Shared) -> Result<Inventory, Error> {
    let machines = shared.machines.inventory().await?;
    let (pool, logs) = (shared.volumes.clone(), shared.consoles.clone());
    let (volumes, consoles) = blocking(move || Ok((pool.list()?, logs.list()?))).await?;
    let (networks, interfaces) = match &shared.network {
        Some(network) => network.inventory().await.map_err(|error| explain(&error))?,
        None => Default::default(),
    };
    Ok(Inventory { machines, volumes, interfaces, networks, consoles })
}

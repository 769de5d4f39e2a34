//! `ec2vmm show`.

use clap_complete::ArgValueCompleter;
use ec2vmm_rest_api::Instance;

use crate::{
    Done,
    client::Call,
    clock::now,
    complete,
    connection::Connection,
    environment::Environment,
    names,
    output::{self, bytes, facts, span::span, state_name},
    value::settings,
};

/// Show everything about an instance
#[derive(Debug, clap::Args)]
pub(crate) struct Show {
    /// Instance: its id, the beginning of its id, or its Name tag
    #[arg(value_name = "ID", add = ArgValueCompleter::new(complete::instances))]
    instance: String,
    /// Print JSON and not a table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

pub(crate) fn run(args: &Show, environment: &Environment) -> Done {
    let client = args.connection.client(environment)?;
    let id = names::resolve(&client, &args.instance)?;
    let instance: Instance = client.ask(&Call::get(&["v1", "instances", &id]))?;
    match args.json {
        true => output::print_json(&instance),
        false => output::print(facts(&describe(&instance))),
    }
}

fn describe(instance: &Instance) -> Vec<(&'static str, String)> {
    let since = span(now().ms_since(instance.state_since));
    let mut found = vec![
        ("id", instance.instance_id.clone()),
        ("state", format!("{}, for {since}", state_name(instance.state))),
    ];
    found.extend(instance.state_reason.iter().map(|reason| ("reason", reason.message.clone())));
    found.extend(instance.transition_reason.iter().map(|reason| ("transition", reason.clone())));
    found.extend(instance.reboot_requested_time.iter().map(|time| ("rebooting", format!("since {time}"))));
    found.extend([
        (
            "type",
            format!(
                "{}: {} vCPUs, {}, {}",
                instance.instance_type,
                instance.vcpus,
                bytes(instance.memory_mib.saturating_mul(1 << 20)),
                settings::architecture(instance.architecture)
            ),
        ),
        ("image", instance.image_id.clone()),
        ("launched", instance.launch_time.to_string()),
    ]);
    found.extend(instance.terminated_time.iter().map(|time| ("terminated", time.to_string())));
    found.extend(instance.key_name.iter().map(|key| ("key", key.clone())));
    found.extend([
        ("address", instance.private_ip_address.clone()),
        ("host name", instance.private_dns_name.clone()),
        (
            "interface",
            format!("{}, {}, {}", instance.network_interface_id, instance.mac_address, instance.subnet_id),
        ),
    ]);
    found.extend(instance.login_user.iter().map(|user| {
        let address = &instance.private_ip_address;
        let key = instance.key_name.as_ref().map(|key| format!(" -i {key}.pem")).unwrap_or_default();
        ("log in", format!("ssh{key} {user}@{address}"))
    }));
    for device in &instance.block_devices {
        let stays = if device.delete_on_termination { "" } else { ", stays after termination" };
        found.push(("volume", format!("{} as {}{stays}", device.volume_id, device.device_name)));
    }
    found.extend(protection(instance));
    found.extend(instance.credit_mode.map(|mode| ("credits", settings::credit_mode(mode).to_owned())));
    found.extend([
        ("reservation", format!("{}, number {}", instance.reservation_id, instance.launch_index)),
        ("region", instance.region.clone()),
    ]);
    found.extend(instance.tags.iter().map(|(key, value)| ("tag", format!("{key}={value}"))));
    found
}

fn protection(instance: &Instance) -> Vec<(&'static str, String)> {
    let protected: Vec<&str> =
        [(instance.disable_api_termination, "terminate"), (instance.disable_api_stop, "stop")]
            .into_iter()
            .filter_map(|(on, verb)| on.then_some(verb))
            .collect();
    let mut found = Vec::new();
    if !protected.is_empty() {
        found.push(("protected", format!("from {}", protected.join(" and "))));
    }
    let behavior = settings::shutdown_behavior(instance.instance_initiated_shutdown_behavior);
    found.push(("power-off", format!("from inside means {behavior}")));
    found
}

//! `ec2vmm ls`, and the table of instances that other verbs print too.

use ec2vmm_rest_api::{Instance, InstanceList};

use crate::{
    Done,
    client::Call,
    clock::now,
    connection::Connection,
    environment::Environment,
    names::name,
    output::{
        self,
        screen::{Screen, state_style},
        span::span,
        state_name,
        table::{Cell, Table, text, whole},
    },
    value::filter::Filter,
};

/// List instances
#[derive(Debug, clap::Args)]
#[command(visible_alias = "list")]
pub(crate) struct Ls {
    /// Only instances that have one of the values; may be repeated: all must hold
    ///
    /// Names are EC2's: instance-state-name, instance-type, image-id, key-name, private-ip-address, tag:KEY,
    /// tag-key, ... In values * stands for any text and ? for one character.
    #[arg(long, short, value_name = "NAME=VALUE[,VALUE...]")]
    filter: Vec<Filter>,
    /// Terminated ones, too: they are shown for an hour
    #[arg(long, short)]
    all: bool,
    /// Print the ids only
    #[arg(long, short, conflicts_with = "json")]
    quiet: bool,
    /// Print JSON and not a table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

pub(crate) fn run(args: &Ls, environment: &Environment) -> Done {
    let client = args.connection.client(environment)?;
    let mut call = Call::get(&["v1", "instances"]);
    let chooses_states = args.filter.iter().any(|filter| filter.name().starts_with("instance-state-"));
    if !args.all && !chooses_states {
        call = call.with("filter", NOT_TERMINATED);
    }
    for filter in &args.filter {
        call = call.with("filter", &filter.text);
    }
    let instances = client.list::<InstanceList>(&call)?;
    if args.json {
        return output::print_json(&InstanceList { instances, next_token: None });
    }
    match args.quiet {
        true => output::print(ids(&instances)),
        false => output::print(table(&instances, Screen::stdout(environment.plain))),
    }
}

/// Instances as people see them.
pub(super) fn table(instances: &[Instance], screen: Screen) -> String {
    let now = now();
    let mut table = Table::new([
        whole("ID"),
        text("NAME"),
        whole("STATE"),
        whole("TYPE"),
        whole("ADDRESS"),
        text("IMAGE"),
        text("KEY"),
        whole("LAUNCHED"),
    ]);
    for instance in instances {
        table.row([
            instance.instance_id.as_str().into(),
            name(instance).into(),
            Cell::styled(state_name(instance.state), state_style(instance.state)),
            instance.instance_type.as_str().into(),
            instance.private_ip_address.as_str().into(),
            instance.image_id.as_str().into(),
            instance.key_name.as_deref().into(),
            format!("{} ago", span(now.ms_since(instance.launch_time))).into(),
        ]);
    }
    table.render(screen)
}

/// Their ids, one a line.
pub(super) fn ids(instances: &[Instance]) -> String {
    instances.iter().map(|instance| format!("{}\n", output::printable(&instance.instance_id))).collect()
}

const NOT_TERMINATED: &str = "instance-state-name=pending,running,shutting-down,stopping,stopped";

//! `ec2vmm launch`.

use std::{collections::BTreeMap, path::PathBuf};

use base64::{Engine, prelude::BASE64_STANDARD};
use clap::ValueHint;
use clap_complete::ArgValueCompleter;
use ec2vmm_rest_api::{LaunchRequest, Launched, RootVolume, VolumeKind};
use ec2vmm_vmm_api::FailureKind;

use crate::{
    Done,
    client::{Call, Client},
    commands::ls,
    complete,
    connection::Connection,
    environment::Environment,
    error::Error,
    files,
    names::NAME_TAG,
    output::{self, screen::Screen},
    value::{
        count::Count,
        duration::Span,
        gib::Gib,
        settings::{CreditSetting, ShutdownSetting, VolumeSetting},
        tag::Tag,
    },
    waiting::{self, Goal},
};

/// Launch instances from an image
///
/// Answers at once, with the instances `pending`; --wait stays until they run. Either all of them are
/// launched or, with --count MIN:MAX, as many as there is room for.
#[derive(Debug, clap::Args)]
#[command(after_long_help = AFTER_HELP)]
pub(crate) struct Launch {
    /// Image to launch from: its name or its id
    #[arg(add = ArgValueCompleter::new(complete::images))]
    image: String,
    /// EC2 instance type, which gives vCPUs and memory; `ec2vmm types` lists them
    #[arg(long = "type", value_name = "TYPE", default_value = "t3.micro", add = ArgValueCompleter::new(complete::instance_types))]
    instance_type: String,
    /// How many: a number, or the fewest and the most
    #[arg(long, value_name = "N|MIN:MAX", default_value = "1")]
    count: Count,
    /// Key pair that may log in; `ec2vmm key ls` lists them
    #[arg(long, value_name = "NAME", add = ArgValueCompleter::new(complete::key_pairs))]
    key: Option<String>,
    /// User data for cloud-init: a script, cloud-config, ...; at most 16 KiB
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    user_data: Option<PathBuf>,
    /// Name: the tag `Name`, by which commands find the instance
    #[arg(long)]
    name: Option<String>,
    /// One more tag; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    tag: Vec<Tag>,
    /// Size of the root volume, GiB [default: the image's]
    #[arg(long, value_name = "GIB")]
    volume_size: Option<Gib>,
    /// Kind of the root volume, which sets its price [default: gp3]
    #[arg(long, value_name = "KIND")]
    volume_type: Option<VolumeSetting>,
    /// Keep the root volume when the instance is terminated
    #[arg(long)]
    keep_volume: bool,
    /// Private address [default: a free one]
    #[arg(long, value_name = "ADDRESS")]
    private_ip: Option<std::net::Ipv4Addr>,
    /// Refuse to terminate it, until `ec2vmm modify --protect off`
    #[arg(long)]
    protect: bool,
    /// Refuse to stop it, until `ec2vmm modify --protect-stop off`
    #[arg(long)]
    protect_stop: bool,
    /// What a power-off from inside means [default: stop]
    #[arg(long, value_name = "WHAT")]
    shutdown_behavior: Option<ShutdownSetting>,
    /// How CPU credits are counted; burstable types only [default: as on EC2]
    #[arg(long, value_name = "MODE")]
    credits: Option<CreditSetting>,
    /// Token: a launch that is repeated with the same one is done once [default: a random one]
    #[arg(long)]
    token: Option<String>,
    /// Wait until they run
    #[arg(long)]
    wait: bool,
    /// Wait at most so long: 30s, 2m, 1h30m
    #[arg(long, value_name = "TIME", requires = "wait")]
    timeout: Option<Span>,
    /// Print the ids only
    #[arg(long, short, conflicts_with = "json")]
    quiet: bool,
    /// Print JSON and not a table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

pub(crate) fn run(args: &Launch, environment: &Environment) -> Done {
    let client = args.connection.client(environment)?;
    let request = request(args)?;
    // One of our own, so that it may be sent once more where the daemon goes away in the middle.
    let token = args.token.clone().unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
    let call = Call::post(&["v1", "instances"]).once(&token).json(&request)?;
    let mut launched: Launched = client.insist(&call)?;
    // Where they will not run, people still want to know which they are.
    let waited = match args.wait {
        true => wait(&client, &mut launched, args, environment),
        false => Ok(()),
    };
    let printed = match (args.json, args.quiet) {
        (true, _) => output::print_json(&launched),
        (false, true) => output::print(ls::ids(&launched.instances)),
        (false, false) => output::print(ls::table(&launched.instances, Screen::stdout(environment.plain))),
    };
    waited.and(printed)
}

/// The instances as they are when they run.
fn wait(
    client: &Client,
    launched: &mut Launched,
    args: &Launch,
    environment: &Environment,
) -> Result<(), Error> {
    let ids: Vec<String> = launched.instances.iter().map(|instance| instance.instance_id.clone()).collect();
    launched.instances = waiting::wait(client, &ids, Goal::Started, args.timeout, environment.plain)?;
    Ok(())
}

fn request(args: &Launch) -> Result<LaunchRequest, Error> {
    let mut tags: BTreeMap<String, String> = BTreeMap::new();
    let name = args.name.iter().map(|name| (NAME_TAG.to_owned(), name.clone()));
    for (key, value) in name.chain(args.tag.iter().map(|tag| (tag.key.clone(), tag.value.clone()))) {
        if tags.insert(key.clone(), value).is_some() {
            return Err(Error::new(FailureKind::Usage, format!("the tag `{key}` is given twice"))
                .hint("`--name NAME` is the tag `Name`"));
        }
    }
    let volume = args.volume_size.is_some() || args.volume_type.is_some() || args.keep_volume;
    let user_data = args.user_data.as_deref().map(|path| files::read(path, USER_DATA_BYTES_MAX, "user data"));
    Ok(LaunchRequest {
        image: args.image.clone(),
        instance_type: args.instance_type.clone(),
        min_count: Some(args.count.min),
        max_count: Some(args.count.max),
        key_name: args.key.clone(),
        user_data: user_data.transpose()?.map(|data| BASE64_STANDARD.encode(data)),
        root_volume: volume.then(|| RootVolume {
            size_gib: args.volume_size.map(|size| size.0),
            kind: args.volume_type.map(VolumeKind::from).unwrap_or_default(),
            delete_on_termination: Some(!args.keep_volume),
        }),
        disable_api_termination: args.protect,
        disable_api_stop: args.protect_stop,
        instance_initiated_shutdown_behavior: args.shutdown_behavior.map(Into::into).unwrap_or_default(),
        credit_mode: args.credits.map(Into::into),
        private_ip_address: args.private_ip.map(|address| address.to_string()),
        volume_tags: BTreeMap::new(),
        tags,
    })
}

/// EC2's limit, which the daemon enforces too; more would only be sent in vain.
pub(super) const USER_DATA_BYTES_MAX: usize = 16 * 1024;

const AFTER_HELP: &str = "\
Examples:
  ec2vmm launch debian-12 --key my-key --name web --wait
  ec2vmm launch minimal --type t3.nano --count 20
  id=$(ec2vmm launch minimal --wait --quiet)";

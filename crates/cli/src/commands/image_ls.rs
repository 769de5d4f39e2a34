//! `ec2vmm image ls`.

use ec2vmm_rest_api::{DiskFormat, Image, ImageList};

use crate::{
    Done,
    client::Call,
    connection::Connection,
    environment::Environment,
    output::{
        self, bytes,
        screen::Screen,
        table::{Table, text, whole},
    },
    value::{filter::Filter, settings},
};

/// List images
#[derive(Debug, clap::Args)]
pub(crate) struct ImageLs {
    /// Only images that have one of the values, such as name=debian-*; may be repeated: all must hold
    #[arg(long, short, value_name = "NAME=VALUE[,VALUE...]")]
    filter: Vec<Filter>,
    /// Print the ids only
    #[arg(long, short, conflicts_with = "json")]
    quiet: bool,
    /// Print JSON and not a table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

pub(crate) fn run(args: &ImageLs, environment: &Environment) -> Done {
    let client = args.connection.client(environment)?;
    let call = Call::get(&["v1", "images"]);
    let call = args.filter.iter().fold(call, |call, filter| call.with("filter", &filter.text));
    let images = client.list::<ImageList>(&call)?;
    if args.json {
        return output::print_json(&ImageList { images, next_token: None });
    }
    match args.quiet {
        true => output::print(
            images.iter().map(|image| output::printable(&image.image_id) + "\n").collect::<String>(),
        ),
        false => output::print(table(&images, Screen::stdout(environment.plain))),
    }
}

/// Images as people see them.
pub(super) fn table(images: &[Image], screen: Screen) -> String {
    let mut table = Table::new([
        whole("ID"),
        whole("NAME"),
        whole("ARCH"),
        whole("SIZE"),
        whole("FORMAT"),
        whole("USER"),
        text("FILE"),
    ]);
    for image in images {
        let format = match image.format {
            DiskFormat::Raw => "raw",
            DiskFormat::Qcow2 => "qcow2",
        };
        table.row([
            image.image_id.as_str().into(),
            image.name.as_str().into(),
            settings::architecture(image.architecture).into(),
            bytes(image.size_bytes).into(),
            format.into(),
            image.login_user.as_str().into(),
            image.file.as_str().into(),
        ]);
    }
    table.render(screen)
}

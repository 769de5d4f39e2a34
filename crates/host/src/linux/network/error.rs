//! Why a network could not be made.

use std::{io, net::Ipv4Addr, path::PathBuf};

use ec2vmm_model::ids::{InterfaceId, VpcId};
use ec2vmm_vmm_api::FailureKind;

use crate::Explained;

/// Why a network could not be made, changed or removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration or a plan makes no sense.
    #[error("{what} is {given}: {rule}")]
    Invalid {
        /// Which setting.
        what: &'static str,
        /// What was given.
        given: String,
        /// What it has to be.
        rule: &'static str,
    },
    /// Another process has this host's networks.
    #[error("another process has the networks of this host (prefix \"{prefix}\")")]
    Taken {
        /// [`super::Config::prefix`].
        prefix: String,
    },
    /// This process may not.
    #[error("this process may not {what}")]
    Permission {
        /// What it wanted.
        what: String,
        /// Why.
        source: io::Error,
    },
    /// A program is missing.
    #[error("there is no program `{program}`")]
    NoProgram {
        /// Its name.
        program: &'static str,
    },
    /// The host has a route to a part of the range already.
    #[error("the range {base}/{prefix} overlaps {route}, which the host reaches through {through}")]
    Overlap {
        /// The range's first address.
        base: Ipv4Addr,
        /// Length of its prefix.
        prefix: u8,
        /// What the host has a route to, such as `172.31.0.0/16`.
        route: String,
        /// Over which interface.
        through: String,
        /// A range that is free.
        free: Option<Ipv4Addr>,
    },
    /// Nothing was made for this network.
    #[error("the network {vpc} is not there")]
    NoNetwork {
        /// Which.
        vpc: VpcId,
    },
    /// Nothing was made for this interface.
    #[error("the interface {interface} is not there")]
    NoInterface {
        /// Which.
        interface: InterfaceId,
    },
    /// An address is another interface's.
    #[error("{address} is the address of {other}, and cannot be that of {interface}")]
    AddressTaken {
        /// The address.
        address: Ipv4Addr,
        /// Who wants it.
        interface: InterfaceId,
        /// Who has it.
        other: InterfaceId,
    },
    /// A name of ours is in use by something else.
    #[error("the name `{name}` is taken by {by}")]
    NameTaken {
        /// The name of a link or namespace.
        name: String,
        /// By what.
        by: String,
    },
    /// A machine has the tap.
    #[error("the tap of {interface} is in use by another process")]
    Busy {
        /// Whose.
        interface: InterfaceId,
    },
    /// `nft` refused a transaction.
    #[error("nft refused to {what}: {said}")]
    Firewall {
        /// What.
        what: &'static str,
        /// In its words, cut where they are long.
        said: String,
    },
    /// The host's system refused.
    #[error("cannot {what}")]
    System {
        /// What.
        what: String,
        /// Why.
        source: io::Error,
    },
    /// A file could not be used.
    #[error("cannot {what} {}", path.display())]
    File {
        /// What.
        what: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Explained for Error {
    fn kind(&self) -> FailureKind {
        match self {
            Self::Invalid { .. } => FailureKind::Usage,
            Self::Permission { .. } => FailureKind::Permission,
            Self::Busy { .. } => FailureKind::TapBusy,
            Self::NoInterface { .. } => FailureKind::NoTap,
            Self::File { source, .. } | Self::System { source, .. } => {
                crate::kind_of_io(source, FailureKind::Other)
            }
            _ => FailureKind::Other,
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Taken { .. } => "stop the other daemon, or give this one another prefix".into(),
            Self::Permission { .. } => "run the daemon as root".into(),
            Self::NoProgram { program } => format!("install it: `apt-get install {}`", package_of(program)),
            Self::Overlap { free: Some(free), prefix, .. } => {
                format!("give the network a range that is free, such as {free}/{prefix}")
            }
            Self::Overlap { .. } => "give the network a range that `ip route` does not show".into(),
            Self::NameTaken { name, .. } => format!("rename or remove what is called `{name}`"),
            Self::Firewall { said, .. } if said.contains("not permitted") => "run the daemon as root".into(),
            Self::Firewall { said, .. } if said.contains("No such file") || said.contains("not supported") => {
                "the kernel may lack a part of nf_tables: `modprobe -a nf_tables nft_chain_nat nft_ct nft_masq \
                 nft_reject_ipv4`"
                    .into()
            }
            Self::Busy { .. } => "end the process that has it".into(),
            _ => return None,
        })
    }
}

/// Debian's package of a program.
fn package_of(program: &str) -> &str {
    match program {
        "nft" => "nftables",
        other => other,
    }
}

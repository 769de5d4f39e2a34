//! What can be wrong with a request, with the codes and in the words that EC2 has for it: clients branch
//! on both.

use ec2vmm_model::ids::{InstanceId, VolumeId};

/// Why a request came to nothing. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What was given is no id.
    #[error("Invalid id: \"{given}\"{}", if *.noun == Noun::Instance { String::new() } else { format!(" (expecting \"{}-...\")", .noun.prefix()) })]
    MalformedId {
        /// As given, cut where it is long.
        given: String,
        /// What it should name.
        noun: Noun,
    },
    /// There is no such resource.
    #[error("{}", not_found(*.noun, .ids))]
    NotFound {
        /// Of which kind.
        noun: Noun,
        /// All that are missing.
        ids: Vec<String>,
    },
    /// There is one already.
    #[error("{}", duplicate(*.noun, .name))]
    Duplicate {
        /// Of which kind.
        noun: Noun,
        /// Its name.
        name: String,
    },
    /// A parameter makes no sense.
    #[error("{message}")]
    InvalidValue {
        /// In EC2's words, where they are known.
        message: String,
        /// What to do about it.
        hint: Option<String>,
    },
    /// Parameters that make no sense together.
    #[error("{message}")]
    InvalidCombination {
        /// In EC2's words, where they are known.
        message: String,
    },
    /// A parameter that must be there is not.
    #[error("The request must contain the parameter {0}")]
    Missing(&'static str),
    /// There is no such filter.
    #[error("The filter '{0}' is invalid")]
    InvalidFilter(String),
    /// A page's token that was not given by this listing.
    #[error("The token '{0}' is invalid")]
    InvalidToken(String),
    /// There is no such instance type.
    #[error("Invalid value '{name}' for InstanceType.")]
    UnknownType {
        /// As given.
        name: String,
        /// What comes near.
        nearest: Vec<&'static str>,
    },
    /// Types that a listing was asked for and that do not exist.
    #[error("The following supplied instance types do not exist: [{}]", .0.join(", "))]
    UnknownTypes(Vec<String>),
    /// Only what x86-64 machines run can be run here.
    #[error(
        "The requested configuration is currently not supported. Instance type {name} has {arch} processors."
    )]
    UnsupportedType {
        /// Name of the type.
        name: String,
        /// What its processors run.
        arch: &'static str,
        /// A type to take instead.
        sibling: Option<&'static str>,
    },
    /// The image's kernel does not run on the type's processors.
    #[error(
        "The architecture '{type_arch}' of the specified instance type does not match the architecture '{image_arch}' of the specified AMI. Specify an instance type and an AMI that have matching architectures, and try again."
    )]
    Architecture {
        /// What the type's processors run.
        type_arch: &'static str,
        /// What the image is made for.
        image_arch: &'static str,
    },
    /// Something that this type, or this host, does not do.
    #[error("{message}")]
    Unsupported {
        /// What.
        message: String,
    },
    /// The instance is in another state.
    #[error("The instance '{id}' is not in {needed}.")]
    IncorrectState {
        /// Which.
        id: InstanceId,
        /// Which state it would have to be in: the end of the sentence.
        needed: &'static str,
    },
    /// The instance is protected.
    #[error(
        "The instance '{id}' may not be {what}. Modify its '{attribute}' instance attribute and try again."
    )]
    Protected {
        /// Which.
        id: InstanceId,
        /// `terminated`, `stopped`.
        what: &'static str,
        /// What protects it.
        attribute: &'static str,
    },
    /// The host has not so much to give.
    #[error(
        "We currently do not have sufficient {instance_type} capacity in the Availability Zone you requested ({zone})."
    )]
    Capacity {
        /// What was asked for.
        instance_type: String,
        /// Where.
        zone: String,
        /// What there is, and what to do.
        hint: String,
    },
    /// The network has no more addresses.
    #[error(
        "There are not enough free addresses in subnet '{subnet}' to satisfy the requested number of instances."
    )]
    NoAddresses {
        /// The range's id.
        subnet: String,
    },
    /// The address is somebody's.
    #[error("Address {0} is in use.")]
    AddressInUse(std::net::Ipv4Addr),
    /// The token was used with other parameters.
    #[error(
        "Arguments on this idempotent request are inconsistent with arguments used in previous request(s)."
    )]
    TokenReused,
    /// Too many tags.
    #[error("Tag limit exceeded: a resource can have at most {0} tags.")]
    TagLimit(usize),
    /// No machine of the instance runs, so that there is no line to it.
    #[error("The instance '{0}' has no machine that runs.")]
    NoMachine(InstanceId),
    /// The volume is attached.
    #[error("Volume '{volume}' is currently attached to {instance}")]
    VolumeInUse {
        /// Which.
        volume: VolumeId,
        /// To whom.
        instance: InstanceId,
    },
    /// What was given as a key is none, or no such key is made.
    #[error(transparent)]
    KeyMaterial(#[from] crate::key_material::Error),
    /// The host refused what the client named.
    #[error("{message}")]
    Image {
        /// What and where.
        message: String,
        /// What to do about it.
        hint: Option<String>,
    },
    /// The store could not: nothing was recorded.
    #[error("An internal error has occurred")]
    Store(#[from] ec2vmm_store::Error),
    /// The host could not.
    #[error("An internal error has occurred")]
    Host(#[from] ec2vmm_host::host::Error),
    /// The daemon is going down: nothing was recorded.
    #[error("The service is unavailable. Please try again shortly.")]
    Unavailable,
}

/// What an error is about.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Noun {
    /// An instance.
    Instance,
    /// An image.
    Image,
    /// A volume.
    Volume,
    /// A key pair, by name.
    KeyPair,
    /// A key pair, by id.
    KeyPairId,
    /// Anything that can have tags.
    Resource,
}

impl Noun {
    /// How its ids begin.
    pub fn prefix(self) -> &'static str {
        match self {
            Self::Instance => "i",
            Self::Image => "ami",
            Self::Volume => "vol",
            Self::KeyPair | Self::KeyPairId => "key",
            Self::Resource => "resource",
        }
    }
}

impl Error {
    /// EC2's code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::MalformedId { noun, .. } => match noun {
                Noun::Instance => "InvalidInstanceID.Malformed",
                Noun::Image => "InvalidAMIID.Malformed",
                Noun::Volume => "InvalidVolumeID.Malformed",
                Noun::KeyPair | Noun::KeyPairId => "InvalidKeyPair.Format",
                Noun::Resource => "InvalidID",
            },
            Self::NotFound { noun, .. } => match noun {
                Noun::Instance => "InvalidInstanceID.NotFound",
                Noun::Image => "InvalidAMIID.NotFound",
                Noun::Volume => "InvalidVolume.NotFound",
                Noun::KeyPair | Noun::KeyPairId => "InvalidKeyPair.NotFound",
                Noun::Resource => "InvalidID",
            },
            Self::Duplicate { noun: Noun::KeyPair | Noun::KeyPairId, .. } => "InvalidKeyPair.Duplicate",
            Self::Duplicate { .. } => "InvalidAMIName.Duplicate",
            Self::InvalidValue { .. } | Self::InvalidFilter(_) | Self::UnknownType { .. } => {
                "InvalidParameterValue"
            }
            Self::Architecture { .. } | Self::Image { .. } => "InvalidParameterValue",
            Self::InvalidCombination { .. } => "InvalidParameterCombination",
            Self::Missing(_) => "MissingParameter",
            Self::InvalidToken(_) => "InvalidNextToken",
            Self::UnknownTypes(_) => "InvalidInstanceType",
            Self::UnsupportedType { .. } => "Unsupported",
            Self::Unsupported { .. } => "UnsupportedOperation",
            Self::IncorrectState { .. } | Self::NoMachine(_) => "IncorrectInstanceState",
            Self::Protected { .. } => "OperationNotPermitted",
            Self::Capacity { .. } => "InsufficientInstanceCapacity",
            Self::NoAddresses { .. } => "InsufficientFreeAddressesInSubnet",
            Self::AddressInUse(_) => "InvalidIPAddress.InUse",
            Self::TokenReused => "IdempotentParameterMismatch",
            Self::TagLimit(_) => "TagLimitExceeded",
            Self::VolumeInUse { .. } => "VolumeInUse",
            Self::KeyMaterial(error) => error.code(),
            Self::Store(_) | Self::Host(_) => "InternalError",
            Self::Unavailable => "Unavailable",
        }
    }

    /// Whose fault it is.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Store(_) | Self::Host(_) => Fault::Internal,
            Self::KeyMaterial(crate::key_material::Error::Failed(_)) => Fault::Internal,
            Self::Unavailable => Fault::Unavailable,
            Self::Capacity { .. } => Fault::Capacity,
            _ => Fault::Client,
        }
    }

    /// What to do about it: one line.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::InvalidValue { hint, .. } | Self::Image { hint, .. } => hint.clone(),
            Self::Capacity { hint, .. } => Some(hint.clone()),
            Self::UnknownType { nearest, .. } if !nearest.is_empty() => {
                Some(format!("did you mean {}?", nearest.join(", ")))
            }
            Self::UnsupportedType { sibling: Some(sibling), .. } => Some(format!("take {sibling}")),
            Self::NoAddresses { .. } => Some("terminate instances that are no longer needed".to_owned()),
            Self::TokenReused => Some("take another client token for another request".to_owned()),
            Self::KeyMaterial(error) => error.hint(),
            Self::NoMachine(_) => Some("start the instance".to_owned()),
            Self::Host(ec2vmm_host::host::Error::NoRoom { hint, .. })
            | Self::Host(ec2vmm_host::host::Error::Other { hint, .. })
            | Self::Host(ec2vmm_host::host::Error::Image { hint, .. }) => hint.clone(),
            Self::Store(error) => {
                let hint = error.hint().unwrap_or("see the daemon's log: its database could not be written");
                Some(hint.to_owned())
            }
            _ => None,
        }
    }
}

/// Whose fault an error is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fault {
    /// The request's: the same one will fail again.
    Client,
    /// There is no room now.
    Capacity,
    /// Ours.
    Internal,
    /// Ours, and it will pass.
    Unavailable,
}

fn not_found(noun: Noun, ids: &[String]) -> String {
    let list = ids.join(", ");
    match (noun, ids.len()) {
        (Noun::Instance, 0 | 1) => format!("The instance ID '{list}' does not exist"),
        (Noun::Instance, _) => format!("The instance IDs '{list}' do not exist"),
        (Noun::Image, 0 | 1) => format!("The image id '[{list}]' does not exist"),
        (Noun::Image, _) => format!("The image ids '[{list}]' do not exist"),
        (Noun::Volume, 0 | 1) => format!("The volume '{list}' does not exist."),
        (Noun::Volume, _) => format!("The volumes '{list}' do not exist."),
        (Noun::KeyPair, 0 | 1) => format!("The key pair '{list}' does not exist"),
        (Noun::KeyPair, _) => format!("The key pairs '{list}' do not exist"),
        (Noun::KeyPairId, _) => format!("The key pair ID '{list}' does not exist"),
        (Noun::Resource, _) => format!("The ID '{list}' is not valid"),
    }
}

fn duplicate(noun: Noun, name: &str) -> String {
    match noun {
        Noun::KeyPair | Noun::KeyPairId => format!("The keypair '{name}' already exists."),
        _ => format!("AMI name {name} is already in use"),
    }
}

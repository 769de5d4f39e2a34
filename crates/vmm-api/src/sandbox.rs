//! How a machine process is shut in. It does that itself, before it looks at anything of the guest's.

use serde::{Deserialize, Serialize};

use crate::config::Fd;

/// What a machine process is to take from itself. Where it cannot, there is no machine.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case", tag = "kind")]
pub enum Sandbox {
    /// Ids of its own, an empty root, namespaces, no capabilities, system call filters. Needs root; the
    /// process was born into a pid namespace.
    Full {
        /// User id, which nobody else has.
        uid: u32,
        /// Group id, which nobody else has.
        gid: u32,
        /// A network namespace without interfaces to be in. Nothing: it makes one, which takes longer than
        /// all the rest.
        network: Option<Fd>,
    },
    /// The same in a user namespace, with the ids of whoever started it: the process was born into that
    /// namespace and a pid namespace.
    User,
    /// Landlock in place of namespaces and the empty root: every path is out of reach.
    Landlock,
    /// System call filters alone, and no capabilities.
    Filters,
    /// Nothing at all.
    Off,
}

impl Sandbox {
    /// Which it is.
    pub fn kind(&self) -> SandboxKind {
        match self {
            Self::Full { .. } => SandboxKind::Full,
            Self::User => SandboxKind::User,
            Self::Landlock => SandboxKind::Landlock,
            Self::Filters => SandboxKind::Filters,
            Self::Off => SandboxKind::Off,
        }
    }
}

/// The name of a [`Sandbox`], the strongest first.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SandboxKind {
    /// See [`Sandbox::Full`].
    Full,
    /// See [`Sandbox::User`].
    User,
    /// See [`Sandbox::Landlock`].
    Landlock,
    /// See [`Sandbox::Filters`].
    Filters,
    /// See [`Sandbox::Off`].
    Off,
}

impl SandboxKind {
    /// Every kind, the strongest first.
    pub const ALL: [Self; 5] = [Self::Full, Self::User, Self::Landlock, Self::Filters, Self::Off];

    /// As it is written in JSON and on command lines.
    pub fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::User => "user",
            Self::Landlock => "landlock",
            Self::Filters => "filters",
            Self::Off => "off",
        }
    }
}

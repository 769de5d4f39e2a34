//! The networks of this host's machines: every VPC is a network namespace that routes.
//!
//! ```text
//!   guest ── tap eni-… ┐                              ┌ the host: reaches every address of the range
//!   guest ── tap eni-… ┼ namespace vpc-… ── veth pair ┤
//!   guest ── tap eni-… ┘  base+1 routes      base+3   └ masquerade ── outside
//!                         base+2 answers DNS
//! ```
//!
//! There is no bridge and no broadcast domain. Each interface is a tap with a host route to its one
//! address; the namespace answers ARP for everyone, and drops at the tap whatever does not come from the
//! interface's own address.
//!
//! Invariant: everything is named after its resource's id, in the kernel and not in a file of ours, so
//! that after a crash at any point a repeated call completes what was begun and [`Network::inventory`]
//! finds what belongs to nobody. A namespace is the first thing of a network to come and the last to go.

mod error;

use std::{
    fs::File,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
};

use ec2vmm_model::ids::{InterfaceId, VpcId};

pub use error::Error;

use crate::host::{InterfacePlan, NetworkPlan};

/// How the networks of a host are made.
#[derive(Clone, Debug)]
pub struct Config {
    /// What the names of namespaces and firewall tables begin with. One daemon a host and prefix; another
    /// daemon's networks are left alone. Empty by default, at most 16 characters: letters, digits, hyphens.
    pub prefix: String,
    /// Where namespaces get their names: `/run/netns`, where `ip netns` looks.
    pub namespaces: PathBuf,
    /// The domain that instances' names are in: `ec2.internal`, or `<region>.compute.internal`.
    pub domain: String,
    /// Who is asked what instances want to know from DNS.
    pub upstream: Upstream,
    /// What instances reach outside of the host.
    pub outside: Outside,
    /// Instances may open connections to the host's own services. They cannot by default: as in EC2, there
    /// is no host to be seen. The host reaches them in any case.
    pub reach_host: bool,
    /// What a packet can carry, bytes: 576 to 9001.
    pub mtu: u16,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            prefix: String::new(),
            namespaces: PathBuf::from("/run/netns"),
            domain: "ec2.internal".into(),
            upstream: Upstream::HostFile(PathBuf::from("/etc/resolv.conf")),
            outside: Outside::Any,
            reach_host: false,
            mtu: 1500,
        }
    }
}

/// Who is asked what the networks' own DNS does not know.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Upstream {
    /// The `nameserver`s of a file such as `/etc/resolv.conf`, which is read again when it has changed.
    HostFile(PathBuf),
    /// These, in order. None: other names than the instances' own are not found.
    Servers(Vec<SocketAddr>),
}

/// What instances reach outside of the host, with the host's address in place of their own.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Outside {
    /// Whatever the host reaches, over whichever interface its routes say. Turns on the host's
    /// `net.ipv4.ip_forward`.
    Any,
    /// The same, over this interface of the host only.
    Only(String),
    /// Nothing.
    Closed,
}

/// The networks of this host's machines. Dropping it ends DHCP and DNS; everything in the kernel stays, so
/// that machines go on without a daemon.
#[derive(Debug)]
pub struct Network {
    config: Config,
}

impl Network {
    /// Takes the networks of this host and prefix, for as long as this lives. Changes nothing yet. The
    /// calling process's network namespace is the host's.
    ///
    /// # Errors
    /// Another process has them, this one may not, a program or a kernel feature is missing, or the
    /// configuration makes no sense.
    pub async fn start(config: Config) -> Result<Self, Error> {
        Ok(Self { config })
    }

    /// Makes a network, or completes one: its namespace, its way to the host and out, its DNS.
    ///
    /// # Errors
    /// The range overlaps one that the host has a route to, or the host's system refuses.
    pub async fn ensure_network(&self, plan: &NetworkPlan) -> Result<(), Error> {
        Err(Error::NoNetwork { vpc: plan.vpc.clone() })
    }

    /// Removes a network and every interface in it. One that is not there is no error.
    ///
    /// # Errors
    /// The host's system refuses; repeat it then.
    pub async fn remove_network(&self, vpc: &VpcId) -> Result<(), Error> {
        Err(Error::NoNetwork { vpc: vpc.clone() })
    }

    /// Makes an interface, or completes one: tap, route, guard, DHCP and DNS entries. Its network has to be
    /// ensured before, by this very object.
    ///
    /// # Errors
    /// No such network, an address that is not in its range or reserved or taken, or the host's system
    /// refuses.
    pub async fn ensure_interface(&self, plan: &InterfacePlan) -> Result<(), Error> {
        Err(Error::NoNetwork { vpc: plan.vpc.clone() })
    }

    /// The machine's end of an interface: a tap with `IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`, nonblocking and
    /// closed on exec. One process can have it; it is free again when that one ends.
    ///
    /// # Errors
    /// There is no such interface, or another process has it.
    pub async fn open_tap(&self, interface: &InterfaceId) -> Result<File, Error> {
        Err(Error::NoInterface { interface: interface.clone() })
    }

    /// Removes an interface, also from under a machine that has it. One that is not there is no error.
    ///
    /// # Errors
    /// The host's system refuses; repeat it then.
    pub async fn remove_interface(&self, interface: &InterfaceId) -> Result<(), Error> {
        Err(Error::NoInterface { interface: interface.clone() })
    }

    /// The networks and interfaces on this host that bear this object's prefix, whole or half-made, by
    /// whichever process.
    ///
    /// # Errors
    /// The host's system does not tell.
    pub async fn inventory(&self) -> Result<(Vec<VpcId>, Vec<InterfaceId>), Error> {
        let _ = Ipv4Addr::LOCALHOST;
        let _ = &self.config;
        Ok((Vec::new(), Vec::new()))
    }
}

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

mod counters;
mod dhcp;
mod dns;
mod error;
mod firewall;
mod names;
mod namespace;
mod netlink;
mod range;
mod sysctl;
#[cfg(test)]
mod tests;
mod vpc;

use std::{
    collections::BTreeMap,
    fmt,
    fs::File,
    io,
    net::SocketAddr,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr as UnixAddress, UnixListener},
    },
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use ec2vmm_model::ids::{InterfaceId, VpcId};
use hickory_proto::rr::Name;
use tokio::sync::Mutex as AsyncMutex;

use self::{
    counters::Counters,
    dns::upstream::Resolver,
    names::Names,
    namespace::Namespace,
    netlink::Netlink,
    range::Range,
    vpc::{Shared, Vpc},
};
pub use self::{counters::Counts, error::Error};
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
    shared: Arc<Shared>,
    /// Each network's work is done in turn; different networks do not wait for each other.
    vpcs: Mutex<BTreeMap<VpcId, Slot>>,
    /// Which network an interface is in.
    homes: Mutex<BTreeMap<InterfaceId, VpcId>>,
    /// Held by one process a host and prefix, and free again when that ends, however it ends.
    _claim: UnixListener,
}

/// A network, once it was made by this object.
type Slot = Arc<AsyncMutex<Option<Vpc>>>;

impl Network {
    /// Takes the networks of this host and prefix, for as long as this lives. Changes nothing yet. The
    /// calling process's network namespace is the host's. Calls need Tokio's runtime, which works on DHCP
    /// and DNS too.
    ///
    /// # Errors
    /// Another process has them, this one may not, a program is missing, or the configuration makes no
    /// sense.
    pub async fn start(config: Config) -> Result<Self, Error> {
        let domain = config.check()?;
        let claim = claim(&config.prefix)?;
        let host = Netlink::here()?;
        // Also finds out whether there is an nft that works, and whether we may.
        firewall::tables().await?;
        if config.outside != Outside::Closed
            && let Some(chain) = firewall::forward_is_closed().await?
        {
            tracing::warn!(
                %chain,
                "the host's firewall drops what it forwards: instances reach the outside only where it lets \
                 links `vpc-*` through, such as by `iptables -I DOCKER-USER -i vpc-+ -j ACCEPT` and the same \
                 with `-o`"
            );
        }
        let shared = Arc::new(Shared {
            domain,
            names: Names::new(&config.prefix),
            host,
            resolver: Arc::new(Resolver::new(config.upstream.clone())),
            counters: Arc::new(Counters::default()),
            config,
        });
        Ok(Self { shared, vpcs: Mutex::default(), homes: Mutex::default(), _claim: claim })
    }

    /// Makes a network, or completes one: its namespace, its way to the host and out, its DNS.
    ///
    /// # Errors
    /// The range overlaps one that the host has a route to, or the host's system refuses.
    pub async fn ensure_network(&self, plan: &NetworkPlan) -> Result<(), Error> {
        let range = Range::new(plan.base, plan.prefix)?;
        let slot = self.slot(&plan.vpc);
        let mut slot = slot.lock().await;
        if let Some(vpc) = slot.as_mut() {
            if vpc.is_there(&plan.vpc).await? {
                return vpc.repair(&plan.vpc, range).await;
            }
            tracing::warn!(vpc = %plan.vpc, "the network was taken away and is made again");
            if let Some(gone) = slot.take() {
                gone.stop().await;
            }
        }
        *slot = Some(Vpc::ensure(&self.shared, &plan.vpc, range).await?);
        Ok(())
    }

    /// Removes a network and every interface in it. One that is not there is no error.
    ///
    /// # Errors
    /// The host's system refuses; repeat it then.
    pub async fn remove_network(&self, vpc: &VpcId) -> Result<(), Error> {
        let slot = self.slot(vpc);
        let mut slot = slot.lock().await;
        if let Some(known) = slot.take() {
            known.stop().await;
        }
        lock(&self.homes).retain(|_, home| home != vpc);
        vpc::remove(&self.shared, vpc).await?;
        lock(&self.vpcs).remove(vpc);
        Ok(())
    }

    /// Makes an interface, or completes one: tap, route, guard, DHCP and DNS entries. Its network has to be
    /// ensured before, by this very object.
    ///
    /// # Errors
    /// No such network, an address that is not in its range or reserved or taken, or the host's system
    /// refuses.
    pub async fn ensure_interface(&self, plan: &InterfacePlan) -> Result<(), Error> {
        if lock(&self.homes).get(&plan.id).is_some_and(|home| *home != plan.vpc) {
            return Err(Error::Invalid {
                what: "the interface's network",
                given: plan.vpc.to_string(),
                rule: "it cannot change while the interface is there",
            });
        }
        let slot = self.slot(&plan.vpc);
        let mut slot = slot.lock().await;
        let vpc = slot.as_mut().ok_or_else(|| Error::NoNetwork { vpc: plan.vpc.clone() })?;
        vpc.ensure_interface(plan).await?;
        lock(&self.homes).insert(plan.id.clone(), plan.vpc.clone());
        Ok(())
    }

    /// The machine's end of an interface: a tap with `IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`, nonblocking and
    /// closed on exec, as many of its queues as are asked for. A tap that an older version made has one. One
    /// process can have it; it is free again when that one ends. The interface has to be ensured before, by
    /// this very object.
    ///
    /// # Errors
    /// There is no such interface, or another process has it.
    pub async fn open_tap(&self, interface: &InterfaceId, queues: u16) -> Result<Vec<File>, Error> {
        let missing = || Error::NoInterface { interface: interface.clone() };
        let home = lock(&self.homes).get(interface).cloned().ok_or_else(missing)?;
        let slot = self.slot(&home);
        let slot = slot.lock().await;
        slot.as_ref().ok_or_else(missing)?.open_tap(interface, queues).await
    }

    /// Removes an interface, also from under a machine that has it. One that is not there is no error.
    ///
    /// # Errors
    /// The host's system refuses; repeat it then.
    pub async fn remove_interface(&self, interface: &InterfaceId) -> Result<(), Error> {
        let home = lock(&self.homes).get(interface).cloned();
        let homes = match home {
            Some(home) => vec![home],
            None => self.namespaces()?,
        };
        for home in homes {
            let slot = self.slot(&home);
            let mut slot = slot.lock().await;
            if let Some(vpc) = slot.as_mut() {
                vpc.remove_interface(interface).await?;
            } else if let Some((namespace, netlink)) = self.open(&home).await? {
                vpc::remove_interface(&namespace, &netlink, interface).await?;
            }
        }
        lock(&self.homes).remove(interface);
        Ok(())
    }

    /// The networks and interfaces on this host that bear this object's prefix, whole or half-made, by
    /// whichever process.
    ///
    /// # Errors
    /// The host's system does not tell.
    pub async fn inventory(&self) -> Result<(Vec<VpcId>, Vec<InterfaceId>), Error> {
        let names = &self.shared.names;
        let mut vpcs = self.namespaces()?;
        let mut interfaces = Vec::new();
        for vpc in &vpcs {
            if let Some((namespace, netlink)) = self.open(vpc).await? {
                interfaces.extend(vpc::interfaces(&namespace, &netlink).await?);
            }
        }
        let cables = self.shared.host.links().await?;
        vpcs.extend(cables.iter().filter_map(|cable| names.vpc_of_cable(cable.alias.as_deref()?)));
        vpcs.extend(firewall::tables().await?.iter().filter_map(|table| names.vpc_of_table(table)));
        vpcs.sort();
        vpcs.dedup();
        interfaces.sort();
        interfaces.dedup();
        Ok((vpcs, interfaces))
    }

    /// What DHCP and DNS have done since the start.
    pub fn counts(&self) -> Counts {
        self.shared.counters.read()
    }

    fn slot(&self, vpc: &VpcId) -> Slot {
        Arc::clone(lock(&self.vpcs).entry(vpc.clone()).or_default())
    }

    /// The networks that have a namespace, or a name for one.
    fn namespaces(&self) -> Result<Vec<VpcId>, Error> {
        let names = namespace::names(&self.shared.config.namespaces)?;
        Ok(names.iter().filter_map(|name| self.shared.names.vpc_of_namespace(name)).collect())
    }

    async fn open(&self, vpc: &VpcId) -> Result<Option<(Namespace, Netlink)>, Error> {
        let name = self.shared.names.namespace(vpc);
        let Some(namespace) = Namespace::open(&self.shared.config.namespaces, &name)? else {
            return Ok(None);
        };
        let netlink = Netlink::of(&namespace).await?;
        Ok(Some((namespace, netlink)))
    }
}

impl Config {
    /// The domain, when all of it makes sense.
    fn check(&self) -> Result<Name, Error> {
        let invalid = |what, given: &dyn fmt::Display, rule| {
            Err(Error::Invalid { what, given: given.to_string(), rule })
        };
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        if self.prefix.len() > PREFIX_BYTES_MAX || !self.prefix.bytes().all(is_plain) {
            return invalid(
                "the networks' prefix",
                &self.prefix,
                "it has to be at most 16 letters, digits and hyphens",
            );
        }
        if !(MTU_MIN..=MTU_MAX).contains(&self.mtu) {
            return invalid("the networks' MTU", &self.mtu, "it has to be 576 to 9001 bytes");
        }
        if let Outside::Only(link) = &self.outside
            && (link.is_empty() || link.len() > names::IFNAME_BYTES_MAX || link.contains(['/', '*', ' ']))
        {
            return invalid("the outside interface", link, "it has to be the name of a link");
        }
        let domain = self.domain.split('.').map(label).try_fold(Name::root(), |domain, label| {
            let mut name = Name::from_labels(domain.iter().chain(label?.iter())).ok()?;
            name.set_fqdn(true);
            Some(name)
        });
        match domain {
            Some(domain) if self.domain.len() <= DOMAIN_BYTES_MAX => Ok(domain.to_lowercase()),
            _ => invalid(
                "the instances' domain",
                &self.domain,
                "it has to be a DNS name of at most 100 characters",
            ),
        }
    }
}

/// A host name, as one label without a domain.
fn label(name: &str) -> Option<Name> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    let is_label = (1..=63).contains(&name.len())
        && name.bytes().all(is_plain)
        && !name.starts_with('-')
        && !name.ends_with('-');
    let mut name = is_label.then(|| Name::from_labels([name.as_bytes()]).ok())??;
    name.set_fqdn(false);
    Some(name)
}

/// Takes a name that the kernel gives to one process of this network namespace.
fn claim(prefix: &str) -> Result<UnixListener, Error> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::AddrInUse => Error::Taken { prefix: prefix.to_owned() },
        _ => Error::System { what: "claim the host's networks".into(), source },
    };
    let name = UnixAddress::from_abstract_name(format!("ec2vmm-networks-{prefix}")).map_err(failed)?;
    UnixListener::bind_addr(&name).map_err(failed)
}

/// Tells of a change to the host, each of them and nothing else: who wants to know how a network comes
/// about, or to stop it in the middle, listens to this target.
fn changed(what: fmt::Arguments<'_>) {
    tracing::debug!(target: CHANGES, "{what}");
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The tracing target of every change that is made to the host's network.
pub const CHANGES: &str = "ec2vmm_host::linux::network::changes";

const PREFIX_BYTES_MAX: usize = 16;
const DOMAIN_BYTES_MAX: usize = 100;
/// RFC 791: what every host takes. And EC2's jumbo frames.
const MTU_MIN: u16 = 576;
const MTU_MAX: u16 = 9001;

//! One network: its namespace, its cable to the host, and its interfaces.
//!
//! Invariant: making goes from the name to what works, each step safe to repeat, what guards before what
//! it guards; removing goes the other way round.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    net::Ipv4Addr,
    path::Path,
    sync::{Arc, PoisonError},
};

use ec2vmm_model::ids::{InterfaceId, VpcId};
use hickory_proto::rr::Name;
use rustix::io::Errno;
use tokio::task::JoinSet;

use super::{
    Config, Error, Outside, changed,
    counters::Counters,
    dhcp::{Lease, server::Server},
    dns::{Dns, Sockets, upstream::Resolver, zone::Zone},
    firewall::{self, Border, Guard},
    names::{self, Names, OUT},
    namespace::{self, Namespace},
    netlink::{Link, Netlink, Route, Way},
    range::Range,
    sysctl,
};
use crate::{host::InterfacePlan, tap};

/// What all networks of a host share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) config: Config,
    pub(super) domain: Name,
    pub(super) names: Names,
    /// The host's own namespace.
    pub(super) host: Netlink,
    pub(super) resolver: Arc<Resolver>,
    pub(super) counters: Arc<Counters>,
}

/// A network that was made.
#[derive(Debug)]
pub(super) struct Vpc {
    shared: Arc<Shared>,
    namespace: Namespace,
    netlink: Netlink,
    range: Range,
    dns: Arc<Dns>,
    interfaces: BTreeMap<InterfaceId, Interface>,
    tasks: JoinSet<()>,
}

/// An interface that was made.
#[derive(Debug)]
struct Interface {
    address: Ipv4Addr,
    dhcp: Server,
}

impl Vpc {
    /// Makes a network, or completes one.
    pub(super) async fn ensure(shared: &Arc<Shared>, vpc: &VpcId, range: Range) -> Result<Self, Error> {
        refuse_overlap(shared, vpc, range).await?;
        let namespace = Namespace::ensure(&shared.config.namespaces, &shared.names.namespace(vpc)).await?;
        let netlink = Netlink::of(&namespace).await?;
        sysctl::set_in(&namespace, sysctl::of_namespace()).await?;
        let lo = netlink.need_link("lo").await?;
        netlink.set_up(&lo).await?;
        netlink.ensure_address(&lo, range.dns()).await?;
        open_border(shared, vpc, range).await?;
        lay_cable(shared, vpc, range, &namespace, &netlink).await?;

        let zone = Zone::new(shared.domain.clone(), range);
        let dns = Dns::new(zone, Arc::clone(&shared.resolver), Arc::clone(&shared.counters));
        let mut tasks = JoinSet::new();
        dns.serve(Sockets::bind(&namespace, range.dns()).await?, &mut tasks)?;
        Ok(Self {
            shared: Arc::clone(shared),
            namespace,
            netlink,
            range,
            dns,
            interfaces: BTreeMap::new(),
            tasks,
        })
    }

    /// Completes a network that somebody has taken parts away from.
    pub(super) async fn repair(&mut self, vpc: &VpcId, range: Range) -> Result<(), Error> {
        if range != self.range {
            return Err(Error::Invalid {
                what: "the network's range",
                given: format!("{}/{}", range.base(), range.prefix()),
                rule: "it cannot change while the network is there",
            });
        }
        open_border(&self.shared, vpc, range).await?;
        lay_cable(&self.shared, vpc, range, &self.namespace, &self.netlink).await
    }

    /// The namespace bears the network's name still: nobody took it away under us.
    pub(super) async fn is_there(&self, vpc: &VpcId) -> Result<bool, Error> {
        let Some(found) = Namespace::open(&self.shared.config.namespaces, &self.shared.names.namespace(vpc))?
        else {
            return Ok(false);
        };
        found.is(&self.namespace)
    }

    /// Makes an interface, or completes one.
    pub(super) async fn ensure_interface(&mut self, plan: &InterfacePlan) -> Result<(), Error> {
        let hostname = self.check(plan)?;
        let name = names::tap(&plan.id);
        let (link, new) = self.ensure_tap(plan, &name).await?;
        let is_new = new.is_some();
        self.netlink.set_up(&link).await?;
        self.netlink.ensure_address(&link, self.range.router()).await?;
        self.netlink.ensure_neighbour(&link, plan.address, plan.mac).await?;
        let way = Way::Link { index: link.index, source: self.range.router() };
        self.netlink.ensure_route(&Route { to: (plan.address, 32), way }).await?;
        if let Some(tap) = new {
            tap::keep(&tap).map_err(|source| Error::System { what: format!("keep tap {name}"), source })?;
            changed(format_args!("tap {name} kept"));
        }

        let lease = Lease {
            address: plan.address,
            mask: self.range.mask(),
            router: self.range.router(),
            dns: self.range.dns(),
            mac: plan.mac,
            hostname: plan.hostname.clone(),
            domain: self.shared.config.domain.clone(),
            mtu: self.shared.config.mtu,
        };
        let before = self.interfaces.remove(&plan.id);
        let dhcp = match before {
            Some(before) if before.dhcp.tells(&lease) && !is_new => before.dhcp,
            before => {
                if let Some(before) = before {
                    self.forget(before).await;
                }
                Server::start(&self.namespace, &name, lease, Arc::clone(&self.shared.counters)).await?
            }
        };
        self.interfaces.insert(plan.id.clone(), Interface { address: plan.address, dhcp });
        self.dns.zone.write().unwrap_or_else(PoisonError::into_inner).insert(&hostname, plan.address);
        Ok(())
    }

    /// What is wrong with a plan is told before anything is made.
    fn check(&self, plan: &InterfacePlan) -> Result<Name, Error> {
        if !self.range.is_for_interfaces(plan.address) {
            return Err(Error::Invalid {
                what: "the interface's address",
                given: plan.address.to_string(),
                rule: "it has to be in the network's range, and neither of its first four nor its last",
            });
        }
        let [first, ..] = plan.mac;
        if first & 1 != 0 || plan.mac == [0; 6] {
            return Err(Error::Invalid {
                what: "the interface's hardware address",
                given: plan.mac.map(|byte| format!("{byte:02x}")).join(":"),
                rule: "it has to be that of one card",
            });
        }
        if self.interfaces.get(&plan.id).is_some_and(|known| known.address != plan.address) {
            return Err(Error::Invalid {
                what: "the interface's address",
                given: plan.address.to_string(),
                rule: "it cannot change while the interface is there",
            });
        }
        let taken =
            self.interfaces.iter().find(|(id, other)| **id != plan.id && other.address == plan.address);
        if let Some((other, _)) = taken {
            return Err(Error::AddressTaken {
                address: plan.address,
                interface: plan.id.clone(),
                other: other.clone(),
            });
        }
        super::label(&plan.hostname).ok_or_else(|| Error::Invalid {
            what: "the interface's host name",
            given: plan.hostname.chars().take(64).collect(),
            rule: "it has to be 1 to 63 letters, digits and inner hyphens",
        })
    }

    /// The tap, and with it its descriptor where it is new: until it is kept it goes with that, so that
    /// nothing is left of one that was not completed.
    async fn ensure_tap(&self, plan: &InterfacePlan, name: &str) -> Result<(Link, Option<File>), Error> {
        let alias = names::tap_alias(&plan.id);
        let found = self.netlink.link(name).await?;
        let mut new = None;
        let link = match found {
            Some(link) if link.alias.as_deref() == Some(&alias) => link,
            Some(link) => {
                return Err(Error::NameTaken {
                    name: name.to_owned(),
                    by: link.alias.unwrap_or_else(|| "a link that is not ours".into()),
                });
            }
            None => {
                let wanted = name.to_owned();
                let tap =
                    self.namespace.enter(move || tap::attach(&wanted, true)).await?.map_err(|source| {
                        match source.kind() {
                            io::ErrorKind::PermissionDenied => {
                                Error::Permission { what: "make a tap".into(), source }
                            }
                            _ => Error::System { what: format!("make tap {name}"), source },
                        }
                    })?;
                changed(format_args!("tap {name} made"));
                new = Some(tap);
                let link = self.netlink.need_link(name).await?;
                self.netlink.set_link(&link, self.shared.config.mtu, Some(&alias)).await?;
                link
            }
        };
        sysctl::set_in(&self.namespace, sysctl::of_tap(name)).await?;
        let guard = Guard { interface: &plan.id, tap: name, mac: plan.mac, address: plan.address };
        firewall::apply_in(&self.namespace, "set an interface's guard", guard.transaction()).await?;
        Ok((link, new))
    }

    /// The machine's end of an interface.
    pub(super) async fn open_tap(&self, interface: &InterfaceId, queues: u16) -> Result<Vec<File>, Error> {
        let name = names::tap(interface);
        let missing = || Error::NoInterface { interface: interface.clone() };
        let find = || async {
            let link = self.netlink.link(&name).await?;
            Ok(link.filter(|link| link.alias.as_deref() == Some(&names::tap_alias(interface))))
        };
        let before: Link = find().await?.ok_or_else(missing)?;
        // The kernel lets several processes have queues of one tap.
        if before.is_plugged {
            return Err(Error::Busy { interface: interface.clone() });
        }
        let wanted = name.clone();
        let taps = self.namespace.enter(move || attach_all(&wanted, queues)).await?.map_err(|source| {
            if source.raw_os_error() == Some(Errno::BUSY.raw_os_error()) {
                return Error::Busy { interface: interface.clone() };
            }
            Error::System { what: format!("open tap {name}"), source }
        })?;
        // Removed since we looked: then this one is new, and goes with the descriptor.
        match find().await? {
            Some(after) if after.index == before.index => Ok(taps),
            _ => Err(missing()),
        }
    }

    /// Removes an interface.
    pub(super) async fn remove_interface(&mut self, interface: &InterfaceId) -> Result<(), Error> {
        if let Some(known) = self.interfaces.remove(interface) {
            self.forget(known).await;
        }
        remove_interface(&self.namespace, &self.netlink, interface).await
    }

    /// Ends what answers an interface.
    async fn forget(&self, interface: Interface) {
        self.dns.zone.write().unwrap_or_else(PoisonError::into_inner).remove(interface.address);
        interface.dhcp.stop().await;
    }

    /// Ends everything that works in the namespace, and returns when its sockets are closed.
    pub(super) async fn stop(mut self) {
        for interface in std::mem::take(&mut self.interfaces).into_values() {
            interface.dhcp.stop().await;
        }
        self.tasks.shutdown().await;
    }
}

/// Removes an interface from a namespace, whoever made it.
pub(super) async fn remove_interface(
    namespace: &Namespace,
    netlink: &Netlink,
    interface: &InterfaceId,
) -> Result<(), Error> {
    if let Some(link) = netlink.link(&names::tap(interface)).await?
        && link.alias.as_deref() == Some(&names::tap_alias(interface))
    {
        netlink.delete_link(&link).await?;
    }
    firewall::apply_in(namespace, "remove an interface's guard", firewall::without_guard(interface)).await
}

/// The interfaces in a namespace, also those of which only the guard is there.
pub(super) async fn interfaces(namespace: &Namespace, netlink: &Netlink) -> Result<Vec<InterfaceId>, Error> {
    let links = netlink.links().await?.into_iter().filter_map(|link| names::interface_of(&link.alias?));
    let guards = firewall::guards(namespace).await?;
    Ok(links.chain(guards.iter().filter_map(|name| names::interface_of(name))).collect())
}

/// Removes a network, whoever made it.
pub(super) async fn remove(shared: &Shared, vpc: &VpcId) -> Result<(), Error> {
    let folder: &Path = &shared.config.namespaces;
    let name = shared.names.namespace(vpc);
    if let Some(namespace) = Namespace::open(folder, &name)? {
        // A machine that has a tap still would keep the namespace and all that is in it.
        let netlink = Netlink::of(&namespace).await?;
        for link in netlink.links().await? {
            if link.name != "lo" {
                netlink.delete_link(&link).await?;
            }
        }
    }
    if let Some(cable) = shared.host.link(&names::cable(vpc)).await?
        && is_ours(shared, vpc, &cable)
    {
        shared.host.delete_link(&cable).await?;
    }
    let table = shared.names.table(vpc);
    firewall::apply("close a network's border", firewall::without_border(&table)).await?;
    namespace::remove(folder, &name)
}

/// A cable that was made but not named yet has no alias.
fn is_ours(shared: &Shared, vpc: &VpcId, cable: &Link) -> bool {
    cable.is_veth && cable.alias.as_ref().is_none_or(|alias| *alias == shared.names.cable_alias(vpc))
}

/// The host can have one way to an address.
async fn refuse_overlap(shared: &Shared, vpc: &VpcId, range: Range) -> Result<(), Error> {
    let own = shared.host.link(&names::cable(vpc)).await?.map(|link| link.index);
    let routes = shared.host.routes().await?;
    let others = || routes.iter().filter(|route| route.to.1 > 0 && (own.is_none() || route.index != own));
    let Some(other) = others().find(|route| range.overlaps(route.to.0, route.to.1)) else {
        return Ok(());
    };
    let through = shared.host.links().await?.into_iter().find(|link| Some(link.index) == other.index);
    let taken: Vec<_> = others().map(|route| route.to).collect();
    Err(Error::Overlap {
        base: range.base(),
        prefix: range.prefix(),
        route: format!("{}/{}", other.to.0, other.to.1),
        through: through.map_or_else(|| "no link".into(), |link| link.name),
        free: range.another(&taken).map(Range::base),
    })
}

/// Says what may pass between the network and the world, and that the host passes it on.
async fn open_border(shared: &Shared, vpc: &VpcId, range: Range) -> Result<(), Error> {
    let border = Border {
        table: &shared.names.table(vpc),
        cable: &names::cable(vpc),
        range,
        outside: &shared.config.outside,
        reach_host: shared.config.reach_host,
    };
    firewall::apply("open a network's border", border.transaction()).await
}

/// So many queues of a tap; its one of a tap that was made with one, as they were before there could be more.
fn attach_all(name: &str, queues: u16) -> io::Result<Vec<File>> {
    let attached = (0..queues.max(1)).map(|_| tap::attach(name, true)).collect();
    match attached {
        Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
            Ok(vec![tap::attach(name, false)?])
        }
        attached => attached,
    }
}

/// Connects the network with the host, and routes between the two.
async fn lay_cable(
    shared: &Shared,
    vpc: &VpcId,
    range: Range,
    namespace: &Namespace,
    netlink: &Netlink,
) -> Result<(), Error> {
    let (host, mtu) = (&shared.host, shared.config.mtu);
    let name = names::cable(vpc);
    let mut ends = (host.link(&name).await?, netlink.link(OUT).await?);
    if let (Some(cable), _) = &ends
        && !is_ours(shared, vpc, cable)
    {
        let by = cable.alias.clone().unwrap_or_else(|| "a link that is not ours".into());
        return Err(Error::NameTaken { name, by });
    }
    // The two are ends of one cable, or there is none.
    if !matches!(&ends, (Some(here), Some(there)) if here.peer == Some(there.index) && there.peer == Some(here.index))
    {
        for (line, end) in [(host, &ends.0), (netlink, &ends.1)] {
            if let Some(end) = end {
                line.delete_link(end).await?;
            }
        }
        host.ensure_cable(&name, OUT, namespace, mtu).await?;
        ends = (host.link(&name).await?, netlink.link(OUT).await?);
    }
    let gone = || Error::System { what: format!("find link {name}"), source: Errno::NODEV.into() };
    let (here, there) = (ends.0.ok_or_else(gone)?, ends.1.ok_or_else(gone)?);
    host.set_link(&here, mtu, Some(&shared.names.cable_alias(vpc))).await?;

    sysctl::set_in(namespace, sysctl::of_cable(OUT)).await?;
    netlink.ensure_address(&there, range.router()).await?;
    netlink.set_up(&there).await?;
    let to_host = Way::Link { index: there.index, source: range.router() };
    netlink.ensure_route(&Route { to: (range.host(), 32), way: to_host }).await?;
    // What nobody has ends here, and not in a circle between namespace and host.
    netlink.ensure_route(&Route { to: (range.base(), range.prefix()), way: Way::Nowhere }).await?;
    netlink.ensure_route(&Route { to: LINK_LOCAL, way: Way::Nowhere }).await?;
    let out = Way::Through { gateway: range.host(), index: there.index, source: range.router() };
    netlink.ensure_route(&Route { to: (Ipv4Addr::UNSPECIFIED, 0), way: out }).await?;

    sysctl::set(&sysctl::of_cable(&name))?;
    host.ensure_address(&here, range.host()).await?;
    host.set_up(&here).await?;
    let to_network = Way::Through { gateway: range.router(), index: here.index, source: range.host() };
    host.ensure_route(&Route { to: (range.base(), range.prefix()), way: to_network }).await?;
    if shared.config.outside != Outside::Closed {
        sysctl::set(&[("ipv4/ip_forward".into(), "1")])?;
    }
    Ok(())
}

/// RFC 3927: never routed. The metadata service's address is of it.
const LINK_LOCAL: (Ipv4Addr, u8) = (Ipv4Addr::new(169, 254, 0, 0), 16);

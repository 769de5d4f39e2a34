//! Links, addresses, routes and neighbours of one network namespace.
//!
//! Invariant: every call is safe to repeat. What is there already is no error, nor is what is gone.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr},
    os::fd::{AsFd, AsRawFd},
    sync::Arc,
};

use futures_util::TryStreamExt;
use netlink_packet_route::{
    link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteScope, RouteType},
};
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};
use rustix::io::Errno;
use tokio::task::AbortHandle;

use super::{Error, changed, namespace::Namespace};

/// A line to the kernel about one namespace.
#[derive(Clone, Debug)]
pub(super) struct Netlink {
    handle: Handle,
    /// The line ends with the last who has it, not when the runtime gets round to it.
    _connection: Arc<Connection>,
}

#[derive(Debug)]
struct Connection(AbortHandle);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A link.
#[derive(Clone, Debug)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) alias: Option<String>,
    /// The index of a cable's other end, in its namespace.
    pub(super) peer: Option<u32>,
    pub(super) is_veth: bool,
    pub(super) is_up: bool,
    /// Of one that is up: somebody has its other end, a machine that of a tap.
    pub(super) is_plugged: bool,
}

/// A route.
#[derive(Clone, Debug)]
pub(super) struct Route {
    pub(super) to: (Ipv4Addr, u8),
    pub(super) way: Way,
}

/// Where a route leads.
#[derive(Clone, Copy, Debug)]
pub(super) enum Way {
    /// To a neighbour on this link. With an own address, where it is not for the kernel to choose.
    Link { index: u32, source: Ipv4Addr },
    /// Through a neighbour on this link.
    Through { gateway: Ipv4Addr, index: u32, source: Ipv4Addr },
    /// Nowhere: who sends there is told so.
    Nowhere,
}

/// A route that is there.
#[derive(Clone, Debug)]
pub(super) struct FoundRoute {
    pub(super) to: (Ipv4Addr, u8),
    pub(super) index: Option<u32>,
}

impl Netlink {
    /// A line about the namespace that the calling thread is in.
    pub(super) fn here() -> Result<Self, Error> {
        let (connection, handle, _) = rtnetlink::new_connection()
            .map_err(|source| Error::System { what: "open a netlink socket".into(), source })?;
        let connection = tokio::spawn(connection).abort_handle();
        Ok(Self { handle, _connection: Arc::new(Connection(connection)) })
    }

    /// A line about another namespace.
    pub(super) async fn of(namespace: &Namespace) -> Result<Self, Error> {
        namespace.enter(Self::here).await?
    }

    pub(super) async fn links(&self) -> Result<Vec<Link>, Error> {
        let found = self.handle.link().get().execute().try_collect::<Vec<_>>().await;
        Ok(found.map_err(failed("list links"))?.into_iter().map(Link::from).collect())
    }

    pub(super) async fn link(&self, name: &str) -> Result<Option<Link>, Error> {
        let found = self.handle.link().get().match_name(name).execute().try_next().await;
        match found {
            Ok(found) => Ok(found.map(Link::from)),
            Err(error) if is(&error, &[Errno::NODEV]) => Ok(None),
            Err(error) => Err(failed(format_args!("look for link {name}"))(error)),
        }
    }

    pub(super) async fn need_link(&self, name: &str) -> Result<Link, Error> {
        self.link(name)
            .await?
            .ok_or_else(|| Error::System { what: format!("find link {name}"), source: Errno::NODEV.into() })
    }

    /// A cable, one end here and one end in another namespace.
    pub(super) async fn ensure_cable(
        &self,
        here: &str,
        there: &str,
        other: &Namespace,
        mtu: u16,
    ) -> Result<(), Error> {
        let peer = LinkMessageBuilder::<LinkUnspec>::new()
            .name(there)
            .mtu(mtu.into())
            .setns_by_fd(other.as_fd().as_raw_fd())
            .build();
        let cable = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
            .name(here)
            .mtu(mtu.into())
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .build();
        self.done(
            self.handle.link().add(cable).execute().await,
            &[Errno::EXIST],
            format_args!("make cable {here}"),
        )
    }

    /// Names a link's owner, and says what its frames can carry.
    pub(super) async fn set_link(&self, link: &Link, mtu: u16, alias: Option<&str>) -> Result<(), Error> {
        let mut wanted = LinkUnspec::new_with_index(link.index).mtu(mtu.into());
        if let Some(alias) = alias {
            wanted = wanted.alias(alias);
        }
        self.done(
            self.handle.link().set(wanted.build()).execute().await,
            &[],
            format_args!("set link {}", link.name),
        )
    }

    pub(super) async fn set_up(&self, link: &Link) -> Result<(), Error> {
        if link.is_up {
            return Ok(());
        }
        let up = LinkUnspec::new_with_index(link.index).up().build();
        self.done(self.handle.link().set(up).execute().await, &[], format_args!("set link {} up", link.name))
    }

    pub(super) async fn delete_link(&self, link: &Link) -> Result<(), Error> {
        let result = self.handle.link().del(link.index).execute().await;
        self.done(result, &[Errno::NODEV], format_args!("remove link {}", link.name))
    }

    pub(super) async fn ensure_address(&self, link: &Link, address: Ipv4Addr) -> Result<(), Error> {
        let result = self.handle.address().add(link.index, IpAddr::V4(address), 32).execute().await;
        self.done(result, &[Errno::EXIST], format_args!("give link {} address {address}", link.name))
    }

    /// Whoever has the address on this link has this hardware address, and no ARP says otherwise.
    pub(super) async fn ensure_neighbour(
        &self,
        link: &Link,
        address: Ipv4Addr,
        mac: [u8; 6],
    ) -> Result<(), Error> {
        let wanted =
            self.handle.neighbours().add(link.index, IpAddr::V4(address)).link_layer_address(&mac).replace();
        self.done(wanted.execute().await, &[], format_args!("set neighbour {address} on link {}", link.name))
    }

    pub(super) async fn ensure_route(&self, route: &Route) -> Result<(), Error> {
        let (base, prefix) = route.to;
        let wanted = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(base, prefix);
        let wanted = match route.way {
            Way::Link { index, source } => {
                wanted.output_interface(index).pref_source(source).scope(RouteScope::Link)
            }
            Way::Through { gateway, index, source } => {
                wanted.output_interface(index).gateway(gateway).pref_source(source).onlink()
            }
            Way::Nowhere => wanted.kind(RouteType::Unreachable),
        };
        let result = self.handle.route().add(wanted.build()).replace().execute().await;
        self.done(result, &[Errno::EXIST], format_args!("set route {base}/{prefix}"))
    }

    /// The IPv4 routes of the main table and of the addresses of the namespace itself.
    pub(super) async fn routes(&self) -> Result<Vec<FoundRoute>, Error> {
        let all = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let found = self.handle.route().get(all).execute().try_collect::<Vec<_>>().await;
        Ok(found.map_err(failed("list routes"))?.iter().filter_map(FoundRoute::of).collect())
    }

    /// Tells of a change that was made.
    fn done(
        &self,
        result: Result<(), rtnetlink::Error>,
        fine: &[Errno],
        what: fmt::Arguments<'_>,
    ) -> Result<(), Error> {
        match result {
            Ok(()) => changed(what),
            Err(error) if is(&error, fine) => {}
            Err(error) => return Err(failed(what)(error)),
        }
        Ok(())
    }
}

impl From<LinkMessage> for Link {
    fn from(message: LinkMessage) -> Self {
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            alias: None,
            peer: None,
            is_veth: false,
            is_up: message.header.flags.contains(LinkFlags::Up),
            is_plugged: message.header.flags.contains(LinkFlags::LowerUp),
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::IfAlias(alias) => link.alias = Some(alias),
                LinkAttribute::Link(index) => link.peer = Some(index),
                LinkAttribute::LinkInfo(infos) => {
                    link.is_veth = infos.iter().any(|info| matches!(info, LinkInfo::Kind(InfoKind::Veth)));
                }
                _ => {}
            }
        }
        link
    }
}

impl FoundRoute {
    fn of(message: &RouteMessage) -> Option<Self> {
        let table = message.header.table;
        if table != RouteHeader::RT_TABLE_MAIN && table != RT_TABLE_LOCAL {
            return None;
        }
        let mut base = Ipv4Addr::UNSPECIFIED;
        let mut index = None;
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(RouteAddress::Inet(address)) => base = *address,
                RouteAttribute::Oif(oif) => index = Some(*oif),
                _ => {}
            }
        }
        Some(Self { to: (base, message.header.destination_prefix_length), index })
    }
}

fn is(error: &rtnetlink::Error, fine: &[Errno]) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(said)
        if fine.iter().any(|errno| errno.raw_os_error() == said.raw_code().abs()))
}

fn failed(what: impl fmt::Display) -> impl FnOnce(rtnetlink::Error) -> Error {
    let what = what.to_string();
    move |error| {
        let source = match error {
            rtnetlink::Error::NetlinkError(said) => said.to_io(),
            other => io::Error::other(other.to_string()),
        };
        match source.kind() {
            io::ErrorKind::PermissionDenied => Error::Permission { what, source },
            _ => Error::System { what, source },
        }
    }
}

/// linux/rtnetlink.h.
const RT_TABLE_LOCAL: u8 = 255;

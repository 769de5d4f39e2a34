//! What a network's parts are called, so that anyone can tell from a name what it belongs to.
//!
//! Invariant: a name can be made from the resource's id alone, and the id be read back from what bears
//! the name. Links have too short names for that: they bear the id's last digits, and the whole of it as
//! their alias (`ip link show` tells both).

use ec2vmm_model::ids::{InterfaceId, VpcId};

/// How everything of one daemon is called.
#[derive(Clone, Debug)]
pub(super) struct Names {
    prefix: String,
}

impl Names {
    pub(super) fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned() }
    }

    /// The namespace of a network.
    pub(super) fn namespace(&self, vpc: &VpcId) -> String {
        format!("{}{vpc}", self.prefix)
    }

    /// The network of a namespace, when it is one of ours.
    pub(super) fn vpc_of_namespace(&self, name: &str) -> Option<VpcId> {
        name.strip_prefix(&self.prefix)?.parse().ok()
    }

    /// The firewall table of a network in the host's own namespace.
    pub(super) fn table(&self, vpc: &VpcId) -> String {
        format!("{TABLE}-{}{vpc}", self.prefix)
    }

    /// The network of a firewall table, when it is one of ours.
    pub(super) fn vpc_of_table(&self, name: &str) -> Option<VpcId> {
        self.vpc_of_namespace(name.strip_prefix(TABLE)?.strip_prefix('-')?)
    }

    /// The alias of the host's end of a network's cable.
    pub(super) fn cable_alias(&self, vpc: &VpcId) -> String {
        format!("{TABLE} {}{vpc}", self.prefix)
    }

    /// The network of the host's end of a cable, when it is one of ours.
    pub(super) fn vpc_of_cable(&self, alias: &str) -> Option<VpcId> {
        self.vpc_of_namespace(alias.strip_prefix(TABLE)?.strip_prefix(' ')?)
    }
}

/// The host's end of a network's cable.
pub(super) fn cable(vpc: &VpcId) -> String {
    link(VpcId::PREFIX, vpc.as_str())
}

/// An interface's tap, which is alone with its like in the network's namespace.
pub(super) fn tap(interface: &InterfaceId) -> String {
    link(InterfaceId::PREFIX, interface.as_str())
}

/// The alias of an interface's tap.
pub(super) fn tap_alias(interface: &InterfaceId) -> String {
    interface.to_string()
}

/// The interface of a tap, or of a chain that guards one.
pub(super) fn interface_of(alias: &str) -> Option<InterfaceId> {
    alias.parse().ok()
}

/// Links' names have at most 15 bytes. The first digits of an id are what people's ids share.
fn link(prefix: &str, id: &str) -> String {
    let digits = id.rsplit('-').next().unwrap_or_default();
    let room = IFNAME_BYTES_MAX.saturating_sub(prefix.len() + 1);
    let last = digits.get(digits.len().saturating_sub(room)..).unwrap_or(digits);
    format!("{prefix}-{last}")
}

/// The namespace's end of the cable to the host.
pub(super) const OUT: &str = "out";

/// What names in places that we share with others begin with; the name of tables that are ours alone.
pub(super) const TABLE: &str = "ec2vmm";

/// linux/if.h: `IFNAMSIZ`, of which one byte ends the name.
pub(super) const IFNAME_BYTES_MAX: usize = 15;

#[cfg(test)]
mod tests {
    use ec2vmm_model::ids::{InterfaceId, VpcId};
    use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};

    use super::{IFNAME_BYTES_MAX, Names, cable, interface_of, tap, tap_alias};

    #[test]
    fn names_are_the_ids() {
        let vpc: VpcId = "vpc-0123456789abcdef0".parse().unwrap();
        assert_eq!(cable(&vpc), "vpc-6789abcdef0");
        assert_eq!(tap(&"eni-1234abcd".parse().unwrap()), "eni-1234abcd");
        let names = Names::new("ci-");
        assert_eq!(names.namespace(&vpc), "ci-vpc-0123456789abcdef0");
        assert_eq!(names.table(&vpc), "ec2vmm-ci-vpc-0123456789abcdef0");
        // What another daemon has is not ours.
        assert_eq!(Names::new("").vpc_of_namespace(&names.namespace(&vpc)), None);
        assert_eq!(names.vpc_of_namespace(vpc.as_str()), None);
        assert_eq!(Names::new("").vpc_of_table("ec2vmm"), None);
    }

    proptest! {
        #[test]
        fn ids_are_read_back(bits in any::<u128>(), prefix in "[a-z0-9-]{0,16}") {
            let (vpc, interface) = (VpcId::from_random(bits), InterfaceId::from_random(bits));
            let names = Names::new(&prefix);
            prop_assert_eq!(names.vpc_of_namespace(&names.namespace(&vpc)), Some(vpc.clone()));
            prop_assert_eq!(names.vpc_of_table(&names.table(&vpc)), Some(vpc.clone()));
            prop_assert_eq!(names.vpc_of_cable(&names.cable_alias(&vpc)), Some(vpc.clone()));
            prop_assert_eq!(interface_of(&tap_alias(&interface)), Some(interface.clone()));
            prop_assert!(cable(&vpc).len() <= IFNAME_BYTES_MAX && tap(&interface).len() <= IFNAME_BYTES_MAX);
        }
    }
}

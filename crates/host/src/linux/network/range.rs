//! A network's range of addresses, and what the first four of them are for, as in EC2.

use std::net::Ipv4Addr;

use super::Error;

/// A range of addresses: 16 to 2^16 of them.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Range {
    base: u32,
    prefix: u8,
}

impl Range {
    pub(super) fn new(base: Ipv4Addr, prefix: u8) -> Result<Self, Error> {
        let invalid =
            |rule| Error::Invalid { what: "the network's range", given: format!("{base}/{prefix}"), rule };
        if !(PREFIX_MIN..=PREFIX_MAX).contains(&prefix) {
            return Err(invalid("its prefix has to be 16 to 28 bits long"));
        }
        let range = Self { base: base.into(), prefix };
        if range.base & !range.mask_bits() != 0 {
            return Err(invalid("it has to begin at a multiple of its size"));
        }
        let last = range.last();
        let special = |address: Ipv4Addr| {
            address.octets()[0] == 0
                || address.is_loopback()
                || address.is_link_local()
                || address.octets()[0] >= 224
        };
        if special(base) || special(last) {
            return Err(invalid(
                "it has to be of addresses that hosts can have, best of 10/8, 172.16/12 or 192.168/16",
            ));
        }
        Ok(range)
    }

    /// The router: the namespace itself.
    pub(super) fn router(self) -> Ipv4Addr {
        Ipv4Addr::from(self.base + 1)
    }

    /// The DNS.
    pub(super) fn dns(self) -> Ipv4Addr {
        Ipv4Addr::from(self.base + 2)
    }

    /// The host, as instances see it. EC2 keeps this address for "future use".
    pub(super) fn host(self) -> Ipv4Addr {
        Ipv4Addr::from(self.base + 3)
    }

    pub(super) fn base(self) -> Ipv4Addr {
        Ipv4Addr::from(self.base)
    }

    pub(super) fn prefix(self) -> u8 {
        self.prefix
    }

    pub(super) fn mask(self) -> Ipv4Addr {
        Ipv4Addr::from(self.mask_bits())
    }

    fn last(self) -> Ipv4Addr {
        Ipv4Addr::from(self.base | !self.mask_bits())
    }

    pub(super) fn contains(self, address: Ipv4Addr) -> bool {
        u32::from(address) & self.mask_bits() == self.base
    }

    /// An interface may have this address: neither of the first four nor the last.
    pub(super) fn is_for_interfaces(self, address: Ipv4Addr) -> bool {
        self.contains(address) && address > self.host() && address < self.last()
    }

    pub(super) fn overlaps(self, base: Ipv4Addr, prefix: u8) -> bool {
        let shorter = mask(self.prefix.min(prefix));
        (self.base ^ u32::from(base)) & shorter == 0
    }

    fn mask_bits(self) -> u32 {
        mask(self.prefix)
    }

    /// The first range of this size, of those for private use, that overlaps none of `taken`.
    pub(super) fn another(self, taken: &[(Ipv4Addr, u8)]) -> Option<Self> {
        let size = 1_u32 << (32 - u32::from(self.prefix));
        PRIVATE
            .iter()
            .flat_map(|(first, last)| (u32::from(*first)..=u32::from(*last)).step_by(1 << 16))
            .find_map(|sixteen| {
                let range = Self { base: sixteen & !(size - 1), prefix: self.prefix };
                taken.iter().all(|(base, prefix)| !range.overlaps(*base, *prefix)).then_some(range)
            })
    }
}

fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0)
}

const PREFIX_MIN: u8 = 16;
const PREFIX_MAX: u8 = 28;

/// RFC 1918, from what EC2's default networks use.
const PRIVATE: &[(Ipv4Addr, Ipv4Addr)] = &[
    (Ipv4Addr::new(172, 16, 0, 0), Ipv4Addr::new(172, 31, 255, 255)),
    (Ipv4Addr::new(10, 0, 0, 0), Ipv4Addr::new(10, 255, 255, 255)),
    (Ipv4Addr::new(192, 168, 0, 0), Ipv4Addr::new(192, 168, 255, 255)),
];

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};

    use super::Range;

    fn range(text: &str) -> Option<Range> {
        let (base, prefix) = text.split_once('/').unwrap();
        Range::new(base.parse().unwrap(), prefix.parse().unwrap()).ok()
    }

    #[test]
    fn what_is_no_range() {
        for text in [
            "172.31.0.1/20",
            "10.0.0.0/8",
            "10.0.0.0/29",
            "127.0.0.0/16",
            "169.254.0.0/16",
            "224.0.0.0/16",
            "0.0.0.0/16",
            "10.0.0.0/33",
        ] {
            assert_eq!(range(text), None, "{text}");
        }
    }

    #[test]
    fn the_first_four_and_the_last_are_kept() {
        let range = range("172.31.0.0/28").unwrap();
        let usable: Vec<_> = (0..=20)
            .map(|host| Ipv4Addr::new(172, 31, 0, host))
            .filter(|address| range.is_for_interfaces(*address))
            .collect();
        assert_eq!((usable[0], usable.len()), (Ipv4Addr::new(172, 31, 0, 4), 11));
    }

    #[test]
    fn another_range_is_free() {
        let wanted = range("172.31.0.0/20").unwrap();
        let host = (Ipv4Addr::new(172, 16, 0, 0), 12);
        assert_eq!(wanted.another(&[host]).unwrap().base(), Ipv4Addr::new(10, 0, 0, 0));
        assert_eq!(wanted.another(&[(Ipv4Addr::UNSPECIFIED, 0)]), None);
    }

    proptest! {
        #[test]
        fn ranges_overlap_when_they_share_an_address(base in any::<u32>(), other in any::<u32>(), prefix in 16_u8..=28, length in 0_u8..=32) {
            let range = Range { base: base & super::mask(prefix), prefix };
            let other_base = other & super::mask(length);
            let shares = range.contains(other_base.into()) || (range.base & super::mask(length)) == other_base;
            prop_assert_eq!(range.overlaps(other_base.into(), length), shares);
        }

        #[test]
        fn special_addresses_are_in_the_range(base in any::<u32>(), prefix in 16_u8..=28) {
            if let Ok(range) = Range::new((base & super::mask(prefix)).into(), prefix) {
                for address in [range.router(), range.dns(), range.host()] {
                    prop_assert!(range.contains(address) && !range.is_for_interfaces(address));
                }
            }
        }
    }
}

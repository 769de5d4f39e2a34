//! What AWS charges on demand, in us-east-1, for Linux; every region's name gets these prices.
//!
//! Money is counted in billionths of a dollar, as integers: sums are exact, and each product is rounded
//! once, half up.
//!
//! Instance prices come from the catalogue ([`crate::instance_types`]), as of [`INSTANCES_AS_OF`]; the
//! others are AWS's published list prices as of [`OTHERS_AS_OF`]. Not counted: IOPS and throughput beyond
//! what a volume includes, requests to magnetic volumes, data transfer, detailed monitoring.

use std::{fmt, iter::Sum, ops::Add, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{instance_types::InstanceType, volumes::VolumeKind};

/// An amount of US dollars, to the billionth. As JSON, a decimal number in a string: `"0.010400000"`.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Usd(u128);

/// What is no amount of dollars.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("\"{0}\" is not an amount of dollars, such as 0.0104")]
pub struct NotUsd(String);

impl Usd {
    /// Nothing.
    pub const ZERO: Self = Self(0);

    /// From billionths.
    pub const fn from_nanos(nanos: u128) -> Self {
        Self(nanos)
    }

    /// Billionths.
    pub const fn nanos(self) -> u128 {
        self.0
    }

    /// This price times `amount` of `per` units, rounded half up: an hourly price for milliseconds is
    /// `price.times(ms, HOUR_MS)`.
    #[must_use]
    pub fn times(self, amount: u128, per: u128) -> Self {
        let product = self.0.saturating_mul(amount);
        Self(product.saturating_add(per / 2).checked_div(per).unwrap_or(0))
    }

    /// Rounded half up to this many decimal places, at most nine: `0.0104` for 4.
    pub fn rounded(self, places: u32) -> String {
        let places = places.min(NANO_PLACES);
        let unit = 10_u128.pow(NANO_PLACES - places);
        let units = self.0.saturating_add(unit / 2) / unit;
        let whole = 10_u128.pow(places);
        match places {
            0 => units.to_string(),
            _ => format!("{}.{:0width$}", units / whole, units % whole, width = places as usize),
        }
    }
}

impl Add for Usd {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl Sum for Usd {
    fn sum<I: Iterator<Item = Self>>(amounts: I) -> Self {
        amounts.fold(Self::ZERO, Self::add)
    }
}

/// All nine places.
impl fmt::Display for Usd {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.rounded(NANO_PLACES))
    }
}

impl FromStr for Usd {
    type Err = NotUsd;

    fn from_str(given: &str) -> Result<Self, NotUsd> {
        parse(given).map(Self).ok_or_else(|| NotUsd(given.chars().take(64).collect()))
    }
}

impl Serialize for Usd {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Usd {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// An hour of an instance type; none where AWS's price is not known.
pub fn instance_hour(instance_type: &str) -> Option<Usd> {
    let usd = InstanceType::find(instance_type).ok()?.usd_per_hour?;
    // The shortest decimal that means this number is the one that the catalogue holds.
    usd.to_string().parse().ok()
}

/// A month of a GiB of a volume.
pub fn volume_gib_month(kind: VolumeKind) -> Usd {
    Usd(match kind {
        VolumeKind::Gp3 => 80_000_000,
        VolumeKind::Gp2 => 100_000_000,
        VolumeKind::Io1 | VolumeKind::Io2 => 125_000_000,
        VolumeKind::St1 => 45_000_000,
        VolumeKind::Sc1 => 15_000_000,
        VolumeKind::Standard => 50_000_000,
    })
}

/// An hour of one vCPU beyond what an `unlimited` instance has earned: less for Graviton.
pub fn surplus_vcpu_hour(instance_type: &str) -> Usd {
    if instance_type.starts_with("t4g.") { Usd(40_000_000) } else { Usd(50_000_000) }
}

fn parse(given: &str) -> Option<u128> {
    let (whole, fraction) = given.split_once('.').unwrap_or((given, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(fraction) {
        return None;
    }
    let places = u32::try_from(fraction.len()).ok().filter(|places| *places <= NANO_PLACES)?;
    let fraction = fraction.parse::<u128>().ok()?.checked_mul(10_u128.pow(NANO_PLACES - places))?;
    whole.parse::<u128>().ok()?.checked_mul(NANOS)?.checked_add(fraction)
}

/// A month of a GiB of snapshots, standard tier.
pub const SNAPSHOT_GIB_MONTH: Usd = Usd(50_000_000);
/// An hour of a public IPv4 address, in use or not.
pub const PUBLIC_ADDRESS_HOUR: Usd = Usd(5_000_000);
/// When the catalogue's prices were taken.
pub const INSTANCES_AS_OF: &str = "2026-07-20";
/// When the other prices were taken: AWS's pages on EBS, T instances and public IPv4 addresses.
pub const OTHERS_AS_OF: &str = "2026-11-22";
/// The region whose prices these are.
pub const REGION: &str = "us-east-1";
/// Milliseconds.
pub const HOUR_MS: u128 = 3_600_000;
/// What AWS's price lists mean by a month: 730 hours.
pub const MONTH_MS: u128 = 730 * HOUR_MS;
const NANOS: u128 = 1_000_000_000;
const NANO_PLACES: u32 = 9;

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop_assert_eq, proptest};

    use super::{HOUR_MS, MONTH_MS, Usd, instance_hour, volume_gib_month};
    use crate::{InstanceType, volumes::VolumeKind};

    #[test]
    fn known_prices() {
        assert_eq!(instance_hour("t3.micro"), Some(Usd::from_nanos(10_400_000)));
        assert_eq!(instance_hour("no.such"), None);
        assert_eq!(volume_gib_month(VolumeKind::Gp3).times(8, 1).to_string(), "0.640000000");
        assert_eq!(instance_hour("t3.micro").unwrap().times(MONTH_MS, HOUR_MS).rounded(2), "7.59");
    }

    #[test]
    fn every_price_of_the_catalogue_is_exact() {
        for found in InstanceType::all() {
            let price = instance_hour(found.name);
            assert_eq!(price.is_some(), found.usd_per_hour.is_some(), "{}", found.name);
            if let (Some(price), Some(usd)) = (price, found.usd_per_hour) {
                assert_eq!(
                    price.to_string().parse::<f64>().unwrap().to_bits(),
                    usd.to_bits(),
                    "{}",
                    found.name
                );
            }
        }
    }

    #[test]
    fn rounding_is_half_up() {
        let usd: Usd = "1.0149995".parse().unwrap();
        assert_eq!([0, 2, 6, 9].map(|places| usd.rounded(places)), ["1", "1.01", "1.015000", "1.014999500"]);
        assert_eq!(Usd::from_nanos(1).times(1, 2), Usd::from_nanos(1));
        assert_eq!(Usd::from_nanos(1).times(1, 3), Usd::ZERO);
        assert_eq!(Usd::from_nanos(1).times(1, 0), Usd::ZERO);
    }

    #[test]
    fn what_is_no_amount() {
        for given in ["", ".", "1.", ".5", "-1", "+1", "1e3", "1,5", "0.0000000001", "١"] {
            assert!(given.parse::<Usd>().is_err(), "{given}");
        }
        assert!("9".repeat(1 << 16).parse::<Usd>().is_err());
    }

    proptest! {
        #[test]
        fn written_and_read(nanos in any::<u64>()) {
            let usd = Usd::from_nanos(nanos.into());
            let json = serde_json::to_string(&usd).unwrap();
            prop_assert_eq!(serde_json::from_str::<Usd>(&json).unwrap(), usd);
        }
    }
}

//! `tap=NAME[,mac=MAC][,mtu=BYTES][,queues=N][,rx-bps=RATE][,rx-pps=RATE][,tx-bps=RATE][,tx-pps=RATE]`: a
//! network interface.

use std::str::FromStr;

use ec2vmm_vmm_api::config::{MTU_MIN, RateLimit};

use super::{mac::Mac, queues::queues, rate, split_commas};

/// A network interface as typed.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Net {
    pub(crate) tap: String,
    pub(crate) mac: Option<Mac>,
    pub(crate) mtu: Option<u16>,
    pub(crate) queues: Option<u16>,
    /// To the guest.
    pub(crate) receive: RateLimit,
    /// From the guest.
    pub(crate) transmit: RateLimit,
}

impl FromStr for Net {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut net = Self::default();
        let Self { tap, mac, mtu, queues, receive, transmit } = &mut net;
        let mut named = None;
        for part in split_commas(text) {
            let unknown = || {
                format!(
                    "`{part}` is not understood: tap=NAME, mac=MAC, mtu=BYTES, queues=N and, each as \
                     RATE[/BURST], rx-bps, rx-pps, tx-bps and tx-pps are, each once"
                )
            };
            let (key, value) = part.split_once('=').ok_or_else(unknown)?;
            match key {
                "tap" if !value.is_empty() => once(&mut named, value.to_owned()),
                "mac" => once(mac, value.parse()?),
                "mtu" => once(mtu, self::mtu(value)?),
                "queues" => once(queues, self::queues(value)?),
                "rx-bps" => once(&mut receive.bandwidth, rate::bytes(value)?),
                "rx-pps" => once(&mut receive.operations, rate::count(value)?),
                "tx-bps" => once(&mut transmit.bandwidth, rate::bytes(value)?),
                "tx-pps" => once(&mut transmit.operations, rate::count(value)?),
                _ => false,
            }
            .then_some(())
            .ok_or_else(unknown)?;
        }
        *tap = named.ok_or("it names no tap: write tap=NAME")?;
        Ok(net)
    }
}

/// False where it was said before.
fn once<T>(place: &mut Option<T>, value: T) -> bool {
    place.replace(value).is_none()
}

fn mtu(text: &str) -> Result<u16, String> {
    let number = text.parse().ok().filter(|number| (MTU_MIN..).contains(number));
    number.ok_or_else(|| format!("`{text}` is not an MTU: {MTU_MIN} to {} bytes", u16::MAX))
}

#[cfg(test)]
mod tests {
    use super::Net;
    use crate::value::{mac::Mac, rate};

    #[test]
    fn interfaces() {
        let plain = Net { tap: "tap0".into(), ..Net::default() };
        assert_eq!("tap=tap0".parse(), Ok(plain.clone()));
        let mac = Some(Mac([2, 0, 0, 0, 0, 1]));
        assert_eq!("tap=tap0,mac=02:00:00:00:00:01".parse(), Ok(Net { mac, ..plain.clone() }));
        let mut full = Net { mtu: Some(1400), queues: Some(2), ..plain };
        full.receive.bandwidth = Some(rate::bytes("10M/1M").unwrap());
        full.receive.operations = Some(rate::count("100").unwrap());
        full.transmit.bandwidth = Some(rate::bytes("1M").unwrap());
        full.transmit.operations = Some(rate::count("10").unwrap());
        let text = "tap=tap0,mtu=1400,queues=2,rx-bps=10M/1M,rx-pps=100,tx-bps=1M,tx-pps=10";
        assert_eq!(text.parse(), Ok(full));
        for text in [
            "",
            "tap0",
            "tap=",
            "mac=02:00:00:00:00:01",
            "tap=a,tap=b",
            "tap=a,mtu=9",
            "tap=a,mac=x",
            "tap=a,queues=0",
            "tap=a,rx-bps=0",
            "tap=a,tx-pps=1,tx-pps=1",
            "tap=a,speed=1",
        ] {
            assert!(text.parse::<Net>().is_err(), "{text}");
        }
    }
}

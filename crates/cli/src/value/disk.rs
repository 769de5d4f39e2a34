//! `FILE[,format=FORMAT][,readonly|,snapshot][,serial=SERIAL][,iops=RATE][,bps=RATE][,queues=N]`: a disk beside
//! the image.

use std::{path::PathBuf, str::FromStr};

use ec2vmm_host::disks::{SERIAL_BYTES_MAX, Writes};
use ec2vmm_vmm_api::config::{Format, RateLimit};

use super::{queues::queues, rate, split_commas};

/// A disk as typed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Disk {
    pub(crate) path: PathBuf,
    pub(crate) format: Option<Format>,
    pub(crate) writes: Writes,
    pub(crate) serial: Option<String>,
    pub(crate) queues: Option<u16>,
    pub(crate) rate_limit: RateLimit,
}

impl FromStr for Disk {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = split_commas(text).into_iter();
        let path = parts.next().filter(|path| !path.is_empty()).ok_or("it names no file")?;
        let mut disk = Self {
            path: path.into(),
            format: None,
            writes: Writes::Kept,
            serial: None,
            queues: None,
            rate_limit: RateLimit::default(),
        };
        let limit = &mut disk.rate_limit;
        for part in parts {
            match (part.as_str(), part.split_once('=')) {
                ("readonly", _) if disk.writes == Writes::Kept => disk.writes = Writes::Refused,
                ("snapshot", _) if disk.writes == Writes::Kept => disk.writes = Writes::Discarded,
                (_, Some(("format", name))) if disk.format.is_none() => disk.format = Some(format(name)?),
                (_, Some(("serial", serial))) if disk.serial.is_none() => disk.serial = Some(sound(serial)?),
                (_, Some(("iops", rate))) if limit.operations.is_none() => {
                    limit.operations = Some(rate::count(rate)?);
                }
                (_, Some(("bps", rate))) if limit.bandwidth.is_none() => {
                    limit.bandwidth = Some(rate::bytes(rate)?);
                }
                (_, Some(("queues", number))) if disk.queues.is_none() => disk.queues = Some(queues(number)?),
                _ => {
                    return Err(format!(
                        "`{part}` is not understood: format=raw, format=qcow2, readonly or snapshot, \
                         serial=SERIAL, iops=RATE[/BURST], bps=RATE[/BURST] and queues=N are, each once; two \
                         commas stand for one in a file's name"
                    ));
                }
            }
        }
        Ok(disk)
    }
}

/// A disk format's name.
pub(crate) fn format(name: &str) -> Result<Format, String> {
    match name {
        "raw" => Ok(Format::Raw),
        "qcow2" => Ok(Format::Qcow2),
        _ => Err(format!("`{name}` is not a disk format: raw and qcow2 are")),
    }
}

fn sound(serial: &str) -> Result<String, String> {
    match (1..=SERIAL_BYTES_MAX).contains(&serial.len()) && serial.bytes().all(|byte| byte.is_ascii_graphic())
    {
        true => Ok(serial.to_owned()),
        false => Err(format!(
            "`{serial}` is not a serial number: 1 to {SERIAL_BYTES_MAX} printable ASCII characters"
        )),
    }
}

#[cfg(test)]
mod tests {
    use ec2vmm_host::disks::Writes;
    use ec2vmm_vmm_api::config::{Format, RateLimit};

    use super::Disk;
    use crate::value::rate::Limit;

    #[test]
    fn disks() {
        let plain = Disk {
            path: "a.raw".into(),
            format: None,
            writes: Writes::Kept,
            serial: None,
            queues: None,
            rate_limit: RateLimit::default(),
        };
        assert_eq!("a.raw".parse(), Ok(plain.clone()));
        assert_eq!("a,,b".parse(), Ok(Disk { path: "a,b".into(), ..plain }));
        let full = Disk {
            path: "a".into(),
            format: Some(Format::Qcow2),
            writes: Writes::Refused,
            serial: Some("vol-1".into()),
            queues: Some(2),
            rate_limit: "iops=10/20,bps=1M".parse::<Limit>().unwrap().0,
        };
        assert_eq!("a,format=qcow2,readonly,serial=vol-1,iops=10/20,bps=1M,queues=2".parse(), Ok(full));
        for text in [
            "",
            ",readonly",
            "a,readonly,snapshot",
            "a,format=vmdk",
            "a,serial=",
            "a,serial=123456789012345678901",
            "a,b",
            "a,iops=0",
            "a,iops=1,iops=2",
            "a,bps=fast",
            "a,queues=0",
            "a,queues=17",
        ] {
            assert!(text.parse::<Disk>().is_err(), "{text}");
        }
    }
}

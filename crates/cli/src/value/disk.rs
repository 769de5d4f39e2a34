//! `FILE[,format=FORMAT][,readonly|,snapshot][,serial=SERIAL]`: a disk beside the image.

use std::{path::PathBuf, str::FromStr};

use ec2vmm_host::disks::{SERIAL_BYTES_MAX, Writes};
use ec2vmm_vmm_api::config::Format;

use super::split_commas;

/// A disk as typed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Disk {
    pub(crate) path: PathBuf,
    pub(crate) format: Option<Format>,
    pub(crate) writes: Writes,
    pub(crate) serial: Option<String>,
}

impl FromStr for Disk {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = split_commas(text).into_iter();
        let path = parts.next().filter(|path| !path.is_empty()).ok_or("it names no file")?;
        let mut disk = Self { path: path.into(), format: None, writes: Writes::Kept, serial: None };
        for part in parts {
            match (part.as_str(), part.split_once('=')) {
                ("readonly", _) if disk.writes == Writes::Kept => disk.writes = Writes::Refused,
                ("snapshot", _) if disk.writes == Writes::Kept => disk.writes = Writes::Discarded,
                (_, Some(("format", name))) if disk.format.is_none() => disk.format = Some(format(name)?),
                (_, Some(("serial", serial))) if disk.serial.is_none() => disk.serial = Some(sound(serial)?),
                _ => {
                    return Err(format!(
                        "`{part}` is not understood: format=raw, format=qcow2, readonly or snapshot, and \
                         serial=SERIAL are; two commas stand for one in a file's name"
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
    use ec2vmm_vmm_api::config::Format;

    use super::Disk;

    #[test]
    fn disks() {
        let plain = Disk { path: "a.raw".into(), format: None, writes: Writes::Kept, serial: None };
        assert_eq!("a.raw".parse(), Ok(plain.clone()));
        assert_eq!("a,,b".parse(), Ok(Disk { path: "a,b".into(), ..plain }));
        let full = Disk {
            path: "a".into(),
            format: Some(Format::Qcow2),
            writes: Writes::Refused,
            serial: Some("vol-1".into()),
        };
        assert_eq!("a,format=qcow2,readonly,serial=vol-1".parse(), Ok(full));
        for text in [
            "",
            ",readonly",
            "a,readonly,snapshot",
            "a,format=vmdk",
            "a,serial=",
            "a,serial=123456789012345678901",
            "a,b",
        ] {
            assert!(text.parse::<Disk>().is_err(), "{text}");
        }
    }
}

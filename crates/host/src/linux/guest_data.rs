//! How a guest is told what it is: so far a seed disk; a metadata service can take its place here.

use ec2vmm_model::ids::InstanceId;

use super::error::{explain, other};
use crate::{
    disks::Disk,
    host::{Error, GuestData},
    seed::{PublicKey, Seed},
};

/// What a machine gets for this, beside its volumes. The instance's id is in it, so that cloud-init does
/// its per-instance work once in the instance's life.
///
/// # Errors
/// A public key or host name is none, or the host is out of memory.
pub(super) fn disk(instance: &InstanceId, guest: &GuestData) -> Result<Disk, Error> {
    let key = |key: &String| {
        PublicKey::parse(key.trim()).map_err(|reason| other(format!("public key of {instance}: {reason}")))
    };
    let seed = Seed {
        keys: guest.public_keys.iter().map(key).collect::<Result<_, _>>()?,
        hostname: match guest.hostname.as_str() {
            "" => None,
            name => Some(name.parse().map_err(|error: crate::seed::Error| explain(&error))?),
        },
        instance_id: Some(instance.clone()),
        user_data: guest.user_data.clone(),
    };
    seed.disk().map_err(|error| explain(&error))
}

#[cfg(test)]
mod tests {
    use super::disk;
    use crate::host::GuestData;

    #[test]
    fn what_makes_no_sense_is_refused() {
        let instance = "i-0123456789abcdef0".parse().unwrap();
        let plain = GuestData { hostname: "ip-172-31-0-10".into(), ..GuestData::default() };
        let made = disk(&instance, &plain).unwrap();
        assert!(made.read_only && made.serial == "seed");
        disk(&instance, &GuestData { hostname: "no_good".into(), ..plain.clone() }).unwrap_err();
        disk(&instance, &GuestData { public_keys: vec!["ssh-rsa".into()], ..plain }).unwrap_err();
    }
}

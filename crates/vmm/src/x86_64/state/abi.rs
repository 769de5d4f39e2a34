//! A structure of KVM's interface in a document: its bytes, as hexadecimal digits.

use ec2vmm_devices::state::Hex;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Byte for byte what KVM gave.
#[derive(Clone, Copy, Debug, Default)]
pub struct Abi<T>(pub T);

impl<T: IntoBytes + Immutable> Serialize for Abi<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Hex(self.0.as_bytes().to_vec()).serialize(serializer)
    }
}

impl<'de, T: FromBytes> Deserialize<'de> for Abi<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Hex(bytes) = Hex::deserialize(deserializer)?;
        let read = T::read_from_bytes(&bytes)
            .map_err(|_| D::Error::custom(format!("{} bytes where KVM has {}", bytes.len(), size_of::<T>())));
        read.map(Self)
    }
}

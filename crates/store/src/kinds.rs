//! The kinds that `model` describes: the name of each in the file, and what its records are called by.
//!
//! A kind's name is for ever. Kinds of one crate only are declared there.

use ec2vmm_model::{
    Instance, credits::Account, images::Image, key_pairs::KeyPair, ledger::Entry, networks::Network,
    volumes::Volume,
};

use crate::Record;

impl Record for Instance {
    const KIND: &'static str = "instance";

    fn key(&self) -> String {
        self.id.to_string()
    }
}

impl Record for Image {
    const KIND: &'static str = "image";

    fn key(&self) -> String {
        self.id.to_string()
    }
}

impl Record for KeyPair {
    const KIND: &'static str = "key_pair";

    fn key(&self) -> String {
        self.id.to_string()
    }
}

impl Record for Network {
    const KIND: &'static str = "network";

    fn key(&self) -> String {
        self.vpc.to_string()
    }
}

impl Record for Entry {
    const KIND: &'static str = "ledger_entry";

    fn key(&self) -> String {
        self.key()
    }
}

impl Record for Account {
    const KIND: &'static str = "credit_account";

    fn key(&self) -> String {
        self.instance.to_string()
    }
}

impl Record for Volume {
    const KIND: &'static str = "volume";

    fn key(&self) -> String {
        self.id.to_string()
    }
}

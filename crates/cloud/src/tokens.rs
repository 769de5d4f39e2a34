//! Client tokens: what a launch with each of them came to, so that a repeated request launches nothing.

use ec2vmm_model::{
    Instance, Time,
    ids::{InstanceId, ReservationId},
};
use ec2vmm_store::Record;
use serde::{Deserialize, Serialize};

use crate::Error;

/// A token that was used, as the store keeps it.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct LaunchToken {
    pub(crate) region: String,
    pub(crate) token: String,
    /// Of the parameters that came with it.
    pub(crate) digest: String,
    pub(crate) reservation: ReservationId,
    pub(crate) instances: Vec<InstanceId>,
    /// How many of them are forgotten already: what they were is in [`Forgotten`].
    pub(crate) forgotten: usize,
    /// When the last one was terminated.
    pub(crate) ended: Option<Time>,
}

impl LaunchToken {
    pub(crate) fn key_of(region: &str, token: &str) -> String {
        format!("{region}/{token}")
    }

    /// An instance is forgotten.
    pub(crate) fn forget(&mut self, instance: &Instance, now: Time) {
        self.forgotten += 1;
        self.ended = self.ended.max(Some(instance.terminated.unwrap_or(now).min(now)));
    }

    /// EC2 remembers a token for a day after the instances were terminated.
    pub(crate) fn is_over(&self, now: Time) -> bool {
        let gone = self.forgotten >= self.instances.len();
        gone && self.ended.is_some_and(|ended| now.ms_since(ended) > REMEMBERED_MS)
    }
}

impl Record for LaunchToken {
    const KIND: &'static str = "launch_token";

    fn key(&self) -> String {
        Self::key_of(&self.region, &self.token)
    }
}

/// An instance that is forgotten while its token is not, as it was last: the answer stays the same.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(transparent)]
pub(crate) struct Forgotten(pub(crate) Instance);

impl Forgotten {
    pub(crate) fn new(instance: &Instance) -> Self {
        // What is large, or somebody's secret, is no part of the answer.
        Self(Instance { user_data: None, public_key: None, ..instance.clone() })
    }
}

impl Record for Forgotten {
    const KIND: &'static str = "forgotten_instance";

    fn key(&self) -> String {
        self.0.id.to_string()
    }
}

/// A token as EC2 takes it.
pub(crate) fn check(token: &str) -> Result<(), Error> {
    let fits =
        (1..=TOKEN_CHARS_MAX).contains(&token.len()) && token.bytes().all(|byte| byte.is_ascii_graphic());
    if fits {
        return Ok(());
    }
    Err(Error::InvalidValue {
        message: "Invalid client token: it must have 1 to 64 printable ASCII characters.".to_owned(),
        hint: None,
    })
}

const REMEMBERED_MS: u64 = 24 * 60 * 60 * 1000;
const TOKEN_CHARS_MAX: usize = 64;

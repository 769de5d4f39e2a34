//! Tags: names and values that people give to resources.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Tags, by key.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Tags(pub BTreeMap<String, String>);

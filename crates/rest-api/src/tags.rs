//! Tags: names and values that people give to resources.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What to change of a resource's tags, all at once.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TagChange {
    /// Tags to add, or to give another value. Keys: 1 to 127 characters, not beginning with `aws:`; values:
    /// up to 255 characters; at most 50 tags on a resource.
    pub set: BTreeMap<String, String>,
    /// Keys of tags to remove; those that are not there are no error. Applied before `set`.
    #[schema(max_items = 50)]
    pub remove: Vec<String>,
}

/// A resource's tags.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct TagSet {
    /// The resource.
    pub resource_id: String,
    /// Its tags, by key.
    pub tags: BTreeMap<String, String>,
}

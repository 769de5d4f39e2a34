//! Tags: names and values that people give to resources.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// Tags to add, or to give another value.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AddTagsRequest {
    /// Keys: 1 to 128 characters, not beginning with `aws:`; values: up to 256 characters. A resource has at
    /// most 50 tags.
    pub tags: BTreeMap<String, String>,
}

/// Which tags to remove.
#[derive(Clone, Debug, Default, Deserialize, IntoParams, PartialEq, Serialize)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct RemoveTagsQuery {
    /// Keys. May be repeated. Those that are not there are no error.
    #[param(style = Form, explode, min_items = 1, max_items = 50)]
    pub key: Vec<String>,
}

//! What all lists have in common: ids, filters, pages.

use serde::{Deserialize, Serialize};
use utoipa::IntoParams;

/// What to list, and which page of it.
#[derive(Clone, Debug, Default, Deserialize, IntoParams, PartialEq, Serialize)]
#[into_params(parameter_in = Query)]
#[serde(default, deny_unknown_fields)]
pub struct ListQuery {
    /// Only these ids. May be repeated. One that
    /// is not there is an error. Not together with `max_results` or `next_token`.
    #[param(style = Form, explode, max_items = 1000, nullable = false)]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub id: Vec<String>,
    /// `NAME=VALUE` or `NAME=VALUE,VALUE`: only what has one of the values. May be repeated: all must hold.
    /// Names are EC2's, such as `instance-state-name`, `tag:Name`, `tag-key`. In values `*` stands for any
    /// text, `?` for one character, and a backslash takes the meaning from the character after it.
    #[param(style = Form, explode, max_items = 50, nullable = false, example = json!(["instance-state-name=running"]))]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub filter: Vec<String>,
    /// At most so many, 5 to 1,000. Without it, 1,000.
    #[param(minimum = 5, maximum = 1000, nullable = false)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_results: Option<u32>,
    /// Where the page before ended: its `next_token`.
    #[param(max_length = 512, nullable = false)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_token: Option<String>,
}

/// The most that one page holds.
pub const PAGE_MAX: u32 = 1000;

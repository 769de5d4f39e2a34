//! Filters of listings, as EC2 has them: every filter must be met, by any of its values; `*` stands for
//! any characters, `?` for one, `\` takes their meaning away.

/// One filter.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Filter {
    /// Such as `instance-state-name`, `tag:Name`.
    pub name: String,
    /// Any of these.
    pub values: Vec<String>,
}

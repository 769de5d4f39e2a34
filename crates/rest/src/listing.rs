//! What all lists have in common: filters and pages.

use ec2vmm_cloud::{filters::Filter, page::Paging};
use ec2vmm_rest_api::ListQuery;

use crate::problem::Refusal;

/// What a listing was asked for.
pub(crate) struct Listing {
    /// These.
    pub(crate) ids: Vec<String>,
    /// That meet these.
    pub(crate) filters: Vec<Filter>,
    /// Page by page.
    pub(crate) paging: Paging,
}

impl TryFrom<ListQuery> for Listing {
    type Error = Refusal;

    fn try_from(query: ListQuery) -> Result<Self, Refusal> {
        let ListQuery { id, filter, max_results, next_token } = query;
        Ok(Self {
            ids: named("id", id)?,
            filters: filters(&filter)?,
            paging: Paging { max_results, next_token },
        })
    }
}

/// Ids or names, as many as the contract allows.
pub(crate) fn named(parameter: &str, given: Vec<String>) -> Result<Vec<String>, Refusal> {
    if given.len() > NAMED_MAX {
        return Err(Refusal::invalid(format!("`{parameter}` is given more than {NAMED_MAX} times")));
    }
    Ok(given)
}

/// `NAME=VALUE,VALUE` each.
pub(crate) fn filters(given: &[String]) -> Result<Vec<Filter>, Refusal> {
    if given.len() > FILTERS_MAX {
        return Err(Refusal::invalid(format!("`filter` is given more than {FILTERS_MAX} times")));
    }
    given.iter().map(|filter| parse(filter)).collect()
}

fn parse(given: &str) -> Result<Filter, Refusal> {
    // A tag's key may contain `=`, which a backslash then marks.
    let Some((name, values)) = split_unescaped(given, '=') else {
        return Err(Refusal::invalid(format!(
            "the filter '{}' is not NAME=VALUE or NAME=VALUE,VALUE",
            given.chars().take(64).collect::<String>()
        )));
    };
    let mut rest = values;
    let mut values = Vec::new();
    while let Some((value, after)) = split_unescaped(rest, ',') {
        values.push(without_marks(value, ','));
        rest = after;
    }
    values.push(without_marks(rest, ','));
    Ok(Filter { name: without_marks(name, '='), values })
}

/// At the first `mark` that no backslash stands before.
fn split_unescaped(text: &str, mark: char) -> Option<(&str, &str)> {
    let mut escaped = false;
    let at = text.char_indices().find_map(|(at, c)| {
        let found = c == mark && !escaped;
        escaped = c == '\\' && !escaped;
        found.then_some(at)
    })?;
    Some((text.get(..at)?, text.get(at + mark.len_utf8()..)?))
}

/// Takes the backslash from before `mark`; all other backslashes are the cloud's, which knows wildcards.
fn without_marks(text: &str, mark: char) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, chars.clone().next()) {
            ('\\', Some(next)) => {
                chars.next();
                if next != mark {
                    plain.push('\\');
                }
                plain.push(next);
            }
            _ => plain.push(c),
        }
    }
    plain
}

const NAMED_MAX: usize = 1000;
const FILTERS_MAX: usize = 50;

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::parse;

    fn check(given: &str, expected: &Expect) {
        let read = match parse(given) {
            Ok(filter) => format!("{}: {:?}", filter.name, filter.values),
            Err(refusal) => refusal.detail,
        };
        expected.assert_eq(&read);
    }

    #[test]
    fn filters_as_they_are_written() {
        check("instance-type=t3.*", &expect![[r#"instance-type: ["t3.*"]"#]]);
        check(
            "instance-state-name=running,stopped",
            &expect![[r#"instance-state-name: ["running", "stopped"]"#]],
        );
        check("tag:Name=a=b", &expect![[r#"tag:Name: ["a=b"]"#]]);
        check(r"tag:a\=b=c\,d,e", &expect![[r#"tag:a=b: ["c,d", "e"]"#]]);
        check(r"tag:Name=100\%\*\\", &expect![[r#"tag:Name: ["100\\%\\*\\\\"]"#]]);
        check("tag:Name=", &expect![[r#"tag:Name: [""]"#]]);
        check("running", &expect!["the filter 'running' is not NAME=VALUE or NAME=VALUE,VALUE"]);
    }
}

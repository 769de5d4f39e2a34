//! Filters of listings, as EC2 has them: every filter must be met, by any of its values; `*` stands for
//! any characters, `?` for one, `\` takes their meaning away.

use ec2vmm_model::tags::Tags;

use crate::Error;

/// One filter.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Filter {
    /// Such as `instance-state-name`, `tag:Name`.
    pub name: String,
    /// Any of these.
    pub values: Vec<String>,
}

/// What a kind of resource can be filtered by: names, each with what the resource has there.
pub(crate) type Fields<T> = &'static [(&'static str, fn(&T) -> Vec<String>)];

/// Filters that were understood.
pub(crate) struct Matcher<T: 'static> {
    tests: Vec<(What<T>, Vec<Pattern>)>,
    tags: fn(&T) -> &Tags,
}

enum What<T> {
    Field(fn(&T) -> Vec<String>),
    Tag(String),
    TagKey,
}

impl<T> Matcher<T> {
    pub(crate) fn new(filters: &[Filter], fields: Fields<T>, tags: fn(&T) -> &Tags) -> Result<Self, Error> {
        if filters.len() > FILTERS_MAX || filters.iter().any(|filter| filter.values.len() > VALUES_MAX) {
            return Err(Error::InvalidValue {
                message: format!(
                    "At most {FILTERS_MAX} filters with {VALUES_MAX} values each are supported."
                ),
                hint: None,
            });
        }
        let tests = filters.iter().map(|filter| {
            let what = match (filter.name.as_str(), filter.name.strip_prefix("tag:")) {
                (_, Some(key)) => What::Tag(key.to_owned()),
                ("tag-key", _) => What::TagKey,
                (name, _) => {
                    let field = fields.iter().find(|(field, _)| *field == name);
                    What::Field(
                        field.ok_or_else(|| Error::InvalidFilter(name.chars().take(128).collect()))?.1,
                    )
                }
            };
            Ok((what, filter.values.iter().map(|value| Pattern::new(value)).collect()))
        });
        Ok(Self { tests: tests.collect::<Result<_, Error>>()?, tags })
    }

    pub(crate) fn passes(&self, item: &T) -> bool {
        self.tests.iter().all(|(what, patterns)| {
            let any = |value: &str| patterns.iter().any(|pattern| pattern.matches(value));
            match what {
                What::Field(field) => field(item).iter().any(|value| any(value)),
                What::Tag(key) => (self.tags)(item).0.get(key).is_some_and(|value| any(value)),
                What::TagKey => (self.tags)(item).0.keys().any(|key| any(key)),
            }
        })
    }
}

/// A value with wildcards.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Pattern(Vec<Piece>);

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Piece {
    Any,
    One,
    Is(char),
}

impl Pattern {
    pub(crate) fn new(text: &str) -> Self {
        let mut pieces = Vec::with_capacity(text.len());
        let mut chars = text.chars();
        while let Some(char) = chars.next() {
            pieces.push(match char {
                '*' => Piece::Any,
                '?' => Piece::One,
                '\\' => Piece::Is(chars.next().unwrap_or('\\')),
                char => Piece::Is(char),
            });
        }
        Self(pieces)
    }

    /// In time that grows with the product of both lengths at most: a star is tried again only from the
    /// last one.
    pub(crate) fn matches(&self, text: &str) -> bool {
        let text: Vec<char> = text.chars().collect();
        let (mut at, mut piece) = (0, 0);
        let mut star: Option<(usize, usize)> = None;
        while let Some(&char) = text.get(at) {
            match self.0.get(piece) {
                Some(Piece::Any) => {
                    star = Some((piece, at));
                    piece += 1;
                }
                Some(Piece::One) => (at, piece) = (at + 1, piece + 1),
                Some(Piece::Is(wanted)) if *wanted == char => (at, piece) = (at + 1, piece + 1),
                _ => match star {
                    Some((place, from)) => {
                        star = Some((place, from + 1));
                        (at, piece) = (from + 1, place + 1);
                    }
                    None => return false,
                },
            }
        }
        self.0.get(piece..).unwrap_or_default().iter().all(|piece| *piece == Piece::Any)
    }
}

/// EC2's limit of values.
const VALUES_MAX: usize = 200;
/// A limit that no request needs to reach.
const FILTERS_MAX: usize = 50;

#[cfg(test)]
mod tests {
    use proptest::prelude::{prop_assert_eq, proptest};

    use super::Pattern;

    #[test]
    fn wildcards() {
        let check = |pattern: &str, text: &str| Pattern::new(pattern).matches(text);
        assert!(check("t3.*", "t3.micro") && check("*", "") && check("?3.m*o", "t3.micro"));
        assert!(!check("t3", "t3.micro") && !check("?", "") && !check("", "x") && check("", ""));
        assert!(check(r"a\*b", "a*b") && !check(r"a\*b", "axb") && check(r"a\\", r"a\"));
        assert!(check("*a*b*c*", "xxaxxbxxcxx") && !check("*a*b*c*", "xxcxxbxxaxx"));
        assert!(!check(&"*a".repeat(50), &"a".repeat(49)));
    }

    proptest! {
        #[test]
        fn as_the_definition_says(pattern in "[ab*?]{0,6}", text in "[ab]{0,6}") {
            fn defined(pattern: &[u8], text: &[u8]) -> bool {
                match (pattern.split_first(), text.split_first()) {
                    (None, _) => text.is_empty(),
                    (Some((b'*', rest)), _) => (0..=text.len()).any(|skip| defined(rest, &text[skip..])),
                    (Some((b'?', rest)), Some((_, text))) => defined(rest, text),
                    (Some((is, rest)), Some((char, text))) => is == char && defined(rest, text),
                    (Some(_), None) => false,
                }
            }
            prop_assert_eq!(Pattern::new(&pattern).matches(&text), defined(pattern.as_bytes(), text.as_bytes()));
        }
    }
}

//! Tags: names and values that people give to resources.
//!
//! Limits: EC2 User Guide, "Tag your Amazon EC2 resources", tag restrictions. Lengths count Unicode
//! characters. EC2 takes any character; those that XML cannot carry are refused here.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Tags, by key.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Tags(pub BTreeMap<String, String>);

/// Why a tag is refused.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Error {
    /// A key without characters, or with too many.
    #[error("a tag's key has 1 to {KEY_CHARS_MAX} characters, this one {chars}")]
    KeyLength {
        /// How many it has.
        chars: usize,
    },
    /// A value with too many characters.
    #[error("a tag's value has at most {VALUE_CHARS_MAX} characters, that of `{key}` has {chars}")]
    ValueLength {
        /// Whose value.
        key: String,
        /// How many it has.
        chars: usize,
    },
    /// A character that XML cannot carry.
    #[error("tag `{key}` holds a control character")]
    Character {
        /// The key, escaped.
        key: String,
    },
    /// A key of AWS's own.
    #[error("tag `{key}` begins with `aws:`, which is reserved for internal use")]
    Reserved {
        /// The key.
        key: String,
    },
    /// One key given twice in one request.
    #[error("tag `{key}` is given twice")]
    Duplicate {
        /// The key.
        key: String,
    },
    /// More tags than a resource can have.
    #[error("a resource has at most {TAGS_MAX} tags, this one would have {count}")]
    TooMany {
        /// How many it would have.
        count: usize,
    },
}

impl Error {
    /// EC2's code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::KeyLength { .. }
            | Self::ValueLength { .. }
            | Self::Character { .. }
            | Self::Reserved { .. }
            | Self::Duplicate { .. } => "InvalidParameterValue",
            Self::TooMany { .. } => "TagLimitExceeded",
        }
    }
}

impl Tags {
    /// The tags of a new resource.
    ///
    /// # Errors
    /// [`Error`].
    pub fn new(given: impl IntoIterator<Item = (String, String)>) -> Result<Self, Error> {
        let mut tags = Self::default();
        tags.add(given)?;
        Ok(tags)
    }

    /// Adds tags, as `CreateTags` does: one that is there gets the new value.
    ///
    /// # Errors
    /// [`Error`]; nothing has changed then.
    pub fn add(&mut self, given: impl IntoIterator<Item = (String, String)>) -> Result<(), Error> {
        let mut new = BTreeMap::new();
        for (key, value) in given {
            check(&key, &value)?;
            if new.contains_key(&key) {
                return Err(Error::Duplicate { key });
            }
            new.insert(key, value);
            // A request without end must not fill the memory.
            if new.len() > TAGS_MAX {
                return Err(Error::TooMany { count: new.len() });
            }
        }
        let stays = |key: &&String| !is_reserved(key) && !new.contains_key(*key);
        let count = self.0.keys().filter(stays).count() + new.len();
        if count > TAGS_MAX {
            return Err(Error::TooMany { count });
        }
        self.0.append(&mut new);
        Ok(())
    }

    /// Removes a tag, as `DeleteTags` does: with a value, only where it has that value. Says whether it was
    /// there.
    ///
    /// # Errors
    /// [`Error::Reserved`].
    pub fn remove(&mut self, key: &str, value: Option<&str>) -> Result<bool, Error> {
        if is_reserved(key) {
            return Err(Error::Reserved { key: shown(key) });
        }
        let meant = self.0.get(key).is_some_and(|present| value.is_none_or(|value| value == present));
        Ok(meant && self.0.remove(key).is_some())
    }

    /// Removes every tag but AWS's own.
    pub fn clear(&mut self) {
        self.0.retain(|key, _| is_reserved(key));
    }

    /// The value of a tag.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }
}

fn check(key: &str, value: &str) -> Result<(), Error> {
    let chars = key.chars().count();
    if !(1..=KEY_CHARS_MAX).contains(&chars) {
        return Err(Error::KeyLength { chars });
    }
    let chars = value.chars().count();
    if chars > VALUE_CHARS_MAX {
        return Err(Error::ValueLength { key: shown(key), chars });
    }
    if [key, value].into_iter().any(|text| text.chars().any(is_no_xml)) {
        return Err(Error::Character { key: shown(key) });
    }
    if is_reserved(key) {
        return Err(Error::Reserved { key: shown(key) });
    }
    Ok(())
}

/// In any combination of upper and lower case, says EC2's guide. Such tags do not count.
fn is_reserved(key: &str) -> bool {
    key.get(..RESERVED.len()).is_some_and(|start| start.eq_ignore_ascii_case(RESERVED))
}

/// XML 1.0, section 2.2, production `Char`.
fn is_no_xml(c: char) -> bool {
    c.is_control() && !matches!(c, '\t' | '\n' | '\r') || matches!(c, '\u{fffe}' | '\u{ffff}')
}

fn shown(key: &str) -> String {
    key.chars().take(KEY_CHARS_MAX).flat_map(char::escape_debug).collect()
}

/// Most tags of a resource.
pub const TAGS_MAX: usize = 50;
/// Most characters of a key.
pub const KEY_CHARS_MAX: usize = 128;
/// Most characters of a value.
pub const VALUE_CHARS_MAX: usize = 256;
const RESERVED: &str = "aws:";

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use proptest::prelude::{any, prop, prop_assert, prop_assert_eq, proptest};

    use super::{TAGS_MAX, Tags};

    fn tag(key: &str, value: &str) -> (String, String) {
        (key.to_owned(), value.to_owned())
    }

    fn numbered(count: usize) -> impl Iterator<Item = (String, String)> {
        (0..count).map(|number| tag(&number.to_string(), "x"))
    }

    #[test]
    fn what_is_refused() {
        check(
            [tag("", "x")],
            &expect!["InvalidParameterValue: a tag's key has 1 to 128 characters, this one 0"],
        );
        check(
            [tag(&"ä".repeat(129), "x")],
            &expect!["InvalidParameterValue: a tag's key has 1 to 128 characters, this one 129"],
        );
        check(
            [tag("Name", &"ä".repeat(257))],
            &expect![
                "InvalidParameterValue: a tag's value has at most 256 characters, that of `Name` has 257"
            ],
        );
        check(
            [tag("AwS:x", "x")],
            &expect![
                "InvalidParameterValue: tag `AwS:x` begins with `aws:`, which is reserved for internal use"
            ],
        );
        check([tag("a\0", "x")], &expect![[r"InvalidParameterValue: tag `a\0` holds a control character"]]);
        check([tag("a", "x"), tag("a", "y")], &expect!["InvalidParameterValue: tag `a` is given twice"]);
        check(
            numbered(TAGS_MAX + 1),
            &expect!["TagLimitExceeded: a resource has at most 50 tags, this one would have 51"],
        );
        check(
            (0..).map(|n: u64| tag(&n.to_string(), "")),
            &expect!["TagLimitExceeded: a resource has at most 50 tags, this one would have 51"],
        );
    }

    #[test]
    fn the_limits_themselves() {
        Tags::new([tag(&"ä".repeat(128), &"ä".repeat(256)), tag("awsome", ""), tag("ä", "b")]).unwrap();
        let mut full = Tags::new(numbered(TAGS_MAX)).unwrap();
        full.add([tag("0", "y")]).unwrap();
        assert_eq!(full.get("0"), Some("y"));
        full.add([tag("new", "")]).unwrap_err();
        // What the system itself adds does not count.
        full.0.insert("aws:x".to_owned(), String::new());
        full.add([tag("1", "y")]).unwrap();
        assert_eq!(full.remove("0", Some("x")), Ok(false));
        assert_eq!(full.remove("0", Some("y")), Ok(true));
        assert_eq!(full.remove("0", None), Ok(false));
        full.remove("aws:x", None).unwrap_err();
        full.add([tag("new", "")]).unwrap();
        full.clear();
        assert_eq!(full.0.into_keys().collect::<Vec<_>>(), ["aws:x"]);
    }

    fn check(given: impl IntoIterator<Item = (String, String)>, expect: &Expect) {
        let error = Tags::new(given).unwrap_err();
        expect.assert_eq(&format!("{}: {error}", error.code()));
    }

    proptest! {
        #[test]
        fn all_or_nothing(given in prop::collection::vec((any::<String>(), any::<String>()), 0..60)) {
            let mut tags = Tags::new(numbered(20)).unwrap();
            let before = tags.clone();
            match tags.add(given.clone()) {
                Ok(()) => prop_assert!(given.iter().all(|(key, value)| tags.get(key) == Some(value))),
                Err(_) => prop_assert_eq!(&tags, &before),
            }
            prop_assert!(tags.0.len() <= TAGS_MAX);
        }
    }
}

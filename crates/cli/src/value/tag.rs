//! `KEY=VALUE`: a tag.

use std::str::FromStr;

/// A tag as typed. What keys and values may be is for the daemon to say.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Tag {
    pub(crate) key: String,
    pub(crate) value: String,
}

impl FromStr for Tag {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((key, value)) if !key.is_empty() => {
                Ok(Self { key: key.to_owned(), value: value.to_owned() })
            }
            _ => Err(format!("`{text}` is not a tag: write KEY=VALUE, or KEY= for one without a value")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Tag;

    #[test]
    fn tags() {
        for (text, key, value) in
            [("a=b", "a", "b"), ("a=", "a", ""), ("a=b=c", "a", "b=c"), ("a b=", "a b", "")]
        {
            assert_eq!(text.parse(), Ok(Tag { key: key.into(), value: value.into() }), "{text}");
        }
        for text in ["", "a", "=b"] {
            assert!(text.parse::<Tag>().is_err(), "{text}");
        }
    }
}

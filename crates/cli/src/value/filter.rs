//! `NAME=VALUE[,VALUE...]`: a filter of a list, as the daemon takes it.

use std::str::FromStr;

/// A filter as typed. Which names there are is for the daemon to say.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Filter {
    pub(crate) text: String,
}

impl Filter {
    /// What it looks at.
    pub(crate) fn name(&self) -> &str {
        self.text.split_once('=').map_or("", |(name, _)| name)
    }
}

impl FromStr for Filter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((name, _)) if !name.is_empty() => Ok(Self { text: text.to_owned() }),
            _ => Err(format!("`{text}` is not a filter: write NAME=VALUE, such as instance-type=t3.*")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Filter;

    #[test]
    fn filters() {
        for (text, name) in [("tag:Name=web", "tag:Name"), ("a=", "a"), ("a=b,c=d", "a")] {
            assert_eq!(text.parse::<Filter>().unwrap().name(), name);
        }
        for text in ["", "a", "=b"] {
            assert!(text.parse::<Filter>().is_err(), "{text}");
        }
    }
}

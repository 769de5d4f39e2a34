//! `2026-11-22`, `2026-11-22T10:33:13Z`: a point in time, UTC where it does not say otherwise.

use std::str::FromStr;

use ec2vmm_model::Time;
use serde::{
    Deserialize,
    de::{IntoDeserializer, value::StrDeserializer},
};

/// A point in time as typed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Moment(pub(crate) Time);

impl FromStr for Moment {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let candidates = [text.to_owned(), format!("{text}Z"), format!("{text}T00:00:00Z")];
        let parse = |text: &String| {
            let text: StrDeserializer<'_, serde::de::value::Error> = text.as_str().into_deserializer();
            Time::deserialize(text).ok()
        };
        candidates
            .iter()
            .find_map(parse)
            .map(Self)
            .ok_or_else(|| format!("`{text}` is not a time: write 2026-11-22 or 2026-11-22T10:33:13Z"))
    }
}

#[cfg(test)]
mod tests {
    use super::Moment;

    #[test]
    fn moments() {
        for (text, time) in [
            ("2026-11-22", "2026-11-22T00:00:00.000Z"),
            ("2026-11-22T10:33:13Z", "2026-11-22T10:33:13.000Z"),
            ("2026-11-22T10:33:13", "2026-11-22T10:33:13.000Z"),
            ("2026-11-22T10:33:13.5+01:00", "2026-11-22T09:33:13.500Z"),
        ] {
            assert_eq!(text.parse::<Moment>().unwrap().0.to_string(), time, "{text}");
        }
        for text in ["", "yesterday", "2026-13-01", "22.11.2026", "1234567890"] {
            assert!(text.parse::<Moment>().is_err(), "{text}");
        }
    }
}

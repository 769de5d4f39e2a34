//! Ranges of keys: all, those that begin alike, those after another one; page by page.

use std::ops::Bound;

/// Some keys of a kind, in their order (bytewise), at most so many.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Keys {
    pub(crate) start: Bound<String>,
    pub(crate) end: Bound<String>,
    pub(crate) limit: usize,
}

impl Keys {
    /// All.
    pub fn all() -> Self {
        Self { start: Bound::Unbounded, end: Bound::Unbounded, limit: usize::MAX }
    }

    /// Those that begin so.
    pub fn prefix(prefix: &str) -> Self {
        Self { start: Bound::Included(prefix.to_owned()), end: past(prefix), limit: usize::MAX }
    }

    /// Of these, the ones from `key` on, itself included.
    #[must_use]
    pub fn from(self, key: &str) -> Self {
        self.starting(Bound::Included(key.to_owned()))
    }

    /// Of these, the ones after `key`: the next page, where `key` was the last of this one.
    #[must_use]
    pub fn after(self, key: &str) -> Self {
        self.starting(Bound::Excluded(key.to_owned()))
    }

    /// Of these, the first so many.
    #[must_use]
    pub fn limit(self, limit: usize) -> Self {
        Self { limit: limit.min(self.limit), ..self }
    }

    fn starting(self, start: Bound<String>) -> Self {
        let (Bound::Included(key) | Bound::Excluded(key)) = &start else { return self };
        match &self.start {
            Bound::Included(have) | Bound::Excluded(have) if have > key => self,
            Bound::Excluded(have) if have == key => self,
            _ => Self { start, ..self },
        }
    }

    /// The bounds; none where nothing can lie between them, which a map would take for a mistake.
    pub(crate) fn bounds(&self) -> Option<(Bound<&str>, Bound<&str>)> {
        let bounds = (as_str(&self.start), as_str(&self.end));
        match bounds {
            (Bound::Included(start), Bound::Excluded(end))
            | (Bound::Excluded(start), Bound::Excluded(end))
                if start >= end =>
            {
                None
            }
            (Bound::Excluded(start), Bound::Included(end)) if start >= end => None,
            (Bound::Included(start), Bound::Included(end)) if start > end => None,
            bounds => Some(bounds),
        }
    }

    pub(crate) fn contain(&self, key: &str) -> bool {
        let begun = match &self.start {
            Bound::Included(start) => key >= start.as_str(),
            Bound::Excluded(start) => key > start.as_str(),
            Bound::Unbounded => true,
        };
        let ended = match &self.end {
            Bound::Included(end) => key > end.as_str(),
            Bound::Excluded(end) => key >= end.as_str(),
            Bound::Unbounded => false,
        };
        begun && !ended
    }
}

fn as_str(bound: &Bound<String>) -> Bound<&str> {
    match bound {
        Bound::Included(key) => Bound::Included(key),
        Bound::Excluded(key) => Bound::Excluded(key),
        Bound::Unbounded => Bound::Unbounded,
    }
}

/// The first key that does not begin so: the last character that has a successor, replaced by it.
fn past(prefix: &str) -> Bound<String> {
    let mut rest = prefix.to_owned();
    while let Some(last) = rest.pop() {
        // The surrogates are no characters: U+D7FF is followed by U+E000.
        let next = match last {
            '\u{D7FF}' => Some('\u{E000}'),
            last => char::from_u32(u32::from(last).saturating_add(1)),
        };
        if let Some(next) = next {
            rest.push(next);
            return Bound::Excluded(rest);
        }
    }
    Bound::Unbounded
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{prop_assert_eq, proptest};

    use super::Keys;

    #[test]
    fn nothing_lies_between_bounds_that_cross() {
        assert!(Keys::prefix("a").after("b").bounds().is_none());
        assert!(Keys::prefix("i-1").from("i-0").bounds().is_some());
        assert!(Keys::all().bounds().is_some());
    }

    proptest! {
        #[test]
        fn a_prefix_is_what_begins_so(prefix in "[a\u{7f}\u{7ff}\u{d7ff}\u{ffff}\u{10ffff}]{0,3}", key in "[a\u{7f}\u{80}\u{7ff}\u{d7ff}\u{e000}\u{ffff}\u{10ffff}]{0,4}") {
            prop_assert_eq!(Keys::prefix(&prefix).contain(&key), key.starts_with(&prefix));
        }

        #[test]
        fn pages_follow_one_another(start in "[ab]{0,3}", key in "[ab]{0,3}") {
            prop_assert_eq!(Keys::all().from(&start).contain(&key), key >= start);
            prop_assert_eq!(Keys::all().after(&start).contain(&key), key > start);
            prop_assert_eq!(Keys::all().after(&start).from(&start).contain(&key), key > start);
        }
    }
}

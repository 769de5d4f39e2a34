//! Which pages.

use std::ops::Range;

/// Pages of RAM, a bit each.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Bitmap(pub(crate) Vec<u8>);

impl Bitmap {
    /// None of `pages`.
    pub fn new(pages: u64) -> Self {
        Self(vec![0; usize::try_from(pages.div_ceil(8)).unwrap_or(0)])
    }

    /// Adds a page. One that is not there is left out.
    pub fn set(&mut self, page: u64) {
        if let Some(byte) = usize::try_from(page / 8).ok().and_then(|at| self.0.get_mut(at)) {
            *byte |= 1 << (page % 8);
        }
    }

    /// Adds those of which the bit is set, the first being page `first`.
    pub fn set_words(&mut self, first: u64, words: &[u64]) {
        for (page, word) in (first..).step_by(64).zip(words) {
            let bits = (0..64).filter(|bit| word >> bit & 1 == 1);
            bits.for_each(|bit| self.set(page + bit));
        }
    }

    /// Whether a page is in it.
    pub fn has(&self, page: u64) -> bool {
        let byte = usize::try_from(page / 8).ok().and_then(|at| self.0.get(at));
        byte.is_some_and(|byte| byte >> (page % 8) & 1 == 1)
    }

    /// Takes pages out. How many of them were in it.
    pub fn clear(&mut self, pages: Range<u64>) -> u64 {
        let mut cleared = 0;
        for page in pages {
            let Some(byte) = usize::try_from(page / 8).ok().and_then(|at| self.0.get_mut(at)) else { break };
            cleared += u64::from(*byte >> (page % 8) & 1);
            *byte &= !(1 << (page % 8));
        }
        cleared
    }

    /// Adds those of another of as many.
    pub fn add(&mut self, other: &Self) {
        self.0.iter_mut().zip(&other.0).for_each(|(own, other)| *own |= other);
    }

    /// The first that is in it from this one on.
    pub fn next(&self, from: u64) -> Option<u64> {
        let end = self.0.len() as u64 * 8;
        let mut page = from;
        while page < end && !self.has(page) {
            // A byte at a time where there is nothing.
            page = if page.is_multiple_of(8) && self.is_byte_empty(page) { page + 8 } else { page + 1 };
        }
        (page < end).then_some(page)
    }

    /// How many are in it.
    pub fn count(&self) -> u64 {
        self.0.iter().map(|byte| u64::from(byte.count_ones())).sum()
    }

    /// Runs of pages that are in it: the first, and how many.
    pub fn runs(&self) -> impl Iterator<Item = (u64, u64)> {
        let mut page = 0;
        std::iter::from_fn(move || {
            let first = self.next(page)?;
            page = first;
            while self.has(page) {
                page += 1;
            }
            Some((first, page - first))
        })
    }

    fn is_byte_empty(&self, page: u64) -> bool {
        usize::try_from(page / 8).ok().and_then(|at| self.0.get(at)) == Some(&0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Bitmap;

    proptest! {
        #[test]
        fn runs_are_what_is_in_it(pages in prop::collection::btree_set(0_u64..300, 0..200)) {
            let mut bitmap = Bitmap::new(300);
            pages.iter().for_each(|page| bitmap.set(*page));
            bitmap.set(1 << 40);
            prop_assert_eq!(bitmap.count(), pages.len() as u64);
            let runs: Vec<_> = bitmap.runs().collect();
            prop_assert!(runs.windows(2).all(|pair| pair[0].0 + pair[0].1 < pair[1].0));
            let all = runs.iter().flat_map(|(first, count)| *first..first + count);
            prop_assert!(all.eq(pages));
        }

        #[test]
        fn pages_come_and_go(
            pages in prop::collection::btree_set(0_u64..300, 0..200),
            more in prop::collection::btree_set(0_u64..300, 0..200),
            gone in 0_u64..400,
            count in 0_u64..400,
        ) {
            let of = |pages: &std::collections::BTreeSet<u64>| {
                let mut bitmap = Bitmap::new(300);
                pages.iter().for_each(|page| bitmap.set(*page));
                bitmap
            };
            let mut bitmap = of(&pages);
            bitmap.add(&of(&more));
            let mut all: std::collections::BTreeSet<u64> = pages.union(&more).copied().collect();
            prop_assert_eq!(bitmap.next(gone), all.range(gone..).next().copied());
            let cleared = all.range(gone..gone + count).count() as u64;
            prop_assert_eq!(bitmap.clear(gone..gone + count), cleared);
            all.retain(|page| !(gone..gone + count).contains(page));
            prop_assert_eq!(bitmap, of(&all));
        }
    }
}

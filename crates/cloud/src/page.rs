//! Pages of a listing. A token names the place after the last resource that was shown, so that resources
//! which come and go meanwhile neither repeat nor hide others.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ec2vmm_store::{Keys, Record, Store, Stored};

use crate::Error;

/// Which part of a listing.
#[derive(Clone, Debug, Default)]
pub struct Paging {
    /// Most resources at once, 5 to 1,000. Nothing: 1,000.
    pub max_results: Option<u32>,
    /// [`Page::next_token`] of the page before.
    pub next_token: Option<String>,
}

/// A part of a listing.
#[derive(Clone, Debug)]
pub struct Page<T> {
    /// The resources, in the order of their ids.
    pub items: Vec<T>,
    /// How to ask for the next page; nothing on the last one.
    pub next_token: Option<String>,
}

impl<T> Page<T> {
    /// The only page.
    pub(crate) fn whole(items: Vec<T>) -> Self {
        Self { items, next_token: None }
    }

    pub(crate) fn map<U>(self, map: impl FnMut(T) -> U) -> Page<U> {
        Page { items: self.items.into_iter().map(map).collect(), next_token: self.next_token }
    }
}

impl Paging {
    /// How many at most.
    pub(crate) fn limit(&self) -> Result<usize, Error> {
        let given = self.max_results.unwrap_or(PAGE_MAX);
        if !(PAGE_MIN..=PAGE_MAX).contains(&given) {
            let side =
                if given < PAGE_MIN { "greater than or equal to 5" } else { "less than or equal to 1000" };
            return Err(Error::InvalidValue {
                message: format!(
                    "Value ( {given} ) for parameter maxResults is invalid. Expecting a value {side}."
                ),
                hint: None,
            });
        }
        Ok(usize::try_from(given).unwrap_or(usize::MAX))
    }

    /// The key that the page before ended with.
    pub(crate) fn after(&self, listing: &str) -> Result<Option<String>, Error> {
        let Some(token) = &self.next_token else { return Ok(None) };
        let key = URL_SAFE_NO_PAD
            .decode(token)
            .ok()
            .and_then(|bytes| String::from_utf8(bytes).ok())
            .and_then(|text| Some(text.strip_prefix(listing)?.strip_prefix('/')?.to_owned()));
        match key {
            Some(key) => Ok(Some(key)),
            None => Err(Error::InvalidToken(token.chars().take(64).collect())),
        }
    }

    pub(crate) fn token(listing: &str, last: &str) -> String {
        URL_SAFE_NO_PAD.encode(format!("{listing}/{last}"))
    }

    /// A page of records that pass. There is a next page only where there is another record on it.
    pub(crate) fn of_records<R: Record>(
        &self,
        store: &Store,
        mut passes: impl FnMut(&R) -> bool,
    ) -> Result<Page<Stored<R>>, Error> {
        let limit = self.limit()?;
        let mut after = self.after(R::KIND)?;
        let mut items: Vec<Stored<R>> = Vec::new();
        loop {
            let keys = after.as_deref().map_or_else(Keys::all, |after| Keys::all().after(after));
            let chunk = store.range::<R>(&keys.limit(CHUNK))?;
            let is_last = chunk.len() < CHUNK;
            after = chunk.last().map(|record| record.key());
            for record in chunk {
                if !passes(&record) {
                    continue;
                }
                if items.len() == limit {
                    let next_token = items.last().map(|last| Self::token(R::KIND, &last.key()));
                    return Ok(Page { items, next_token });
                }
                items.push(record);
            }
            if is_last {
                return Ok(Page::whole(items));
            }
        }
    }
}

/// The fewest resources that a page can be asked to have: EC2's.
const PAGE_MIN: u32 = 5;
/// The most.
const PAGE_MAX: u32 = 1_000;
/// Records that are looked at in one go.
const CHUNK: usize = 1_024;

//! Pages of a listing. A token names the place after the last resource that was shown, so that resources
//! which come and go meanwhile neither repeat nor hide others.

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

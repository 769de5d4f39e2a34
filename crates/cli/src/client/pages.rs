//! Lists that come in pages.

use ec2vmm_rest_api::{Image, ImageList, Instance, InstanceList};
use serde::de::DeserializeOwned;

use super::{Call, Client, Error};

/// One page of a list.
pub(crate) trait Page: DeserializeOwned {
    /// What it lists.
    type Item;

    /// What is on it, and where to go on.
    fn turn(self) -> (Vec<Self::Item>, Option<String>);
}

impl Page for InstanceList {
    type Item = Instance;

    fn turn(self) -> (Vec<Instance>, Option<String>) {
        (self.instances, self.next_token)
    }
}

impl Page for ImageList {
    type Item = Image;

    fn turn(self) -> (Vec<Image>, Option<String>) {
        (self.images, self.next_token)
    }
}

impl Client {
    /// All pages of a list.
    pub(crate) fn list<P: Page>(&self, call: &Call) -> Result<Vec<P::Item>, Error> {
        let mut items = Vec::new();
        let mut next = None;
        for _ in 0..PAGES_MAX {
            let page: P = self.ask(&call.clone().with_some("next_token", next))?;
            let (found, token) = page.turn();
            items.extend(found);
            next = token;
            if next.is_none() {
                return Ok(items);
            }
        }
        Err(Error::Nonsense(format!("more than {PAGES_MAX} pages")))
    }
}

const PAGES_MAX: u32 = 10_000;

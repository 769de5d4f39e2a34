//! What the same use costs on AWS, on demand.

use ec2vmm_model::{
    Time,
    cost::{self, Period, Report},
    ledger::Entry,
};
use ec2vmm_store::Keys;

use crate::{Cloud, Error, cloud::blocking};

impl Cloud {
    /// What was used from `from` (nothing: ever since) to `to` (nothing: now), and what that costs on AWS.
    ///
    /// # Errors
    /// A period that ends before it begins; the ledger cannot be read.
    pub async fn cost(&self, from: Option<Time>, to: Option<Time>) -> Result<Report, Error> {
        if let (Some(from), Some(to)) = (from, to)
            && from > to
        {
            let message = format!("The period ends ({to}) before it begins ({from}).");
            return Err(Error::InvalidValue { message, hint: None });
        }
        let (store, now) = (self.inner.store.clone(), self.inner.now());
        let period = Period { from, to };
        blocking(move || {
            let entries = store.range::<Entry>(&Keys::all())?;
            Ok(cost::report(entries.iter().map(|entry| &*entry.record), period, now))
        })
        .await
    }
}

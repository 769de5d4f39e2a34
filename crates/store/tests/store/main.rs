//! The store as its users see it, on real files.

#[cfg(test)]
mod backups;
#[cfg(test)]
mod crashes;
#[cfg(test)]
mod model;
#[cfg(test)]
mod refusals;
#[cfg(test)]
mod things;
#[cfg(test)]
mod transactions;
#[cfg(test)]
mod watches;

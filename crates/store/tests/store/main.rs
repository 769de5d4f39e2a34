//! The store as its users see it, on real files.

#[cfg(test)]
mod backups;
#[cfg(test)]
mod things;
#[cfg(test)]
mod transactions;

//! The command as people and scripts meet it, with a machine process that plays a part: no KVM, no root.

#[cfg(test)]
mod bad_input;
#[cfg(test)]
mod cloud;
#[cfg(test)]
mod completion;
#[cfg(test)]
mod consoles;
#[cfg(test)]
mod daemon;
#[cfg(test)]
mod endings;
#[cfg(test)]
mod fake;
#[cfg(test)]
mod help;
#[cfg(test)]
mod host;
#[cfg(test)]
mod instances;
#[cfg(test)]
mod keys;
#[cfg(test)]
mod life;
#[cfg(test)]
mod merging;
#[cfg(test)]
mod no_daemon;
#[cfg(test)]
mod printing;
#[cfg(test)]
mod reports;
#[cfg(test)]
mod streams;
#[cfg(test)]
mod terminal;
#[cfg(test)]
mod waiting;

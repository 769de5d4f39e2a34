//! The end of the server, as everything that goes on for long must hear of it.

use tokio::sync::watch;

/// Tells all [`Ending`]s that nothing new is taken from now on. Dropping it tells the same.
pub struct End(watch::Sender<bool>);

/// Hears of the end.
#[derive(Clone, Debug)]
pub struct Ending(watch::Receiver<bool>);

impl End {
    /// An end that has not come.
    pub fn new() -> (Self, Ending) {
        let (sender, receiver) = watch::channel(false);
        (Self(sender), Ending(receiver))
    }

    /// Now.
    pub fn come(&self) {
        self.0.send_replace(true);
    }
}

impl Ending {
    /// Whether it has come.
    pub fn has_come(&self) -> bool {
        *self.0.borrow() || self.0.has_changed().is_err()
    }

    /// Returns when it has come.
    pub async fn comes(&mut self) {
        // An error means that nobody is left to tell.
        drop(self.0.wait_for(|come| *come).await);
    }
}

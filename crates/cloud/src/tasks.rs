//! The tasks of a cloud, which end with it, and not before what they have begun to write is decided.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::{sync::Semaphore, task::JoinSet};

pub(crate) struct Tasks {
    /// Nothing once the cloud is shut down.
    set: Mutex<Option<JoinSet<()>>>,
    /// A permit is held by every commit that is under way.
    commits: Arc<Semaphore>,
}

impl Tasks {
    pub(crate) fn new() -> Self {
        Self {
            set: Mutex::new(Some(JoinSet::new())),
            commits: Arc::new(Semaphore::new(COMMITS_MAX as usize)),
        }
    }

    /// Starts a task. A cloud that is shut down starts none.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        if let Some(set) = &mut *self.set() {
            while set.try_join_next().is_some() {}
            set.spawn(task);
        }
    }

    pub(crate) fn commits(&self) -> Arc<Semaphore> {
        Arc::clone(&self.commits)
    }

    pub(crate) async fn shut_down(&self) {
        let set = self.set().take();
        if let Some(mut set) = set {
            set.shutdown().await;
        }
        // What blocks cannot be aborted: wait for it. The semaphore is never closed.
        let _all = self.commits.acquire_many(COMMITS_MAX).await;
    }

    fn set(&self) -> MutexGuard<'_, Option<JoinSet<()>>> {
        self.set.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Commits that are under way at once; more wait for their turn. The store groups them.
const COMMITS_MAX: u32 = 128;

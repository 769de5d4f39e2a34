//! Which user id each machine's process has: one that nobody else has.
//!
//! Invariant: an id is taken for as long as the machine's folder is there, in whose plan it is written before
//! there is a process. So a daemon that starts finds all that are taken, and none is given twice.

use std::{
    collections::BTreeMap,
    ops::RangeInclusive,
    sync::{Arc, Mutex, PoisonError},
};

use ec2vmm_model::ids::InstanceId;

use super::run_dir::RunDir;
use crate::host::Error;

/// The ids of this host's machines.
#[derive(Clone, Debug)]
pub(super) struct Ids {
    range: RangeInclusive<u32>,
    taken: Arc<Mutex<BTreeMap<InstanceId, u32>>>,
}

impl Ids {
    /// Those of the range, but for what the plans in `run_dir` have.
    pub(super) fn start(range: RangeInclusive<u32>, run_dir: &RunDir) -> Result<Self, Error> {
        let mut taken = BTreeMap::new();
        for instance in run_dir.list()? {
            let plan = run_dir.of(&instance).plan()?;
            taken.extend(plan.and_then(|plan| plan.id).map(|id| (instance, id)));
        }
        Ok(Self { range, taken: Arc::new(Mutex::new(taken)) })
    }

    /// The lowest that is free, or the one that this machine has already.
    pub(super) fn take(&self, instance: &InstanceId) -> Result<u32, Error> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(id) = taken.get(instance) {
            return Ok(*id);
        }
        let free = self.range.clone().find(|id| !taken.values().any(|taken| taken == id));
        let Some(id) = free else {
            let (first, last) = (self.range.start(), self.range.end());
            return Err(Error::Other {
                message: format!("every user id from {first} to {last} is some machine's"),
                hint: Some("give the daemon more with `--machine-ids`".into()),
            });
        };
        taken.insert(instance.clone(), id);
        Ok(id)
    }

    /// The machine's folder is gone.
    pub(super) fn release(&self, instance: &InstanceId) {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).remove(instance);
    }
}

#[cfg(test)]
mod tests {
    use ec2vmm_model::ids::InstanceId;

    use super::{super::run_dir::Plan, Ids, RunDir};

    #[test]
    fn none_is_given_twice_not_even_by_the_next_daemon() {
        let folder = tempfile::tempdir().unwrap();
        let run_dir = RunDir::start(folder.path().to_owned()).unwrap();
        let [one, two, three] = [1, 2, 3].map(InstanceId::from_random);
        let ids = Ids::start(500..=501, &run_dir).unwrap();
        assert_eq!(ids.take(&one).unwrap(), 500);
        assert_eq!((ids.take(&two).unwrap(), ids.take(&two).unwrap()), (501, 501));
        assert!(ids.take(&three).unwrap_err().to_string().contains("from 500 to 501"));
        run_dir.of(&two).create(&Plan { instance: two.clone(), generation: 1, id: Some(501) }).unwrap();
        // An older daemon's machine has none.
        run_dir.of(&three).create(&Plan { instance: three.clone(), generation: 1, id: None }).unwrap();

        let next = Ids::start(500..=501, &run_dir).unwrap();
        assert_eq!((next.take(&two).unwrap(), next.take(&one).unwrap()), (501, 500));
        next.release(&two);
        assert_eq!(next.take(&three).unwrap(), 501);
    }
}

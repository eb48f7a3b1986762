//! The tasks that this broker has seen in the store, so that a mint need neither check their seals again nor parse them.

use quick_cache::{Weighter, sync::Cache};
use std::sync::Arc;

use super::super::{InDoubt, Key, record::Sealer};
use crate::{id::TaskId, task::Task};

/// How much of the records is remembered, in bytes, and how many tasks that makes in the ordinary case.
const BYTES: u64 = 64 << 20;
const TASKS: usize = 32 * 1024;

/// Records of tasks whose seal was checked, byte for byte. A record never changes, so one that reads otherwise later is not
/// to be believed, whatever its seal.
pub(super) struct Known(Cache<TaskId, Seen, ByLength>);

/// A record, and what it says.
type Seen = (Arc<str>, Arc<Task>);

/// A workload decides how long its records are, so it is length that is bounded.
#[derive(Clone)]
struct ByLength;

impl Weighter<TaskId, Seen> for ByLength {
    fn weight(&self, _: &TaskId, (record, _): &Seen) -> u64 {
        record.len() as u64
    }
}

impl Default for Known {
    fn default() -> Self {
        Self(Cache::with_weighter(TASKS, BYTES, ByLength))
    }
}

impl Known {
    /// A task that has been seen: what it was declared to be, not whether it is still there.
    pub(super) fn get(&self, id: &TaskId) -> Option<Arc<Task>> {
        self.0.get(id).map(|(_, task)| task)
    }

    /// All of them.
    pub(super) fn all(&self) -> Vec<Arc<Task>> {
        self.0.iter().map(|(_, (_, task))| task).collect()
    }

    /// Forgets them all.
    pub(super) fn clear(&self) {
        self.0.clear();
    }

    /// The task in a record; `None` where a broker wrote it in another generation.
    ///
    /// # Errors
    /// When no broker wrote it, or it is not what was seen before.
    pub(super) fn believe(&self, sealer: &Sealer, id: &TaskId, record: &str) -> Result<Option<Arc<Task>>, InDoubt> {
        match self.0.get(id) {
            Some((seen, task)) if *seen == *record => return Ok(Some(task)),
            Some(_) => {
                self.0.remove(id);
                return Err(InDoubt("the record of a task has changed".into()));
            }
            None => {}
        }
        let Some(task) = sealer.open_if_current::<Task>(&Key::Task(id.clone()), record)? else { return Ok(None) };
        let task = Arc::new(task);
        self.0.insert(id.clone(), (record.into(), Arc::clone(&task)));
        Ok(Some(task))
    }
}
